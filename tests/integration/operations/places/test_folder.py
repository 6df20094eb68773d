"""The folder as a place, when disks, permissions and processes fail: one line, nothing half, a second run works."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiseki.operations.errors import BackupDamaged, NoRoom, OperationFailed, OperatorBusy, PlaceUnavailable
from kiseki.operations.places.disk import sync_file
from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.places.port import LAST
from tests.integration.operations.places.place_parts import child, kill, line_from, published


@pytest.fixture
def folder(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "backups", setting="backup")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def all_of(path: Path) -> list[str]:
    """Every file below, but for the locks, which stay."""
    files = [each for each in path.rglob("*") if each.is_file() and not each.name.endswith(".lock")]
    return sorted(str(each.relative_to(path)) for each in files)


async def test_only_its_owner_can_read(folder: FolderPlace, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await published(folder, "journal/one", data=b"1")
        await folder.write("heads/now", b"2")
        async with folder.lock("journal"):
            pass
    finally:
        os.umask(before)
    root = tmp_path / "backups"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


async def test_a_disk_that_is_not_mounted_is_not_an_empty_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = FolderPlace(tmp_path / "mnt" / "backups", setting="backup_keys")
    for asked in (place.names(), place.read("a"), place.write("a", b"x"), place.remove("a"), published(place, "a")):
        with pytest.raises(
            PlaceUnavailable, match=r"mnt/backups: can't .*: it is not there; mount its disk .* set backup_keys"
        ):
            await asked
    assert not (tmp_path / "mnt").exists()
    (tmp_path / "mnt").mkdir()
    assert await place.names() == []
    assert await place.read("a") is None
    assert not (tmp_path / "mnt" / "backups").exists()
    await place.write("a", b"x")
    assert f"made the folder {tmp_path}/mnt/backups for backups; if a disk belongs there" in caplog.text
    assert await place.read("a") == b"x"


async def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "backups").write_bytes(b"mine")
    place = FolderPlace(tmp_path / "backups", setting="backup")
    with pytest.raises(OperationFailed, match="something else is in the way"):
        await place.write("a", b"x")
    assert (tmp_path / "backups").read_bytes() == b"mine"


async def test_a_folder_is_not_replaced_by_a_file(folder: FolderPlace) -> None:
    await published(folder, "journal/one", data=b"1")
    with pytest.raises(OperationFailed, match="something else is in the way"):
        await folder.write("journal/one", b"x")
    with pytest.raises(OperationFailed, match="something else is in the way"):
        await folder.write("journal/one/data/more", b"x")
    assert [each.name for each in await folder.names()] == ["journal/one/data", f"journal/one/{LAST}"]


async def test_links_inside_are_not_followed(folder: FolderPlace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_bytes(b"secret")
    await folder.write("a", b"x")
    root = tmp_path / "backups"
    (root / "journal").symlink_to(outside)
    (root / "link").symlink_to(outside / "data")
    assert [each.name for each in await folder.names()] == ["a"]
    assert await folder.names("journal/") == []
    assert await folder.read("link") is None
    assert await folder.read("journal/data") is None
    with pytest.raises(BackupDamaged):
        async with folder.fetched("journal", ["data"]):
            raise AssertionError
    with pytest.raises(OperationFailed, match="in the way"):
        await folder.write("journal/data", b"x")
    await folder.remove("journal/data")
    await folder.remove("link")
    await folder.remove("journal")
    assert (outside / "data").read_bytes() == b"secret"
    assert sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock")) == ["a"]


async def test_a_folder_from_another_file_system_is_copied(folder: FolderPlace, small_disk: Path) -> None:
    made = small_disk / "made"
    made.mkdir()
    (made / "data").write_bytes(b"1" * 5000)
    (made / LAST).write_bytes(b"{}")
    await folder.publish(made, "journal/one")
    async with folder.fetched("journal/one", ["data", LAST]) as fetched:
        assert (fetched / "data").read_bytes() == b"1" * 5000


async def test_a_full_disk_and_room_again(small_disk: Path, tmp_path: Path) -> None:
    place = FolderPlace(small_disk, setting="backup")
    await place.write("journal-increments/1", b"kept")
    big = tmp_path / "big"
    big.write_bytes(b"x" * (2 << 20))
    told = (
        r"disk: can't {}: the disk is full; what was begun is removed; free some room, or set backup to another folder"
    )
    with pytest.raises(NoRoom, match=told.format("write journal-increments/2")):
        await place.put("journal-increments/2", big)
    with pytest.raises(NoRoom, match=told.format("make journal/one")):
        async with place.workspace("journal/one") as folder:
            (folder / "data").write_bytes(big.read_bytes())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(big, elsewhere / "data")
    (elsewhere / LAST).write_bytes(b"{}")
    with pytest.raises(NoRoom, match=told.format("publish journal/one")):
        await place.publish(elsewhere, "journal/one")
    assert all_of(small_disk) == ["journal-increments/1"]
    await published(place, "journal/one", data=b"small")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    async with place.lock("journal"):
        await place.remove("journal/one")  # needs no room itself
    assert [each.name for each in await place.names()] == ["filler", "journal-increments/1"]


async def test_removing_where_even_a_name_needs_room(folder: FolderPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not seen on a disk: the system's answer is made here. What has no manifest was never finished."""

    def full(path: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path), None, str(target))

    gone: list[str] = []
    real = os.unlink

    def unlink(path: str, **more: int) -> None:
        gone.append(Path(path).name)
        real(path, **more)

    await published(folder, "journal/one", data=b"1")
    monkeypatch.setattr(Path, "rename", full)
    monkeypatch.setattr("os.unlink", unlink)
    await folder.remove("journal/one")
    monkeypatch.undo()
    assert gone == [LAST, "data"]
    assert await folder.names() == []


