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


async def test_idle_waits_for_the_last_request() -> None:
    serving = Serving(Clock())
    first, second = serving.enter(10), serving.enter(10)
    serving.unbind()
    waiting = asyncio.create_task(serving.idle())
    await asyncio.sleep(0)
    serving.leave(first)
    await asyncio.sleep(0)
    assert not waiting.done()
    assert serving.in_flight == 1
    serving.leave(second)
    await asyncio.wait_for(waiting, 1)


async def test_idle_is_at_once_without_requests() -> None:
    serving = Serving(Clock())
    serving.unbind()
    await asyncio.wait_for(serving.idle(), 1)


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
