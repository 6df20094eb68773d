"""`AppendFile`: a file that is only appended to, by one process, a line or nothing at a time. Used by the file sink
and the anchors in files.

Files are 0600 in directories 0700, opened with O_APPEND and O_NOFOLLOW and never renamed, so that they may be marked
append-only (`chattr +a`). A change of length by anybody else is noticed at the next write. A file that is let go before
anything was written is deleted: those who wait for room on a disk would leave one with each attempt.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["AppendFailed", "AppendFile", "make_directory", "sync_directory"]


class AppendFailed(OSError):
    """Lines were not appended, or not durably. `kept` of their bytes are in the file nevertheless."""

    def __init__(self, reason: str, *, kept: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kept = kept


class AppendFile:
    """One new file. Blocking; belongs to one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Makes the file and its name durable. Raises OSError, also when it is there."""
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self.length = 0
        self.usable = True
        """False when it was altered, ends inside a line, or lost writes: go on in another file."""
        try:
            sync_directory(path.parent)
        except BaseException:
            self.abandon()
            raise

    def append(self, data: bytes, *, durable: bool) -> None:
        """Appends whole lines: all, or none where the file can be cut. Raises AppendFailed."""
        before = self.length
        try:
            self._look()
            rest = memoryview(data)
            while rest:
                done = os.write(self._file, rest)
                self.length += done
                rest = rest[done:]
            if durable:
                try:
                    os.fsync(self._file)
                except OSError:
                    # What the system could not write it may have forgotten: a second fsync would say nothing about it.
                    self.usable = False
                    raise
        except AppendFailed:
            raise
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
            raise AppendFailed(reason.lower(), kept=self._cut(before, data)) from problem

    def _cut(self, before: int, data: bytes) -> int:
        if self.length == before:
            return 0
        try:
            os.ftruncate(self._file, before)
            self.length = before
        except OSError:  # it is marked append-only
            kept = self.length - before
            if not data[:kept].endswith(b"\n"):
                self.usable = False
            return kept
        return 0

    def _look(self) -> None:
        about = os.fstat(self._file)
        if about.st_nlink == 0 or about.st_size != self.length:
            self.usable = False
            raise AppendFailed("somebody else removed it, cut it or wrote to it")

    def close(self) -> None:
        """Makes all durable and lets go. Raises OSError."""
        try:
            if not self._delete_empty():
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def abandon(self) -> None:
        """Lets go of a file that can't be used."""
        try:
            self._delete_empty()
        finally:
            os.close(self._file)

    def _delete_empty(self) -> bool:
        """Deletes a file in which nothing is, by anybody: one that somebody else cut is a trace."""
        if self.length:
            return False
        try:
            mine, there = os.fstat(self._file), self.path.stat(follow_symlinks=False)
            if mine.st_size or (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
                return False
            self.path.unlink()
        except OSError:  # it is gone already, or its directory is marked append-only: then it stays, and harms nobody
            return False
        return True


def make_directory(path: Path) -> None:
    """Makes a directory that is the owner's alone, when it is not there. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
