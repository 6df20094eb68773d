"""What operating systems say when a disk does not do its work, as errors of operations; and what makes files durable.

Used by the place that is a folder, and by the local folders in which things are made for S3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kiseki.operations.errors import NoRoom, OperationFailed, PlaceUnavailable
from kiseki.operations.places.names import checked_name
from kiseki.operations.places.port import LAST

__all__ = ["FULL", "Disk", "fill", "flat_files", "is_file", "pieces_of", "sync_directory", "sync_file", "unreadable"]

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of errors that mean that no more fits."""

_CHUNK: Final = 1 << 20
_IN_THE_WAY: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})


class Disk:
    """Where something is on this machine, as messages call it."""

    def __init__(self, label: str, *, remedy: str) -> None:
        """`remedy` is what moves it elsewhere: `set backup to another folder`."""
        self.label = label
        self._remedy = remedy

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Raises NoRoom, PlaceUnavailable or OperationFailed for an OSError; `doing` says what failed: `write a/b`."""
        try:
            yield
        except OSError as problem:
            raise self.explain(problem, doing) from problem

    def explain(self, problem: OSError, doing: str) -> NoRoom | PlaceUnavailable | OperationFailed:
        """The error that stands for it, one line with what to do."""
        begin = f"{self.label}: can't {doing}:"
        number = problem.errno
        if number in FULL:
            what = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "no file may be so large"}
            return NoRoom(
                f"{begin} {what.get(number, 'the disk is full')}; what was begun is removed; free some room, or "
                f"{self._remedy}"
            )
        if number in (errno.EACCES, errno.EPERM):
            return PlaceUnavailable(f"{begin} permission denied; give it to user {os.geteuid()}, or {self._remedy}")
        if number == errno.EROFS:
            return PlaceUnavailable(f"{begin} its file system is read-only; mount it for writing, or {self._remedy}")
        if number == errno.ENOENT:
            return PlaceUnavailable(f"{begin} it is not there; mount its disk or make it, or {self._remedy}")
        if number in _IN_THE_WAY:
            return OperationFailed(f"{begin} something else is in the way there; look at it, and move it away")
        if number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return PlaceUnavailable(f"{begin} its file system has no flock; mount it with locks, or {self._remedy}")
        reason = type(problem).__name__ if number is None else os.strerror(number)
        return PlaceUnavailable(f"{begin} {reason}; look at the disk and its mount, or {self._remedy}")


def flat_files(folder: Path) -> list[Path]:
    """The files to publish, `LAST` last. Raises ValueError where the maker did not keep to the port, OSError."""
    files = sorted(folder.iterdir(), key=lambda path: (path.name == LAST, path.name))
    if not files or files[-1].name != LAST:
        raise ValueError(f"a folder to publish has {LAST}")
    for file in files:
        checked_name(file.name)
        if not is_file(file):
            raise ValueError("a folder to publish holds files only")
    return files


def is_file(path: Path) -> bool:
    """Whether a plain file is there, and no link to one. Raises OSError."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def pieces_of(source: Path) -> Iterator[bytes]:
    """The bytes of a file that is to be copied. Raises OperationFailed: its errors are not those of the place."""
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as problem:
        raise unreadable(source, problem) from problem


def unreadable(source: Path, problem: OSError) -> OperationFailed:
    """The error for a file that is to be copied and can't be read."""
    reason = type(problem).__name__ if problem.errno is None else os.strerror(problem.errno)
    return OperationFailed(f"{source} can't be read: {reason}; look at its disk and its owner, then begin again")


def fill(descriptor: int, pieces: Iterator[bytes]) -> None:
    """Writes all of it, and makes it durable. Raises OSError."""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Makes the contents of a file durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_NOFOLLOW)


def sync_directory(path: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
