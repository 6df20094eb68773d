"""The sweeper on a store in memory: it finds what nothing else brought, once, and leaves everything else alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest

from kiseki import Erased, Unavailable
from kiseki.journal.port import START, CorruptJournal
from kiseki.projection.port import Build, BuildMissing, BuildName, BuildState, GuardMoved, StreamProgress
from kiseki.projection.projector import Projector
from kiseki.projection.subscription import Subscription
from kiseki.projection.sweeper import Finding, Sweeper, SweeperSettings
from tests.unit.projection.parts import UNLUCKY, Counted, Elsewhere, Feed, Forgotten, MemoryStore, Named, Totals, World

A, B, C = "Counter-a", "Counter-b", "Counter-c"


class Heads:
    """The journal's index by time, from what is in a journal in memory."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.asked: list[float] = []
        self.after_page: Callable[[], Any] | None = None

    async def heads(self, since: datetime) -> AsyncIterator[Mapping[str, int]]:
        self.asked.append((self._world.clock.now() - since).total_seconds())
        position = START
        pages = []
        while (page := await self._world.journal.feed(position, limit=3)).commits:
            position = page.position
            pages.append(page)
        for page in pages:
            yield {one.stream: one.first_sequence_number for one in page.commits if one.metadata.committed_at >= since}
            if self.after_page is not None:
                await self.after_page()


class Catalog:
    """Builds in memory: what a sweeper asks of a BuildCatalog."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.stores: dict[BuildName, MemoryStore] = {}
        self.states: dict[BuildName, BuildState] = {}
        self.opened = 0
        self.problem: Exception | None = None
        self.missing: set[BuildName] = set()

    def add(self, totals: Totals, state: BuildState = BuildState.LIVE) -> MemoryStore:
        store = MemoryStore(totals)
        store.name = store.name._replace(generation=len(self.stores) + 1)
        self.stores[store.name] = store
        self.states[store.name] = state
        return store

    async def builds(self, projection: str | None = None) -> Sequence[Build]:
        if self.problem is not None:
            raise self.problem
        return [
            Build(
                name=name,
                state=state,
                created_at=self._world.clock.now(),
                promoted_at=None,
                retired_at=None,
                problem=None,
            )
            for name, state in self.states.items()
            if projection in (None, name.projection)
        ]

    async def progress(self, name: BuildName, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        if name in self.missing:
            raise BuildMissing(f"{name} is gone")
        return await self.stores[name].progress(streams)

    async def open(self, projection: Any, name: BuildName, definition: Any) -> Any:
        self.opened += 1
        return Opened(self.stores[name])


class Opened:
    """A store that outlives being closed."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def close(self) -> None: ...


