"""Copies of an embedded key store: no destroyed key in them, nobody erased comes back, put back in one step."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import shutil
import sqlite3
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.errors import BackupDamaged, RestoreRefused
from kiseki.operations.sqlite.keys import SqliteKeyBackups
from kiseki.security.identity.sqlite_revocations import SqliteRevocations
from kiseki.security.key_store import DIGEST_SUBJECT, KeyStoreUnavailable, Rewrapped, WrappedKey
from kiseki.security.sqlite_key_file import KeyFile
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.operations.sqlite.kill_points import killed_at_each_line
from tests.integration.operations.sqlite.sqlite_parts import (
    child,
    key_rows,
    line_from,
    manifest_of,
    no_progress,
    revoked_rows,
)
from tests.support import ManualClock

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def backups_in(folder: Path) -> SqliteKeyBackups:
    return SqliteKeyBackups(folder / "keys.db", revocations=folder / "revocations.db", clock=ManualClock())


async def made(live: Path, folder: Path) -> Manifest:
    folder.mkdir()
    return manifest_of(folder, await backups_in(live).make(folder, no_progress), Part.KEYS)


async def store_in(folder: Path, people: int = 50) -> None:
    folder.mkdir(exist_ok=True)
    keys = await SqliteKeyStore.open(folder / "keys.db")
    await keys.insert({DIGEST_SUBJECT: WrappedKey("root", b"root-of-digests")})
    await keys.insert({f"Person-{n}": WrappedKey(f"key-{n}", b"wrapped key %06d" % n) for n in range(people)})
    await keys.close()
    revocations = await SqliteRevocations.open(folder / "revocations.db")
    await revocations.revoke("issuer", "somebody", at=1.0, forget_before=0)


async def erase(folder: Path, subject: str) -> None:
    keys = await SqliteKeyStore.open(folder / "keys.db")
    await keys.erase(subject, _NOW)
    await keys.close()


async def test_a_copy_has_no_destroyed_key_in_any_byte(tmp_path: Path) -> None:
    await store_in(tmp_path / "live")
    keys = await SqliteKeyStore.open(tmp_path / "live" / "keys.db")
    await keys.erase("Person-7", _NOW)
    old = WrappedKey("key-8", b"wrapped key 000008")
    await keys.replace([Rewrapped("Person-8", old, b"anew wrapped 00008")])
    manifest = await made(tmp_path / "live", tmp_path / "copy")  # while it is open
    await keys.close()
    assert manifest.made.counts == {"keys": 50, "erasures": 1, "revocations": 1}
    whole = gzip.decompress((tmp_path / "copy" / "keys.db.gz").read_bytes())
    assert base64.b64encode(b"wrapped key 000006") in whole
    assert base64.b64encode(b"anew wrapped 00008") in whole
    for gone in (b"wrapped key 000007", b"wrapped key 000008"):
        assert base64.b64encode(gone) not in whole
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["keys.db.gz", "revocations.db.gz"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "copy").iterdir()} == {0o600}
    async with backups_in(tmp_path / "live").opened(tmp_path / "copy", manifest) as there:
        assert sum([len(page) async for page in there.scan(10)]) == manifest.made.counts["keys"]
        assert (await there.erasures(None)).mark == 1


async def test_an_erasure_does_not_wait_for_a_copy(tmp_path: Path) -> None:
    """Copies are taken again and again; an erasure, which waits for readers of the log, is done meanwhile."""
    await store_in(tmp_path / "live", 20_000)
    done = asyncio.Event()

    async def copies() -> int:
        number = 0
        while not done.is_set():
            await made(tmp_path / "live", tmp_path / f"copy-{number}")
            number += 1
        return number

    copying = asyncio.create_task(copies())
    keys = await SqliteKeyStore.open(tmp_path / "live" / "keys.db", busy_timeout=2.0)
    for number in range(10):
        await keys.erase(f"Person-{number}", _NOW)
    done.set()
    await keys.close()
    assert await copying > 0


async def test_restoring_brings_keys_back_and_nobody_who_was_erased(tmp_path: Path) -> None:
    live = tmp_path / "live"
    await store_in(live)
    await erase(live, "Person-1")
    manifest = await made(live, tmp_path / "copy")
    before = key_rows(live / "keys.db")
    await erase(live, "Person-2")
    revocations = await SqliteRevocations.open(live / "revocations.db")
    await revocations.revoke("issuer", "somebody else", at=2.0, forget_before=0)
    staged = await backups_in(live).stage(tmp_path / "copy", manifest, no_progress)
    keys = await SqliteKeyStore.open(live / "keys.db")
    with pytest.raises(RestoreRefused, match="stop kiseki"):
        await staged.switch()
    await keys.erase("Person-3", _NOW)  # after it was staged
    await keys.close()
    switched = await staged.switch()
    assert "within 7 days" in switched.left[0]
    after = key_rows(live / "keys.db")
    assert [row[1] for row in after["erasures"]] == ["Person-1", "Person-2", "Person-3"]
    assert len(after["keys"]) == len(before["keys"])
    for name in ("keys.db", "keys.db-wal"):
        if (live / name).exists():
            for gone in (1, 2, 3):
                assert base64.b64encode(b"wrapped key %06d" % gone) not in (live / name).read_bytes()
    assert len(revoked_rows(live / "revocations.db")["revocations"]) == 2, "no revocation is taken back"
    assert stat.S_IMODE((live / "keys.db").stat().st_mode) == 0o600
    assert [path.name for path in live.iterdir() if "restored" in path.name] == []


async def test_lost_keys_come_back_with_the_revocations(tmp_path: Path) -> None:
    live = tmp_path / "live"
    await store_in(live)
    manifest = await made(live, tmp_path / "copy")
    before = key_rows(live / "keys.db"), revoked_rows(live / "revocations.db")
    shutil.rmtree(live)
    await (await backups_in(live).stage(tmp_path / "copy", manifest, no_progress)).switch()
    assert (key_rows(live / "keys.db"), revoked_rows(live / "revocations.db")) == before
    file = tmp_path / "copy" / "keys.db.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BackupDamaged):
        await backups_in(live).stage(tmp_path / "copy", manifest, no_progress)
    assert (key_rows(live / "keys.db"), revoked_rows(live / "revocations.db")) == before
    assert [path.name for path in live.iterdir() if "restored" in path.name] == []


def die_while_switching(folder: str) -> None:
    """In a process: a restore that dies at each line of it, and the same again."""
    root = Path(folder)
    manifest = asyncio.run(made(root / "source", root / "copy"))
    live = root / "live"

    def prepare() -> None:
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(root / "old", live)

    async def restored() -> None:
        await (await backups_in(live).stage(root / "copy", manifest, no_progress)).switch()

    def look() -> None:
        for _ in range(2):
            rows = key_rows(live / "keys.db")
            assert "Person-1" in [row[1] for row in rows["erasures"]], "who is erased stays erased at every moment"
            asyncio.run(restored())

    print(killed_at_each_line(("operations/sqlite/keys.py",), prepare, lambda: asyncio.run(restored()), look))


async def test_a_restore_that_dies_at_any_line_leaves_a_key_store(tmp_path: Path) -> None:
    await store_in(tmp_path / "source", 3)
    shutil.copytree(tmp_path / "source", tmp_path / "old")
    await erase(tmp_path / "old", "Person-1")
    process = await child(die_while_switching, str(tmp_path))
    assert int(await line_from(process) or 0) > 30
    assert await process.wait() == 0


async def test_who_starts_in_the_moment_of_the_switch_meets_the_restored_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the old file open its log would be taken for one of the new file."""
    live = tmp_path / "live"
    await store_in(live)
    manifest = await made(live, tmp_path / "copy")
    staged = await backups_in(live).stage(tmp_path / "copy", manifest, no_progress)
    replace = os.replace
    started: list[Future[None]] = []

    async def start() -> None:
        keys = await SqliteKeyStore.open(live / "keys.db", busy_timeout=30.0)
        await keys.insert({"Newcomer-1": WrappedKey("key-of-newcomer", b"wrapped key of one")})
        await keys.close()

    def replaced(source: Path, target: Path) -> None:
        with pytest.raises(KeyStoreUnavailable, match="another process holds its lock"):
            KeyFile(live / "keys.db", busy_timeout=0.0).connect()
        started.append(executor.submit(lambda: asyncio.run(start())))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    with ThreadPoolExecutor(1) as executor:
        await staged.switch()
        await asyncio.wrap_future(started[0])
    subjects = [row[1] for row in key_rows(live / "keys.db")["keys"]]
    assert len(subjects) == 52
    assert subjects[-1] == "Newcomer-1"
    with closing(sqlite3.connect(live / "keys.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_all_that_is_kept_of_a_key_store_is_said(tmp_path: Path) -> None:
    """Of a damaged or lost file its log stays, and there are keys in it."""
    live = tmp_path / "live"
    await store_in(live)
    manifest = await made(live, tmp_path / "copy")
    (live / "keys.db").unlink()
    (live / "keys.db-wal").write_bytes(b"a log with keys")
    (live / "revocations.db").write_bytes(b"damaged" * 1_000)
    switched = await (await backups_in(live).stage(tmp_path / "copy", manifest, no_progress)).switch()
    kept = sorted(str(path) for path in live.iterdir() if ".replaced-" in path.name)
    assert {Path(path).name.partition(".replaced-")[0] for path in kept} == {"keys.db", "revocations.db"}
    assert sorted(switched.kept.split(", ")) == kept
    assert all(path in switched.left[0] for path in kept)
