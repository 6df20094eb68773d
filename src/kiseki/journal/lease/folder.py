"""A LeaseStore in a folder: the file `lease.json`, replaced whole, and `lock`. For one machine, and for shared mounts.

A shared mount has to keep `flock` between machines (NFS 4 does); it takes the place of the witness region, so it must
not stand or fall with one of the two sites.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from kiseki.journal.lease.port import LeaseBroken, LeaseRecord, LeaseUnavailable

__all__ = ["FolderLeaseStore", "read_record"]

_decode: Final = msgspec.json.Decoder(LeaseRecord).decode
_T = TypeVar("_T")


def read_record(text: bytes | str, label: str) -> LeaseRecord:
    """A record as the stores keep it: JSON. Raises LeaseBroken."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise LeaseBroken(
            f"the lease in {label} is not a record of one; put its copy back, or remove it and see `kiseki dr begin`"
        ) from problem


class FolderLeaseStore:
    """Keeps the record in a folder, which is made (mode 0700) when it is not there. Methods work on a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "lease.json"

    @property
    def label(self) -> str:
        """As LeaseStore."""
        return str(self._folder)

    async def read(self) -> LeaseRecord | None:
        """As LeaseStore. Under the lock, because some network file systems look at a file anew only then."""
        return await self._run(self._read)

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        """As LeaseStore."""

        def change() -> bool:
            there = self._read()
            if (there and there.version) != (before and before.version):
                return False
            self._write(after)
            return True

        return await self._run(change)

    async def close(self) -> None:
        """As LeaseStore: nothing is kept open."""

    async def _run(self, work: Callable[[], _T]) -> _T:
        def locked() -> _T:
            with self._locked():
                return work()

        try:
            return await asyncio.to_thread(locked)
        except OSError as problem:
            why = (problem.strerror or type(problem).__name__).lower()
            raise LeaseUnavailable(f"the lease in {self.label} can't be used: {why}") from problem

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> LeaseRecord | None:
        try:
            return read_record(self._file.read_bytes(), self.label)
        except FileNotFoundError:
            return None

    def _write(self, record: LeaseRecord) -> None:
        draft = self._folder / f".lease.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        directory = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
