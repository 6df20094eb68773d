"""Many asynchronous calls as few."""

from __future__ import annotations

import asyncio

import pytest

from kiseki.security.batched import BatchedCalls


class Store:
    """Answers when told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.may_answer = asyncio.Event()
        self.called = asyncio.Event()

    async def work(self, items: list[int]) -> dict[int, str]:
        self.calls.append(items)
        self.called.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_answer.wait()
        finally:
            self.at_once -= 1
        if -1 in items:
            raise ValueError("no such item")
        return {item: f"value {item}" for item in items}

    async def was_called(self, times: int) -> None:
        while len(self.calls) < times:
            self.called.clear()
            await self.called.wait()


@pytest.fixture
def store() -> Store:
    return Store()


async def test_what_is_asked_in_one_turn_goes_together(store: Store) -> None:
    store.may_answer.set()
    calls = BatchedCalls(store.work)
    found = await asyncio.gather(*(calls.ask([number, number + 100]) for number in range(5)))
    assert store.calls == [[0, 100, 1, 101, 2, 102, 3, 103, 4, 104]]
    assert found[3][3] == "value 3"
    assert await calls.ask([7]) == {7: "value 7"}, "and it goes on"


async def test_what_comes_while_enough_run_goes_into_the_next(store: Store) -> None:
    calls = BatchedCalls(store.work, at_once=2)
    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(calls.ask([number])))
        if number < 2:
            await store.was_called(number + 1)
        else:
            await asyncio.sleep(0)
    assert store.calls == [[0], [1]]
    store.may_answer.set()
    await asyncio.gather(*tasks)
    assert store.calls == [[0], [1], list(range(2, 10))]
    assert store.most_at_once == 2


async def test_groups_are_bounded_but_one_callers_items_stay_together(store: Store) -> None:
    calls = BatchedCalls(store.work, at_once=3, group=4)
    asked = [[1, 2], [3, 4], [5], [6, 7, 8, 9, 10, 11], [12]]
    tasks = [asyncio.create_task(calls.ask(items)) for items in asked]
    await store.was_called(3)
    assert store.calls == [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11]]
    store.may_answer.set()
    await asyncio.gather(*tasks)
    assert store.calls[3:] == [[12]]


async def test_an_error_is_that_of_its_group_alone(store: Store) -> None:
    calls = BatchedCalls(store.work, at_once=1)
    first = asyncio.create_task(calls.ask([1]))
    await store.was_called(1)
    others = [asyncio.create_task(calls.ask([item])) for item in (2, -1)]
    store.may_answer.set()
    assert await first == {1: "value 1"}
    for other in others:
        with pytest.raises(ValueError, match="no such item"):
            await other
    assert await calls.ask([3]) == {3: "value 3"}


async def test_a_caller_that_goes_away_leaves_the_others_alone(store: Store) -> None:
    calls = BatchedCalls(store.work, at_once=1)
    tasks = [asyncio.create_task(calls.ask([number])) for number in (1, 2)]
    await store.was_called(1)
    later = [asyncio.create_task(calls.ask([number])) for number in (3, 4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    later[0].cancel()
    store.may_answer.set()
    assert await tasks[1] == {1: "value 1", 2: "value 2"}
    assert await later[1] == {4: "value 4"}, "who left before its call is not asked for"
    assert [task.cancelled() for task in (tasks[0], later[0])] == [True, True]


async def test_when_all_have_gone_nothing_is_asked(store: Store) -> None:
    calls = BatchedCalls(store.work, at_once=1)
    task = asyncio.create_task(calls.ask([1]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    store.may_answer.set()
    assert await calls.ask([2]) == {2: "value 2"}
    assert store.calls == [[2]]
