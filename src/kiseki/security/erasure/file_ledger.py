"""A LedgerStore in a directory: `erasures.jsonl`, one line of JSON for each, and `mark`. All modes 0600.

The directory belongs on another disk than the stores, or at least into none of their backups, with a copy of its own.
Processes of one machine take turns by a lock on the file `lock`. Methods work on a thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Self, TypeVar

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.security.erasure.lines import LedgerBroken, Line, Mark
from kiseki.security.erasure.store import LedgerUnavailable

__all__ = ["FileLedgerStore", "LedgerRefused"]

_LONGEST: Final = 4_096
"""Bytes of the longest line: two names of streams, a command, a MAC."""
_line_of: Final = msgspec.json.Decoder(Line).decode
_mark_of: Final = msgspec.json.Decoder(Mark).decode

Result = TypeVar("Result")


class LedgerRefused(KisekiError):
    """The directory of the ledger can't be used as it is."""

    code = "ERASURE_LEDGER_REFUSED"


class FileLedgerStore:
    """Keeps the ledger in files. Made by `open`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "erasures.jsonl"
        self._mark = directory / "mark"
        self._lock = directory / "lock"

    @classmethod
    async def open(cls, directory: Path, *, make: bool = True) -> Self:
        """The ledger in a directory, which is made (mode 0700) when it is not there, and so are its files.

        Raises LedgerRefused when others may use them, LedgerUnavailable.
        """
        store = cls(directory)
        if make:
            await store._run(store._prepare)
        return store

    async def last(self) -> Line | None:
        """As LedgerStore."""
        return await self._run(self._last)

    async def add(self, line: Line) -> bool:
        """As LedgerStore. What a crash left of a line that was never acknowledged is cut off first."""
        return await self._run(lambda: self._add(line))

    async def lines(self, after: int, limit: int) -> Sequence[Line]:
        """As LedgerStore. Finds the place by halving, so it does not read what is before."""
        return await self._run(lambda: self._lines(after, limit))

    async def mark(self) -> Mark | None:
        """As LedgerStore."""

        def read() -> Mark | None:
            try:
                return _mark_of(self._mark.read_bytes())
            except (FileNotFoundError, msgspec.DecodeError):
                return None

        return await self._run(read)

    async def set_mark(self, mark: Mark) -> None:
        """As LedgerStore: another file, synced, in place of the old one."""

        def write() -> None:
            draft = self._directory / f".mark.{secrets.token_hex(8)}"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(mark))
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self._mark)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            _sync_directory(self._directory)

        await self._run(write)

    async def close(self) -> None:
        """As LedgerStore: nothing is kept open."""

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.to_thread(self._translated, work)

    def _translated(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except FileNotFoundError as problem:
            raise LedgerUnavailable(
                "the ledger of erasures is not there; put it back where `erasure_ledger` says"
            ) from problem
        except OSError as problem:
            raise LedgerUnavailable(
                f"the ledger of erasures can't be used: {problem.strerror or type(problem).__name__}"
            ) from problem

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self._file, self._lock):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                pass
            if path.stat().st_mode & 0o077:
                raise LedgerRefused(f"others may use the ledger of erasures: chmod 600 {path}")
        _sync_directory(self._directory)
        _sync_directory(self._directory.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the ledger may be replaced by its copy meanwhile.
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _add(self, line: Line) -> bool:
        with self._locked(), self._file.open("r+b", buffering=0) as file:
            end = _end_of_whole_lines(file)
            last = _line_before(file, end)
            if line.number != (0 if last is None else last.number) + 1:
                return False
            file.truncate(end)
            os.lseek(file.fileno(), end, os.SEEK_SET)
            content = msgspec.json.encode(line) + b"\n"
            if len(content) > _LONGEST:
                raise LedgerBroken("a line of the ledger of erasures would be too long")
            while content:
                content = content[os.write(file.fileno(), content) :]
            os.fsync(file.fileno())
            return True

    def _last(self) -> Line | None:
        with self._file.open("rb") as file:
            return _line_before(file, _end_of_whole_lines(file))

    def _lines(self, after: int, limit: int) -> list[Line]:
        with self._file.open("rb") as file:
            end = _end_of_whole_lines(file)
            file.seek(_place_after(file, after, end))
            found: list[Line] = []
            while len(found) < limit and file.tell() < end:
                line = _read(file.readline(_LONGEST))
                if line.number > after:
                    found.append(line)
            return found


def _end_of_whole_lines(file: BinaryIO) -> int:
    """Where the last whole line ends; what comes after was being written when a process was killed, or is now."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _LONGEST)
    file.seek(start)
    tail = _read_all(file, size - start)
    newline = tail.rfind(b"\n")
    if newline < 0 and start:
        raise LedgerBroken("the end of the ledger of erasures can't be read: restore it from its own copy")
    return start + newline + 1


def _line_before(file: BinaryIO, end: int) -> Line | None:
    if end == 0:
        return None
    start = max(0, end - _LONGEST)
    file.seek(start)
    return _read(_read_all(file, end - start)[:-1].rpartition(b"\n")[2])


def _place_after(file: BinaryIO, number: int, end: int) -> int:
    """The start of a line before which all lines are numbered `number` or less."""
    low, high = 0, end
    while high - low > _LONGEST:
        middle = (low + high) // 2
        file.seek(middle)
        skipped = file.readline(_LONGEST)
        place = middle + len(skipped)
        if place >= high or _read(file.readline(_LONGEST)).number > number:
            high = middle
        else:
            low = place
    return low


def _read(text: bytes) -> Line:
    try:
        return _line_of(text)
    except msgspec.DecodeError:
        raise LedgerBroken("the ledger of erasures holds what is no line: restore it from its own copy") from None


def _read_all(file: BinaryIO, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = file.read(count - len(content))
        if not more:
            break
        content += more
    return content


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
