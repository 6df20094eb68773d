"""The limit in memory: never more than the limit in any window, nobody's state lost to a flood, bounded memory."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki.kernel.errors import DefinitionError
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.verdict import SLOTS, LimitPolicy
from kiseki.security.limits.windows import CROWDS
from tests.unit.security.fakes import FakeClock
from tests.unit.security.limits.limit_parts import Admissions

# Eighths of a second are exact in binary, so that a window's edge is met exactly.
_STEPS = st.integers(0, 40) | st.integers(0, 600) | st.sampled_from([476, 477, 479, 480, 481, 483, 484, 485])


def limiter(
    limit: int = 100, *, clock: FakeClock | None = None, capacity: int = 1_000, window: int = 60
) -> MemoryLimiter:
    return MemoryLimiter(LimitPolicy("subject", limit, window), clock=clock or FakeClock(), capacity=capacity)


@settings(max_examples=300, deadline=None)
@given(
    limit=st.integers(1, 12),
    capacity=st.integers(1, 3),
    requests=st.lists(st.tuples(_STEPS, st.integers(0, 5), st.integers(1, 13)), max_size=80),
)
def test_no_window_of_60_seconds_ever_has_more_than_the_limit(
    limit: int, capacity: int, requests: list[tuple[int, int, int]]
) -> None:
    """Also where there are more keys than room, so that some share windows and move between them."""
    clock = FakeClock()
    limits = limiter(limit, clock=clock, capacity=capacity)
    let_in = [Admissions(limit) for _ in range(6)]
    for eighths, key, cost in requests:
        clock.advance(eighths / 8)
        if limits.take_now(str(key), cost).allowed:
            let_in[key].let_in(clock.monotonic(), cost)
        assert len(limits.windows) <= capacity


@settings(max_examples=300, deadline=None)
@given(
    limit=st.integers(1, 12), requests=st.lists(st.tuples(_STEPS, st.integers(0, 2), st.integers(0, 13)), max_size=80)
)
def test_a_request_with_room_is_let_in_and_told_the_truth(limit: int, requests: list[tuple[int, int, int]]) -> None:
    clock = FakeClock()
    limits = limiter(limit, clock=clock)
    let_in = [Admissions(limit) for _ in range(3)]
    for eighths, key, cost in requests:
        clock.advance(eighths / 8)
        now = clock.monotonic()
        known = let_in[key]
        room = known.must_let_in(now, cost)
        verdict = limits.take_now(str(key), cost)
        assert verdict.allowed >= room
        if verdict.allowed:
            known.let_in(now, cost)
            assert verdict.retry_after == 0
        else:
            assert verdict.retry_after >= 1
        most = limit - known.within(now, 60)
        least = limit - known.within(now, 60 + 60 / SLOTS)
        assert least <= verdict.remaining <= most
        assert (verdict.reset_after == 0) == (verdict.remaining == limit)


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 12),
    taken=st.lists(st.tuples(_STEPS, st.integers(1, 13)), max_size=40),
    cost=st.integers(1, 13),
)
def test_who_waits_as_told_is_let_in(limit: int, taken: list[tuple[int, int]], cost: int) -> None:
    clock = FakeClock()
    limits = limiter(limit, clock=clock)
    for eighths, units in taken:
        clock.advance(eighths / 8)
        limits.take_now("a", units)
    verdict = limits.take_now("a", cost)
    if verdict.allowed:
        clock.advance(verdict.reset_after)
        assert limits.take_now("a", 0).remaining == limit
    elif cost <= limit:
        if verdict.retry_after >= 2:
            clock.advance(verdict.retry_after - 1.001)
            assert not limits.take_now("a", cost).allowed
            clock.advance(1.001)
        else:
            clock.advance(verdict.retry_after)
        assert limits.take_now("a", cost).allowed
    else:
        assert verdict.retry_after == 60


def test_there_is_no_burst_at_the_edge_of_a_minute() -> None:
    clock = FakeClock()
    clock.seconds = 1_199.9
    limits = limiter(100, clock=clock)
    assert sum(limits.take_now("a").allowed for _ in range(200)) == 100
    for _ in range(60):
        clock.advance(1.0)
        assert not limits.take_now("a").allowed
    clock.advance(0.6)
    assert sum(limits.take_now("a").allowed for _ in range(200)) == 100


def test_a_refused_request_costs_nothing() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock)
    for _ in range(10):
        limits.take_now("a")
    for _ in range(600):
        clock.advance(0.1)
        limits.take_now("a")
    clock.advance(1)
    assert limits.take_now("a").allowed


def test_what_costs_more_than_the_limit_is_refused_at_once_and_keeps_nobody_out() -> None:
    limits = limiter(10)
    refused = limits.take_now("a", 11)
    assert (refused.allowed, refused.remaining, refused.retry_after) == (False, 10, 60)
    assert len(limits.windows) == 0
    assert limits.take_now("a", 10).allowed
    assert not limits.take_now("a", 10**30).allowed


def test_a_cost_of_nothing_looks_and_one_below_is_an_error() -> None:
    limits = limiter(10)
    assert limits.take_now("a", 0).remaining == 10
    assert len(limits.windows) == 0
    with pytest.raises(ValueError, match="no less than nothing"):
        limits.take_now("a", -1)
    limits.take_now("a", 10)
    with pytest.raises(ValueError, match="no less than nothing"):
        limits.take_now("a", -1)


def test_keys_have_limits_of_their_own_whatever_is_in_them() -> None:
    limits = limiter(1)
    for key in ("", "a", "A", "a\x00", "\ud800", "太郎", "a" * 10_000):
        assert limits.take_now(key).allowed
        assert not limits.take_now(key).allowed


def test_a_flood_of_keys_resets_nobody_and_takes_no_more_memory_than_said() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock, capacity=100)
    for _ in range(10):
        assert limits.take_now("known").allowed
    for number in range(50_000):
        limits.take_now(f"flood {number}")
    assert len(limits.windows) == 100
    assert limits.windows.crowds <= CROWDS
    assert not limits.take_now("known").allowed
    assert limits.windows.crowded > 0


def test_in_a_flood_who_is_known_goes_on() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock, capacity=100)
    assert limits.take_now("known").allowed
    for number in range(50_000):
        limits.take_now(f"flood {number}")
    assert all(limits.take_now("known").allowed for _ in range(9))


def test_those_without_room_have_the_limit_together_and_never_twice() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock, capacity=1)
    limits.take_now("known")
    clock.advance(30)
    let_in = Admissions(10)
    for _ in range(5):
        assert limits.take_now("newcomer").allowed
        let_in.let_in(clock.monotonic(), 1)
    # The one who had the room is gone; now the newcomer could have a window of its own, with nothing in it.
    clock.advance(31)
    for _ in range(20):
        if limits.take_now("newcomer").allowed:
            let_in.let_in(clock.monotonic(), 1)
    assert let_in.within(clock.monotonic(), 60) == 10
    assert limits.take_now("another").allowed
    assert len(limits.windows) == 1
    clock.advance(61)
    limits.take_now("newcomer")
    assert (len(limits.windows), limits.windows.crowds) == (1, 0)


def test_one_who_goes_on_keeps_nobody_elses_memory() -> None:
    clock = FakeClock()
    limits = limiter(100, clock=clock)
    limits.take_now("first")
    for number in range(50):
        limits.take_now(f"once {number}")
    for _ in range(100):
        clock.advance(1)
        limits.take_now("first")
    assert len(limits.windows) == 1


def test_after_a_flood_memory_is_given_back() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock, capacity=100)
    for number in range(20_000):
        limits.take_now(f"flood {number}")
    clock.advance(61)
    for _ in range(2_000):
        limits.take_now("later")
    assert len(limits.windows) == 1
    for number in range(1_000):
        limits.take_now(f"later {number}")
        clock.advance(1)
    assert limits.windows.crowds == 0


def test_keys_that_are_only_looked_at_or_refused_take_no_memory() -> None:
    limits = limiter(10)
    for number in range(1_000):
        limits.take_now(f"looked {number}", 0)
        limits.take_now(f"refused {number}", 11)
    assert len(limits.windows) == 0


def test_a_key_takes_bounded_memory_however_often_it_asks() -> None:
    clock = FakeClock()
    limits = limiter(1_000_000, clock=clock)
    for _ in range(20_000):
        clock.advance(0.01)
        limits.take_now("a")
    window = limits.windows.find("a", int(clock.monotonic() * 2))
    assert window is not None
    assert len(window) <= SLOTS + 1


def test_the_highest_limit_is_counted_exactly() -> None:
    limits = limiter(1_000_000)
    assert limits.take_now("a", 999_999).allowed
    assert limits.take_now("a", 1).remaining == 0
    assert not limits.take_now("a", 1).allowed


async def test_taking_never_suspends() -> None:
    limits = limiter(1)
    coroutine = limits.take("a")
    assert inspect.iscoroutine(coroutine)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.allowed


async def test_many_at_once_get_the_limit_and_no_more() -> None:
    limits = limiter(50)
    verdicts = await asyncio.gather(*(limits.take("a") for _ in range(500)))
    assert sum(one.allowed for one in verdicts) == 50


def test_units_that_were_reserved_can_be_given_back() -> None:
    clock = FakeClock()
    limits = limiter(10, clock=clock, capacity=1)
    slot = limits.reserve("a", 4)
    clock.advance(5)
    limits.take_now("a", 3)
    limits.give_back("a", 4, slot)
    assert limits.take_now("a", 0).remaining == 7
    limits.give_back("a", 3, slot + 10)
    assert len(limits.windows) == 0
    limits.give_back("a", 3, slot)  # of a key that is gone
    limits.take_now("a", 3)
    shared = limits.reserve("b", 5)
    limits.give_back("b", 5, shared)
    assert limits.take_now("b", 10).allowed
    clock.advance(100)
    limits.take_now("a", 2)
    limits.give_back("a", 5, slot)  # they ran out long ago
    assert limits.take_now("a", 0).remaining == 8


@pytest.mark.parametrize(
    ("name", "limit", "window"),
    [("", 1, 60), ("Subject", 1, 60), ('a"', 1, 60), ("a\n", 1, 60), ("a", 0, 60), ("a", 1_000_001, 60), ("a", 1, 0)],
)
def test_a_policy_that_means_nothing_is_refused(name: str, limit: int, window: int) -> None:
    with pytest.raises(DefinitionError):
        LimitPolicy(name, limit, window)


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(DefinitionError, match="capacity"):
        limiter(capacity=0)
