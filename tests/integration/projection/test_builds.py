"""Builds beside builds: rebuilding and new versions while queries run, going back, keeping and deleting old ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Column, Integer

from kiseki.journal.port import FeedPage, Position
from kiseki.projection.port import BuildName, BuildState
from kiseki.projection.status import request_rebuild, request_retry
from kiseki.query.database import ReadModelBuilding
from tests.integration.projection.parts import Place, is_live, running, until
from tests.unit.projection.parts import UNLUCKY, Counted, Forgotten, Named, Totals, World, earlier_counter

A, B = "Counter-a", "Counter-b"


class Asking:
    """Queries that run all the time: how many events can be seen, which may never fail or become fewer."""

    def __init__(self, place: Place, totals: Totals) -> None:
        self._place = place
        self._totals = totals
        self.seen = 0
        self.asked = 0

    async def run(self) -> None:
        while True:
            count = await self._place.count(self._totals)
            assert count >= self.seen, f"went back from {self.seen} to {count}"
            self.seen = count
            self.asked += 1


@asynccontextmanager
async def asking(place: Place, totals: Totals) -> AsyncIterator[Asking]:
    queries = [Asking(place, totals) for _ in range(3)]
    tasks = [asyncio.create_task(one.run()) for one in queries]
    try:
        yield queries[0]
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result


async def test_a_rebuild_takes_over_while_queries_and_commands_go_on(place: Place) -> None:
    totals = Totals()
    for amount in range(100, 160):
        await place.world.facts.happen(A, Counted(amount))
    updater = place.updater(totals, page_commits=50)
    written = 60
    async with running(updater), asyncio.timeout(60):
        await updater.caught_up()
        async with asking(place, totals) as queries:
            for generation in (2, 3):
                asked = queries.asked
                request = await request_rebuild(place.models.builds, totals.projection)
                while await place.live() != BuildName("totals", 1, generation):
                    await place.world.facts.happen(B, Counted(1000 + written))
                    written += 1
                found = await place.models.builds.request_of(request.id)
                assert found is not None
                assert found.outcome == f"builds totals.v1.{generation}"
                assert queries.asked > asked
            await updater.caught_up()
            await until(lambda: queries.seen == written)
    assert len(await place.rows(totals, totals.steps)) == written
    states = {build.name.generation: build.state for build in await place.models.builds.builds()}
    assert states == {1: BuildState.RETIRED, 2: BuildState.RETIRED, 3: BuildState.LIVE}


async def test_a_build_takes_over_also_when_new_commits_never_stop(place: Place) -> None:
    totals = Totals()
    feed = place.world.journal.feed

    async def never_empty(after: Position, *, limit: int = 500) -> FeedPage:
        await place.world.facts.happen(A, Counted(1))
        return await feed(after, limit=limit)

    place.world.journal.feed = never_empty  # type: ignore[method-assign]
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await until(lambda: is_live(place, 1))
        await updater.caught_up()
        await request_rebuild(place.models.builds, totals.projection)
        await until(lambda: is_live(place, 2))


async def test_the_progress_of_a_rebuild_can_be_seen(place: Place) -> None:
    totals = Totals()
    for amount in range(100, 120):
        await place.world.facts.happen(A, Counted(amount))
    await place.updater(totals).run_until_caught_up()
    await request_rebuild(place.models.builds, totals.projection)
    updater = place.updater(totals, page_commits=1)
    seen = set()
    async with running(updater), asyncio.timeout(20):
        while await place.live() != BuildName("totals", 1, 2):
            for status in await place.status():
                seen.add((status.name.generation, status.state, status.commits_behind))
    behind = {commits for generation, state, commits in seen if state is BuildState.BUILDING and generation == 2}
    assert len(behind) > 2
    assert all(commits == 0 for generation, _, commits in seen if generation == 1)


async def test_a_request_while_one_is_being_built_starts_no_second(place: Place) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    for _ in range(3):
        await request_rebuild(place.models.builds, totals.projection)
    await place.updater(totals).run_until_caught_up()
    assert await place.live() == BuildName("totals", 1, 2)
    assert len(await place.models.builds.builds()) == 2


async def test_a_new_version_is_built_beside_the_old_one_which_goes_on(place: Place) -> None:
    old, new = Totals(), Totals(version=2, extra=[Column("more", Integer)])
    for amount in range(100, 130):
        await place.world.facts.happen(A, Counted(amount))
    old_updater, new_updater = place.updater(old), place.updater(new, page_commits=2)
    async with running(old_updater), asyncio.timeout(60):
        await old_updater.caught_up()
        async with asking(place, old), running(new_updater):
            await until(lambda: _answers(place, new))
            assert await place.live() == BuildName("totals", 2, 1)
            # Processes of the old version still read theirs, and it is still kept up to date.
            await place.world.facts.happen(B, Counted(1))
            await asyncio.gather(old_updater.caught_up(), new_updater.caught_up())
            assert await place.count(old) == await place.count(new) == 31


async def _answers(place: Place, totals: Totals) -> bool:
    try:
        await place.count(totals)
    except ReadModelBuilding:
        return False
    return True


async def test_going_back_to_an_old_version_answers_when_it_has_caught_up(place: Place) -> None:
    old, new = Totals(), Totals(version=2)
    await place.world.facts.happen(A, Counted(1))
    await place.updater(old).run_until_caught_up()
    await request_rebuild(place.models.builds, old.projection)
    await place.updater(old).run_until_caught_up()
    await place.updater(new).run_until_caught_up()
    for amount in range(100, 130):
        await place.world.facts.happen(A, Counted(amount))
    await place.updater(new).run_until_caught_up()
    updater = place.updater(old, page_commits=1)
    counts = set()
    async with running(updater), asyncio.timeout(20):
        await until(lambda: updater.status()[0].generation is not None)
        while await place.live() != BuildName("totals", 1, 2):
            counts.add(await place.count(old) if await _answers(place, old) else None)
        counts.add(await place.count(old))
    # One event is what it had when it was left: nobody may see that.
    assert counts - {None} == {31}
    assert {build.name for build in await place.models.builds.builds()} == {
        BuildName("totals", 1, 1),
        BuildName("totals", 1, 2),
        BuildName("totals", 2, 1),
    }


async def test_going_back_parks_what_only_the_newer_release_knows(place: Place) -> None:
    old, new = Totals(events=Named), Totals(version=2, events=Counted | Named)
    earlier_world = World(place.world.clock, place.world.protector, (earlier_counter,))
    new_world, place.world = place.world, earlier_world
    await new_world.facts.happen(B, Named("花子"))
    await place.updater(old).run_until_caught_up()
    place.world = new_world
    await new_world.facts.happen(A, Counted(1))
    await place.updater(new).run_until_caught_up()
    place.world = earlier_world
    (reached,) = await place.updater(old).run_until_caught_up()
    assert (reached.role, reached.problem) == ("live", None)
    assert [row[0] for row in await place.rows(old, old.totals)] == ["b"]
    status = {one.name.version: one for one in await place.status()}
    assert status[1].parked[0].code == "UNKNOWN_EVENT"


async def test_a_new_version_comes_up_although_one_stream_waits(place: Place) -> None:
    old, new = Totals(unlucky=()), Totals(version=2)
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    await place.world.facts.happen(B, Counted(2))
    await place.updater(old).run_until_caught_up()
    (reached,) = await place.updater(new).run_until_caught_up()
    assert (reached.role, reached.problem) == ("live", None)
    assert await place.rows(new, new.steps) == [("a", 1, 1), ("b", 1, 2)]


async def test_a_rebuild_refuses_what_the_application_does_not_know(place: Place) -> None:
    now = Totals(events=Counted | Named)
    new_world = place.world
    await new_world.facts.happen(A, Named("太郎"))
    earlier = Totals(events=Named)
    place.world = World(new_world.clock, new_world.protector, (earlier_counter,))
    await place.updater(earlier).run_until_caught_up()
    await new_world.facts.happen(A, Counted(1))
    await request_rebuild(place.models.builds, earlier.projection)
    reached = await place.updater(earlier).run_until_caught_up()
    (building,) = [build for build in reached if build.role == "building"]
    assert building.problem is not None
    assert "Counted version 1" in building.problem
    assert await place.live() == BuildName("totals", 1, 1)
    assert [status.problem for status in await place.status()] == [None, building.problem]
    # A release that knows the event goes on with it.
    place.world = new_world
    await place.updater(now).run_until_caught_up()
    assert await place.live() == BuildName("totals", 1, 2)
    assert [status.problem for status in await place.status()] == [None]
    assert await place.rows(now, now.steps) == [("a", 2, 1)]


async def test_a_rebuild_does_not_take_over_while_a_stream_would_go_back(place: Place) -> None:
    good, worse = Totals(unlucky=()), Totals()
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY), Counted(2))
    await place.updater(good).run_until_caught_up()
    await request_rebuild(place.models.builds, worse.projection)
    reached = await place.updater(worse).run_until_caught_up()
    (building,) = [build for build in reached if build.role == "building"]
    assert building.problem is not None
    assert "1 of its parked streams would go back in time" in building.problem
    assert await place.live() == BuildName("totals", 1, 1)
    await request_retry(place.models.builds, good.projection)
    (live,) = await place.updater(good).run_until_caught_up()
    assert (live.role, live.generation, live.problem) == ("live", 2, None)
    assert await place.count(good) == 3


async def test_after_a_lost_build_no_older_generation_answers(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    await request_rebuild(place.models.builds, totals.projection)
    await place.updater(totals).run_until_caught_up()
    for amount in range(100, 130):
        await place.world.facts.happen(A, Counted(amount))
    await place.updater(totals).run_until_caught_up()
    place.storage.lose(BuildName("totals", 1, 2))
    updater = place.updater(totals, page_commits=1)
    counts = set()
    async with running(updater), asyncio.timeout(20):
        await until(lambda: updater.status()[0].generation == 3)
        while await place.live() != BuildName("totals", 1, 3):
            counts.add(await place.count(totals) if await _answers(place, totals) else None)
    # What the older generation has, one event, nobody may see; the new one may be live between the two looks.
    assert None in counts
    assert counts <= {None, 31}
    assert await place.count(totals) == 31


async def test_a_stream_that_is_parked_in_both_does_not_hold_up_a_rebuild(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    await place.updater(totals).run_until_caught_up()
    await request_rebuild(place.models.builds, totals.projection)
    await place.updater(totals).run_until_caught_up()
    assert await place.live() == BuildName("totals", 1, 2)


async def test_retired_builds_are_kept_for_a_while_and_then_deleted(place: Place) -> None:
    old, new = Totals(), Totals(version=2)
    await place.world.facts.happen(A, Counted(1))
    for totals in (old, new):
        await place.updater(totals).run_until_caught_up()
    await request_rebuild(place.models.builds, new.projection)
    updater = place.updater(new)
    async with running(updater), asyncio.timeout(20):
        await until(place.live)
        await updater.caught_up()
        await until(lambda: _names(place, 3))
    held = await place.models.builds.own("totals", 1)
    assert held is not None
    updater = place.updater(new, keep_retired=0.0)
    async with running(updater), asyncio.timeout(20):
        # Version 1 is in use by somebody who has its lock, so only the old generation of version 2 goes.
        await until(lambda: _names(place, 2))
        assert place.storage.there() == ["totals.v1.1", "totals.v2.2"]
    await held.release()
    updater = place.updater(new, keep_retired=0.0)
    async with running(updater), asyncio.timeout(20):
        await until(lambda: _names(place, 1))
    assert await place.live() == BuildName("totals", 2, 2)
    assert place.storage.there() == ["totals.v2.2"]


async def test_an_erasure_reaches_replaced_builds(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Named("太郎"))
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        await request_rebuild(place.models.builds, totals.projection)
        await until(lambda: is_live(place, 2))
        # Kept for a quick way back, with all that it has.
        assert place.storage.there() == ["totals.v1.1", "totals.v1.2"]
        await place.world.facts.happen(A, Forgotten())
        await until(lambda: place.storage.there() == ["totals.v1.2"])
    assert [build.name for build in await place.models.builds.builds()] == [BuildName("totals", 1, 2)]


async def test_a_replaced_version_that_is_still_run_is_not_deleted(place: Place) -> None:
    old, new = Totals(), Totals(version=2)
    updater = place.updater(old, keep_retired=0.0, prune_interval=0.0)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        await place.updater(new).run_until_caught_up()
        for amount in range(1, 4):
            await place.world.facts.happen(A, Counted(amount))
            await updater.caught_up()
        assert await place.count(old) == 3
        assert await _names(place, 2)


async def _names(place: Place, count: int) -> bool:
    return len(await place.models.builds.builds()) == count


async def test_a_build_that_is_gone_is_built_again(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    assert await place.count(totals) == 1
    place.storage.lose(BuildName("totals", 1, 1))
    await place.world.facts.happen(A, Counted(2))
    await place.updater(totals).run_until_caught_up()
    # Also by a connection that has read the deleted one.
    assert await place.rows(totals, totals.steps) == [("a", 1, 1), ("a", 2, 2)]


async def test_a_standby_takes_over_when_the_owner_ends(place: Place) -> None:
    totals = Totals()
    elsewhere = await place.storage.open()
    owner = place.updater(totals)
    async with running(owner), asyncio.timeout(20):
        await owner.caught_up()
        here, place.models = place.models, elsewhere
        standby = place.updater(totals)
        async with running(standby):
            await until(lambda: standby.status()[0].role == "standby")
            await place.world.facts.happen(A, Counted(1))
            await owner.caught_up()
            assert standby.status()[0].role == "standby"
            await owner.stop()
            await standby.caught_up()
            await place.world.facts.happen(A, Counted(2))
            await standby.caught_up()
            assert await place.rows(totals, totals.steps) == [("a", 1, 1), ("a", 2, 2)]
    place.models = here
    await elsewhere.close()
