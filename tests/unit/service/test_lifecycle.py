"""Unit: the coordinated shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

import pytest

from kiseki.kernel.errors import Unavailable
from kiseki.service.lifecycle import CoordinatedShutdown, Phase, ShutdownTask


def shutdown(**timeouts: float) -> CoordinatedShutdown:
    given = {Phase[name.upper()]: seconds for name, seconds in timeouts.items()}
    return CoordinatedShutdown({phase: given.get(phase, 5.0) for phase in Phase})


def note(journal: list[str], name: str) -> ShutdownTask:
    async def task() -> None:
        journal.append(name)

    return task


async def test_phases_run_in_order_whatever_the_order_of_registration() -> None:
    stopping = shutdown()
    ran: list[str] = []
    for phase in reversed(Phase):
        stopping.add(phase, phase.value, note(ran, phase.value))
    stopping.request("test")
    await stopping.run()
    assert ran == [
        "before-service-unbind",
        "service-unbind",
        "service-requests-done",
        "service-stop",
        "before-cluster-shutdown",
        "before-system-terminate",
        "system-terminate",
    ]
    assert stopping.late == ()


async def test_tasks_of_a_phase_run_together_and_the_next_phase_waits_for_all() -> None:
    stopping = shutdown()
    here, there = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def first() -> None:
        here.set()
        await there.wait()
        ran.append("first")

    async def second() -> None:
        await here.wait()
        there.set()
        ran.append("second")

    stopping.add(Phase.SERVICE_STOP, "first", first)
    stopping.add(Phase.SERVICE_STOP, "second", second)
    stopping.add(Phase.SYSTEM_TERMINATE, "last", note(ran, "last"))
    stopping.request("test")
    await stopping.run()
    assert sorted(ran[:2]) == ["first", "second"]
    assert ran[2] == "last"


async def test_a_late_task_is_logged_by_name_and_no_longer_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    stopping = shutdown(service_stop=0.01)
    ran: list[str] = []

    async def stuck() -> None:
        await asyncio.Event().wait()

    stopping.add(Phase.SERVICE_STOP, "the stuck one", stuck)
    stopping.add(Phase.SERVICE_STOP, "the quick one", note(ran, "quick"))
    stopping.add(Phase.SYSTEM_TERMINATE, "last", note(ran, "last"))
    stopping.request("test")
    with caplog.at_level(logging.ERROR):
        await stopping.run()
    assert ran == ["quick", "last"]
    assert stopping.late == ("service-stop/the stuck one",)
    assert "the stuck one is not done after 0.01 s" in caplog.text
    assert "the quick one" not in caplog.text


async def test_a_task_that_fails_does_not_keep_the_others_from_running(caplog: pytest.LogCaptureFixture) -> None:
    stopping = shutdown()
    ran: list[str] = []

    async def failing() -> None:
        raise RuntimeError("broken")

    stopping.add(Phase.SERVICE_UNBIND, "failing", failing)
    stopping.add(Phase.SERVICE_UNBIND, "other", note(ran, "other"))
    stopping.add(Phase.SYSTEM_TERMINATE, "last", note(ran, "last"))
    stopping.request("test")
    await stopping.run()
    assert ran == ["other", "last"]
    assert "failing failed" in caplog.text
    assert "RuntimeError: broken" in caplog.text


async def test_an_error_that_says_what_is_wrong_is_logged_as_one_line(caplog: pytest.LogCaptureFixture) -> None:
    stopping = shutdown()

    async def failing() -> None:
        raise Unavailable("worker-1 has not ended after 7 s and was killed")

    stopping.add(Phase.SERVICE_UNBIND, "workers", failing)
    stopping.request("SIGTERM")
    await stopping.run()
    assert stopping.late == ("service-unbind/workers",)
    assert "workers failed: worker-1 has not ended after 7 s and was killed" in caplog.text
    assert "Traceback" not in caplog.text


async def test_the_first_cause_counts_and_a_third_request_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stopping = shutdown()
    assert stopping.cause == ""
    for cause in ("SIGTERM", "SIGINT", "SIGTERM"):
        stopping.request(cause)
    await stopping.run()
    assert stopping.cause == "SIGTERM"
    assert caplog.text.count("cut short") == 1


async def test_it_runs_once_for_all_who_wait() -> None:
    stopping = shutdown()
    ran: list[str] = []
    stopping.add(Phase.SERVICE_STOP, "once", note(ran, "once"))
    waiting = asyncio.gather(stopping.run(), stopping.run())
    await asyncio.sleep(0)
    assert ran == []
    stopping.request("first")
    stopping.request("second")
    await waiting
    await stopping.run()
    assert ran == ["once"]


async def test_a_second_request_shortens_the_drain_delay() -> None:
    stopping = shutdown(before_service_unbind=600)
    stopping.add(Phase.BEFORE_SERVICE_UNBIND, "drain", lambda: stopping.drain(500))
    stopping.request("SIGTERM")
    running = asyncio.create_task(stopping.run())
    await asyncio.sleep(0.01)
    assert not running.done()
    stopping.request("SIGTERM")
    await asyncio.wait_for(running, 5)
    assert stopping.late == ()


async def test_the_drain_delay_is_waited_out() -> None:
    stopping = shutdown()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await stopping.drain(0.05)
    assert loop.time() - started >= 0.045


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_ask_for_it(number: signal.Signals) -> None:
    stopping = shutdown()
    stopping.install_signal_handlers()
    try:
        assert not stopping.requested
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopping.wait_requested(), 5)
    finally:
        remove_handlers()


def remove_handlers() -> None:
    remove: Callable[[int], bool] = asyncio.get_running_loop().remove_signal_handler
    remove(signal.SIGTERM)
    remove(signal.SIGINT)
