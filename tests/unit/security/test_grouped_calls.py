"""Many calls as few: who goes together, and what each gets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from kiseki.kernel.errors import Unavailable
from kiseki.security.grouped import GroupedCalls, each


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_what_comes_while_a_call_is_under_way_goes_into_the_next(thread: ThreadPoolExecutor) -> None:
    begun, go = asyncio.Event(), Event()
    loop = asyncio.get_running_loop()
    groups: list[list[int]] = []

    def work(items: list[int]) -> int:
        groups.append(items)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(10)
        return sum(items)

    calls = GroupedCalls(work, thread)
    first = asyncio.create_task(calls.ask([1]))
    await begun.wait()
    others = [asyncio.create_task(calls.ask([number, number])) for number in range(2, 60)]
    await asyncio.wait([first], timeout=0)
    go.set()
    assert await first == 1
    assert set(await asyncio.gather(*others)) == {2 * sum(range(2, 60))}
    assert groups == [[1], [number for number in range(2, 60) for _ in range(2)]]


async def test_an_error_reaches_all_of_its_group_and_nobody_after_it(thread: ThreadPoolExecutor) -> None:
    def work(items: list[int]) -> int:
        if 0 in items:
            raise Unavailable("the disk is full")
        return len(items)

    calls = GroupedCalls(work, thread)
    answers = await asyncio.gather(calls.ask([0]), calls.ask([1]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    assert await calls.ask([1]) == 1


async def test_a_cancelled_caller_leaves_the_others_alone(thread: ThreadPoolExecutor) -> None:
    def work(items: list[int]) -> int:
        return sum(items)

    calls = GroupedCalls(work, thread)
    tasks = [asyncio.create_task(calls.ask([number])) for number in (1, 2, 3)]
    await asyncio.wait(tasks, timeout=0)
    tasks[0].cancel()
    assert await asyncio.gather(*tasks[1:]) == [6, 6]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


def test_a_loop_that_ended_does_not_hold_up_the_next(thread: ThreadPoolExecutor) -> None:
    go = Event()

    def work(items: list[int]) -> int:
        assert go.wait(10)
        return sum(items)

    calls = GroupedCalls(work, thread)

    async def abandon() -> None:
        asyncio.create_task(calls.ask([1]))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(abandon())
    go.set()
    assert asyncio.run(calls.ask([2])) == 2


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 500])
async def test_each_keeps_the_order_and_bounds_what_runs_at_once(count: int) -> None:
    running, most = 0, 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number * 2

    assert await each(work, range(count)) == [number * 2 for number in range(count)]
    assert min(count, 8) <= most <= 16
