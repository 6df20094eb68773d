"""The updater on real read models: reacts at once, survives any end, parks, retries, waits, erases."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import Column, Integer

from kiseki import DefinitionError
from kiseki.journal.port import JournalUnavailable
from kiseki.kernel.personal import Erased
from kiseki.projection.port import BuildState
from kiseki.projection.runner import BuildOwned
from kiseki.projection.status import audit_projection, request_rebuild, request_retry
from kiseki.projection.subscription import Subscription
from kiseki.query.database import ReadModelBuilding
from tests.integration.projection.parts import Place, expected_steps, running, until
from tests.unit.projection.parts import (
    DECIDERS,
    UNLUCKY,
    Counted,
    Forgotten,
    Named,
    Noted,
    Totals,
    World,
    earlier_counter,
)

A, B = "Counter-a", "Counter-b"


async def test_reacts_to_an_append_and_not_to_the_clock(place: Place) -> None:
    totals = Totals()
    updater = place.updater(totals)
    applied = asyncio.Event()
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        updater.subscribe(lambda projection: applied.set())
        for amount in range(1, 4):
            applied.clear()
            await place.world.facts.happen(A, Counted(amount))
            await applied.wait()
            assert await place.count(totals) == amount


async def test_polls_when_no_hint_comes(place: Place) -> None:
    totals = Totals()
    place.world.journal.watch = lambda wake: lambda: None  # type: ignore[method-assign]
    place.models.builds.watch = lambda wake: lambda: None
    updater = place.updater(totals, poll_interval=0.01)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        applied = asyncio.Event()
        updater.subscribe(lambda projection: applied.set())
        await place.world.facts.happen(A, Counted(1))
        await applied.wait()


async def test_a_first_build_answers_only_when_it_has_caught_up(place: Place) -> None:
    totals = Totals()
    for amount in range(1, 30):
        await place.world.facts.happen(A, Counted(amount + 100))
    seen = []

    async def look() -> None:
        try:
            seen.append(await place.count(totals))
        except ReadModelBuilding:
            seen.append(-1)

    await look()
    updater = place.updater(totals, page_commits=2)
    async with running(updater), asyncio.timeout(20):
        while seen[-1] < 29:
            await look()
    assert set(seen) == {-1, 29}


async def test_going_on_after_a_stop_applies_each_event_once(place: Place) -> None:
    totals = Totals()
    commits = [(stream, [amount]) for amount in range(1, 6) for stream in (A, B)]
    for stream, amounts in commits:
        updater = place.updater(totals)
        async with running(updater), asyncio.timeout(20):
            await place.world.facts.happen(stream, *map(Counted, amounts))
            await updater.caught_up()
    assert await place.rows(totals, totals.steps) == expected_steps(commits)


async def test_being_cancelled_at_any_point_is_exact(place: Place) -> None:
    totals = Totals()
    chooser = random.Random(7)
    commits = [
        (f"Counter-{chooser.randrange(5)}", [chooser.randrange(100, 200)] * chooser.randrange(1, 4)) for _ in range(60)
    ]
    for stream, amounts in commits:
        await place.world.facts.happen(stream, *map(Counted, amounts))
    for steps in range(0, 120, 3):
        task = asyncio.create_task(place.updater(totals, page_commits=3).run())
        for _ in range(steps):
            await asyncio.sleep(0.0001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
    assert await place.rows(totals, totals.steps) == expected_steps(commits)
    name = await place.live()
    assert name is not None
    audit = await audit_projection(
        journal=place.journal,
        builds=place.models.builds,
        name=name,
        subscription=Subscription(totals.projection, DECIDERS),
    )
    assert (audit.streams, audit.behind, audit.ahead) == (5, (), ())


async def test_stop_ends_after_the_page_and_lets_go(place: Place) -> None:
    totals = Totals()
    for amount in range(100, 200):
        await place.world.facts.happen(A, Counted(amount))
    updater = place.updater(totals, page_commits=1)
    task = asyncio.create_task(updater.run())
    await until(lambda: any(build.events_applied > 3 for build in updater.status()))
    assert await place.models.builds.own("totals", 1) is None
    await updater.stop()
    await task
    ownership = await place.models.builds.own("totals", 1)
    assert ownership is not None
    await ownership.release()
    (build,) = await place.models.builds.builds()
    progress = await place.models.builds.progress(build.name, [A])
    assert 3 < progress[A].sequence_number < 100


async def test_the_status_is_measured_from_outside(place: Place) -> None:
    totals = Totals()
    async with running(place.updater(totals)) as _, asyncio.timeout(20):
        await until(place.live)
    await place.world.facts.happen(A, Counted(1))
    place.world.clock.advance(60)
    await place.world.facts.happen(A, Counted(UNLUCKY))
    place.world.clock.advance(30)
    (status,) = await place.status()
    assert (status.state, status.commits_behind, status.seconds_behind) == (BuildState.LIVE, 2, 90.0)
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
    (status,) = await place.status()
    assert (status.commits_behind, status.seconds_behind, status.parked_count) == (0, 0.0, 1)
    assert (status.parked[0].stream, status.parked[0].sequence_number) == (A, 2)


async def test_a_parked_stream_waits_for_a_request(place: Place) -> None:
    broken, mended = Totals(), Totals(unlucky=())
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY), Counted(2))
    await place.world.facts.happen(B, Counted(3))
    updater = place.updater(broken)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        assert await place.rows(broken, broken.steps) == [("a", 1, 1), ("b", 1, 3)]
    updater = place.updater(mended)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        assert await place.rows(mended, mended.steps) == [("a", 1, 1), ("b", 1, 3)]
        request = await request_retry(place.models.builds, mended.projection)
        await until(lambda: _finished(place, request.id))
        finished = await place.models.builds.request_of(request.id)
        assert finished is not None
        assert finished.outcome == "1 parked streams go on, 0 stay parked"
        assert await place.rows(mended, mended.steps) == [("a", 1, 1), ("a", 2, UNLUCKY), ("a", 3, 2), ("b", 1, 3)]
        # And the stream follows the feed again.
        await place.world.facts.happen(A, Counted(4))
        await updater.caught_up()
        assert ("a", 4, 4) in await place.rows(mended, mended.steps)


async def _finished(place: Place, request_id: int) -> bool:
    request = await place.models.builds.request_of(request_id)
    return request is not None and request.finished_at is not None


async def test_requests_are_polled_for_when_no_hint_comes(place: Place) -> None:
    totals = Totals()
    place.models.builds.watch = lambda wake: lambda: None
    await place.world.facts.happen(A, Counted(UNLUCKY))
    updater = place.updater(totals, poll_interval=0.01)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        request = await request_retry(place.models.builds, totals.projection)
        await until(lambda: _finished(place, request.id))


async def test_a_request_of_another_process_is_noticed(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(UNLUCKY))
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        elsewhere = await place.storage.open()
        request = await request_retry(elsewhere.builds, totals.projection, A)
        await until(lambda: _finished(place, request.id))
        await elsewhere.close()
    (status,) = await place.status()
    assert status.parked[0].attempts == 2


async def test_unknown_events_are_retried_by_a_new_start(place: Place) -> None:
    earlier, now = Totals(events=Named), Totals(events=Counted | Named)
    new_world = place.world
    await new_world.facts.happen(A, Named("太郎"))
    await new_world.facts.happen(A, Counted(1), Counted(2))
    place.world = World(new_world.clock, new_world.protector, (earlier_counter,))
    await place.updater(earlier).run_until_caught_up()
    (status,) = await place.status()
    assert (status.parked[0].code, status.parked[0].sequence_number) == ("UNKNOWN_EVENT", 2)
    place.world = new_world
    await place.updater(now).run_until_caught_up()
    (status,) = await place.status()
    assert status.parked_count == 0
    assert await place.rows(now, now.steps) == [("a", 2, 1), ("a", 3, 2)]


async def test_an_unavailable_journal_is_waited_for_and_parks_nothing(place: Place) -> None:
    totals = Totals()
    feed = place.world.journal.feed
    failures = 0

    async def sometimes(*arguments: object, **options: object) -> object:
        nonlocal failures
        failures += 1
        if failures <= 5:
            raise JournalUnavailable("down")
        return await feed(*arguments, **options)  # type: ignore[arg-type]

    place.world.journal.feed = sometimes  # type: ignore[method-assign, assignment]
    await place.world.facts.happen(A, Counted(1))
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
    assert await place.count(totals) == 1
    assert place.world.telemetry.parked_codes == []
    assert place.world.telemetry.retries == ["UNAVAILABLE"] * 5


async def test_run_until_caught_up_does_what_was_requested_and_ends(place: Place) -> None:
    broken, mended = Totals(), Totals(unlucky=())
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    (reached,) = await place.updater(broken).run_until_caught_up()
    assert (reached.role, reached.generation, reached.caught_up) == ("live", 1, True)
    await request_retry(place.models.builds, mended.projection, A)
    await place.updater(mended).run_until_caught_up()
    assert await place.rows(mended, mended.steps) == [("a", 1, 1), ("a", 2, UNLUCKY)]


async def test_run_until_caught_up_is_refused_while_another_one_runs(place: Place) -> None:
    totals = Totals()
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        with pytest.raises(BuildOwned):
            await place.updater(totals).run_until_caught_up()


async def test_run_until_caught_up_says_what_is_unavailable(place: Place) -> None:
    async def down(*arguments: object, **options: object) -> object:
        raise JournalUnavailable("down")

    place.world.journal.feed = down  # type: ignore[method-assign, assignment]
    with pytest.raises(JournalUnavailable):
        await place.updater(Totals()).run_until_caught_up()
    ownership = await place.models.builds.own("totals", 1)
    assert ownership is not None
    await ownership.release()


# Definitions


async def test_other_tables_need_another_version(place: Place) -> None:
    await place.updater(Totals()).run_until_caught_up()
    changed = Totals(extra=[Column("more", Integer)])
    with pytest.raises(DefinitionError, match="raise its version to 2"):
        await place.updater(changed).run()
    async with place.models.database.open([changed.projection]) as read:
        with pytest.raises(DefinitionError, match="raise its version to 2"):
            await read.all(changed.totals.select())


async def test_following_what_was_passed_by_needs_another_version(place: Place) -> None:
    await place.updater(Totals(events=Counted)).run_until_caught_up()
    with pytest.raises(DefinitionError, match="event:Named"):
        await place.updater(Totals(events=Counted | Named)).run()


async def test_following_an_event_that_is_new_to_the_application_does_not(place: Place) -> None:
    def without(*names: str) -> frozenset[str]:
        return frozenset(f"event:{name}" for name in names)

    totals = Totals(events=Counted | Named)
    now = Subscription(totals.projection, DECIDERS).definition
    earlier = type(now)(known=now.known - without("Named"), followed=now.followed - without("Named"))
    assert now.changed_since(earlier) == []
    assert now.joined(earlier) == now


async def test_tables_that_can_not_be_made_are_a_clear_error(place: Place) -> None:
    totals = Totals()
    totals.totals.append_column(Column("bad", Integer, server_default=""))
    totals.totals.c.bad.type = _Impossible()
    with pytest.raises(DefinitionError, match="totals"):
        await place.updater(totals).run()


class _Impossible(Integer):
    __visit_name__ = "impossible"


# Erasure


async def test_the_updater_destroys_keys_that_a_crash_has_left(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Named("太郎"))
    await place.world.facts.happen(B, Named("花子"))
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        assert [row[2] for row in await place.rows(totals, totals.totals)] == ["太郎", "花子"]
        # The fact, without the deed: as if the process had died between the two.
        await place.world.facts.happen(A, Forgotten())
        await updater.caught_up()
    assert [row[0] for row in await place.rows(totals, totals.totals)] == ["b"]
    ciphers = await place.world.protector.ciphers([A, B])
    assert isinstance(ciphers[A], Erased)
    assert not isinstance(ciphers[B], Erased)


async def test_the_updater_erases_also_without_projections(place: Place) -> None:
    await place.world.facts.happen(A, Named("太郎"), Forgotten())
    updater = place.updater()
    async with running(updater), asyncio.timeout(20):
        await until(lambda: _erased(place, A))


async def _erased(place: Place, subject: str) -> bool:
    return isinstance((await place.world.protector.ciphers([subject])).get(subject), Erased)


async def test_erasing_is_done_once_for_all_projections(place: Place) -> None:
    erase = place.world.protector.erase
    asked = []

    async def counted(subject: str) -> None:
        asked.append(subject)
        await erase(subject)

    place.world.protector.erase = counted  # type: ignore[method-assign]
    await place.world.facts.happen(A, Named("太郎"), Noted("x"), Forgotten())
    updater = place.updater(Totals(name="one"), Totals(name="two"), Totals(name="three"))
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        await request_rebuild(place.models.builds, Totals(name="one").projection)
        await until(lambda: place.live("one"))
        await updater.caught_up()
    # Nor again by a new start that reads from the beginning: what is done is only read.
    await place.updater(Totals(name="four")).run_until_caught_up()
    assert asked == [A]
