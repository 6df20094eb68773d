"""`PostgresJournal`: the journal in a PostgreSQL database. Group commit, any number of processes and machines.

Durable by the server's own settings, which are looked at on every connection; see `schema`. The role needs
SELECT, INSERT, UPDATE and DELETE on the tables of the schema; making them (`migrate`) needs their owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.postgres_migrations import MigrationRefused, migrate
from kiseki.journal.lease.port import elapsed_clock
from kiseki.journal.port import (
    START,
    ClaimChange,
    Commit,
    CommitMetadata,
    CorruptJournal,
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
from kiseki.journal.postgres.append import new_request, refuse_unstorable
from kiseki.journal.postgres.feed import Place, PlaceLost, place_of, position_of, read_feed, read_head, read_lag
from kiseki.journal.postgres.fence import fenced_term, new_permit, open_fence, raise_fence
from kiseki.journal.postgres.hints import PostgresHints
from kiseki.journal.postgres.reader import (
    delete_snapshots,
    read_claims,
    read_idempotency,
    read_records,
    read_snapshot,
    read_stream,
    save_snapshot,
)
from kiseki.journal.postgres.schema import (
    COMPONENT,
    MIGRATIONS,
    Lives,
    begin_epoch,
    prepare,
    prepare_to_read,
    read_lives,
)
from kiseki.journal.postgres.transfer import restore_held
from kiseki.journal.postgres.writer import PostgresWriter
from kiseki.journal.transfer.transferable import HELD_PAGE, HeldClaim
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.kernel.streams import STREAM

__all__ = ["PostgresJournal"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_APPLICATION: Final = "kiseki journal"

# Every statement finds its rows by an index. A plan that was made while the tables were small has to know that too: it
# is kept, and the tables grow much faster than the server looks at them.
_SETTINGS: Final = {"enable_seqscan": "off", "enable_bitmapscan": "off"}

_PROVE_WRITABLE: Final = "UPDATE proofs SET written = written + 1"
_START: Final = Place(0, 0, 0)


class PostgresJournal:
    """A Journal and SnapshotStore in one schema of a database; opened by `open`, used on the event loop of that."""

    def __init__(
        self,
        address: PostgresAddress,
        *,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits,
        writers: int,
        readers: int,
        statement_timeout: float,
        read_only: bool,
    ) -> None:
        """For `open`."""
        self._read_only = read_only
        self.limits = limits
        self._address = address
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._statement_timeout = statement_timeout
        self._lives: Lives = {}
        self._hints = PostgresHints(address, application=f"{_APPLICATION} hints")
        self._writers = self._pool(writers, f"{_APPLICATION} writer")
        self._readers = self._pool(readers, f"{_APPLICATION} reader")
        self._writer = PostgresWriter(
            self._writers,
            label=address.label,
            groups_at_once=writers,
            clock=clock,
            telemetry=telemetry,
            committed=self._hints.grew,
        )

    @classmethod
    async def open(
        cls,
        address: PostgresAddress,
        *,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits | None = None,
        writers: int = 2,
        readers: int = 4,
        statement_timeout: float = 10.0,
        read_only: bool = False,
    ) -> Self:
        """The journal at an address; connects when it is used, so a server that is down does not fail this.

        At most `writers` + `readers` + 1 connections are held. The server ends a statement after `statement_timeout`
        seconds, or when it waits for a lock for half of that. With `read_only` nothing is written: a standby will do.
        """
        return cls(
            address,
            clock=clock,
            telemetry=telemetry,
            limits=limits or Limits(),
            writers=writers,
            readers=readers,
            statement_timeout=statement_timeout,
            read_only=read_only,
        )

    @classmethod
    async def migrate(cls, address: PostgresAddress) -> list[str]:
        """Makes the schema and its tables, or brings them up to date; what was done, in lines for people.

        Raises MigrationRefused, JournalUnavailable.
        """
        where = f"the journal on {address.label}, schema {address.schema}"
        try:
            connection = await connect(address, application=f"{_APPLICATION} migration")
            try:
                applied = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                connection.terminate()
        except MigrationRefused as problem:
            raise MigrationRefused(f"{where}: {problem}") from problem
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as problem:
            if not is_unavailable(problem):
                raise
            raise JournalUnavailable(f"{where} can't be migrated: {reason(problem)}") from problem
        return [f"{where}: migration {number} applied" for number in applied]

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
        """As the contract says. Raises ValueError for a name that is no stream's, and for text that can't be stored."""
        self._refuse_when_closed()
        if self._read_only:
            raise self._unavailable("it was opened to be read")
        request = new_request(
            new_commit(stream, after, events, metadata=metadata, limits=self.limits),
            claims=claims,
            idempotency=idempotency,
            future=self._loop.create_future(),
        )
        self._writer.submit(request)
        return await request.future

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """As the contract says."""
        more = bool(STREAM.fullmatch(stream))
        while more:
            self._refuse_when_closed()
            page = await self._read(partial(read_stream, stream=stream, after=after))
            if not page.commits:
                return
            yield [event for commit in page.commits for event in commit.recorded(after)]
            after = page.commits[-1].last_sequence_number
            more = page.more

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """As the contract says; a page may be shorter than `limit` before the end, when its commits are large.

        A commit that another one overtook, and that is not finished yet, ends the page too: none is skipped.
        Raises CorruptJournal as well when a commit that the reader has seen is gone: what was built on it is wrong.
        """
        self._refuse_when_closed()
        async with self._readers.connection() as connection:
            place = await self._place(connection, after)
            try:
                commits, place = await read_feed(connection, place or _START, limit=limit)
            except PlaceLost:
                raise self._lost(after) from None
            return FeedPage(commits, await self._position(connection, place))

    def _lost(self, after: Position) -> CorruptJournal:
        problem = CorruptJournal(
            f"the journal on {self._address.label} lacks the commit at {after}, which was read from it before: commits "
            "were lost, by a restore or a failover to a replica that was behind; rebuild the projections that read it"
        )
        _log.error("%s", problem)
        return problem

    async def head(self) -> Position:
        """As the contract says."""
        self._refuse_when_closed()
        async with self._readers.connection() as connection:
            return await self._position(connection, await read_head(connection))

    async def lag(self, after: Position) -> Lag:
        """As the contract says; from 10,000 commits on, the number may be a little too high."""
        self._refuse_when_closed()
        async with self._readers.connection() as connection:
            return await read_lag(connection, await self._place(connection, after) or _START)

    async def _place(self, connection: PostgresConnection, position: Position) -> Place | None:
        place = place_of(position, self._lives)
        if place is None:
            self._lives = await read_lives(connection)
            place = place_of(position, self._lives)
            if place is None:
                _log.warning(
                    "a reader of the journal on %s starts over: its position %.80r is of another life of the journal",
                    self._address.label,
                    position,
                )
        return place

    async def _position(self, connection: PostgresConnection, place: Place) -> Position:
        if place != _START and place.epoch not in self._lives:
            self._lives = await read_lives(connection)
        return position_of(place, self._lives)

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """As the contract says."""
        self._refuse_when_closed()
        return await self._read(partial(read_idempotency, key=key, now=self._clock.now()))

    async def beginning(self) -> Position:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        return START

    async def life(self) -> str:
        """As `TransferableJournal` says: the last epoch that began, not that of the newest row."""
        self._refuse_when_closed()
        lives = await self._read(read_lives)
        return lives[max(lives)]

    async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As `TransferableJournal` says."""
        after = ("", "")
        while True:
            self._refuse_when_closed()
            page = await self._read(partial(read_claims, after=after, limit=HELD_PAGE))
            if not page:
                return
            yield page
            after = (page[-1].scope, page[-1].digest)

    async def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As `TransferableJournal` says."""
        after = ""
        while True:
            self._refuse_when_closed()
            page = await self._read(partial(read_records, after=after, limit=HELD_PAGE, now=self._clock.now()))
            if not page:
                return
            yield page
            after = page[-1].key

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As `TransferableJournal` says; all of them or none. Raises ValueError for text that can't be stored."""
        self._refuse_when_closed()
        async with self._writers.connection() as connection:
            await restore_held(connection, claims, records, self._clock.now())

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As the contract says. Hints between processes are NOTIFY on a connection that only does this."""
        return self._hints.add(wake)

    async def check(self) -> None:
        """As the contract says: a small write that is made durable."""
        self._refuse_when_closed()
        async with self._writers.connection() as connection:
            await connection.execute(_PROVE_WRITABLE)

    async def raise_epoch(self) -> None:
        """Begins a new epoch, durable when this returns; waits for appends under way and holds new ones back meanwhile.

        Needed after a copy of the server's disk was put back (a volume snapshot), because cluster and timeline are the
        same then. Of a dump, a base backup or a promoted replica the journal finds out by itself.
        Raises JournalUnavailable.
        """
        self._refuse_when_closed()
        async with self._writers.connection() as connection:
            self._lives = await begin_epoch(connection, self._address)

    async def fence(self, term: int) -> None:
        """As FencedJournal says."""
        self._refuse_when_closed()
        async with self._writers.connection() as connection:
            await raise_fence(connection, term, f"the journal on {self._address.label}")

    async def unfence(self) -> None:
        """As FencedJournal says."""
        self._refuse_when_closed()
        async with self._writers.connection() as connection:
            await open_fence(connection)

    async def fenced_term(self) -> int:
        """As FencedJournal says."""
        return await self._read(fenced_term)

    async def permit(self, term: int, seconds: float) -> None:
        """As FencedJournal says."""
        self._refuse_when_closed()
        until = elapsed_clock() + seconds
        async with self._writers.connection() as connection:
            self._writer.permit = await new_permit(connection, term, until)

    async def close(self) -> None:
        """As the contract says. Again is fine."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name=f"close {self._address.label}")
        # Shielded: whoever is cancelled while waiting does not leave it half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._writer.finish()
        await self._hints.close()
        await self._writers.close()
        await self._readers.close()

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """As the contract says."""
        self._refuse_when_closed()
        return await self._read(partial(read_snapshot, stream=stream, schema=schema))

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """As the contract says. Raises ValueError for text that can't be stored."""
        self._refuse_when_closed()
        refuse_unstorable(snapshot.stream, snapshot.schema)
        await self._read(partial(save_snapshot, snapshot=snapshot, keep=keep))

    async def delete_snapshots(self, stream: str) -> None:
        """As the contract says; their pages are cleared by the server's next vacuum."""
        self._refuse_when_closed()
        await self._read(partial(delete_snapshots, stream=stream))

    async def _read(self, query: Callable[[PostgresConnection], Awaitable[_T]]) -> _T:
        async with self._readers.connection() as connection:
            return await query(connection)

    def _pool(self, size: int, application: str) -> PostgresPool:
        return PostgresPool(
            self._address,
            size=size,
            application=application,
            prepare=self._prepare,
            unavailable=self._unavailable,
            statement_timeout=self._statement_timeout,
            lock_timeout=self._statement_timeout / 2,
            settings=_SETTINGS,
        )

    async def _prepare(self, connection: PostgresConnection) -> None:
        opening = prepare_to_read if self._read_only else prepare
        self._lives = await opening(connection, self._address)

    def _unavailable(self, why: str) -> JournalUnavailable:
        return JournalUnavailable(f"the journal on {self._address.label} can't be used: {why}")

    def _refuse_when_closed(self) -> None:
        if self._closing is not None:
            raise JournalUnavailable(f"the journal on {self._address.label} is closed")
