"""`FileSink`: audit records in files, one series for each writer, so that processes never mix. The embedded default.

A file is never renamed or cut: at a size or at midnight (UTC) the writer goes on in its next one, and the
chain with it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.append_file import AppendFailed, AppendFile, make_directory
from kiseki.security.audit.line_files import LineFiles, file_name
from kiseki.security.audit.record import SealedRecord
from kiseki.security.audit.sink import SinkFailed

__all__ = ["RECORDS", "FileSink"]

RECORDS: Final = "audit"
"""How the names of these files begin."""

_AT_ONCE: Final = 200
"""Records in one write: few enough that a failed one is cheap to repeat."""


class FileSink:
    """Writes to a directory (an AuditSink). Belongs to one event loop; works on a thread of its own."""

    name = "file"

    def __init__(
        self,
        directory: Path,
        *,
        writer: str,
        rotate_bytes: int = 64 * 1024 * 1024,
        make_file: Callable[[Path], AppendFile] = AppendFile,
    ) -> None:
        """`rotate_bytes`: about how long a file gets."""
        self._directory = directory
        self._writer = writer
        self._rotate_bytes = rotate_bytes
        self._make_file = make_file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kiseki-audit")
        self._file: AppendFile | None = None
        self._segment = 0
        self._day = ""

    @classmethod
    async def open(cls, directory: Path, *, writer: str, rotate_bytes: int = 64 * 1024 * 1024) -> Self:
        """A sink in a directory, which is made when it is not there. Raises SinkFailed."""
        sink = cls(directory, writer=writer, rotate_bytes=rotate_bytes)
        try:
            await sink._run(lambda: make_directory(directory))
        except SinkFailed:
            await sink.close()
            raise
        return sink

    async def latest(self) -> bytes | None:
        """As AuditSink: of the file of another writer that changed last, made durable."""
        return await self._run(self._latest)

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        """As AuditSink."""
        await self._run(lambda: self._write(records, durable=durable))

    async def close(self) -> None:
        """As AuditSink; what was noted is durable then, if the disk works."""
        try:
            await self._run(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], bytes | None]) -> bytes | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as problem:
            raise self._failed(_reason(problem)) from problem
        except KisekiError as problem:
            if isinstance(problem, SinkFailed):
                raise
            raise self._failed(str(problem)) from problem

    def _failed(self, reason: str, written: int = 0) -> SinkFailed:
        return SinkFailed(f"the audit log in {self._directory} can't be written: {reason}", written=written)

    def _write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        written = 0
        if not records and durable and self._file is not None:
            self._append(self._file, b"", durable=True, written=0)
        while written < len(records):
            part = records[written : written + _AT_ONCE]
            day = f"{part[0].at:%Y%m%d}"
            try:
                file = self._ready(day)
            except OSError as problem:
                raise self._failed(_reason(problem), written) from problem
            # The last part alone has to ask for durability: it covers what was written to this file before.
            last = written + len(part) == len(records)
            data = b"".join(b"%b\n" % record.line for record in part)
            self._append(file, data, durable=durable and last, written=written)
            written += len(part)

    def _append(self, file: AppendFile, data: bytes, *, durable: bool, written: int) -> None:
        try:
            file.append(data, durable=durable)
        except AppendFailed as problem:
            kept = data[: problem.kept].count(b"\n")
            if not file.usable:
                self._file = None
                file.abandon()
            raise self._failed(problem.reason, written + kept) from problem

    def _ready(self, day: str) -> AppendFile:
        """A file that has room, of this day."""
        file = self._file
        if file is not None and (file.length >= self._rotate_bytes or (day > self._day and file.length)):
            self._file = None
            file.close()
        self._day = max(self._day, day)
        while self._file is None:
            self._segment += 1
            try:
                self._file = self._make_file(self._directory / file_name(RECORDS, self._writer, self._segment))
            except FileExistsError:
                continue  # one that could be made but not used, or somebody else's
        return self._file

    def _latest(self) -> bytes | None:
        files = LineFiles(self._directory, prefix=RECORDS)
        for writer in files.recent_writers(8):
            if writer == self._writer:
                continue
            for path in reversed(files.paths(writer)):
                # What a record of this writer names must not be lost when this writer's record is not.
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
                lines = [each.line for each in files.newest_in(path, 2) if not each.torn]
                if lines:
                    return lines[-1]
        return None

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _reason(problem: OSError) -> str:
    return (problem.strerror or type(problem).__name__).lower()
