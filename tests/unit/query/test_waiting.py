"""Waiting for one's own writes, on guards that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import pytest

from kiseki import Projection, ReadModel, Unavailable
from kiseki.projection.port import ParkedStream, StreamProgress
from kiseki.projection.subscription import Subscription
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.waiting import ConsistencyWaiter, Stale, StreamParked, TooManyWaiters
from tests.unit.projection.parts import DECIDERS, Totals

A, B = "Counter-a", "Counter-b"
NEVER = (3_600.0, 3_600.0)


class Guards:
    """A ReadDatabase of which only the guards exist."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}
        self.parked: dict[str, int] = {}
        self.looks: list[str] = []
        self.asked: list[set[str]] = []
        self.down = False

    def open(self, reads: Sequence[Projection]) -> AbstractAsyncContextManager[ReadModel]:
        raise NotImplementedError

    async def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        self.looks.append(projection.name)
        self.asked.append(set(streams))
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("down")
        return {one: StreamProgress(self.numbers.get((projection.name, one), 0), self._parked(one)) for one in streams}

    def _parked(self, stream: str) -> ParkedStream | None:
        at = self.parked.get(stream)
        if at is None:
            return None
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return ParkedStream(
            stream=stream,
            sequence_number=at,
            event_type="Counted",
            code="APPLY_FAILED",
            detail="",
            occurred_at=now,
            parked_at=now,
            attempts=1,
        )


totals, again = Totals().projection, Totals(name="again").projection
SUBSCRIPTIONS = {one.name: Subscription(one, DECIDERS) for one in (totals, again)}


def follows(projection: Projection, stream: str) -> bool:
    return SUBSCRIPTIONS[projection.name].follows(stream)


@pytest.fixture
def guards() -> Guards:
    return Guards()


def waiter_of(
    guards: Guards,
    *,
    poll: tuple[float, float] = NEVER,
    timeout: float = 20.0,
    per_subject: int = 32,
    total: int = 1_000,
) -> ConsistencyWaiter:
    return ConsistencyWaiter(guards, follows=follows, poll=poll, timeout=timeout, per_subject=per_subject, total=total)


@pytest.fixture
async def waiter(guards: Guards) -> AsyncIterator[ConsistencyWaiter]:
    waiter = waiter_of(guards)
    yield waiter
    await waiter.close()


def token(*pairs: tuple[str, int]) -> ConsistencyToken:
    return ConsistencyToken(pairs)


