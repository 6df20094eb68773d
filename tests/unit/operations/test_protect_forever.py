"""The process that copies what is new: it goes on after failures, ends when told to, and says what it did not do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import datetime

import pytest

from kiseki.operations.backup.port import Progress
from kiseki.operations.errors import NoRoom
from kiseki.operations.protect.forever import protect
from kiseki.operations.protect.port import Protected
from kiseki.testing.journal_tests.parts import NOON


class Steps:
    """A Protection that does what it is told at each step; the last goes on for ever."""

    name = "the journal"

    def __init__(self, *steps: Callable[[], None]) -> None:
        self._steps = list(steps)
        self.made = 0
        self.pruned = 0
        self.closed = False

    async def step(self, progress: Progress) -> Protected:
        self.made += 1
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        step()
        return Protected(NOON, 1, 10, False)

    async def prune(self, now: datetime) -> int:
        self.pruned += 1
        return 0

    async def through(self) -> datetime | None:
        return NOON

    async def close(self) -> None:
        self.closed = True


def well() -> None:
    """Goes well."""


def full() -> None:
    raise NoRoom("the disk of /backups is full; make room there, and run the same again")


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_once_is_once() -> None:
    steps = Steps(well)
    assert await protect([steps], interval=60.0, once=True) == 0
    assert (steps.made, steps.pruned, steps.closed) == (1, 1, True)


async def test_once_that_fails_says_so() -> None:
    steps = Steps(full)
    with pytest.raises(NoRoom):
        await protect([steps], interval=60.0, once=True)
    assert steps.closed


async def test_it_goes_on_after_a_failure_and_ends_when_told(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(full, well, told_to_end)
    async with asyncio.timeout(20):
        assert await protect([steps], interval=0.01, once=False) == 0
    assert steps.made == 3
    assert steps.closed
    assert "not protected now: the disk of /backups is full" in caplog.text


async def test_one_that_fails_does_not_hold_up_another() -> None:
    failing, going = Steps(full), Steps(well, well, well, told_to_end)
    async with asyncio.timeout(20):
        assert await protect([failing, going], interval=0.01, once=False) == 1
    assert going.made == 4
    assert failing.made >= 1
