"""Unit: requests in flight and their deadlines."""

from __future__ import annotations

import asyncio

import pytest

from kiseki.service.serving import Serving


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_no_request_has_more_time_than_all_have() -> None:
    clock = Clock()
    serving = Serving(clock)
    early, ending = serving.enter(10), serving.enter(3)
    serving.end_within(5)
    late = serving.enter(10)
    serving.extend(early, 10)
    assert [ticket.deadline for ticket in (early, ending, late)] == [105, 103, 105]
    assert serving.in_flight == 3
    serving.leave(late)
    assert serving.in_flight == 2


async def test_a_request_that_is_late_is_cancelled_and_knows_why() -> None:
    clock = Clock()
    serving = Serving(clock)
    tickets = []

    async def request() -> None:
        tickets.append(serving.enter(10))
        await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    clock.now += 9
    serving.sweep()
    await asyncio.sleep(0)
    assert not task.done()
    clock.now += 1
    serving.sweep()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tickets[0].late


async def test_more_time_can_be_given() -> None:
    clock = Clock()
    serving = Serving(clock)
    ticket = serving.enter(10)
    clock.now += 9
    serving.extend(ticket, 10)
    clock.now += 9
    serving.sweep()
    assert not ticket.late
    await asyncio.sleep(0)
