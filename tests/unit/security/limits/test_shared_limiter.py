"""A limit that processes share, with a store that a test commands: local first, and no request waits for long."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kiseki.kernel.errors import DefinitionError
from kiseki.security.limits.shared import SharedLimiter
from kiseki.security.limits.shared_store import SharedTake, SharedWindows, SharedWindowsUnavailable
from kiseki.security.limits.verdict import LimitPolicy
from tests.unit.security.fakes import FakeClock
from tests.unit.security.limits.limit_parts import CommandedStore, ListAuditor

POLICY = LimitPolicy("subject", 10)


class Parts:
    """A shared limiter and what it is made of. A call is given up after 20 ms; the clock stands still meanwhile."""

    def __init__(self, *, processes: int | None = None, policy: LimitPolicy = POLICY) -> None:
        self.clock = FakeClock()
        self.store = CommandedStore()
        self.auditor = ListAuditor()
        self.shared = SharedWindows(self.store, clock=self.clock, auditor=self.auditor, budget=0.02)
        self.limiter = SharedLimiter(policy, shared=self.shared, clock=self.clock, processes=processes)

    async def open_circuit(self) -> None:
        """Lets the store fail until nobody asks it any more."""
        for _ in range(20):
            if not self.shared.asks():
                return
            await self.shared.take(POLICY, "circuit", 1)
            self.clock.advance(0.1)
        raise AssertionError("the circuit did not open")


def over(*, wait: float = 30.0, used: int = 10) -> SharedTake:
    return SharedTake(allowed=False, used=used, reset_after=60.0, wait=wait)


async def test_the_shared_store_has_the_last_word() -> None:
    parts = Parts()
    parts.store.answer = lambda cost: SharedTake(allowed=True, used=7, reset_after=55.0, wait=0.0)
    verdict = await parts.limiter.take("a", 2)
    assert (verdict.allowed, verdict.remaining, verdict.reset_after) == (True, 3, 55.0)
    parts.store.answer = lambda cost: over(wait=12.3)
    verdict = await parts.limiter.take("a", 2)
    assert (verdict.allowed, verdict.remaining, verdict.retry_after) == (False, 0, 13)


async def test_what_is_over_the_limit_here_is_not_asked() -> None:
    parts = Parts()
    for _ in range(10):
        assert (await parts.limiter.take("a")).allowed
    assert len(parts.store.calls) == 10
    assert not (await parts.limiter.take("a")).allowed
    assert not (await parts.limiter.take("b", 11)).allowed
    assert len(parts.store.calls) == 10


async def test_what_the_store_refused_is_not_asked_again_until_it_may_be_allowed() -> None:
    parts = Parts()
    parts.store.answer = lambda cost: over(wait=30.0)
    assert (await parts.limiter.take("a", 2)).retry_after == 30
    parts.clock.advance(10)
    verdict = await parts.limiter.take("a", 2)
    assert (verdict.allowed, verdict.retry_after, verdict.reset_after) == (False, 20, 50.0)
    assert (await parts.limiter.take("a", 3)).retry_after == 50
    assert len(parts.store.calls) == 1
    assert not (await parts.limiter.take("a", 1)).allowed  # costs less, so it may pass
    assert len(parts.store.calls) == 2
    parts.store.answer = lambda cost: SharedTake(allowed=True, used=9, reset_after=60.0, wait=0.0)
    parts.clock.advance(30)
    assert (await parts.limiter.take("a", 2)).allowed


async def test_what_is_remembered_of_refusals_is_bounded() -> None:
    parts = Parts()
    parts.store.answer = lambda cost: over()
    for number in range(10_100):
        await parts.limiter.take(f"a {number}")
    assert len(parts.limiter._refusals) == 10_000
    assert len(parts.limiter.local.windows) == 0


async def test_a_request_that_the_store_refused_costs_nothing_here_either() -> None:
    parts = Parts()
    parts.store.answer = lambda cost: over(wait=1.0)
    for _ in range(50):
        parts.clock.advance(1)
        assert not (await parts.limiter.take("a")).allowed
    assert parts.limiter.local.take_now("a", 0).remaining == 10


@pytest.mark.parametrize("processes", [None, 1, 4, 100])
async def test_without_the_store_each_process_has_its_part(processes: int | None) -> None:
    parts = Parts(processes=processes)
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    expected = 10 if processes is None else max(1, 10 // processes)
    verdicts = [await parts.limiter.take("a") for _ in range(30)]
    assert sum(one.allowed for one in verdicts) == expected
    assert verdicts[-1].limit == expected
    assert verdicts[-1].retry_after == 61
    await parts.open_circuit()
    verdicts = [await parts.limiter.take("b") for _ in range(30)]
    assert sum(one.allowed for one in verdicts) == expected


async def test_many_at_once_when_the_store_goes_have_the_local_limit() -> None:
    parts = Parts(processes=2)
    parts.store.gate = asyncio.Event()
    verdicts = await asyncio.gather(*(parts.limiter.take("a") for _ in range(30)))
    assert sum(one.allowed for one in verdicts) == 5
    parts.store.gate.set()
    await parts.shared.close()


async def test_what_was_let_in_before_counts_while_the_store_is_gone() -> None:
    parts = Parts(processes=2)
    for _ in range(7):
        assert (await parts.limiter.take("a")).allowed
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    assert not (await parts.limiter.take("a")).allowed
    assert (await parts.limiter.take("b")).allowed


async def test_a_store_that_does_not_answer_is_audited_once_and_so_is_its_return() -> None:
    parts = Parts()
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    for number in range(50):
        await parts.limiter.take(f"a {number}")
        parts.clock.advance(0.01)
    assert parts.auditor.kinds == ["limit.shared_unavailable"]
    assert (parts.auditor.events[0].outcome, parts.auditor.events[0].code) == ("failed", "UNREACHABLE")
    assert not parts.shared.available
    assert parts.shared.failures == 50
    parts.store.problem = None
    parts.clock.advance(5)
    assert (await parts.limiter.take("b")).allowed
    assert parts.auditor.kinds == ["limit.shared_unavailable", "limit.shared_available"]
    assert parts.shared.available


async def test_a_store_that_is_gone_is_asked_once_a_second_not_by_every_request() -> None:
    parts = Parts()
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    await parts.open_circuit()
    parts.store.calls.clear()
    for number in range(1_000):
        verdict = parts.limiter.take_now(f"a {number}")
        if verdict is None:
            await parts.limiter.take(f"a {number}")
        parts.clock.advance(0.005)
    assert 3 <= len(parts.store.calls) <= 5


async def test_only_one_request_tries_a_store_that_was_gone_the_others_do_not_wait() -> None:
    parts = Parts()
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    await parts.open_circuit()
    parts.clock.advance(5)
    parts.store.calls.clear()
    parts.store.gate = asyncio.Event()
    first = asyncio.create_task(parts.limiter.take("a"))
    await asyncio.sleep(0)
    assert parts.limiter.take_now("b") is not None
    assert (await parts.limiter.take("c")).allowed
    await first
    assert len(parts.store.calls) == 1
    parts.store.gate.set()
    await parts.shared.close()


async def test_a_slow_answer_is_not_waited_for_and_still_counts() -> None:
    parts = Parts()
    parts.store.gate = asyncio.Event()
    async with asyncio.timeout(5):
        assert (await parts.limiter.take("a")).allowed
    assert parts.auditor.events[0].code == "SLOW"
    assert len(parts.shared._calls) == 1
    parts.store.gate.set()
    await asyncio.sleep(0.01)
    assert not parts.shared._calls


async def test_calls_under_way_are_bounded() -> None:
    parts = Parts(policy=LimitPolicy("subject", 1_000))
    parts.store.gate = asyncio.Event()
    verdicts = await asyncio.gather(*(parts.limiter.take(f"a {number}") for number in range(400)))
    assert all(one.allowed for one in verdicts)
    assert len(parts.store.calls) == 128
    await parts.shared.close()
    assert not parts.shared._calls


async def test_the_answer_is_at_hand_only_where_nobody_has_to_be_asked() -> None:
    parts = Parts()
    assert parts.limiter.take_now("a") is None
    assert parts.limiter.local.take_now("a", 0).remaining == 10
    await parts.limiter.take("a", 10)
    at_hand = parts.limiter.take_now("a")
    assert at_hand is not None
    assert not at_hand.allowed
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    await parts.open_circuit()
    at_hand = parts.limiter.take_now("b")
    assert at_hand is not None
    assert at_hand.allowed


async def test_a_fault_of_the_store_that_nobody_foresaw_is_logged_and_lets_nobody_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = Parts()
    parts.store.problem = ZeroDivisionError("a bug with hunter2 in it")
    with caplog.at_level(logging.WARNING):
        assert (await parts.limiter.take("a")).allowed
        await asyncio.sleep(0)
    assert "failed in a way that it should not: ZeroDivisionError" in caplog.text
    assert "hunter2" not in caplog.text
    assert parts.auditor.events[0].code == "ERROR"


async def test_a_client_that_goes_away_leaves_the_store_as_it_is() -> None:
    parts = Parts()
    parts.store.gate = asyncio.Event()
    request = asyncio.create_task(parts.limiter.take("a"))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert parts.shared.available
    parts.store.gate.set()
    assert (await parts.limiter.take("a")).allowed
    assert len(parts.store.calls) == 2


async def test_the_probe_of_a_client_that_goes_away_blocks_no_further_probe() -> None:
    parts = Parts()
    parts.store.problem = SharedWindowsUnavailable("unreachable")
    await parts.open_circuit()
    parts.clock.advance(5)
    parts.store.gate = asyncio.Event()
    request = asyncio.create_task(parts.limiter.take("a"))
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})
    parts.store.gate.set()
    parts.store.problem = None
    assert parts.shared.asks()
    await parts.limiter.take("a")
    assert parts.shared.available


async def test_after_closing_the_local_limit_goes_on() -> None:
    parts = Parts(processes=2)
    await parts.shared.close()
    await parts.shared.close()
    assert sum([(await parts.limiter.take("a")).allowed for _ in range(20)]) == 5
    assert parts.store.calls == []


@pytest.mark.parametrize("budget", [0, -1, 6])
def test_a_budget_that_means_nothing_is_refused(budget: float) -> None:
    with pytest.raises(DefinitionError, match="waits"):
        SharedWindows(CommandedStore(), clock=FakeClock(), auditor=ListAuditor(), budget=budget)
