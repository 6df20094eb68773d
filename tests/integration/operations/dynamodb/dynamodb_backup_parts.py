"""What the tests of backups on DynamoDB share: a journal under load with claims, manifests, and reading all of one."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kiseki._version import __version__
from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.clients.dynamodb_errors import failure, target_of
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
        self.log: list[tuple[str, str, list[ClaimChange]]] = []
        """Commit, stream and what it did to claims, in the order of each value."""
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

    def held_after(self, commits: Collection[str]) -> dict[str, str]:
        """Who holds what when just these commits have happened."""
        holders: dict[str, str] = {}
        for commit, stream, claims in self.log:
            if commit in commits:
                for claim in claims:
                    if claim.take:
                        holders[claim.digest] = stream
                    else:
                        del holders[claim.digest]
        return holders

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
        self.log.append((commit.metadata.commit_id, stream, claims))
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


Hook = Callable[[str, Mapping[str, Any]], Awaitable[None]]


class Between:
    """Stands between every client of this process and the emulator: hooks may wait, raise, or refuse as AWS would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hooks: list[Hook] = []
        self.requests: list[tuple[str, Mapping[str, Any]]] = []
        through = DynamoDbClient.call

        async def call(
            client: DynamoDbClient, operation: str, request: Mapping[str, Any], **options: Any
        ) -> dict[str, Any]:
            self.requests.append((operation, request))
            for hook in list(self.hooks):
                await hook(operation, request)
            return await through(client, operation, request, **options)

        monkeypatch.setattr(DynamoDbClient, "call", call)

    def refuse(self, kind: str, refused: str, table: str = "") -> None:
        """Answers an operation, of a table if one is named, with an exception of AWS."""

        async def hook(operation: str, request: Mapping[str, Any]) -> None:
            if operation == refused and table in ("", request.get("TableName")):
                raise refusal(kind, operation, request)

        self.hooks.append(hook)

    def apply_policies(self, *, after: int = 2) -> None:
        """Does what the emulator does not: denies what a resource-based policy denies, some requests after it is
        given."""
        denied: dict[str, tuple[set[str], int]] = {}
        seen = 0

        async def hook(operation: str, request: Mapping[str, Any]) -> None:
            nonlocal seen
            seen += 1
            table = str(request.get("ResourceArn", "")).partition(":table/")[2]
            if operation == "PutResourcePolicy":
                statements = json.loads(request["Policy"])["Statement"]
                actions = {action for each in statements if each["Effect"] == "Deny" for action in each["Action"]}
                denied[table] = actions, seen + after
            elif operation == "DeleteResourcePolicy":
                denied.pop(table, None)
            for name, action in _writes(operation, request):
                actions, since = denied.get(name, (set(), 0))
                if f"dynamodb:{action}" in actions and seen > since:
                    raise refusal("AccessDeniedException", operation, request)

        self.hooks.append(hook)


def refusal(kind: str, operation: str, request: Mapping[str, Any]) -> Exception:
    """The error that the client makes of an answer of AWS."""
    return failure(400, {"__type": f"com.amazonaws.dynamodb.v20120810#{kind}"}, target=target_of(operation, request))


def _writes(operation: str, request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tables and the rights that writing to them needs."""
    if operation == "TransactWriteItems":
        return [
            (about["TableName"], f"{action}Item") for each in request["TransactItems"] for action, about in each.items()
        ]
    return [(request["TableName"], operation)] if operation in ("PutItem", "UpdateItem", "DeleteItem") else []
