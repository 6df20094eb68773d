"""What the tests of PostgreSQL backups share: a journal with commits, its drivers, a manifest of what was made."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import START, Position
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import FORMAT, Contents, Made, Manifest, Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.testing.journal_conformance import claim
from tests.integration.journal.postgres_parts import append, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.servers.postgres import PostgresServer

CLOCK = RealClock()
SCHEMA = "kiseki_journal"


def programs_of(server: PostgresServer) -> PostgresPrograms:
    return PostgresPrograms(server.bin)


async def journal_at(url: str, schema: str = SCHEMA) -> PostgresAddress:
    address = PostgresAddress.parse(url, schema=schema)
    await PostgresJournal.migrate(address)
    return address


def manifest_of(made: Made, part: Part = Part.JOURNAL) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(format=FORMAT, id="x", part=part, kiseki="0", started_at=now, finished_at=now, made=made, files=())


async def fill(address: PostgresAddress, streams: int, *, after: int = 0) -> None:
    """One commit with a claim for each stream."""
    async with opened(address) as journal:
        await asyncio.gather(
            *(append(journal, f"Thing-{n}", after, claims=[claim(f"{n}.{after}")]) for n in range(streams))
        )


async def contents_of(journal: TransferableJournal) -> Contents:
    async with surveyed(journal, "a journal", nothing) as survey:
        return survey.contents


async def everything(journal: TransferableJournal, after: Position = START) -> list[tuple[str, int]]:
    """Streams and first numbers, in the order of the feed."""
    found: list[tuple[str, int]] = []
    while True:
        page = await journal.feed(after)
        if not page.commits:
            return found
        found += [(commit.stream, commit.first_sequence_number) for commit in page.commits]
        after = page.position


@asynccontextmanager
async def writing(address: PostgresAddress) -> AsyncIterator[list[str]]:
    """Appends all the time, from several tasks; the streams whose commit was acknowledged."""
    acknowledged: list[str] = []

    async def write(worker: int, journal: PostgresJournal) -> None:
        number = 0
        while True:
            number += 1
            name = f"Load-{worker}.{number}"
            await append(journal, name, 0, claims=[claim(f"load {worker}.{number}")])
            acknowledged.append(name)

    async with opened(address) as journal:
        tasks = [asyncio.create_task(write(worker, journal)) for worker in range(8)]
        try:
            yield acknowledged
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that other accounts can reach, since a server does not run as root; in memory where that is a disk."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="kpb-", dir=base) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
