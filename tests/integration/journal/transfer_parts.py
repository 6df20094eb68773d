"""What the tests of moving a journal share: the stores, something to move, and moving it through bytes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.memory import MemoryJournal
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.transfer.exporting import ExportReport, export_journal
from kiseki.journal.transfer.importing import ImportReport, import_journal
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.ports import Clock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.testing.journal_conformance import SetClock, claim, claimed, encoded, idempotency, metadata
from tests.integration.journal.dynamodb_parts import PAUSE, new_tables
from tests.integration.journal.postgres_parts import new_journal

STORES = ("memory", "sqlite", "postgres", "dynamodb")

Open: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[TransferableJournal]]
"""An empty journal of a store, under a name of the test."""


@asynccontextmanager
async def memory() -> AsyncIterator[TransferableJournal]:
    journal = MemoryJournal(clock=SetClock())
    yield journal
    await journal.close()


@asynccontextmanager
async def sqlite(directory: Path, clock: Clock | None = None) -> AsyncIterator[SqliteJournal]:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "journal.db"
    journal = await SqliteJournal.open(path, clock=clock or SetClock(), telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def postgres(url: str) -> AsyncIterator[TransferableJournal]:
    journal = await PostgresJournal.open(await new_journal(url), clock=SetClock(), telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def dynamodb(endpoint: str) -> AsyncIterator[TransferableJournal]:
    journal = await DynamoDbJournal.open(
        await new_tables(endpoint), clock=SetClock(), telemetry=NoTelemetry(), pause=PAUSE
    )
    try:
        yield journal
    finally:
        await journal.close()


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


async def exported(journal: TransferableJournal) -> bytes:
    return (await exported_with_report(journal))[0]


async def exported_with_report(journal: TransferableJournal) -> tuple[bytes, ExportReport]:
    output = io.BytesIO()
    report = await export_journal(journal, output, clock=SetClock(), progress=silent)
    return output.getvalue(), report


async def imported(journal: TransferableJournal, data: bytes, clock: Clock | None = None) -> ImportReport:
    return await import_journal(journal, io.BytesIO(data), clock=clock or SetClock(), progress=silent)


def content(data: bytes) -> list[bytes]:
    """What a file says, whatever the order between streams."""
    return sorted(data.splitlines()[1:-1])


def parsed(data: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in data.splitlines()]


def by_stream(data: bytes) -> dict[str, list[int]]:
    """The sequence numbers of a file's commits, stream by stream, in the order of the file."""
    found: dict[str, list[int]] = {}
    for line in parsed(data):
        if line["kind"] == "commit":
            found.setdefault(line["stream"], []).append(line["sequence"])
    return found


async def fill(journal: TransferableJournal, streams: int = 7, commits: int = 5, *, held: bool = True) -> None:
    """Streams side by side, commits of one to three events, text of all kinds; `held`: claims and idempotency keys."""
    later = SetClock().now() + timedelta(hours=24)
    texts = ["plain", "Zoë", "軌跡", "😀 \\u0001 \\n", "x" * 3_000]
    for number in range(commits):
        for n in range(streams):
            name, size = f"{n}.{number}", (number + n) % 3 + 1
            stream = f"Thing-{n}"
            first = sum((earlier + n) % 3 + 1 for earlier in range(number))
            text = texts[(n + number) % len(texts)]
            await journal.append(
                stream,
                first,
                [
                    encoded(
                        f"{name}.{k}", data=f'{{"text": "{text}", "n":{k}}}'.encode(), subject="Other-1" if k else None
                    )
                    for k in range(size)
                ],
                metadata=msgspec.structs.replace(metadata(name), causation_id=f"cause of {name}" if n else None),
                claims=[*claimed(name), *([claim(f"{n}.0", take=False)] if number == 2 else [])] if held else [],
                idempotency=idempotency(name, stream, first + size, expires_at=later) if held and number == 1 else None,
            )
