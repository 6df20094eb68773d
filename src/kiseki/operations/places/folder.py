"""`FolderPlace`: backups in a folder, of this machine or mounted from another one. Opened by `open_place`.

What appears does so by one rename, after all of it is durable. Symbolic links inside are not followed. Locks are flock:
on a network file system they keep other machines out where it has them (NFS 4 does).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from kiseki.operations.errors import BackupDamaged, OperationFailed, OperatorBusy
from kiseki.operations.places.disk import FULL, Disk, fill, flat_files, is_file, pieces_of, sync_directory, sync_file
from kiseki.operations.places.holder import holder_line, shown_holder
from kiseki.operations.places.names import checked_name, checked_prefix, is_hidden
from kiseki.operations.places.port import LAST, Stored
from kiseki.operations.places.threads import in_thread
from kiseki.operations.places.unfinished import Workshop, discard, hidden_path

__all__ = ["FolderPlace"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


class FolderPlace:
    """A folder with backups. It, or at least the folder that it is in, has to exist: a disk that is not mounted must
    not be taken for an empty place."""

    def __init__(self, root: Path, *, setting: str) -> None:
        """`setting` is named where a message says what to change."""
        self._root = root.absolute()
        self.label = str(self._root)
        self._disk = Disk(self.label, remedy=f"set {setting} to another folder")
        self._workshop = Workshop(self._root)

    @asynccontextmanager
    async def workspace(self, name: str) -> AsyncIterator[Path]:
        """As the port says."""
        checked_name(name)
        opened = ExitStack()
        try:
            yield await self._run(f"make room for {name}", lambda: opened.enter_context(self._making_folder(name)))
        except OSError as problem:  # of whoever fills it
            if problem.errno not in FULL:
                raise
            raise self._disk.explain(problem, f"make {name}") from problem
        finally:
            await self._run(f"clear up after {name}", opened.close)

    async def publish(self, folder: Path, name: str) -> None:
        """As the port says."""
        checked_name(name)
        await self._run(f"publish {name}", lambda: self._publish(folder, name))

    @asynccontextmanager
    async def fetched(self, name: str, files: Sequence[str]) -> AsyncIterator[Path]:
        """As the port says. It is the published folder itself."""
        checked_name(name)
        for file in files:
            checked_name(file)
        yield await self._run(f"read {name}", lambda: self._whole(name, files))

    async def read(self, name: str) -> bytes | None:
        """As the port says."""
        checked_name(name)
        return await self._run(f"read {name}", lambda: self._read(name))

    async def write(self, name: str, data: bytes) -> None:
        """As the port says."""
        checked_name(name)
        await self._run(f"write {name}", lambda: self._put(name, iter((data,))))

    async def put(self, name: str, source: Path) -> None:
        """As the port says."""
        checked_name(name)
        await self._run(f"write {name}", lambda: self._put(name, pieces_of(source)))

    async def names(self, prefix: str = "") -> Sequence[Stored]:
        """As the port says."""
        folder, _ = checked_prefix(prefix)
        found = await self._run("list it", lambda: sorted(self._walk(folder)))
        return [each for each in found if each.name.startswith(prefix)]

    async def remove(self, name: str) -> None:
        """As the port says."""
        checked_name(name)
        await self._run(f"remove {name}", lambda: self._remove(name))

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """As the port says. The file of a lock stays, so that nobody locks one that another removes."""
        checked_name(name)
        opened = ExitStack()
        try:
            await self._run(f"lock {name}", lambda: opened.enter_context(self._locked(name)))
            yield
        finally:
            opened.close()

    async def close(self) -> None:
        """As the port says; there is nothing to let go of."""

    async def _run(self, doing: str, work: Callable[[], T]) -> T:
        with self._disk.explained(doing):
            return await in_thread(work)

    def _exists(self, *, make: bool = False) -> bool:
        """Whether the place is there, or was made. Its last part only is made: all else is somebody's mount."""
        try:
            is_folder = stat.S_ISDIR(self._root.stat().st_mode)
        except FileNotFoundError:
            is_folder = self._root.parent.is_dir()
            if is_folder and make:
                self._root.mkdir(mode=0o700, exist_ok=True)
                sync_directory(self._root.parent)
                _log.warning(
                    "made the folder %s for backups; if a disk belongs there, mount it and begin again", self._root
                )
                return True
            if is_folder:
                return False
            raise
        if not is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return True

    def _at(self, name: str) -> Path | None:
        """Where a name is; None when a link or a file is on the way."""
        path = self._root
        for part in name.split("/")[:-1]:
            path /= part
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.lstat().st_mode):
                    return None
        return self._root / name

    def _target(self, name: str) -> Path:
        """Where a name will be, in a folder that is made if need be, and in which nothing killed is left."""
        self._exists(make=True)
        path = self._at(name)
        if path is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        missing = [each for each in path.relative_to(self._root).parents if each.parts][::-1]
        for each in missing:
            made = self._root / each
            if not made.exists():
                made.mkdir(mode=0o700, exist_ok=True)
                sync_directory(made.parent)
        self._workshop.sweep(path.parent)
        return path

    def _making_folder(self, name: str) -> AbstractContextManager[Path]:
        return self._workshop.folder(self._target(name))

    def _publish(self, folder: Path, name: str) -> None:
        target = self._target(name)
        files = flat_files(folder)
        for file in files:
            file.chmod(0o600)
            sync_file(file)
        folder.chmod(0o700)
        sync_directory(folder)
        if folder.stat().st_dev == target.parent.stat().st_dev:
            self._appear(folder, target, name)
            return
        with self._workshop.folder(target) as copy:
            for file in files:
                with open(copy / file.name, "xb", opener=_private) as into:
                    fill(into.fileno(), pieces_of(file))
            sync_directory(copy)
            self._appear(copy, target, name)

    def _appear(self, folder: Path, target: Path, name: str) -> None:
        with self._workshop.section():  # so that nothing gets there between the look and the rename
            if os.path.lexists(target):
                raise OperationFailed(f"{self.label}: there is a {name} already; it stays; use a new name")
            folder.rename(target)
        sync_directory(target.parent)

    def _whole(self, name: str, files: Sequence[str]) -> Path:
        self._exists()
        for file in files:
            path = self._at(f"{name}/{file}")
            if path is None or not is_file(path):
                raise BackupDamaged(f"{self.label}: {name} has no file {file} (any more); use another backup")
        return self._root / name

    def _read(self, name: str) -> bytes | None:
        path = self._at(name) if self._exists() else None
        if path is None or not is_file(path):
            return None
        with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=_unfollowed) as file:
            return file.read()
        return None

    def _put(self, name: str, pieces: Iterator[bytes]) -> None:
        target = self._target(name)
        with self._workshop.file(target) as (path, descriptor):
            fill(descriptor, pieces)
            path.rename(target)
        sync_directory(target.parent)

    def _walk(self, folder: str) -> Iterator[Stored]:
        if not self._exists() or (folder and self._at(f"{folder}/x") is None):
            return
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(name)
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        info = entry.stat(follow_symlinks=False)
                        yield Stored(name, info.st_size, datetime.fromtimestamp(info.st_mtime, UTC))

    def _remove(self, name: str) -> None:
        path = self._at(name) if self._exists() else None
        if path is None or not path.parent.is_dir():
            return
        self._workshop.sweep(path.parent)
        hidden = hidden_path(path)
        try:
            path.rename(hidden)  # gone in one step; who is killed from here on leaves what the next one sweeps
        except FileNotFoundError:
            return
        except OSError as problem:
            if problem.errno not in FULL:
                raise
            # Even a longer name may need room, and removing is what makes some.
            hidden = path
            if path.is_dir():
                discard(path / LAST)
        discard(hidden)
        sync_directory(path.parent)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self._exists(make=True)
        path = self._root / f".{name.replace('/', '%')}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = shown_holder(os.pread(descriptor, 300, 0))
                raise OperatorBusy(
                    f"{self.label}: {name} is held by {holder}; wait for its end, then begin again"
                ) from None
            # A disk may be so full that not even this fits, and removing old backups needs the lock.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder_line(datetime.now(UTC)).encode(), 0)
            yield
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _unfollowed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
