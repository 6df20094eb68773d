"""The feed of the PostgreSQL journal never skips a commit, whatever transactions do to each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import START, CorruptJournal, Position
from kiseki.journal.postgres.feed import Place, read_feed
from kiseki.journal.postgres.journal import PostgresJournal
from tests.integration.journal.postgres_parts import (
    SlowAppend,
    append,
    append_raw,
    connected,
    new_journal,
    opened,
    streams_of_feed,
    until_waiting,
)
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.create_database()


@pytest.fixture
async def address(url: str) -> PostgresAddress:
    return await new_journal(url)


@pytest.fixture
async def journal(address: PostgresAddress) -> AsyncIterator[PostgresJournal]:
    async with opened(address) as journal:
        await journal.check()
        yield journal


async def test_a_commit_that_lands_late_is_seen(address: PostgresAddress, journal: PostgresJournal) -> None:
    await append(journal, "Before-1", 0)
    slow = await SlowAppend.begin(address, "Slow-1")
    await append(journal, "Fast-1", 0)
    seen, position = await streams_of_feed(journal)
    assert seen == ["Before-1"]
    await slow.land()
    async with connected(address) as connection:
        rows = {row["stream"]: row["position"] for row in await connection.fetch("SELECT * FROM commits")}
    # A reader that went on behind the last row it saw, the fast one's, would never see the slow one.
    assert rows["Slow-1"] < rows["Fast-1"]
    more, _ = await streams_of_feed(journal, position)
    assert sorted(more) == ["Fast-1", "Slow-1"]


async def test_ids_out_of_order_with_rows(address: PostgresAddress, journal: PostgresJournal) -> None:
    """A transaction that got its id first writes another row last."""
    async with connected(address) as first, connected(address) as second:
        await first.execute("BEGIN")
        await append_raw(first, "First-1")
        await second.execute("BEGIN")
        await append_raw(second, "Second-1")
        await append_raw(first, "First-2")
        await first.execute("COMMIT")
        seen, position = await streams_of_feed(journal)
        assert seen == ["First-1", "First-2"]
        await second.execute("COMMIT")
        more, _ = await streams_of_feed(journal, position)
        assert more == ["Second-1"]


async def test_an_append_that_was_given_up_holds_nothing_back(
    address: PostgresAddress, journal: PostgresJournal
) -> None:
    slow = await SlowAppend.begin(address, "Slow-1")
    await append(journal, "Fast-1", 0)
    assert (await journal.feed(START)).commits == ()
    await slow.give_up()
    assert (await streams_of_feed(journal))[0] == ["Fast-1"]


async def test_transactions_of_others_hold_nothing_back(
    address: PostgresAddress, journal: PostgresJournal, postgres_server: PostgresServer
) -> None:
    elsewhere = await new_journal(postgres_server.create_database())
    beside = await new_journal(address.dsn)
    async with AsyncExitStack() as stack:
        for foreign in (address, elsewhere):
            connection = await stack.enter_async_context(connected(foreign))
            await connection.execute("BEGIN")
            await connection.execute("CREATE TABLE other (x integer)")
            assert await connection.fetchval("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
        for other in (beside, elsewhere):
            async with opened(other) as another:
                await another.check()
            stack.push_async_callback((await SlowAppend.begin(other, "Slow-1")).give_up)
        await append(journal, "Fast-1", 0)
        assert (await streams_of_feed(journal))[0] == ["Fast-1"]
        assert (await journal.lag(await journal.head())).commits == 0


# Looks at the locks when the test says so: between it and the snapshot, the test lets an append end. The first gives
# the locks as they are then; the second as they were before, those on tables left out, which is what is left of an
# append that has ended and is giving its locks back.
_LATE_LOOK = """
    CREATE FUNCTION late_look() RETURNS SETOF pg_catalog.pg_locks LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(1);
        RETURN QUERY SELECT * FROM pg_catalog.pg_locks;
    END $$
"""
_HALF_GONE = """
    CREATE FUNCTION late_look() RETURNS SETOF pg_catalog.pg_locks LANGUAGE plpgsql AS $$
    DECLARE before pg_catalog.pg_locks[];
    BEGIN
        before := ARRAY(SELECT held FROM pg_catalog.pg_locks AS held WHERE locktype = 'transactionid');
        PERFORM pg_advisory_xact_lock_shared(1);
        RETURN QUERY SELECT * FROM unnest(before);
    END $$