class Bench:
    """A sweeper, its world and one live build."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.totals = Totals()
        self.catalog = Catalog(world)
        self.live = self.catalog.add(self.totals)
        self.heads = Heads(world)
        self.feed = Feed(world.journal)
        self.findings: list[Finding] = []
        self.runs = True
        self.settings = SweeperSettings(**{"grace": 0.0, **settings})
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        """As after a new start of the process."""
        return Sweeper(
            projections=[self.totals.projection],
            deciders=self.world.deciders,
            journal=self.feed,
            heads=self.heads,
            builds=self.catalog,  # type: ignore[arg-type]  # the part of it that is used
            codec=self.world.codec,
            protector=self.world.protector,
            telemetry=self.world.telemetry,
            clock=self.world.clock,
            settings=self.settings,
            runs=lambda projection: self.runs,
            found=self.findings.append,
            jitter=lambda: 1.0,
        )

    async def follow(self, store: MemoryStore | None = None, *, without_last: int = 0) -> None:
        """Applies what happened as a stream would bring it, all but the last events."""
        projector = Projector(
            subscription=Subscription(self.totals.projection, self.world.deciders),
            store=store or self.live,
            journal=self.world.journal,
            codec=self.world.codec,
            telemetry=self.world.telemetry,
            clock=self.world.clock,
        )
        events = await self.world.facts.all()
        await projector.apply(events[: len(events) - without_last])

    def steps(self) -> list[tuple[Any, ...]]:
        return self.live.rows(self.totals.steps)


async def bench(**settings: Any) -> Bench:
    return Bench(await World.new(), **settings)


async def test_a_last_commit_that_was_skipped_is_found_and_applied(caplog: pytest.LogCaptureFixture) -> None:
    b = await bench()
    await b.world.facts.happen(B, Counted(5))
    await b.world.facts.happen(A, Counted(1))
    await b.world.facts.happen(A, Counted(2), Counted(3))
    await b.follow(without_last=2)
    with caplog.at_level(logging.WARNING):
        (finding,) = await b.sweeper.sweep()
    assert (finding.streams, finding.events, finding.complete) == ((A,), 2, True)
    assert b.steps() == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("b", 1, 5)]
    assert b.live.guards == {A: 3, B: 1}
    assert b.feed.reads == [(A, 1)]
    assert "1 streams were behind" in caplog.text
    assert b.findings == [finding]
    assert await b.sweeper.sweep() == []


async def test_where_nothing_is_lost_nothing_is_written_or_opened(caplog: pytest.LogCaptureFixture) -> None:
    b = await bench()
    for amount in range(1, 10):
        await b.world.facts.happen(A, Counted(amount))
    await b.world.facts.happen("Other-1", Elsewhere(1))
    await b.follow()
    written = len(b.live.batches)
    with caplog.at_level(logging.WARNING):
        assert await b.sweeper.sweep() == []
    assert (len(b.live.batches), b.catalog.opened, caplog.text) == (written, 0, "")


async def test_a_stream_whose_first_commit_was_lost_is_found() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(2))
    (finding,) = await b.sweeper.sweep()
    assert finding.events == 2
    assert b.live.guards == {A: 2}


async def test_what_a_stream_kept_for_24_hours_only_is_found_at_the_next_start() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    b.world.clock.advance(24.5 * 3_600)
    (finding,) = await b.another().sweep()
    assert finding.streams == (A,)
    assert b.heads.asked == [25 * 3_600]


async def test_what_is_older_than_the_first_window_is_found_when_asked_for() -> None:
    b = await bench()
    long_ago = b.world.clock.now()
    await b.world.facts.happen(A, Counted(1))
    b.world.clock.advance(48 * 3_600)
    assert await b.sweeper.sweep() == []
    (finding,) = await b.sweeper.sweep(long_ago)
    assert finding.streams == (A,)


async def test_later_windows_begin_where_the_last_sweep_began_less_the_lookback() -> None:
    b = await bench()
    await b.sweeper.sweep()
    b.world.clock.advance(60)
    await b.sweeper.sweep()
    assert b.heads.asked == [25 * 3_600, 960]


async def test_a_sweep_that_failed_is_done_again_over_the_same_window() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    b.live.faults = [Unavailable("down")]
    with pytest.raises(Unavailable):
        await b.sweeper.sweep()
    b.world.clock.advance(60)
    (finding,) = await b.sweeper.sweep()
    assert finding.streams == (A,)
    assert b.heads.asked == [25 * 3_600, 25 * 3_600]


async def test_what_arrives_within_the_grace_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    b = await bench(grace=3_600.0)
    await b.world.facts.happen(A, Counted(1))
    sweeping = asyncio.create_task(b.sweeper.sweep())
    await _settled()
    assert b.heads.asked != []
    assert not sweeping.done()
    await b.follow()
    b.sweeper._stop.set()  # the grace is over
    assert await sweeping == []
    assert b.catalog.opened == 0


async def test_a_stream_that_went_on_meanwhile_but_got_the_commit_is_not_lost() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))

    async def arrives() -> None:
        b.heads.after_page = None
        await b.follow()
        await b.world.facts.happen(A, Counted(2))

    b.heads.after_page = arrives
    assert await b.sweeper.sweep() == []
    assert b.live.guards == {A: 1}


async def test_parked_streams_wait_for_their_retry() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(UNLUCKY))
    await b.follow()
    await b.world.facts.happen(A, Counted(1))
    assert await b.sweeper.sweep() == []
    assert b.live.guards == {}


async def test_poison_that_was_lost_is_parked_and_found_once() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    await b.world.facts.unknown("Stranger-1")
    (finding,) = await b.sweeper.sweep()
    assert finding.events == 1
    assert {stream: one.code for stream, one in b.live.parked_streams.items()} == {
        A: "APPLY_FAILED",
        "Stranger-1": "UNKNOWN_EVENT",
    }
    assert await b.sweeper.sweep() == []


async def test_a_stream_that_is_damaged_is_parked_and_the_others_go_on() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    await b.world.facts.happen(B, Counted(2))

    def damaged() -> None:
        if not b.feed.reads:
            b.feed.reads.append((A, 0))
            raise CorruptJournal("bytes are not what was written")

    b.feed.before_read = damaged
    await b.sweeper.sweep()
    assert b.live.parked_streams[A].code == "UNREADABLE"
    assert b.live.guards == {B: 1}


async def test_a_guard_that_the_fast_way_moved_is_read_again() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    b.live.faults = [GuardMoved("another process"), GuardMoved("another process")]
    (finding,) = await b.sweeper.sweep()
    assert finding.events == 1
    assert b.steps() == [("a", 1, 1)]


async def test_an_erasure_that_was_lost_is_done() -> None:
    b = await bench()
    await b.world.facts.happen(A, Named("太郎"))
    await b.follow()
    await b.world.facts.happen(A, Forgotten())
    await b.sweeper.sweep()
    assert isinstance((await b.world.protector.ciphers([A]))[A], Erased)
    assert b.live.batches[-1].scrub
    assert b.live.rows(b.totals.totals) == []


async def test_all_builds_of_the_version_are_swept_and_replaced_ones_are_not() -> None:
    b = await bench()
    building = b.catalog.add(b.totals, BuildState.BUILDING)
    retired = b.catalog.add(b.totals, BuildState.RETIRED)
    other_version = b.catalog.add(Totals(version=2))
    await b.world.facts.happen(A, Counted(1))
    findings = await b.sweeper.sweep()
    assert [finding.build for finding in findings] == [building.name, b.live.name]
    assert (b.live.guards, building.guards) == ({A: 1}, {A: 1})
    assert (retired.guards, other_version.guards) == ({}, {})


async def test_a_new_build_is_swept_over_the_whole_window() -> None:
    b = await bench()
    await b.sweeper.sweep()
    b.world.clock.advance(60)
    b.catalog.add(b.totals, BuildState.BUILDING)
    await b.sweeper.sweep()
    assert b.heads.asked == [25 * 3_600, 25 * 3_600]


async def test_a_build_that_is_far_behind_is_catching_up_and_left_alone() -> None:
    b = await bench(at_once=2)
    building = b.catalog.add(b.totals, BuildState.BUILDING)
    for stream in (A, B, C):
        await b.world.facts.happen(stream, Counted(1))
    await b.follow()
    assert await b.sweeper.sweep() == []
    assert building.guards == {}


async def test_more_than_it_looks_after_at_once_is_left_to_the_next_sweep() -> None:
    b = await bench(at_once=2)
    for number in range(7):
        await b.world.facts.happen(f"Counter-{number}", Counted(1))
    sizes = []
    while findings := await b.sweeper.sweep():
        sizes.append((len(findings[0].streams), findings[0].complete))
    assert sizes == [(2, False), (2, False), (2, False), (1, True)]
    assert set(b.heads.asked[:4]) == {25 * 3_600}


async def test_who_stands_by_does_not_sweep() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    b.runs = False
    assert await b.sweeper.sweep() == []
    assert b.heads.asked == []


async def test_a_build_that_is_gone_does_not_end_the_sweep() -> None:
    b = await bench()
    building = b.catalog.add(b.totals, BuildState.BUILDING)
    b.catalog.missing.add(building.name)
    await b.world.facts.happen(A, Counted(1))
    (finding,) = await b.sweeper.sweep()
    assert finding.build == b.live.name


async def test_it_runs_until_it_is_stopped_and_waits_for_what_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    b = await bench(backoff_initial=0.001, backoff_maximum=0.001)
    await b.world.facts.happen(A, Counted(1))
    b.catalog.problem = Unavailable("down")
    running = asyncio.create_task(b.sweeper.run())
    async with asyncio.timeout(20):
        while "the sweep waits: down" not in caplog.text:
            await asyncio.sleep(0)
        b.catalog.problem = RuntimeError("a defect")
        while "the sweep can't go on" not in caplog.text:
            await asyncio.sleep(0)
        b.catalog.problem = None
        while not b.findings:
            await asyncio.sleep(0)
        await b.sweeper.stop()
        await running
    assert b.live.guards == {A: 1}


async def test_stopping_ends_the_grace() -> None:
    b = await bench(grace=3_600.0)
    await b.world.facts.happen(A, Counted(1))
    running = asyncio.create_task(b.sweeper.run())
    await _settled()
    assert b.heads.asked != []
    async with asyncio.timeout(20):
        await b.sweeper.stop()
        await running
    assert b.live.guards == {}


async def _settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)
