"""`DynamoDbJournal`: the store on AWS. One conditional put for each commit, no transaction unless more rides along.

Its feed reads DynamoDB's stream of changes (`feed`). Any number of processes use the same tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbAddress, DynamoDbClient
from kiseki.clients.dynamodb_tables import check_tables, create_tables
from kiseki.journal.dynamodb.append import Appender, StreamEnds
from kiseki.journal.dynamodb.changes import ChangeStream
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.feed import Feed
from kiseki.journal.dynamodb.held import KEY, MARK, record_key, record_of
from kiseki.journal.dynamodb.index import TimeIndex
from kiseki.journal.dynamodb.items import item_of
from kiseki.journal.dynamodb.reader import StreamReader
from kiseki.journal.dynamodb.schema import TABLES
from kiseki.journal.dynamodb.snapshots import DynamoDbSnapshots
from kiseki.journal.dynamodb.transfer import HeldParts
from kiseki.journal.dynamodb.watch import StreamWatchers
from kiseki.journal.port import (
    ClaimChange,
    Commit,
    CommitMetadata,
    FeedPage,
    IdempotencyRecord,
    JournalUnavailable,
    Lag,
    Limits,
    Position,
    RecordedEvent,
    Snapshot,
    new_commit,
)
from kiseki.journal.transfer.transferable import HeldClaim
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock, Telemetry

__all__ = ["DynamoDbJournal"]

_REMEMBERED: Final = timedelta(hours=23)
_LOOKBACK: Final = timedelta(minutes=10)


def _aws_time() -> datetime:
    return datetime.now(UTC)


class DynamoDbJournal:
    """A Journal and SnapshotStore on the tables `<prefix>-journal`, `-claims` and `-snapshots`; opened by `open`.

    The order of the feed is that of each stream; there is none between streams.
    """

    def __init__(
        self,
        client: DynamoDbClient,
        *,
        owns_client: bool,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits,
        poll: float,
        shared: float,
        pause: float,
        remembered: timedelta,
        lookback: timedelta,
        aws_time: Callable[[], datetime],
    ) -> None:
        """For `open`."""
        self.limits = limits
        self._client = client
        self._owns_client = owns_client
        self._clock = clock
        self._telemetry = telemetry
        self._lookback = lookback
        self._claims = client.address.table("claims")
        ends = StreamEnds()
        self._appender = Appender(client, clock=clock, aws_time=aws_time, ends=ends)
        self._reader = StreamReader(client, ends=ends)
        self._watchers = StreamWatchers(poll=poll)
        self._changes = ChangeStream(client, shared=shared, pause=pause, grown=self._watchers.wake)
        self._index = TimeIndex(client)
        self._feed = Feed(
            client, self._changes, self._index, self._reader, now=aws_time, remembered=remembered, lookback=lookback
        )
        self._snapshots = DynamoDbSnapshots(client)
        self._held = HeldParts(client, clock=clock, aws_time=aws_time)
        self._under_way = 0
        self._all_done = asyncio.Event()
        self._mark = {"TableName": self._claims, "Item": {KEY: {"S": MARK}}}
        self._is_checked = False
        self._closed = False

    @classmethod
    async def open(
        cls,
        address: DynamoDbAddress,
        *,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits | None = None,
        client: DynamoDbClient | None = None,
        connections: int = 64,
        poll: float = 0.25,
        shared: float = 0.05,
        pause: float = 0.2,
        remembered: timedelta = _REMEMBERED,
        lookback: timedelta = _LOOKBACK,
        aws_time: Callable[[], datetime] = _aws_time,
    ) -> Self:
        """The journal at an address. Nothing is contacted yet, so this never fails.

        A `client` that is given stays open when the journal closes; an own one makes at most `connections`. While
        somebody watches, the stream is looked at every `poll` seconds; that it has nothing new is believed for
        `shared` seconds. Where it seems to end, it is looked at every `pause` seconds until that is believed. It is
        trusted to remember what is younger than `remembered`; clocks of writers may be
        off by `lookback`. `aws_time` is the time by which DynamoDB counts that, whatever `clock` shows.
        """
        return cls(
            client or DynamoDbClient(address, connections=connections),
            owns_client=client is None,
            clock=clock,
            telemetry=telemetry,
            limits=limits or Limits(),
            poll=poll,
            shared=shared,
            pause=pause,
            remembered=remembered,
            lookback=lookback,
            aws_time=aws_time,
        )

    @staticmethod
    async def migrate(address: DynamoDbAddress) -> list[str]:
        """Makes the tables that are missing and expands the others; a line for each of those.

        Raises JournalUnavailable, TableDiffers.
        """
        client = DynamoDbClient(address)
        try:
            with explained():
                return [f"made or expanded the table {name}" for name in await create_tables(client, TABLES)]
        finally:
            await client.close()

    async def append(
        self,
        stream: str,
        after: int,
        events: Sequence[EncodedEvent],
        *,
        metadata: CommitMetadata,
        claims: Sequence[ClaimChange] = (),
        idempotency: IdempotencyRecord | None = None,
    ) -> Commit:
        """As the contract says. CommitTooLarge also for what DynamoDB does not keep in one item (400 KB, compressed)
        or one transaction (100 items). Raises ValueError for a name that is no stream's."""
        self._refuse_when_closed()
        commit = new_commit(stream, after, events, metadata=metadata, limits=self.limits)
        self._under_way += 1
        started = self._clock.monotonic()
        try:
            landed = await self._appender.append(commit, claims, idempotency)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_done.set()
        self._changes.expect()
        self._watchers.wake()
        if landed.is_new:
            self._telemetry.group_committed(1, self._clock.monotonic() - started)
        return landed.commit

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """As the contract says."""
        self._refuse_when_closed()
        async for page in self._reader.pages(stream, after):
            yield [event for commit in page for event in commit.recorded(after)]
            self._refuse_when_closed()

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """As the contract says, with no order between streams; a page may be shorter than `limit` before the end, when
        its commits are large, and a little longer where clocks of writers differ."""
        self._refuse_when_closed()
        return await self._feed.page(after, limit)

    async def head(self) -> Position:
        """As the contract says, if it is not more than 10,000 commits from the last head that was asked for or from as
        far back as the stream remembers; else a place before it."""
        self._refuse_when_closed()
        return await self._feed.head()

    async def lag(self, after: Position) -> Lag:
        """As the contract says; from 10,000 commits on, or for a place from which the stream does not lead on any more,
        the number is about right, and said to be."""
        self._refuse_when_closed()
        return await self._feed.lag(after)

    async def beginning(self) -> Position:
        """As TransferableJournal says."""
        self._refuse_when_closed()
        return await self._feed.beginning()

    async def life(self) -> str:
        """As TransferableJournal says: which stream of which table it is."""
        self._refuse_when_closed()
        return await self._feed.life()

    async def heads(self, since: datetime) -> AsyncIterator[Mapping[str, int]]:
        """Streams that were written to since a moment, and the first sequence number of the newest commit that was seen
        of each, in pages; a stream may come again. For whoever looks for what a feed may have missed.

        The index that says so follows the journal a little late. Raises CorruptJournal, JournalUnavailable.
        """
        self._refuse_when_closed()
        async for places in self._index.places(since - self._lookback):
            heads: dict[str, int] = {}
            for stream, number in places:
                heads[stream] = max(number, heads.get(stream, 0))
            yield heads
            self._refuse_when_closed()

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """As the contract says."""
        self._refuse_when_closed()
        request = {"TableName": self._claims, "Key": {KEY: {"S": record_key(key)}}, "ConsistentRead": True}
        with explained():
            answer = await self._client.call("GetItem", request)
        return record_of(item_of(answer), self._clock.now())

    async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As TransferableJournal says."""
        self._refuse_when_closed()
        async for page in self._held.claims():
            yield page
            self._refuse_when_closed()

    async def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As TransferableJournal says."""
        self._refuse_when_closed()
        async for page in self._held.records():
            yield page
            self._refuse_when_closed()

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As TransferableJournal says."""
        self._refuse_when_closed()
        await self._held.restore(claims, records)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As the contract says."""
        return self._watchers.add(wake, self._changes)

    async def check(self) -> None:
        """As the contract says: commits are taken, and a small write lands. The tables are looked at once.

        Raises NotMigrated, TableDiffers too.
        """
        self._refuse_when_closed()
        with explained():
            if not self._is_checked:
                await check_tables(self._client, TABLES)
                self._is_checked = True
            await asyncio.gather(self._prove_commits(), self._client.call("PutItem", self._mark), self._changes.about())

    async def _prove_commits(self) -> None:
        """A put that DynamoDB takes, judges and refuses, so that no commit comes of it."""
        put = {
            "TableName": self._client.address.table("journal"),
            "Item": {"persistence-id": {"S": MARK}, "sequence-nr": {"N": "0"}},
            "ConditionExpression": "attribute_exists(#stream)",
            "ExpressionAttributeNames": {"#stream": "persistence-id"},
        }
        with suppress(ConditionFailed):
            await self._client.call("PutItem", put)

    async def close(self) -> None:
        """As the contract says. Again is fine."""
        self._closed = True
        while self._under_way:
            self._all_done.clear()
            await self._all_done.wait()
        await self._watchers.close()
        if self._owns_client:
            await self._client.close()

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """As the contract says."""
        self._refuse_when_closed()
        return await self._snapshots.load(stream, schema)

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """As the contract says."""
        self._refuse_when_closed()
        await self._snapshots.save(snapshot, keep=keep)

    async def delete_snapshots(self, stream: str) -> None:
        """As the contract says."""
        self._refuse_when_closed()
        await self._snapshots.delete(stream)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise JournalUnavailable(f"the journal {self._client.address.prefix} on DynamoDB is closed")
