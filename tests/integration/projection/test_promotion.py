"""A build takes over: never behind the one it replaces, and from then on it parks what it can't apply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import insert

from kiseki.application.system import SystemClock
from kiseki.journal.port import Commit
from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import Batch, BuildName, GuardMove
from kiseki.projection.projector import Projector
from kiseki.projection.status import request_rebuild
from kiseki.projection.subscription import Subscription
from tests.integration.projection.parts import (
    DEFINITION,
    TOTALS,
    Place,
    PostgresStorage,
    SqliteStorage,
    is_live,
    running,
    until,
)
from tests.unit.projection.parts import DECIDERS, UNLUCKY, Counted, Totals

A, B, C = "Counter-a", "Counter-b", "Counter-c"
FIRST, SECOND = BuildName("totals", 1, 1), BuildName("totals", 1, 2)


class Promoting:
    """In place of a catalog's `promote`: what happens before, and what came of it."""

    def __init__(self, place: Place) -> None:
        self.asked: list[BuildName] = []
        self.refused: list[Mapping[str, int]] = []
        self._real = place.models.builds.promote
        place.models.builds.promote = self

    async def before(self) -> None: ...

    async def __call__(self, name: BuildName, *, unless_behind: BuildName | None = None) -> Mapping[str, int]:
        self.asked.append(name)
        await self.before()
        behind: Mapping[str, int] = await self._real(name, unless_behind=unless_behind)
        if behind:
            self.refused.append(behind)
        return behind


async def built(place: Place) -> None:
    await place.updater(TOTALS).run_until_caught_up()
    assert await place.live() == FIRST


async def rebuilt(place: Place, totals: Totals = TOTALS) -> Any:
    await request_rebuild(place.models.builds, totals.projection)
    return await place.updater(totals).run_until_caught_up()


@asynccontextmanager
async def pushing(place: Place, name: BuildName) -> AsyncIterator[Projector]:
    """Who gets events besides the owner, and knows of one build only."""
    models = await place.storage.open()
    store = await models.builds.open(TOTALS.projection, name, DEFINITION)
    try:
        yield Projector(
            subscription=Subscription(TOTALS.projection, DECIDERS),
            store=store,
            journal=place.journal,
            codec=place.world.codec,
            telemetry=place.world.telemetry,
            clock=SystemClock(),
        )
    finally:
        await store.close()
        await models.close()


async def guards(place: Place, name: BuildName, streams: Sequence[str]) -> list[int]:
    progress = await place.models.builds.progress(name, streams)
    return [progress[stream].sequence_number for stream in streams]


async def test_a_build_that_took_over_parks_what_it_does_not_know(place: Place) -> None:
    await place.world.facts.happen(A, Counted(1))
    await built(place)
    updater = place.updater(TOTALS)
    async with running(updater):
        await updater.caught_up()
        await request_rebuild(place.models.builds, TOTALS.projection)
        await until(lambda: is_live(place, 2))
        await place.world.facts.unknown(B)  # a newer release, beside this one, wrote it
        await place.world.facts.happen(C, Counted(1))
        await updater.caught_up()
        (status,) = await place.status()
        assert [(one.stream, one.code) for one in status.parked] == [(B, "UNKNOWN_EVENT")]
        assert await place.count(TOTALS) == 2
        (progress,) = updater.status()
        assert (progress.role, progress.waiting, progress.problem) == ("live", None, None)


async def test_what_was_pushed_to_the_live_build_alone_is_not_lost_to_queries(place: Place) -> None:
    await place.world.facts.happen(A, Counted(1))
    await built(place)
    promoting = Promoting(place)
    pushed: list[Commit] = []

    async def push() -> None:
        if not pushed:
            # The candidate was at the end of the feed; nobody wakes its owner for this.
            pushed.append(await place.world.facts.happen(A, Counted(2)))
            pushed.append(await place.world.facts.happen(B, Counted(3)))
            for commit in pushed:
                await projector.apply(commit.recorded())

    async with pushing(place, FIRST) as projector:
        promoting.before = push  # type: ignore[method-assign]
        await rebuilt(place)
    assert promoting.refused == [{A: 2, B: 1}]
    assert await place.live() == SECOND
    assert await guards(place, SECOND, [A, B]) == [2, 1]
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, 1), ("a", 2, 2), ("b", 1, 3)]


async def test_a_stream_that_fails_only_in_the_candidate_keeps_it_back(place: Place) -> None:
    good, worse = Totals(unlucky=()), Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(good).run_until_caught_up()
    promoting = Promoting(place)

    async def push_to_the_live_one() -> None:
        if len(promoting.asked) == 1:
            await place.world.facts.happen(A, Counted(UNLUCKY))
            store = await place.models.builds.open(good.projection, FIRST, DEFINITION)
            step = {"id": "a", "number": 2, "amount": UNLUCKY}
            await store.write(Batch(changes=[(insert(good.steps), step)], guards=[GuardMove(A, 1, 2)]))
            await store.close()

    promoting.before = push_to_the_live_one  # type: ignore[method-assign]
    reached = await rebuilt(place, worse)
    # It is compared once, and then only when the stream is no longer parked.
    assert promoting.refused == [{A: 2}]
    (building,) = [one for one in reached if one.role == "building"]
    assert building.problem is not None
    assert "1 of its parked streams would go back in time" in building.problem
    assert await place.live() == FIRST


