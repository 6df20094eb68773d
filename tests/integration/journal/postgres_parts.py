"""What the tests of the PostgreSQL journal share: opening one, raw statements beside it, and appends that linger."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.journal.port import START, Commit, CommitMetadata, Journal, JournalUnavailable, Limits, Position, new_commit
from kiseki.journal.postgres.append import append_plain, new_request
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.codec import EncodedEvent
from kiseki.testing.journal_conformance import encoded, metadata
from tests.integration.journal.sqlite_parts import Groups, RealClock

_numbers = itertools.count(1)


async def new_journal(url: str) -> PostgresAddress:
    """A journal in a schema of its own."""
    address = PostgresAddress.parse(url, schema=f"journal_{next(_numbers)}")
    await PostgresJournal.migrate(address)
    return address


@asynccontextmanager
async def opened(
    address: PostgresAddress, groups: Groups | None = None, **options: Any
) -> AsyncIterator[PostgresJournal]:
    journal = await PostgresJournal.open(address, clock=RealClock(), telemetry=groups or Groups(), **options)
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def connected(address: PostgresAddress, **options: Any) -> AsyncIterator[PostgresConnection]:
    """A connection beside the journal."""
    connection = await connect(address, application="test", **options)
    try:
        yield connection
    finally:
        connection.terminate()


async def append(journal: Journal, stream: str, after: int, *, data: bytes = b"{}", **rest: Any) -> Commit:
    """One event, with ids made of its place."""
    name = f"{stream.partition('-')[2]}.{after}"
    return await journal.append(stream, after, [encoded(name, data=data)], metadata=metadata(name), **rest)


async def append_many(journal: Journal, streams: int, after: int, **rest: Any) -> list[Commit | BaseException]:
    return await asyncio.gather(
        *(append(journal, f"Thing-{n}", after, **rest) for n in range(streams)), return_exceptions=True
    )


async def append_raw(
    connection: PostgresConnection,
    stream: str,
    after: int = 0,
    *,
    events: Sequence[EncodedEvent] | None = None,
    about: CommitMetadata | None = None,
) -> Commit:
    """The journal's own statement on a connection of the test, so that the test says when its transaction ends."""
    request = new_request(
        new_commit(
            stream,
            after,
            events or [encoded(f"{stream}.{after}"[-26:])],
            metadata=about or metadata(f"{stream}.{after}"[-26:]),
            limits=Limits(),
        ),
        claims=(),
        idempotency=None,
        future=asyncio.get_running_loop().create_future(),
    )
    result = await append_plain(connection, [request])
    assert result.landed == 1
    return request.commit


class SlowAppend:
    """An append whose transaction stays open until it is told to end."""

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    @classmethod
    async def begin(
        cls,
        address: PostgresAddress,
        stream: str,
        *,
        events: Sequence[EncodedEvent] | None = None,
        about: CommitMetadata | None = None,
    ) -> SlowAppend:
        connection = await connect(address, application="test", settings={"idle_in_transaction_session_timeout": "0"})
        await connection.execute("BEGIN")
        await append_raw(connection, stream, events=events, about=about)
        return cls(connection)

    async def land(self) -> None:
        await self._connection.execute("COMMIT")
        await self._connection.close()

    async def give_up(self) -> None:
        await self._connection.execute("ROLLBACK")
        await self._connection.close()


async def streams_of_feed(journal: Journal, after: Position = START) -> tuple[list[str], Position]:
    """The streams of the commits after a position in the order of the feed, and where it ends."""
    streams: list[str] = []
    while True:
        page = await journal.feed(after)
        if not page.commits:
            return streams, page.position
        streams += [commit.stream for commit in page.commits]
        after = page.position


async def until_waiting(connection: PostgresConnection, kind: str, process_id: int | None = None) -> None:
    """Until a process of the server waits for a lock of this kind."""
    while not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = $1 AND pid = coalesce($2, pid))",
        kind,
        process_id,
    ):
        await asyncio.sleep(0.005)


async def until_it_works(work: Callable[[], Awaitable[Any]]) -> None:
    """Tries again while the journal is not available."""
    while True:
        try:
            await work()
        except JournalUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


def utc_now() -> datetime:
    return datetime.now(UTC)