@pytest.mark.parametrize(
    ("number", "error", "told"),
    [
        (errno.EDQUOT, NoRoom, "the quota is used up"),
        (errno.EFBIG, NoRoom, "no file may be so large"),
        (errno.EROFS, PlaceUnavailable, "read-only"),
        (errno.EACCES, PlaceUnavailable, "permission denied; give it to user"),
        (errno.EIO, PlaceUnavailable, "Input/output error; look at the disk"),
        (errno.ESTALE, PlaceUnavailable, "look at the disk and its mount"),
    ],
)
async def test_a_disk_that_fails_while_files_are_made_durable(
    folder: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], told: str
) -> None:
    """Not seen on a disk: the system's answer is made here."""

    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    await folder.write("a", b"old")
    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(error, match=told):
        await folder.write("a", b"new")
    with pytest.raises(error, match=told):
        await published(folder, "b", data=b"1")
    monkeypatch.undo()
    assert all_of(tmp_path / "backups") == ["a"]
    assert await folder.read("a") == b"old"
    await published(folder, "b", data=b"1")


async def test_everything_is_durable_before_it_appears(
    folder: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of calls, since no power is cut here: files, their folder, the rename, the folder above."""
    calls: list[str] = []
    target = tmp_path / "backups" / "journal" / "one"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(f"{Path(path).name}{' late' if target.exists() else ''}")
        real(descriptor)

    async with folder.workspace("journal/one") as made:
        for name in ("data", "more", LAST):
            (made / name).write_bytes(b"x")
        monkeypatch.setattr("os.fsync", fsync)
        await folder.publish(made, "journal/one")
        monkeypatch.undo()
    assert calls == ["data", "more", LAST, "files", "journal late"]


_PUBLISHES = """
import asyncio, sys
from pathlib import Path
from kiseki.operations.places import folder as module
from kiseki.operations.places.folder import FolderPlace
where, name = sys.argv[1], sys.argv[2]
seen = []
def stops(path):
    seen.append(path)
    if len(seen) == 2:
        print("half", flush=True)
        sys.stdin.read()
module.sync_file = stops
async def main():
    place = FolderPlace(Path(where), setting="backup")
    async with place.workspace(name) as folder:
        print(folder.parent.name, flush=True)
        for file in ("data", "more", "manifest.json"):
            (folder / file).write_bytes(b"x" * 1000)
        await place.publish(folder, name)
asyncio.run(main())
"""


async def test_killed_in_the_middle_of_publishing(folder: FolderPlace, tmp_path: Path) -> None:
    with child(_PUBLISHES, tmp_path / "backups", "journal/one") as process:
        left = tmp_path / "backups" / "journal" / line_from(process)
        assert line_from(process) == "half"
        async with folder.workspace("journal/two"):
            assert left.exists(), "it is still being made"
            assert await folder.names() == []
        assert left.exists(), "it is still being made"
        kill(process)
    assert left.exists()
    assert await folder.names() == []
    async with folder.workspace("journal/one"):
        assert not left.exists()
    await published(folder, "journal/one", data=b"1")
    assert all_of(tmp_path / "backups") == ["journal/one/data", f"journal/one/{LAST}"]


_PUTS = """
import asyncio, sys
from pathlib import Path
from kiseki.operations.places import folder as module
from kiseki.operations.places.folder import FolderPlace
real = module.fill
def stops(descriptor, pieces):
    real(descriptor, pieces)
    print("half", flush=True)
    sys.stdin.read()
module.fill = stops
asyncio.run(FolderPlace(Path(sys.argv[1]), setting="backup").write(sys.argv[2], b"new"))
"""


async def test_killed_in_the_middle_of_writing_keys(folder: FolderPlace, tmp_path: Path) -> None:
    """The copy that nobody finished is of keys too, and has to go."""
    await folder.write("keys-increments/1", b"old")
    with child(_PUTS, tmp_path / "backups", "keys-increments/1") as process:
        assert line_from(process) == "half"
        await folder.write("keys-increments/2", b"two")
        assert len(all_of(tmp_path / "backups")) == 3, "it is still being written"
        kill(process)
    assert await folder.read("keys-increments/1") == b"old"
    await folder.write("keys-increments/2", b"two again")
    assert all_of(tmp_path / "backups") == ["keys-increments/1", "keys-increments/2"]


_LOCKS = """
import asyncio, sys
from pathlib import Path
from kiseki.operations.places.folder import FolderPlace
async def main():
    async with FolderPlace(Path(sys.argv[1]), setting="backup").lock("journal"):
        print("held", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""


async def test_a_holder_that_is_killed(folder: FolderPlace, tmp_path: Path) -> None:
    with child(_LOCKS, tmp_path / "backups") as process:
        assert line_from(process) == "held"
        with pytest.raises(OperatorBusy, match=rf"journal is held by \S+, process {process.pid} on "):
            async with folder.lock("journal"):
                raise AssertionError
        kill(process)
    async with folder.lock("journal"):
        pass


_DENIED = """
import asyncio, os, sys
from pathlib import Path
from kiseki.operations.errors import PlaceUnavailable
from kiseki.operations.places.folder import FolderPlace
async def main():
    await asyncio.to_thread(int)  # what is imported for threads may not be readable afterwards
    if os.geteuid() == 0:  # whom no mode keeps out
        os.setuid(65534)
    place = FolderPlace(Path(sys.argv[1]), setting="backup")
    for asked in (place.names(), place.read("a"), place.write("a", b"x"), place.remove("a")):
        try:
            await asked
        except PlaceUnavailable as problem:
            print(problem, flush=True)
asyncio.run(main())
"""


async def test_without_permission(folder: FolderPlace, tmp_path: Path) -> None:
    await folder.write("a", b"mine")
    (tmp_path / "backups").chmod(0)
    with child(_DENIED, tmp_path / "backups") as process:
        output, _ = process.communicate()
    lines = output.splitlines()
    assert len(lines) == 4
    assert all("permission denied; give it to user " in line for line in lines)
    (tmp_path / "backups").chmod(0o700)
    assert await folder.read("a") == b"mine"


async def test_a_source_that_cannot_be_read_is_not_the_fault_of_the_place(folder: FolderPlace, tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match=r"nothing can't be read: No such file or directory"):
        await folder.put("a", tmp_path / "nothing")
    assert await folder.names() == []


async def test_cancelled_while_publishing(folder: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in a thread ends before what it works on is cleared up."""
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()
    real = sync_file

    def slow(path: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        real(path)

    monkeypatch.setattr("kiseki.operations.places.folder.sync_file", slow)
    publishing = asyncio.create_task(published(folder, "journal/one", data=b"1"))
    await begun.wait()
    publishing.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    left = all_of(tmp_path / "backups")
    assert left in ([], ["journal/one/data", f"journal/one/{LAST}"]), "whole or not at all"
    assert list(tmp_path.rglob(".*.part-*")) == []
