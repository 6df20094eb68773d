"""Copies of an embedded journal: taken under load, found wrong when they are, put back in one step."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kiseki.journal.port import START, Position
from kiseki.journal.sqlite.schema import journal_epoch
from kiseki.kernel.errors import KisekiError
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Manifest
from kiseki.operations.errors import BackupDamaged, NoRoom, OperationFailed, RestoreRefused
from kiseki.operations.sqlite.journal import SqliteJournalBackups
from tests.integration.operations.sqlite.kill_points import killed_at_each_line
from tests.integration.operations.sqlite.sqlite_parts import (
    append,
    child,
    fill,
    journal_rows,
    line_from,
    manifest_of,
    no_progress,
    opened,
)
from tests.support import ManualClock

_FILE = "journal.db.gz"


def backups_of(live: Path) -> SqliteJournalBackups:
    return SqliteJournalBackups(live, clock=ManualClock())


async def made(live: Path, folder: Path) -> Manifest:
    folder.mkdir()
    return manifest_of(folder, await backups_of(live).make(folder, no_progress))


@pytest.fixture
async def live(tmp_path: Path) -> Path:
    """A journal with 300 commits and as many claims, and a snapshot."""
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await fill(journal, 300)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_copy_is_one_private_file_with_everything_but_snapshots(live: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(live)) as connection, connection:
        connection.execute("INSERT INTO snapshots VALUES ('Thing-1', 's', 1, '2026', 'a-secret-state')")
    manifest = await made(live, tmp_path / "copy")
    assert [file.name for file in manifest.files] == [_FILE]
    assert [path.name for path in (tmp_path / "copy").iterdir()] == [_FILE], "no log, no rest"
    assert stat.S_IMODE((tmp_path / "copy" / _FILE).stat().st_mode) == 0o600
    assert b"a-secret-state" not in gzip.decompress((tmp_path / "copy" / _FILE).read_bytes())
    contents = manifest.made.contents
    assert contents is not None
    assert (contents.commits, contents.streams, contents.claims) == (300, 300, 300)
    async with opened(live) as journal:
        assert manifest.made.position == await journal.head()
    async with backups_of(live).opened(tmp_path / "copy", manifest) as copy, surveyed(copy, "it", no_progress) as found:
        assert found.contents == contents


async def write_on(path: str) -> None:
    """In a process: appends as fast as it goes, and says when it has begun."""
    async with opened(Path(path)) as journal:
        for first in range(1_000, 1_000_000, 50):
            await fill(journal, 50, first=first)
            print(first, flush=True)


async def test_a_copy_under_load_is_of_one_moment_and_nobody_waits(live: Path, tmp_path: Path) -> None:
    writer = await child(write_on, str(live))
    try:
        for number in range(5):
            before = int(await line_from(writer))
            manifest = await made(live, tmp_path / f"copy-{number}")
            while int(await line_from(writer)) <= before:
                pass  # it has gone on
            async with (
                backups_of(live).opened(tmp_path / f"copy-{number}", manifest) as copy,
                surveyed(copy, "it", no_progress) as found,
            ):
                assert found.contents == manifest.made.contents
                assert found.contents.commits >= 300 + before - 1_000 + 50
                assert await copy.head() == manifest.made.position
    finally:
        writer.kill()
        await writer.wait()


@pytest.mark.parametrize("at", [0.0, 0.001, 0.3, 0.5, 0.999])
async def test_an_altered_copy_is_found(live: Path, tmp_path: Path, at: float) -> None:
    manifest = await made(live, tmp_path / "copy")
    file = tmp_path / "copy" / _FILE
    whole = file.read_bytes()
    place = min(int(at * len(whole)), len(whole) - 1)
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
    with pytest.raises(BackupDamaged, match="damaged"):
        async with backups_of(live).opened(tmp_path / "copy", manifest):
            pass
    file.write_bytes(whole[:place])
    with pytest.raises(BackupDamaged, match="cut short"):
        await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
    file.unlink()
    with pytest.raises(BackupDamaged, match="lacks"):
        await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
    assert [path.name for path in tmp_path.iterdir() if "restored" in path.name] == []


async def test_a_damaged_journal_is_not_copied(live: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(live)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'claims'").fetchone()
    data = bytearray(live.read_bytes())
    data[(page - 1) * 4096 : (page - 1) * 4096 + 200] = b"\xff" * 200
    live.write_bytes(data)
    (tmp_path / "copy").mkdir()
    with pytest.raises(OperationFailed):
        await backups_of(live).make(tmp_path / "copy", no_progress)
    live.unlink()
    with pytest.raises(OperationFailed, match="there is no"):
        await backups_of(live).make(tmp_path / "copy", no_progress)
    assert not live.exists()


async def test_a_full_disk_is_said_and_a_second_try_works(live: Path, tmp_path: Path, small_disk: Path) -> None:
    async with opened(live) as journal:
        for first in range(1_000, 5_000, 1_000):
            await fill(journal, 1_000, first=first)
    before = journal_rows(live)
    with pytest.raises(NoRoom, match="is full"):
        await backups_of(live).make(small_disk, no_progress)
    manifest = await made(live, tmp_path / "copy")
    other = small_disk / "journal.db"
    with pytest.raises(NoRoom, match="is full"):
        await backups_of(other).stage(tmp_path / "copy", manifest, no_progress)
    assert [path.name for path in small_disk.iterdir() if "restored" in path.name] == []
    assert journal_rows(live) == before
    staged = await backups_of(tmp_path / "new.db").stage(tmp_path / "copy", manifest, no_progress)
    await staged.switch()
    assert journal_rows(tmp_path / "new.db") == before


async def test_restoring_keeps_the_old_one_and_begins_a_new_life(live: Path, tmp_path: Path) -> None:
    before = journal_rows(live)
    manifest = await made(live, tmp_path / "copy")
    async with opened(live) as journal:
        await append(journal, "Thing-later", 0)
        old = await journal.head()
    later = journal_rows(live)
    positions = [old]
    for _ in range(3):
        staged = await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
        async with staged.opened() as there, surveyed(there, "it", no_progress) as found:
            assert found.contents == manifest.made.contents
        switched = await staged.switch()
        assert journal_rows(live) == before
        async with opened(live) as journal:
            for position in positions:
                page = await journal.feed(position, limit=1000)
                assert len(page.commits) == 300, "positions of earlier lives read from the start"
            positions.append(await journal.head())
            assert len((await journal.feed(START, limit=1000)).commits) == 300
        await staged.discard()
    kept = sorted(tmp_path.glob("journal.db.replaced-*"))
    assert len(kept) == 3, "of one second, and none lost"
    assert journal_rows(kept[0]) == later
    assert Path(switched.kept) in kept
    assert stat.S_IMODE(live.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if "restored" in path.name] == []


async def test_positions_of_a_life_that_nobody_remembers_read_from_the_start(live: Path, tmp_path: Path) -> None:
    """An old copy is restored twice, and between the two everything was lost."""
    manifest = await made(live, tmp_path / "copy")
    clock = ManualClock()
    positions: list[Position] = []
    for _ in range(3):
        for path in tmp_path.glob("journal.db*"):
            path.unlink()
        clock.advance(3_600)
        backups = SqliteJournalBackups(live, clock=clock)
        await (await backups.stage(tmp_path / "copy", manifest, no_progress)).switch()
        async with opened(live) as journal:
            positions.append(await journal.head())
    assert len(set(positions)) == 3


async def test_a_journal_in_use_is_not_replaced(live: Path, tmp_path: Path) -> None:
    manifest = await made(live, tmp_path / "copy")
    async with opened(live) as journal:
        await append(journal, "Thing-later", 0)
        staged = await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
        with pytest.raises(RestoreRefused, match="stop kiseki"):
            await staged.switch()
        await append(journal, "Thing-later", 1)
    later = journal_rows(live)
    assert len(later["commits"]) == 302
    await staged.switch()
    assert len(journal_rows(live)["commits"]) == 300


async def hold(path: str) -> None:
    """In a process: has a journal open until it is killed."""
    async with opened(Path(path)):
        print("open", flush=True)
        await asyncio.Event().wait()


async def test_a_damaged_journal_is_replaced_and_kept_unless_it_is_in_use(live: Path, tmp_path: Path) -> None:
    manifest = await made(live, tmp_path / "copy")
    holder = await child(hold, str(live))
    try:
        await line_from(holder)
        with live.open("r+b") as file:
            file.write(b"not a database any more" * 100)
        staged = await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
        with pytest.raises(RestoreRefused, match="stop kiseki"):
            await staged.switch()
    finally:
        holder.kill()
        await holder.wait()
    Path(f"{live}-journal").write_bytes(b"the rest of a journal")
    switched = await staged.switch()
    assert len(journal_rows(live)["commits"]) == 300
    assert Path(switched.kept).read_bytes().startswith(b"not a database any more")
    assert not [path.name for path in tmp_path.glob("journal.db-*")], "nothing of it meets the restored file"


async def test_a_lost_journal_comes_back(live: Path, tmp_path: Path) -> None:
    before = journal_rows(live)
    manifest = await made(live, tmp_path / "copy")
    shutil.rmtree(tmp_path / "system", ignore_errors=True)
    target = tmp_path / "system" / "data" / "journal.db"
    switched = await (await backups_of(target).stage(tmp_path / "copy", manifest, no_progress)).switch()
    assert switched.kept == ""
    assert journal_rows(target) == before


async def test_what_a_killed_restore_left_is_removed_by_the_next(live: Path, tmp_path: Path) -> None:
    manifest = await made(live, tmp_path / "copy")
    for suffix in ("", "-wal", ".lock"):
        (tmp_path / f"journal.db.restored-20250101T000000Z-killed{suffix}").write_bytes(b"half")
    staged = await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)
    await staged.discard()
    await staged.discard()
    assert [path.name for path in tmp_path.iterdir() if "restored" in path.name] == []


def die_while_switching(folder: str) -> None:
    """In a process: a restore that dies at each line of it, and the same again."""
    root = Path(folder)
    manifest = asyncio.run(made(root / "source.db", root / "copy"))
    old, new = len(journal_rows(root / "old.db")["commits"]), len(journal_rows(root / "source.db")["commits"])
    live = root / "system" / "journal.db"

    def prepare() -> None:
        shutil.rmtree(live.parent, ignore_errors=True)
        live.parent.mkdir()
        shutil.copy(root / "old.db", live)

    async def restored() -> None:
        await (await backups_of(live).stage(root / "copy", manifest, no_progress)).switch()

    def look() -> None:
        commits = len(journal_rows(live)["commits"])
        assert commits in (old, new), "at every moment there is a journal, the old or the new one"
        if commits == new:
            assert journal_epoch(live) > 1, "in a new life from the first moment"
        asyncio.run(restored())
        assert len(journal_rows(live)["commits"]) == new
        kept = [journal_rows(path)["commits"] for path in live.parent.glob("journal.db.replaced-*")]
        assert old in map(len, kept), "and the old one is kept"

    lines = killed_at_each_line(
        ("operations/sqlite/copying.py", "operations/sqlite/switching.py"),
        prepare,
        lambda: asyncio.run(restored()),
        look,
    )
    print(lines, flush=True)


async def test_a_restore_that_dies_at_any_line_leaves_a_journal(live: Path, tmp_path: Path) -> None:
    async with opened(tmp_path / "source.db") as journal:
        await fill(journal, 20)
    live.rename(tmp_path / "old.db")
    process = await child(die_while_switching, str(tmp_path))
    assert int(await line_from(process) or 0) > 40
    assert await process.wait() == 0


async def test_errors_are_one_line_without_secrets(live: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    live.write_bytes(b"nothing")
    with pytest.raises(KisekiError) as caught:
        await backups_of(live).make(tmp_path / "copy", no_progress)
    assert "\n" not in str(caught.value)


async def test_a_journal_behind_a_link_is_replaced_on_its_disk(live: Path, tmp_path: Path) -> None:
    rows = journal_rows(live)
    manifest = await made(live, tmp_path / "copy")
    disk, link = tmp_path / "disk", tmp_path / "data" / "journal.db"
    disk.mkdir()
    link.parent.mkdir()
    live.rename(disk / "journal.db")
    link.symlink_to(disk / "journal.db")
    switched = await (await backups_of(link).stage(tmp_path / "copy", manifest, no_progress)).switch()
    assert Path(switched.kept).parent == disk
    assert link.is_symlink()
    assert journal_rows(disk / "journal.db") == rows
    (disk / "journal.db").unlink()  # lost, and the link is still there
    assert (await (await backups_of(link).stage(tmp_path / "copy", manifest, no_progress)).switch()).kept == ""
    assert link.is_symlink()
    assert journal_rows(link) == rows
    disk.rename(tmp_path / "taken out")
    with pytest.raises(RestoreRefused, match="mount its disk"):
        await backups_of(link).stage(tmp_path / "copy", manifest, no_progress)
    assert not disk.exists(), "nothing is made where a disk should be mounted"


async def test_a_kept_link_that_leads_nowhere_is_in_nobodys_way(live: Path, tmp_path: Path) -> None:
    manifest = await made(live, tmp_path / "copy")
    now = ManualClock().now()
    live.with_name(f"journal.db.replaced-{now:%Y%m%dT%H%M%SZ}").symlink_to(tmp_path / "gone.db")
    switched = await (await backups_of(live).stage(tmp_path / "copy", manifest, no_progress)).switch()
    assert switched.kept == str(live.with_name(f"journal.db.replaced-{now:%Y%m%dT%H%M%SZ}-2"))
