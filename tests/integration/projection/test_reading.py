"""Queries on real read models: one state each, many at a time, stopped when they take too long, never a write."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Integer, case, func, literal, select

from kiseki import Arguments, Query, ReadModel
from kiseki.application.system import SystemClock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.port import BuildName
from kiseki.projection.subscription import Subscription
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.database import QueryFailed, QueryTooSlow, ReadModelBuilding
from kiseki.query.queries import Queries
from kiseki.query.waiting import ConsistencyWaiter, Stale, StreamParked
from tests.integration.projection.parts import Place, ReadModels, running
from tests.unit.projection.parts import DECIDERS, UNLUCKY, Counted, Totals

A, B = "Counter-a", "Counter-b"


@pytest.fixture
async def few(place: Place) -> Place:
    """Read models with one reading connection, and statements that may take 0.2 s."""
    await place.models.close()
    place.models = await place.storage.open(queries=1, statement_timeout=0.2)
    return place


def endless(totals: Totals) -> object:
    """A statement that counts for ever."""
    numbers = select(literal(1, Integer).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(case((numbers.c.n > 0, numbers.c.n + 1), else_=0)))
    return select(func.count()).select_from(numbers)


async def test_a_query_sees_one_state_from_its_first_statement_on(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    count = select(func.count()).select_from(totals.steps)
    async with place.models.database.open([totals.projection]) as read:
        before = await read.first(count)
        await place.world.facts.happen(A, Counted(2))
        await place.updater(totals).run_until_caught_up()
        assert await read.first(count) == before == (1,)
    assert await place.count(totals) == 2


async def test_a_query_may_join_projections_in_one_state(place: Place) -> None:
    one, two = Totals(name="one"), Totals(name="two")
    await place.world.facts.happen(A, Counted(5))
    await place.updater(one, two).run_until_caught_up()
    both = select(one.totals.c.total, two.totals.c.total).join(two.totals, one.totals.c.id == two.totals.c.id)
    async with place.models.database.open([one.projection, two.projection]) as read:
        first = await read.all(select(one.steps))
        await place.world.facts.happen(A, Counted(7))
        await place.updater(one, two).run_until_caught_up()
        # The state of the second projection is as old as that of the first, which was all that had been read.
        assert [tuple(row) for row in await read.all(both)] == [(5, 5)]
        assert len(first) == 1
    async with place.models.database.open([one.projection, two.projection]) as read:
        assert [tuple(row) for row in await read.all(both)] == [(12, 12)]


async def test_more_projections_than_can_be_attached_are_read_in_turn(few: Place) -> None:
    many = [Totals(name=f"p{n}") for n in range(13)]
    await few.world.facts.happen(A, Counted(5))
    await few.updater(*many).run_until_caught_up()
    for start in (0, 3, 1, 2, 0):
        some = many[start : start + 10]
        async with few.models.database.open([one.projection for one in some]) as read:
            for one in some:
                assert await read.first(select(one.totals.c.total)) == (5,)


async def test_a_rebuild_is_seen_by_the_next_query(place: Place) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    await place.count(totals)
    progress = place.models.database.progress
    assert (await progress(totals.projection, [A]))[A].sequence_number == 0
    builds = place.models.builds
    build = await builds.create(totals.projection, Subscription(totals.projection, DECIDERS).definition)
    store = await builds.open(totals.projection, build.name, Subscription(totals.projection, DECIDERS).definition)
    await store.close()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    assert await place.live() == BuildName("totals", 1, 2)
    # The build before, which was the last one that was asked, is not written any more.
    await place.world.facts.happen(A, Counted(2))
    await place.updater(totals).run_until_caught_up()
    assert (await progress(totals.projection, [A]))[A].sequence_number == 2
    assert await place.count(totals) == 2


async def test_a_version_that_was_never_built_is_told(place: Place) -> None:
    await place.updater(Totals()).run_until_caught_up()
    with pytest.raises(ReadModelBuilding, match="version 2 is being built"):
        await place.count(Totals(version=2))


async def test_queries_can_not_write(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    async with place.models.database.open([totals.projection]) as read:
        with pytest.raises(QueryFailed):
            await read.all(totals.totals.delete())
    assert await place.count(totals) == 1


async def test_a_projection_that_was_not_named_is_refused(few: Place) -> None:
    one, two = Totals(name="one"), Totals(name="two")
    await few.updater(one, two).run_until_caught_up()
    async with few.models.database.open([one.projection, two.projection]) as read:
        await read.all(select(one.totals))
    # Both are attached to the connection by now; only one was named.
    async with few.models.database.open([one.projection]) as read:
        with pytest.raises(QueryFailed, match="reads tables of two"):
            await read.all(select(one.totals.c.id).where(one.totals.c.id.in_(select(two.totals.c.id))))
        assert await read.all(select(one.totals)) == []


async def test_a_statement_that_takes_too_long_is_stopped(few: Place) -> None:
    totals = Totals()
    await few.updater(totals).run_until_caught_up()
    async with asyncio.timeout(10):
        async with few.models.database.open([totals.projection]) as read:
            with pytest.raises(QueryTooSlow):
                await read.first(endless(totals))
            assert await read.first(select(func.count()).select_from(totals.steps)) == (0,)
        assert await few.count(totals) == 0


async def test_a_query_that_nobody_waits_for_gives_its_connection_back(few: Place) -> None:
    totals = Totals()
    await few.updater(totals).run_until_caught_up()

    async def ask() -> None:
        async with few.models.database.open([totals.projection]) as read:
            await read.first(endless(totals))

    async with asyncio.timeout(10):
        for _ in range(3):
            asked = asyncio.create_task(ask())
            await asyncio.sleep(0.02)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        assert await few.count(totals) == 0


async def test_more_queries_than_connections_take_turns(few: Place) -> None:
    totals = Totals()
    await few.world.facts.happen(A, Counted(1))
    await few.updater(totals).run_until_caught_up()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*(few.count(totals) for _ in range(50))) == [1] * 50


async def test_a_handler_may_ask_several_things_at_once(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    async with place.models.database.open([totals.projection]) as read:
        statement = select(totals.totals.c.total)
        assert await asyncio.gather(*(read.first(statement) for _ in range(20))) == [(1,)] * 20


async def test_a_statement_that_comes_after_the_end_takes_no_connection(few: Place) -> None:
    totals = Totals()
    await few.updater(totals).run_until_caught_up()
    statement = select(totals.totals)
    async with asyncio.timeout(20):
        async with few.models.database.open([totals.projection]) as holding:
            await holding.all(statement)
            async with few.models.database.open([totals.projection]) as read:
                late = asyncio.create_task(read.all(statement))
                await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="has ended"):
            await late
        assert await few.count(totals) == 0


async def test_a_read_model_ends_with_its_query(place: Place) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    async with place.models.database.open([totals.projection]) as read:
        await read.all(select(totals.totals))
    with pytest.raises(RuntimeError, match="has ended"):
        await read.all(select(totals.totals))


# Own writes


class Count(Arguments):
    """Nothing to say."""


class Reader:
    """Queries as a process would have them."""

    def __init__(self, models: ReadModels, totals: Totals, *, timeout: float = 10.0) -> None:
        async def how_many(arguments: Count, read: ReadModel) -> int:
            row = await read.first(select(func.count()).select_from(totals.steps))
            assert row is not None
            return int(row[0])

        subscription = Subscription(totals.projection, DECIDERS)
        self.waiter = ConsistencyWaiter(
            models.database, follows=lambda projection, stream: subscription.follows(stream), timeout=timeout
        )
        self._queries = Queries(
            database=models.database, waiter=self.waiter, telemetry=NoTelemetry(), clock=SystemClock()
        )
        self._query = Query("howMany", how_many, reads=[totals.projection], roles={"user"})

    async def ask(self, *pairs: tuple[str, int]) -> object:
        return await self._queries.ask(self._query, Count(), subject="s", token=ConsistencyToken(pairs))


@pytest.mark.parametrize("notified", [True, False])
async def test_a_query_with_a_token_sees_the_write(place: Place, *, notified: bool) -> None:
    """In the process that applies by notification, in another one by looking."""
    totals = Totals()
    reader = Reader(place.models, totals)
    updater = place.updater(totals)
    if notified:
        updater.subscribe(reader.waiter.notify)
    async with running(updater), asyncio.timeout(30):
        await updater.caught_up()
        for number in range(1, 30):
            commit = await place.world.facts.happen(A, Counted(1))
            assert await reader.ask((commit.stream, commit.last_sequence_number)) == number
    await reader.waiter.close()


async def test_a_token_of_a_parked_stream_is_answered_at_once(place: Place) -> None:
    totals = Totals()
    reader = Reader(place.models, totals)
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    await place.updater(totals).run_until_caught_up()
    assert await reader.ask((A, 1)) == 1
    with pytest.raises(StreamParked):
        await reader.ask((A, 2))


async def test_without_an_updater_a_token_ends_as_stale(place: Place) -> None:
    totals = Totals()
    reader = Reader(place.models, totals, timeout=0.1)
    await place.updater(totals).run_until_caught_up()
    await place.world.facts.happen(A, Counted(1))
    with pytest.raises(Stale):
        await reader.ask((A, 1))
    assert await reader.ask() == 0
    await reader.waiter.close()