async def settle() -> None:
    """Lets everything that can go on without a clock go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_what_is_applied_needs_no_wait(guards: Guards, waiter: ConsistencyWaiter) -> None:
    guards.numbers["totals", A] = 3
    await waiter.wait([totals], token((A, 3)), subject="s")
    assert len(guards.looks) == 1


async def test_streams_that_are_not_followed_need_no_look(guards: Guards, waiter: ConsistencyWaiter) -> None:
    await waiter.wait([totals], token(("Other-1", 5), ("Stranger-1", 5)), subject="s")
    assert guards.looks == []


async def test_a_notification_ends_the_wait_at_once(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 2)), subject="s"))
    await settle()
    guards.numbers["totals", A] = 1
    waiter.notify("totals")
    await settle()
    assert not waiting.done()
    guards.numbers["totals", A] = 2
    waiter.notify("again")
    await settle()
    assert not waiting.done()
    waiter.notify("totals")
    await waiting


async def test_without_notification_the_guards_are_looked_at(guards: Guards) -> None:
    waiter = waiter_of(guards, poll=(0.001, 0.002))
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 1)), subject="s"))
    while len(guards.looks) < 5:
        await asyncio.sleep(0.001)
    assert not waiting.done()
    guards.numbers["totals", A] = 1
    await waiting
    looks = len(guards.looks)
    await asyncio.sleep(0.02)
    # Nobody waits any more, so nobody looks.
    assert len(guards.looks) <= looks + 1


async def test_what_is_applied_between_the_look_and_the_wait_is_seen(guards: Guards, waiter: ConsistencyWaiter) -> None:
    progress = guards.progress

    async def then_applied(projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        found = await progress(projection, streams)
        guards.numbers["totals", A] = 1
        waiter.notify("totals")
        return found

    guards.progress = then_applied  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        await waiter.wait([totals], token((A, 1)), subject="s")


async def test_all_projections_and_all_streams_are_waited_for(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waiting = asyncio.create_task(waiter.wait([totals, again], token((A, 1), (B, 2)), subject="s"))
    for name, stream, number in (("totals", A, 1), ("totals", B, 2), ("again", A, 5), ("again", B, 2)):
        await settle()
        assert not waiting.done()
        guards.numbers[name, stream] = number
        waiter.notify(name)
    await waiting


async def test_a_wait_ends_as_stale(guards: Guards) -> None:
    waiter = waiter_of(guards, timeout=0.05)
    with pytest.raises(Stale) as stale:
        await waiter.wait([totals], token((A, 1)), subject="s")
    assert stale.value.code == "STALE"
    await waiter.close()


async def test_without_time_to_wait_it_is_stale_or_answered(guards: Guards) -> None:
    waiter = waiter_of(guards, timeout=0.0)
    with pytest.raises(Stale):
        await waiter.wait([totals], token((A, 1)), subject="s")
    guards.numbers["totals", A] = 1
    await waiter.wait([totals], token((A, 1)), subject="s")
    await waiter.close()


@pytest.mark.parametrize(("number", "refused"), [(1, False), (2, True), (3, True)])
async def test_a_parked_stream_is_told_at_once(
    guards: Guards, waiter: ConsistencyWaiter, number: int, *, refused: bool
) -> None:
    guards.numbers["totals", A], guards.parked[A] = 1, 2
    async with asyncio.timeout(5):
        if not refused:
            await waiter.wait([totals], token((A, number)), subject="s")
            return
        with pytest.raises(StreamParked) as parked:
            await waiter.wait([totals], token((A, number)), subject="s")
        assert parked.value.code == "PARKED"


async def test_what_comes_before_the_parked_event_is_waited_for(guards: Guards, waiter: ConsistencyWaiter) -> None:
    guards.parked[A] = 5
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 4)), subject="s"))
    await settle()
    assert not waiting.done()
    guards.numbers["totals", A] = 4
    waiter.notify("totals")
    await waiting


async def test_a_stream_that_is_parked_meanwhile_is_told(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 3), (B, 1)), subject="s"))
    await settle()
    guards.parked[A] = 2
    waiter.notify("totals")
    with pytest.raises(StreamParked):
        await waiting


async def test_an_unavailable_read_model_is_told(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 3)), subject="s"))
    await settle()
    guards.down = True
    waiter.notify("totals")
    with pytest.raises(Unavailable):
        await waiting


async def test_waits_are_bounded_for_each_subject_and_altogether(guards: Guards) -> None:
    waiter = waiter_of(guards, per_subject=2, total=3)
    tasks = [asyncio.create_task(waiter.wait([totals], token((A, 1)), subject=who)) for who in ("s", "s", "t")]
    await settle()
    with pytest.raises(TooManyWaiters, match="of this client"):
        await waiter.wait([totals], token((A, 1)), subject="s")
    with pytest.raises(TooManyWaiters, match="altogether"):
        await waiter.wait([totals], token((A, 1)), subject="u")
    tasks[0].cancel()
    await settle()
    tasks.append(asyncio.create_task(waiter.wait([totals], token((A, 1)), subject="s")))
    await settle()
    assert not tasks[-1].done()
    guards.numbers["totals", A] = 1
    waiter.notify("totals")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None), type(None)]
    # What is answered at once does not count as waiting.
    await waiter.wait([totals], token((A, 1)), subject="s")
    await waiter.close()


async def test_one_look_serves_all_who_wait(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waits = [waiter.wait([totals], token((f"Counter-{n}", 1)), subject=f"s{n}") for n in range(100)]
    tasks = [asyncio.create_task(wait) for wait in waits]
    await settle()
    before = len(guards.looks)
    for n in range(100):
        guards.numbers["totals", f"Counter-{n}"] = 1
    waiter.notify("totals")
    await asyncio.gather(*tasks)
    assert len(guards.looks) - before == 1
    assert len(guards.asked[-1]) == 100


async def test_closing_ends_all_waits(guards: Guards, waiter: ConsistencyWaiter) -> None:
    waiting = asyncio.create_task(waiter.wait([totals], token((A, 1)), subject="s"))
    await settle()
    await waiter.close()
    with pytest.raises(Stale):
        await waiting
