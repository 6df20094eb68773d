"""Backups of the audit log, wherever it is kept: all lines of all writers, as they are. Used as the drivers of stores.

A line carries its writer, its number and its MAC, so that a copy proves itself (`kiseki audit verify`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, RestoreRefused
from kiseki.security.audit.file_sink import RECORDS
from kiseki.security.audit.line_files import LineFiles, file_name
from kiseki.security.audit.places import AuditPlaces
from kiseki.security.audit.sink import LineSource

__all__ = ["AuditBackups", "PutBack", "audit_heads", "put_back_files"]

_FILE: Final = "audit.jsonl.gz"
_WRITERS: Final = 50

PutBack = Callable[[str, Sequence[tuple[int, datetime, bytes]]], Awaitable[None]]
"""Adds lines of one writer that a log lacks: number, time, line. Raises RestoreRefused, SinkFailed."""


class _Head(msgspec.Struct, frozen=True):
    writer: str
    number: int
    at: datetime


_decode: Final = msgspec.json.Decoder(_Head).decode


class AuditBackups:
    """Copies one audit log (a PartBackups), and puts back what a log lacks."""

    store = "files"

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[AuditPlaces]], *, clock: Clock) -> None:
        self._opened = opened
        self._clock = clock

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. A line that no writer ended is left out. Raises LinesUnreadable, SinkFailed."""
        as_of = self._clock.now()
        digest = hashlib.sha256()
        records = writers = 0
        async with self._opened() as places:
            with gzip.GzipFile(folder / _FILE, "wb", compresslevel=1, mtime=0) as packed:
                for writer in await places.records.writers():
                    writers += 1
                    async for lines in _whole_lines(places.records, writer):
                        data = b"".join(line + b"\n" for line in lines)
                        records += len(lines)
                        digest.update(data)
                        await asyncio.to_thread(packed.write, data)
        return Made(
            store=self.store,
            method="online",
            as_of=as_of,
            counts={"records": records, "writers": writers},
            digest=digest.hexdigest(),
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is elsewhere."""

    async def check(self, folder: Path, manifest: Manifest) -> str:
        """Reads a copy, and compares it with the live log, line by line; what was found. Raises BackupDamaged."""
        digest = hashlib.sha256()
        records = 0
        async with self._opened() as places:
            for writer, lines in _by_writer(folder / _FILE, manifest.id):
                for line in lines:
                    digest.update(line + b"\n")
                records += len(lines)
                if not await _is_beginning(lines, places.records, writer):
                    raise BackupDamaged(
                        f"the backup {manifest.id} differs from the live audit log in writer {writer}: one of the two "
                        "is wrong; run `kiseki audit verify`"
                    )
        if records != manifest.made.counts.get("records") or digest.hexdigest() != manifest.made.digest:
            raise BackupDamaged(f"the backup {manifest.id} does not hold the records that it should; use another one")
        return f"{records:,} records; every one equals the live audit log"

    async def put_back(self, folder: Path, manifest: Manifest, put: PutBack) -> int:
        """Adds what the live log lacks; how many records were looked at. Raises BackupDamaged, RestoreRefused."""
        records = 0
        for writer, lines in _by_writer(folder / _FILE, manifest.id):
            heads = [_decode(line) for line in lines]
            await put(writer, [(head.number, head.at, line) for head, line in zip(heads, lines, strict=True)])
            records += len(lines)
        return records


async def audit_heads(places: AuditPlaces) -> dict[str, int]:
    """The number of the newest record of each of the writers that wrote last. Raises LinesUnreadable, SinkFailed."""
    heads = {}
    for writer in await places.records.recent(_WRITERS):
        for found in await places.records.newest(writer, 1):
            if not found.torn:
                heads[writer] = _decode(found.line).number
    return heads


async def put_back_files(directory: Path, writer: str, rows: Sequence[tuple[int, datetime, bytes]]) -> None:
    """The PutBack of a log in a folder: what a writer's files lack at their end goes into one more of them.

    Raises RestoreRefused when the two differ.
    """
    there = LineFiles(directory, prefix=RECORDS)
    lines = [line for _, _, line in rows]
    found: list[bytes] = []
    segment = 1
    if await asyncio.to_thread(directory.is_dir):
        segment = there.next_segment(writer)
        found = [line async for page in _whole_lines(there, writer) for line in page]
    if found[: len(lines)] != lines[: len(found)]:
        raise RestoreRefused(
            f"the audit log in {directory} has other records of writer {writer} than the backup; nothing of it was "
            "changed: run `kiseki audit verify`, and move the folder aside if it is the one that is wrong"
        )
    if len(found) < len(lines):
        target = directory / file_name(RECORDS, writer, segment)
        await asyncio.to_thread(_write_file, target, lines[len(found) :])


def _write_file(target: Path, lines: Sequence[bytes]) -> None:
    part = target.with_name(f".{target.name}.part")
    with explained_room(target.parent, "make room there, and see that this account may write it"):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(line + b"\n" for line in lines)
                file.flush()
                os.fsync(descriptor)
            # What has the name by now is somebody's: the name is taken first.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            part.replace(target)
        except FileExistsError as problem:
            raise RestoreRefused(
                f"somebody began {target} at this moment; nothing of it was changed: run the same again"
            ) from problem
        finally:
            part.unlink(missing_ok=True)


async def _whole_lines(source: LineSource, writer: str) -> AsyncIterator[list[bytes]]:
    async for page in source.lines(writer):
        yield [found.line for found in page if not found.torn]


async def _is_beginning(lines: Sequence[bytes], source: LineSource, writer: str) -> bool:
    """Whether a log has these lines of a writer, or none of it: records may have been deleted on purpose."""
    compared = 0
    async for page in _whole_lines(source, writer):
        part = lines[compared : compared + len(page)]
        if list(part) != page[: len(part)]:
            return False
        compared += len(part)
        if compared == len(lines):
            return True
    return compared in (0, len(lines))


def _by_writer(path: Path, identity: str) -> Iterator[tuple[str, list[bytes]]]:
    """The lines of one writer after the other. Raises BackupDamaged. Blocks."""
    writer, lines = "", list[bytes]()
    try:
        with gzip.open(path, "rb") as packed:
            for data in packed:
                line = data.rstrip(b"\n")
                head = _decode(line)
                if head.writer != writer and lines:
                    yield writer, lines
                    lines = []
                writer = head.writer
                lines.append(line)
    except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError) as problem:
        raise BackupDamaged(
            f"the backup {identity} can't be read: {path.name} is damaged; use another one"
        ) from problem
    if lines:
        yield writer, lines
