"""What the tests of embedded copies share: small journals and key stores, what files hold, and places that fail."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any

from kiseki.journal.port import ClaimChange, IdempotencyRecord
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.ports import Clock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part, digest_of
from kiseki.operations.places.folder import FolderPlace
from kiseki.testing.journal_conformance import encoded, metadata
from tests.support import ManualClock

Rows = dict[str, list[tuple[Any, ...]]]

_JOURNAL = {
    "commits": "SELECT position, stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, "
    "CAST(document AS BLOB) FROM commits ORDER BY position",
    "claims": "SELECT scope, digest, stream FROM claims ORDER BY scope, digest",
    "records": "SELECT key, command_hash, stream, sequence_number, expires_at FROM idempotency ORDER BY key",
}
_KEYS = {
    "keys": "SELECT id, subject, number, wrapping, key_id, wrapped FROM subject_keys ORDER BY id",
    "erasures": "SELECT number, subject, erased_at FROM erasures ORDER BY number",
}
_REVOCATIONS = {"revocations": "SELECT issuer, subject, until FROM revocations ORDER BY issuer, subject"}


def no_progress(_: str) -> None:
    """Shows nothing."""


def journal_rows(path: Path) -> Rows:
    """Everything in a journal that has to come back, byte for byte."""
    return _rows(path, _JOURNAL)


def key_rows(path: Path) -> Rows:
    """Everything in a key store."""
    return _rows(path, _KEYS)


def revoked_rows(path: Path) -> Rows:
    """Everything in a file of revocations."""
    return _rows(path, _REVOCATIONS)


def _rows(path: Path, statements: dict[str, str]) -> Rows:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")
        return {name: connection.execute(statement).fetchall() for name, statement in statements.items()}


@asynccontextmanager
async def opened(path: Path, clock: Clock | None = None) -> AsyncIterator[SqliteJournal]:
    """A journal."""
    journal = await SqliteJournal.open(path, clock=clock or ManualClock(), telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()


async def append(
    journal: SqliteJournal,
    stream: str,
    after: int,
    *,
    claims: Sequence[ClaimChange] = (),
    record: IdempotencyRecord | None = None,
    data: bytes = b"{}",
) -> None:
    """One event, with ids made of its place."""
    name = f"{stream}.{after}"
    await journal.append(
        stream, after, [encoded(name, data=data)], metadata=metadata(name), claims=claims, idempotency=record
    )


async def fill(journal: SqliteJournal, streams: int, *, first: int = 0) -> None:
    """A commit with a claim for each of so many new streams."""
    await asyncio.gather(
        *(
            append(
                journal,
                f"Thing-{number:06d}",
                0,
                claims=[ClaimChange("name", f"{number:064x}", take=True)],
                data=b'{"text": "%s"}' % os.urandom(40).hex().encode(),
            )
            for number in range(first, first + streams)
        )
    )


def place_in(folder: Path) -> FolderPlace:
    """A place for copies."""
    return FolderPlace(folder, setting="backup")


def manifest_of(folder: Path, made: Made, part: Part = Part.JOURNAL) -> Manifest:
    """The manifest of what a driver made."""
    return Manifest(
        format=FORMAT,
        id="20260101T000000Z-aaaaaa",
        part=part,
        kiseki="0",
        started_at=made.as_of,
        finished_at=made.as_of,
        made=made,
        files=tuple(digest_of(path) for path in sorted(folder.iterdir())),
    )


class Killed(BaseException):
    """Instead of SIGKILL, at a place that a test chooses."""


class KillingPlace(FolderPlace):
    """A folder whose next writes end in death: before one is done, or after it was."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, setting="backup")
        self.lives: int | None = None
        """Half writes until death: an even number dies before one, an odd one after it."""
        self.ended: list[str] = []

    async def publish(self, folder: Path, name: str) -> None:
        self._live()
        await super().publish(folder, name)
        self._live()

    async def write(self, name: str, data: bytes) -> None:
        self._live()
        await super().write(name, data)
        self._live()

    async def put(self, name: str, source: Path) -> None:
        self._live()
        await super().put(name, source)
        self._live()

    async def remove(self, name: str) -> None:
        self._live()
        await super().remove(name)
        self._live()

    def _live(self) -> None:
        if self.lives is None:
            return
        if self.lives == 0:
            self.lives = None
            raise Killed
        self.lives -= 1


_CHILD = """
import asyncio
from {module} import {function}
done = {function}({arguments})
if done is not None:
    asyncio.run(done)
"""


async def child(
    function: Callable[..., Coroutine[Any, Any, None] | None], *arguments: str | int
) -> asyncio.subprocess.Process:
    """A process that runs a function of a test module; it talks by lines on its standard output."""
    script = _CHILD.format(
        module=function.__module__, function=function.__name__, arguments=", ".join(map(repr, arguments))
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )


async def line_from(process: asyncio.subprocess.Process) -> str:
    """The next line a process says."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def record(key: str, stream: str, sequence_number: int, expires_at: datetime) -> IdempotencyRecord:
    """An idempotency record."""
    return IdempotencyRecord(
        key=key, command_hash="h", stream=stream, sequence_number=sequence_number, expires_at=expires_at
    )
