"""`protect`: copies what is new, again and again, until it is told to end. The process of `kiseki backup protect`."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from kiseki.kernel.errors import KisekiError
from kiseki.operations.protect.port import Protection
from kiseki.projection.pause import happens

__all__ = ["protect"]

_log = logging.getLogger(__name__)
_PRUNE_EVERY: Final = 3_600.0
_FIRST_PAUSE: Final = 1.0


async def protect(protections: Sequence[Protection], *, interval: float, once: bool) -> int:
    """Steps of all of them every so many seconds, the first at once, until SIGTERM or SIGINT; 1 when the last one of
    any failed. A step under way is finished first; the same signal again cuts it short, which loses nothing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def asked() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    try:
        return await _rounds(protections, interval, stop, once=once)
    finally:
        for each in protections:
            await each.close()


async def _rounds(protections: Sequence[Protection], interval: float, stop: asyncio.Event, *, once: bool) -> int:
    """One after the other, in their order, in each round: a copy of the journal never has people whose keys are in no
    copy, because the keys are copied after it. Gives 1 when the last step of any failed."""
    loop = asyncio.get_running_loop()
    failing: set[Protection] = set()
    pause, prune_at = _FIRST_PAUSE, loop.time()
    while True:
        began = loop.time()
        prunes = began >= prune_at
        if prunes:
            prune_at = began + _PRUNE_EVERY
        problems = [await _one(each, failing, once=once, prunes=prunes) for each in protections]
        for problem in problems if once else ():
            if problem is not None:
                raise problem
        if failing:
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
            pause = min(2 * pause, interval)
        else:
            wait, pause = max(0.0, began + interval - loop.time()), _FIRST_PAUSE
        if once or await happens(stop, wait):
            return 1 if failing else 0


async def _one(protection: Protection, failing: set[Protection], *, once: bool, prunes: bool) -> Exception | None:
    """A step; what kept it from being made, which is logged unless it is raised."""
    try:
        done = await protection.step(lambda _: None)
        if prunes:
            await protection.prune(datetime.now(UTC))
    except Exception as problem:  # noqa: BLE001  # whatever it is, the others go on, and this one is tried again
        failing.add(protection)
        if not once:
            expected = isinstance(problem, KisekiError)
            _log.error("%s: not protected now: %s", protection.name, problem, exc_info=None if expected else problem)
        return problem
    _log.log(
        logging.INFO if once or protection in failing or done.base else logging.DEBUG,
        "%s: protected up to %s UTC (%s%d new, %d bytes)",
        protection.name,
        f"{done.through:%Y-%m-%d %H:%M:%S}",
        "a new base, " if done.base else "",
        done.commits,
        done.bytes,
    )
    failing.discard(protection)
    return None
