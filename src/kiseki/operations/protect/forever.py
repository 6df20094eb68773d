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
        outcomes = await asyncio.gather(*(_one(each, interval, stop, once=once) for each in protections))
    finally:
        for each in protections:
            await each.close()
    return 0 if all(outcomes) else 1


async def _one(protection: Protection, interval: float, stop: asyncio.Event, *, once: bool) -> bool:
    """Whether its last step went well."""
    loop = asyncio.get_running_loop()
    pause, prune_at, failing = _FIRST_PAUSE, loop.time(), False
    while True:
        began = loop.time()
        try:
            done = await protection.step(lambda _: None)
            if loop.time() >= prune_at:
                prune_at = loop.time() + _PRUNE_EVERY
                await protection.prune(datetime.now(UTC))
        except KisekiError as problem:
            if once:
                raise
            _log.error("%s: not protected now: %s", protection.name, problem)
            failing = True
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
            pause = min(2 * pause, interval)
        else:
            _log.log(
                logging.INFO if once or failing or done.base else logging.DEBUG,
                "%s: protected up to %s UTC (%s%d new, %d bytes)",
                protection.name,
                f"{done.through:%Y-%m-%d %H:%M:%S}",
                "a new base, " if done.base else "",
                done.commits,
                done.bytes,
            )
            pause, failing = _FIRST_PAUSE, False
            wait = max(0.0, began + interval - loop.time())
        if once or await happens(stop, wait):
            return not failing
