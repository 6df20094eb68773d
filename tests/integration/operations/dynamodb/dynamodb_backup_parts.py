"""What the tests of backups on DynamoDB share: a journal under load with claims, manifests, and reading all of one."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from kiseki._version import __version__
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import ClaimChange
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.catalog import new_id
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import FORMAT, Contents, Made, Manifest, Part
from kiseki.operations.backup.port import nothing
from tests.integration.journal.dynamodb_parts import append, opened


def manifest_of(made: Made, part: Part = Part.JOURNAL) -> Manifest:
    """As `create_backup` writes it."""
    now = datetime.now(UTC)
    return Manifest(
        format=FORMAT,
        id=new_id(now),
        part=part,
        kiseki=__version__,
        started_at=now,
        finished_at=now,
        made=made,
        files=(),
    )


def folder_in(directory: Path) -> Path:
    """An empty folder."""
    folder = directory / f"backup-{len(list(directory.iterdir()))}"
    folder.mkdir()
    return folder


def value(number: int) -> str:
    """The keyed hash of a value that streams fight for."""
    return hashlib.sha256(b"value %d" % number).hexdigest()


class Load:
    """Streams that take, release and hand over values, as fast as the emulator goes."""

    def __init__(self, address: DynamoDbAddress) -> None:
        self._address = address
        self._ends: dict[str, int] = {}
        self.holders: dict[int, str] = {}
        self.commits = 0
        self.grown = asyncio.Condition()

    @asynccontextmanager
    async def running(self, workers: int = 4) -> AsyncIterator[Load]:
        """Goes on until the end of the block."""
        stop = asyncio.Event()
        async with opened(self._address) as journal, asyncio.TaskGroup() as group:
            for worker in range(workers):
                group.create_task(self._work(journal, worker, stop))
            try:
                yield self
            finally:
                stop.set()

    async def more(self, count: int) -> None:
        """Returns after so many more commits."""
        wanted = self.commits + count
        async with self.grown:
            await self.grown.wait_for(lambda: self.commits >= wanted)

    async def _work(self, journal: DynamoDbJournal, worker: int, stop: asyncio.Event) -> None:
        """Each worker has values and streams of its own, so that what it wants is always possible."""
        for turn in itertools.count():
            if stop.is_set():
                return
            number = worker * 100 + turn % 5
            holder, taker = self.holders.get(number), f"user-w{worker}x{turn % 7}"
            if holder is not None:
                await self._append(journal, holder, [ClaimChange("email", value(number), take=False)])
                del self.holders[number]
            if turn % 3 != 2:
                await self._append(journal, taker, [ClaimChange("email", value(number), take=True)])
                self.holders[number] = taker
            else:
                await self._append(journal, taker, [])

    async def _append(self, journal: DynamoDbJournal, stream: str, claims: list[ClaimChange]) -> None:
        after = self._ends.get(stream, 0)
        commit = await append(journal, stream, after, data=b'{"n":%d}' % after, claims=claims)
        self._ends[stream] = commit.last_sequence_number
        async with self.grown:
            self.commits += 1
            self.grown.notify_all()


async def contents(journal: TransferableJournal) -> Contents:
    """All that a journal holds."""
    async with surveyed(journal, "the journal", nothing) as survey:
        return survey.contents


async def held(journal: TransferableJournal) -> dict[str, str]:
    """Who holds what."""
    return {claim.digest: claim.stream async for page in journal.held_claims() for claim in page}


async def commits_of(journal: TransferableJournal) -> dict[str, list[str]]:
    """The ids of the commits of each stream, in order."""
    found: dict[str, list[str]] = {}
    position = await journal.beginning()
    while (page := await journal.feed(position)).commits:
        for commit in page.commits:
            ids = found.setdefault(commit.stream, [])
            if commit.metadata.commit_id not in ids:
                ids.append(commit.metadata.commit_id)
        position = page.position
    return found
