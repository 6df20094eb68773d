"""Several writers of one build, as an updater, a Lambda and a sweeper are: parking and applying exclude each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import msgspec
import pytest
from sqlalchemy import insert

from kiseki import Unavailable
from kiseki.application.system import SystemClock
from kiseki.journal.port import CorruptJournal, Position
from kiseki.projection.port import (
    Batch,
    BuildName,
    BuildState,
    Definition,
    GuardMove,
    GuardMoved,
    OwnershipLost,
    ProjectionStore,
)
from kiseki.projection.projection import Projection
from kiseki.projection.projector import Projector
from kiseki.projection.records import undisturbed
from kiseki.projection.status import request_rebuild, request_retry
from kiseki.projection.subscription import Subscription
from kiseki.query.postgres.read_models import PostgresReadModels
from kiseki.query.postgres.store import PostgresStore
from tests.integration.projection.parts import (
    DEFINITION,
    TOTALS,
    Place,
    PostgresStorage,
    parked,
    running,
    until,
)
from tests.unit.projection.parts import UNLUCKY, Counted, Feed, Totals

A, B = "Counter-a", "Counter-b"


def step(number: int, of: str = "a") -> Any:
    return (insert(TOTALS.steps), {"id": of, "number": number, "amount": 1})


# The store


@pytest.mark.parametrize(("guard", "number"), [(0, 2), (0, 9), (5, 1), (5, 4), (5, 5), (5, 7)])
async def test_a_stream_is_parked_only_right_behind_its_guard(
    place: Place, store: ProjectionStore, guard: int, number: int
) -> None:
    if guard:
        await store.write(Batch(guards=[GuardMove(A, 0, guard)]))
    with pytest.raises(GuardMoved):
        await store.write(
            Batch(
                changes=[step(1, "b")],
                guards=[GuardMove(B, 0, 1)],
                park=[parked("Counter-c"), parked(A, number)],
                position=Position("x"),
            )
        )
    progress = await store.progress([A, B, "Counter-c"])
    assert [progress[one].sequence_number for one in (A, B, "Counter-c")] == [guard, 0, 0]
    assert list(await store.parked()) == []
    assert await store.position() == ""
    assert await place.rows(TOTALS, TOTALS.steps) == []
    await store.write(Batch(park=[parked(A, guard + 1)]))
    assert (await store.progress([A]))[A].sequence_number == guard


async def test_what_a_batch_applies_comes_before_what_it_parks(store: ProjectionStore) -> None:
    for number in (1, 2, 4):
        with pytest.raises(GuardMoved):
            await store.write(Batch(guards=[GuardMove(A, 0, 2)], park=[parked(A, number)]))
    await store.write(Batch(guards=[GuardMove(A, 0, 2)], park=[parked(A, 3)]))
    assert list(await store.parked()) == [parked(A, 3)]


@pytest.mark.parametrize("guard", [0, 5])
async def test_a_parked_stream_is_moved_by_a_retry_alone(store: ProjectionStore, guard: int) -> None:
    if guard:
        await store.write(Batch(guards=[GuardMove(A, 0, guard)]))
    await store.write(Batch(park=[parked(A, guard + 1)]))
    with pytest.raises(GuardMoved):
        await store.write(
            Batch(
                changes=[step(1)], guards=[GuardMove(A, guard, guard + 1), GuardMove(B, 0, 1)], position=Position("x")
            )
        )
    assert [one.sequence_number for one in (await store.progress([A, B])).values()] == [guard, 0]
    assert await store.position() == ""
    await store.write(Batch(changes=[step(1)], guards=[GuardMove(A, guard, guard + 1, retry=True)]))
    await store.write(Batch(unpark=[parked(A, guard + 1)]))
    await store.write(Batch(guards=[GuardMove(A, guard + 1, guard + 2)]))


@pytest.mark.parametrize("guard", [0, 5])
async def test_a_stream_that_was_parked_again_is_not_let_go(place: Place, store: ProjectionStore, guard: int) -> None:
    if guard:
        await store.write(Batch(guards=[GuardMove(A, 0, guard)]))
    seen = parked(A, guard + 1)
    await store.write(Batch(park=[seen, parked(B)]))
    again = msgspec.structs.replace(seen, attempts=seen.attempts + 1)
    later = msgspec.structs.replace(seen, parked_at=seen.parked_at + timedelta(microseconds=1))
    further = parked(A, guard + 2)
    moving = GuardMove(A, guard, guard + 1, retry=True)
    for others in (Batch(park=[again]), Batch(park=[later]), Batch(guards=[moving], park=[further])):
        await store.write(others)
        with pytest.raises(GuardMoved):
            await store.write(Batch(changes=[step(1)], unpark=[parked(B), seen], position=Position("x")))
        assert list(await store.parked()) == [*others.park, parked(B)]
    assert await store.position() == ""
    assert await place.rows(TOTALS, TOTALS.steps) == []
    # Nothing is left of the place that was seen once the guard has reached the one that is recorded.
    await store.write(Batch(guards=[GuardMove(A, guard + 1, guard + 2, retry=True)]))
    await store.write(Batch(unpark=[seen]))
    assert list(await store.parked()) == [parked(B)]


@pytest.mark.parametrize("number", [1, 3])
async def test_a_place_that_was_passed_all_the_same_is_over(place: Place, store: ProjectionStore, number: int) -> None:
    """Older versions could leave such a row behind; whoever looks at it says the same."""
    await store.write(Batch(guards=[GuardMove(A, 0, number - 1)] if number > 1 else [], park=[parked(A, number)]))
    await store.write(Batch(park=[parked(B)]))
    await store.write(Batch(guards=[GuardMove(A, number - 1, 3, retry=True)]))
    builds = place.models.builds
    for progress in (await store.progress([A, B]), await builds.progress(store.name, [A, B])):
        assert (progress[A].sequence_number, progress[A].parked, progress[B].parked) == (3, None, parked(B))
    inspection = await builds.inspect(store.name)
    assert (inspection.parked_count, inspection.parked) == (1, (parked(B),))
    assert list(await store.parked()) == [parked(B)]
    await store.write(Batch(guards=[GuardMove(A, 3, 4)]))
    await store.write(Batch(park=[parked(A, 5)]))
    assert list(await store.parked()) == [parked(A, 5), parked(B)]
    with pytest.raises(GuardMoved):
        await store.write(Batch(guards=[GuardMove(A, 4, 5)]))


async def test_of_parking_and_applying_at_once_one_counts(place: Place) -> None:
    build = await place.models.builds.create(TOTALS.projection, DEFINITION)
    elsewhere = await place.storage.open()
    first, second = [
        await models.builds.open(TOTALS.projection, build.name, DEFINITION) for models in (place.models, elsewhere)
    ]
    for number in range(20):
        stream, guard = f"Counter-{number}", number % 2
        if guard:
            await first.write(Batch(guards=[GuardMove(stream, 0, guard)]))
        results = await asyncio.gather(
            first.write(Batch(park=[parked(stream, guard + 1)])),
            second.write(Batch(changes=[step(number)], guards=[GuardMove(stream, guard, guard + 1)])),
            return_exceptions=True,
        )
        assert sorted(map(type, results), key=repr) == sorted([type(None), GuardMoved], key=repr)
        progress = (await first.progress([stream]))[stream]
        was_parked = results[0] is None
        assert (progress.sequence_number, progress.parked is not None) == (guard + (not was_parked), was_parked)
    for store in (first, second):
        await store.close()
    await elsewhere.close()


# The transactions of PostgreSQL, each held where the other one has to wait for it


@pytest.mark.parametrize("guard", [0, 5])
@pytest.mark.parametrize("first", ["parks", "applies"])
async def test_who_comes_second_sees_what_the_first_has_committed(
    postgres: PostgresStorage, guard: int, first: str
) -> None:
    models = [await PostgresReadModels.open(postgres.address, clock=SystemClock()) for _ in range(2)]
    build = await models[0].builds.create(TOTALS.projection, DEFINITION)
    stores = [await one.builds.open(TOTALS.projection, build.name, DEFINITION) for one in models]
    if guard:
        await stores[0].write(Batch(guards=[GuardMove(A, 0, guard)]))
    parks = Batch(park=[parked(A, guard + 1)])
    applies = Batch(changes=[step(guard + 1)], guards=[GuardMove(A, guard, guard + 1)])
    batches, table = ([parks, applies], "kiseki_parked") if first == "parks" else ([applies, parks], "steps")
    held = await asyncpg.connect(postgres.url)
    holding = held.transaction()
    await holding.start()
    # Reading goes on; the first writer waits here, after it has seen to the guard.
    await held.execute(f"LOCK TABLE {postgres.schema(build.name)}.{table} IN SHARE MODE")
    tasks = []
    for waiting, (store, batch) in enumerate(zip(stores, batches, strict=True), 1):
        tasks.append(asyncio.create_task(store.write(batch)))
        await until(lambda waiting=waiting: _waiting(postgres) == waiting)  # type: ignore[misc]
    await holding.rollback()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), GuardMoved]
    progress = (await stores[0].progress([A]))[A]
    if first == "parks":
        assert (progress.sequence_number, progress.parked) == (guard, parked(A, guard + 1))
    else:
        assert (progress.sequence_number, progress.parked) == (guard + 1, None)
    await held.close()
    for store in stores:
        await store.close()
    for one in models:
        await one.close()


@pytest.mark.parametrize("parks_again", [True, False])
async def test_letting_go_waits_for_who_parks_again(postgres: PostgresStorage, parks_again: bool) -> None:
    models = await PostgresReadModels.open(postgres.address, clock=SystemClock())
    build = await models.builds.create(TOTALS.projection, DEFINITION)
    store = await models.builds.open(TOTALS.projection, build.name, DEFINITION)
    await store.write(Batch(park=[parked(A)]))
    held = await asyncpg.connect(postgres.url)
    holding = held.transaction()
    await holding.start()
    await held.execute(f"UPDATE {postgres.schema(build.name)}.kiseki_parked SET attempts = attempts + 1")
    letting_go = asyncio.create_task(store.write(Batch(unpark=[parked(A)])))
    await until(lambda: _waiting(postgres) == 1)
    await (holding.commit() if parks_again else holding.rollback())
    (result,) = await asyncio.gather(letting_go, return_exceptions=True)
    assert type(result) is (GuardMoved if parks_again else type(None))
    assert [one.attempts for one in await store.parked()] == ([2] if parks_again else [])
    await held.close()
    await store.close()
    await models.close()


@pytest.mark.parametrize("written", [True, False])
async def test_what_may_be_written_is_scrubbed_although_the_reply_was_lost(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    models = await PostgresReadModels.open(postgres.address, clock=SystemClock())
    build = await models.builds.create(TOTALS.projection, DEFINITION)
    store = await models.builds.open(TOTALS.projection, build.name, DEFINITION)
    assert isinstance(store, PostgresStore)
    transaction = store._connections.transaction
    scrubs: list[str] = []

    @asynccontextmanager
    async def loses_the_reply(what: str) -> AsyncIterator[Any]:
        async with transaction(what) as connection:
            if not written:
                raise Unavailable("the connection broke")
            yield connection
        raise Unavailable("the connection broke")

    monkeypatch.setattr(store._connections, "transaction", loses_the_reply)
    monkeypatch.setattr(store._scrubber, "scrub", lambda: scrubs.append("scrub"))
    with pytest.raises(Unavailable):
        await store.write(Batch(guards=[GuardMove(A, 0, 1)], scrub=True))
    assert (await store.progress([A]))[A].sequence_number == written
    assert scrubs == ["scrub"] * written
    await store.close()
    await models.close()


def _waiting(postgres: PostgresStorage) -> int:
    database = postgres.url.rpartition("/")[2]
    found = postgres.sql(
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        f"WHERE NOT granted AND datname = '{database}'"
    )
    return int(found)


# Projectors


class Interrupted:
    """A store into which somebody else writes first, once, right before a batch that a test waits for."""

    def __init__(
        self, store: ProjectionStore, wanted: Callable[[Batch], bool], interrupt: Callable[[], Awaitable[object]]
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._interrupt: Callable[[], Awaitable[object]] | None = interrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, batch: Batch) -> None:
        interrupt = self._interrupt
        if interrupt is not None and self._wanted(batch):
            self._interrupt = None
            await interrupt()
        await self._store.write(batch)


def projector(place: Place, store: Any, totals: Totals, journal: Any = None) -> Projector:
    return Projector(
        subscription=Subscription(totals.projection, place.world.deciders),
        store=store,
        journal=journal or place.journal,
        codec=place.world.codec,
        telemetry=place.world.telemetry,
        clock=place.world.clock,
    )


async def test_what_another_release_has_applied_meanwhile_is_not_parked(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY), Counted(3))
    events = await place.world.facts.all()
    mended = projector(place, store, Totals(unlucky=()))
    late = projector(place, Interrupted(store, lambda batch: bool(batch.park), lambda: mended.apply(events)), Totals())
    with pytest.raises(GuardMoved):
        await late.apply(events)
    assert await late.apply(events) == 0
    assert list(await store.parked()) == []
    assert place.world.telemetry.parked_codes == []
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, 1), ("a", 2, UNLUCKY), ("a", 3, 3)]


async def test_what_another_release_has_parked_meanwhile_waits(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(UNLUCKY), Counted(3))
    await place.world.facts.happen(B, Counted(5))
    events = await place.world.facts.all()
    older = projector(place, store, Totals())
    late = projector(
        place,
        Interrupted(store, lambda batch: bool(batch.guards), lambda: older.apply(events[:1])),
        Totals(unlucky=()),
    )
    assert await undisturbed(partial(late.apply, events)) == 1
    progress = (await store.progress([A]))[A]
    assert progress.sequence_number == 0
    assert progress.parked is not None
    assert progress.parked.sequence_number == 1
    assert await place.rows(TOTALS, TOTALS.steps) == [("b", 1, 5)]
    assert await late.retry(A)
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, UNLUCKY), ("a", 2, 3), ("b", 1, 5)]


async def test_a_retry_that_fails_again_parks_again(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY), Counted(3), Counted(7))
    events = await place.world.facts.all()
    await projector(place, store, Totals(unlucky=(UNLUCKY, 7))).apply(events)
    assert not await projector(place, store, Totals(unlucky=(UNLUCKY, 7))).retry(A)
    (found,) = await store.parked()
    assert (found.sequence_number, found.attempts) == (2, 2)
    assert not await projector(place, store, Totals(unlucky=(7,))).retry(A)
    (found,) = await store.parked()
    assert (found.sequence_number, found.attempts) == (4, 3)
    assert await projector(place, store, Totals(unlucky=())).retry(A)
    assert list(await store.parked()) == []
    assert [row[1] for row in await place.rows(TOTALS, TOTALS.steps)] == [1, 2, 3, 4]


async def test_a_retry_wipes_out_nothing_that_was_parked_meanwhile(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(UNLUCKY), Counted(2))
    await projector(place, store, Totals()).apply(await place.world.facts.all())
    other = projector(place, store, Totals(unlucky=(7,)))

    async def parks_the_next() -> None:
        await place.world.facts.happen(A, Counted(7), Counted(8))
        assert not await other.retry(A)

    interrupted = Interrupted(store, lambda batch: bool(batch.unpark), parks_the_next)
    mended = projector(place, interrupted, Totals(unlucky=()))
    with pytest.raises(GuardMoved):
        await mended.retry(A)
    (found,) = await store.parked()
    assert found.sequence_number == 3
    assert not await undisturbed(partial(other.retry, A))
    assert await undisturbed(partial(mended.retry, A))
    assert list(await store.parked()) == []
    assert [row[1] for row in await place.rows(TOTALS, TOTALS.steps)] == [1, 2, 3, 4]


async def test_a_retry_that_is_interrupted_is_found_again(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(UNLUCKY), Counted(2), Counted(3))
    events = await place.world.facts.all()
    await projector(place, store, Totals()).apply(events)
    (before,) = await store.parked()
    one_by_one = Feed(place.journal)
    one_by_one.page = 1

    async def full() -> None:
        raise Unavailable("the disk is full")

    interrupted = Interrupted(store, lambda batch: any(move.to == 3 for move in batch.guards), full)
    mended = projector(place, interrupted, Totals(unlucky=()), one_by_one)
    with pytest.raises(Unavailable):
        await mended.retry(A)
    assert list(await store.parked()) == [msgspec.structs.replace(before, sequence_number=3, event_type="?")]
    assert await mended.apply(events) == 0
    assert await mended.retry(A)
    assert list(await store.parked()) == []
    assert [row[1] for row in await place.rows(TOTALS, TOTALS.steps)] == [1, 2, 3]
    assert place.world.telemetry.parked_codes == ["APPLY_FAILED"]


async def test_two_that_retry_at_once_apply_everything_once(place: Place, store: ProjectionStore) -> None:
    await place.world.facts.happen(A, Counted(UNLUCKY), Counted(2))
    await projector(place, store, Totals()).apply(await place.world.facts.all())
    elsewhere = await place.storage.open()
    second = await elsewhere.builds.open(TOTALS.projection, store.name, DEFINITION)
    retries = [projector(place, one, Totals(unlucky=())) for one in (store, second)]
    assert await asyncio.gather(*(undisturbed(partial(one.retry, A)) for one in retries)) == [True, True]
    assert list(await store.parked()) == []
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, UNLUCKY), ("a", 2, 2)]
    await second.close()
    await elsewhere.close()


async def test_what_came_while_a_stream_was_let_go_is_not_left_behind(place: Place, store: ProjectionStore) -> None:
    """Whoever had it pushed passed it by: the stream was parked."""
    await store.write(Batch(park=[parked(A)]))
    pushed = projector(place, store, Totals())

    async def comes() -> None:
        await place.world.facts.happen(A, Counted(1))
        assert await pushed.apply(await place.world.facts.all()) == 0

    interrupted = Interrupted(store, lambda batch: bool(batch.unpark), comes)
    assert await projector(place, interrupted, Totals()).retry(A)
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, 1)]


async def test_a_damaged_stream_is_parked_where_it_is_damaged(place: Place, store: ProjectionStore) -> None:
    """Not behind what somebody had pushed to them meanwhile."""
    await place.world.facts.happen(A, Counted(1))
    await place.world.facts.happen(A, Counted(2))
    events = await place.world.facts.all()
    pushed = projector(place, store, Totals())
    damaged = Feed(place.journal)

    def at_the_first() -> None:
        if not damaged.reads:
            damaged.reads.append((A, 0))
            raise CorruptJournal("bytes are not what was written")

    damaged.before_read = at_the_first
    late = projector(
        place,
        Interrupted(store, lambda batch: bool(batch.park), lambda: pushed.apply(events[:1])),
        Totals(),
        damaged,
    )
    assert await undisturbed(partial(late.catch_up, A)) == 1
    assert list(await store.parked()) == []
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, 1), ("a", 2, 2)]


# The updater


async def test_an_updater_that_others_disturb_reads_again(place: Place) -> None:
    """It is no reason to wait, and none to end a run that was to catch up."""
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    open_build = place.models.builds.open
    disturbed = 0

    async def disturbing(projection: Projection, name: BuildName, definition: Definition) -> Any:
        store = await open_build(projection, name, definition)

        async def moved() -> None:
            nonlocal disturbed
            disturbed += 1
            raise GuardMoved("another process wrote")

        return Interrupted(Interrupted(store, lambda batch: bool(batch.guards), moved), lambda batch: True, moved)

    place.models.builds.open = disturbing
    (progress,) = await place.updater(totals).run_until_caught_up()
    assert (disturbed, progress.caught_up, progress.waiting) == (2, True, None)
    assert await place.rows(totals, totals.steps) == [("a", 1, 1)]


async def test_a_retry_that_others_disturb_reads_again(place: Place) -> None:
    totals = Totals(unlucky=(1,))
    await place.world.facts.happen(A, Counted(1), Counted(2))
    await place.updater(totals).run_until_caught_up()
    request = await request_retry(place.models.builds, totals.projection)
    open_build = place.models.builds.open

    async def moved() -> None:
        raise GuardMoved("another process wrote")

    async def disturbing(projection: Projection, name: BuildName, definition: Definition) -> Any:
        return Interrupted(await open_build(projection, name, definition), lambda batch: bool(batch.guards), moved)

    place.models.builds.open = disturbing
    await place.updater(Totals()).run_until_caught_up()
    finished = await place.models.builds.request_of(request.id)
    assert finished.outcome == "1 parked streams go on, 0 stay parked"


async def test_a_build_whose_ownership_was_lost_is_left_as_it_is(place: Place) -> None:
    """Its owner, who may be another process by now, finds it whole."""
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    open_build = place.models.builds.open
    lost = 0

    async def open_or_lose(projection: Projection, name: BuildName, definition: Definition) -> Any:
        nonlocal lost
        lost += 1
        if lost == 1:
            raise OwnershipLost("this process no longer owns it")
        return await open_build(projection, name, definition)

    place.models.builds.open = open_or_lose
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
    assert lost == 2
    assert [(build.name, build.state) for build in await place.models.builds.builds()] == [
        (BuildName("totals", 1, 1), BuildState.LIVE)
    ]


async def test_an_ownership_that_is_missed_while_deleting_old_builds_is_got_again(place: Place) -> None:
    totals = Totals()
    for _ in range(2):
        await request_rebuild(place.models.builds, totals.projection)
        await place.updater(totals).run_until_caught_up()
    own, remove = place.models.builds.own, place.models.builds.remove
    steps: list[str] = []

    async def owns(projection: str, version: int) -> Any:
        steps.append("owns")
        return await own(projection, version)

    async def loses_once(name: BuildName) -> None:
        steps.append(f"removes {name}")
        if steps.count(f"removes {name}") == 1:
            raise OwnershipLost("this process no longer owns it")
        await remove(name)

    place.models.builds.own, place.models.builds.remove = owns, loses_once
    async with running(place.updater(totals, keep_retired=0.0, prune_interval=0.0)):
        await until(lambda: len(steps) == 4)
    assert steps == ["owns", "removes totals.v1.1", "owns", "removes totals.v1.1"]