"""


@pytest.mark.parametrize("look", [_LATE_LOOK, _HALF_GONE])
async def test_an_append_that_ends_while_the_feed_looks(
    address: PostgresAddress, journal: PostgresJournal, look: str
) -> None:
    slow = await SlowAppend.begin(address, "Slow-1")
    await append(journal, "Fast-1", 0)
    path = f'"{address.schema}", pg_catalog'
    async with connected(address) as gate, connected(address, settings={"search_path": path}) as reader:
        await gate.execute(look)
        await gate.execute("CREATE VIEW pg_locks AS SELECT * FROM late_look()")
        await gate.execute("SELECT pg_advisory_lock(1)")
        reading = asyncio.ensure_future(read_feed(reader, Place(0, 0, 0), limit=10))
        await until_waiting(gate, "advisory", reader.get_server_pid())
        await slow.land()
        await gate.execute("SELECT pg_advisory_unlock(1)")
        commits, place = await reading
        seen = [commit.stream for commit in commits]
        commits, _ = await read_feed(reader, place, limit=10)
        seen += [commit.stream for commit in commits]
    assert sorted(seen) == ["Fast-1", "Slow-1"]


async def test_a_new_epoch_waits_for_appends_and_holds_later_ones_back(
    address: PostgresAddress, journal: PostgresJournal
) -> None:
    before = await append(journal, "Before-1", 0)
    head = await journal.head()
    slow = await SlowAppend.begin(address, "Slow-1")
    async with connected(address) as watching, connected(address) as late:
        raising = asyncio.ensure_future(journal.raise_epoch())
        await until_waiting(watching, "relation")
        appending = asyncio.ensure_future(append_raw(late, "Late-1"))
        await until_waiting(watching, "relation", late.get_server_pid())
        assert not raising.done()
        await slow.land()
        await raising
        await appending
        rows = await watching.fetch("SELECT stream, epoch FROM commits")
    assert {row["stream"]: row["epoch"] for row in rows} == {"Before-1": 1, "Slow-1": 1, "Late-1": 2}
    assert (await streams_of_feed(journal, head))[0] == ["Slow-1", "Late-1"]
    assert (await streams_of_feed(journal))[0] == [before.stream, "Slow-1", "Late-1"]


async def test_another_process_raises_the_epoch(address: PostgresAddress, journal: PostgresJournal) -> None:
    await append(journal, "Thing-1", 0)
    head, life = await journal.head(), await journal.life()
    async with opened(address) as other:
        await other.raise_epoch()
        assert await other.life() != life
    assert await journal.life() != life  # although its newest commit is still of the one before
    await append(journal, "Thing-1", 1)
    page = await journal.feed(head)
    assert [commit.first_sequence_number for commit in page.commits] == [2]
    assert page.position == await journal.head()
    assert (await journal.lag(page.position)).commits == 0


async def test_a_position_whose_commit_is_gone_is_said(address: PostgresAddress, journal: PostgresJournal) -> None:
    for number in range(3):
        await append(journal, "Thing-1", number)
    head = await journal.head()
    async with connected(address) as connection:
        await connection.execute("DELETE FROM commits WHERE first_sequence = 3")
    await append(journal, "Other-1", 0)
    with pytest.raises(CorruptJournal, match=head.replace(".", r"\.")):
        await journal.feed(head)
    # Not an error: who asks for the state of the projection shall see it.
    assert (await journal.lag(head)).commits == 3


@pytest.mark.parametrize("text", ["x", "1.2.3.4", "....", "a.1.1", "\u8ecc.1.1.1", "a.1.1.9" * 50])
async def test_what_is_no_position_reads_from_the_start(journal: PostgresJournal, text: str) -> None:
    await append(journal, "Thing-1", 0)
    assert len((await journal.feed(Position(text))).commits) == 1
    assert (await journal.lag(Position(text))).commits == 1


async def test_pages_are_bounded_in_bytes(journal: PostgresJournal) -> None:
    data = b'{"large":"' + b"x" * 240_000 + b'"}'
    for number in range(20):
        await append(journal, "Thing-1", number, data=data)
    sizes: list[int] = []
    position = START
    while (page := await journal.feed(position)).commits:
        sizes.append(len(page.commits))
        position = page.position
    assert sum(sizes) == 20
    assert max(sizes) == 9  # the ninth reaches two million bytes
    assert [len(events) async for events in journal.read("Thing-1")] == sizes


async def test_damage_is_found(address: PostgresAddress, journal: PostgresJournal) -> None:
    for number in range(4):
        await append(journal, "Thing-1", number)
        await append(journal, "Thing-2", number)
    async with connected(address) as connection:
        await connection.execute("DELETE FROM commits WHERE stream = 'Thing-1' AND first_sequence = 2")
        await connection.execute("UPDATE commits SET document = document || ' ' WHERE stream = 'Thing-2'")
    with pytest.raises(CorruptJournal, match="no commit that begins with sequence number 2"):
        await anext(aiter(journal.read("Thing-1")))
    with pytest.raises(CorruptJournal, match="damaged"):
        await anext(aiter(journal.read("Thing-2")))
    with pytest.raises(CorruptJournal, match="damaged"):
        await journal.feed(START)


async def test_large_lags_are_estimated(address: PostgresAddress, journal: PostgresJournal) -> None:
    first = await append(journal, "Thing-1", 0)
    async with connected(address) as connection:
        await connection.execute(
            """
            INSERT INTO commits (epoch, stream, first_sequence, count, commit_id, committed_at, format, checksum,
                                 document)
            SELECT 1, 'Many-' || n, 1, 1, n::text, now(), 1, '', '' FROM generate_series(1, 12000) AS n
            """
        )
    lag = await journal.lag(START)
    assert lag.commits == 12_001
    assert lag.oldest == first.metadata.committed_at
    assert (await journal.lag(await journal.head())).commits == 0