async def test_a_live_build_of_another_journal_is_no_measure(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    await place.world.facts.happen(A, Counted(1))
    await built(place)
    store = await place.models.builds.open(TOTALS.projection, FIRST, DEFINITION)
    # As after a restore of the journal to where it was before these.
    await store.write(Batch(guards=[GuardMove(A, 1, 7), GuardMove(B, 0, 1)]))
    await store.close()
    with caplog.at_level(logging.WARNING):
        await rebuilt(place)
    assert await place.live() == SECOND
    assert await guards(place, SECOND, [A, B]) == [1, 0]
    assert "totals.v1.1 has applied more than the journal holds" in caplog.text


async def test_a_live_build_that_is_gone_is_no_measure(place: Place) -> None:
    await place.world.facts.happen(A, Counted(1))
    await built(place)
    promoting = Promoting(place)

    async def lose() -> None:
        if SECOND in promoting.asked:
            place.storage.lose(FIRST)

    promoting.before = lose  # type: ignore[method-assign]
    await rebuilt(place)
    assert await place.live() == SECOND
    assert promoting.refused == []


async def test_a_live_build_that_is_damaged_is_no_measure(
    sqlite: SqliteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    models = await sqlite.open()
    for _ in range(2):
        build = await models.builds.create(TOTALS.projection, DEFINITION)
    await models.builds.promote(FIRST)
    path = sqlite.directory / f"{FIRST}.sqlite"
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert await models.builds.promote(build.name, unless_behind=FIRST) == {}
    assert "totals.v1.1 can't be compared with: SQLITE_NOTADB" in caplog.text
    await models.close()


async def test_only_the_first_thousand_streams_are_named(place: Place) -> None:
    for _ in range(2):
        await place.models.builds.create(TOTALS.projection, DEFINITION)
    ahead = await place.models.builds.open(TOTALS.projection, FIRST, DEFINITION)
    behind = await place.models.builds.open(TOTALS.projection, SECOND, DEFINITION)
    streams = [f"Counter-{number:04}" for number in range(1_200)]
    await ahead.write(Batch(guards=[GuardMove(stream, 0, 5) for stream in streams]))
    await behind.write(Batch(guards=[GuardMove(stream, 0, 5) for stream in streams[:150]]))
    await behind.write(Batch(guards=[GuardMove("Counter-other", 0, 9), GuardMove(streams[150], 0, 4)]))
    await place.models.builds.promote(FIRST)
    found = await place.models.builds.promote(SECOND, unless_behind=FIRST)
    assert found == dict.fromkeys(streams[150:1150], 5)
    assert await place.live() == FIRST
    await behind.write(Batch(guards=[GuardMove(stream, 0, 5) for stream in streams[151:]]))
    await behind.write(Batch(guards=[GuardMove(streams[150], 4, 6)]))
    assert await place.models.builds.promote(SECOND, unless_behind=FIRST) == {}
    assert await place.live() == SECOND
    for store in (ahead, behind):
        await store.close()


async def test_nobody_writes_to_the_replaced_build_while_it_is_compared(postgres: PostgresStorage) -> None:
    models, other = await postgres.open(), await postgres.open()
    for _ in range(2):
        await models.builds.create(TOTALS.projection, DEFINITION)
    await models.builds.promote(FIRST)
    catalog = models.builds._catalog
    promote, compared, go_on = catalog.promote, asyncio.Event(), asyncio.Event()

    async def held(*args: Any) -> None:
        compared.set()
        await go_on.wait()
        await promote(*args)

    catalog.promote = held  # type: ignore[method-assign, assignment]
    store = await other.builds.open(TOTALS.projection, FIRST, DEFINITION)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        promotion = tasks.create_task(models.builds.promote(SECOND, unless_behind=FIRST))
        await compared.wait()
        late = tasks.create_task(store.write(Batch(guards=[GuardMove(A, 0, 1)])))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock'"
        await until(lambda: postgres.sql(waiting) == "1")
        assert not late.done()
        go_on.set()
        assert await promotion == {}
    assert (await other.builds.progress(FIRST, [A]))[A].sequence_number == 1
    await store.close()
    await models.close()
    await other.close()


async def test_nobody_writes_to_the_replaced_file_while_it_is_compared(sqlite: SqliteStorage) -> None:
    models, other = await sqlite.open(), await sqlite.open()
    for _ in range(2):
        await models.builds.create(TOTALS.projection, DEFINITION)
    await models.builds.promote(FIRST)
    store = await other.builds.open(TOTALS.projection, FIRST, DEFINITION)
    loop = asyncio.get_running_loop()
    catalog, refused = models.builds._catalog, []
    promote = catalog.promote

    def meanwhile(name: BuildName) -> None:
        writing = asyncio.run_coroutine_threadsafe(store.write(Batch(guards=[GuardMove(A, 0, 1)])), loop)
        refused.append(type(writing.exception(timeout=30)))
        promote(name)

    catalog.promote = meanwhile  # type: ignore[method-assign]
    assert await models.builds.promote(SECOND, unless_behind=FIRST) == {}
    assert refused == [Unavailable]
    await store.write(Batch(guards=[GuardMove(A, 0, 1)]))
    await store.close()
    await models.close()
    await other.close()
