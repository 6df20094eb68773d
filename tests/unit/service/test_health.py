"""Unit: health checks and what readiness says."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from kiseki.kernel.errors import Unavailable
from kiseki.service.health import Check, CheckResult, Health, disk_check


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Something checked, that can be broken."""

    def __init__(self) -> None:
        self.broken: Exception | None = None
        self.stuck = False
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.stuck:
            await asyncio.Event().wait()
        if self.broken is not None:
            raise self.broken


async def fine() -> None:
    return


def health(clock: Clock, *, local: Check = fine, remote: Check = fine, timeout: float = 0.02) -> Health:
    made = Health(clock=clock, interval=2, timeout=timeout, local={"disk": local}, remote={"journal": remote})
    made.started = True
    return made


async def test_it_is_ready_when_started_and_all_checks_are_well() -> None:
    checked = health(Clock())
    await checked.check_now()
    readiness = checked.readiness()
    assert readiness.ready
    assert readiness.checks == {"disk": CheckResult("ok"), "journal": CheckResult("ok")}


async def test_it_is_not_ready_before_it_has_started() -> None:
    checked = health(Clock())
    checked.started = False
    await checked.check_now()
    assert not checked.readiness().ready
    assert not checked.readiness(local=True).ready
    assert checked.readiness().checks["starting"].status == "failed"


async def test_it_is_not_ready_before_the_checks_have_run() -> None:
    assert health(Clock()).readiness().checks["journal"].status == "unknown"
    assert not health(Clock()).readiness().ready


async def test_draining_fails_both_scopes_at_once() -> None:
    checked = health(Clock())
    await checked.check_now()
    checked.draining = True
    assert checked.readiness().checks["draining"].status == "failed"
    assert not checked.readiness().ready
    assert not checked.readiness(local=True).ready


async def test_readiness_names_what_fails_and_recovers_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    checked = health(Clock(), remote=store.check)
    store.broken = Unavailable("the journal can't be written: disk full")
    with caplog.at_level(logging.INFO):
        await checked.check_now()
        await checked.check_now()
        failed = checked.readiness()
        store.broken = None
        await checked.check_now()
    assert not failed.ready
    assert failed.checks["journal"] == CheckResult("failed", "the journal can't be written: disk full")
    assert failed.checks["disk"].status == "ok"
    assert checked.readiness().ready
    assert caplog.text.count("disk full") == 1
    assert caplog.text.count("journal has recovered") == 1


async def test_the_local_scope_does_not_ask_for_what_others_share() -> None:
    store = Store()
    store.broken = Unavailable("away")
    checked = health(Clock(), remote=store.check)
    await checked.check_now()
    assert checked.readiness(local=True).ready
    assert "journal" not in checked.readiness(local=True).checks


async def test_a_stuck_check_fails_after_its_timeout_and_holds_up_no_other() -> None:
    store = Store()
    store.stuck = True
    checked = health(Clock(), remote=store.check)
    await asyncio.wait_for(checked.check_now(), 5)
    assert checked.readiness().checks["journal"] == CheckResult("failed", "no answer within 0.02 s")
    assert checked.readiness().checks["disk"].status == "ok"


async def test_an_unexpected_error_does_not_show_its_text(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.broken = RuntimeError("secret of taro@example.com")
    checked = health(Clock(), remote=store.check)
    await checked.check_now()
    cause = checked.readiness().checks["journal"].cause
    assert cause == "the check itself failed; the log has the cause"


async def test_an_old_result_is_not_believed() -> None:
    clock = Clock()
    checked = health(clock)
    await checked.check_now()
    clock.now += 10
    assert checked.readiness().ready
    clock.now += 1
    assert not checked.readiness().ready
    assert checked.readiness().checks["journal"].status == "unknown"


async def test_probes_do_not_reach_the_stores() -> None:
    store = Store()
    checked = health(Clock(), remote=store.check)
    await checked.start()
    for _ in range(100):
        checked.readiness()
    await checked.stop()
    assert store.checks == 2


async def test_the_disk_check(tmp_path: Path) -> None:
    async def failure(check: Check) -> str:
        checked = health(Clock(), local=check, timeout=5)
        await checked.check_now()
        return checked.readiness().checks["disk"].cause or ""

    assert await failure(disk_check(tmp_path, 0)) == ""
    assert "bytes left" in await failure(disk_check(tmp_path, 2**62))
    assert "can't be written" in await failure(disk_check(tmp_path / "missing", 0))
    assert list(tmp_path.iterdir()) == []
