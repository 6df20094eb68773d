"""`HandingOver`: the lease's side of a failover. Used by `operations/dr`; `kiseki dr failover` runs it.

    await handing.begin("osaka")     from here on nobody is granted the lease
    await handing.wait()             from here on nobody has it
    ...                              the other store is made the one that is written
    await handing.finish()           from here on the other site may be granted it

A run that was killed is gone on with by another one, once it has not been seen to live for a while. Of two at once one
gets the change through, and the other is told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from kiseki.journal.lease.port import LeaseRecord, LeaseStore, LeaseUnavailable, Monotonic, wait_of
from kiseki.kernel.errors import KisekiError

__all__ = ["HandingOver", "HandingOverRefused", "LeaseBusy"]

_log = logging.getLogger(__name__)

_TRIES: Final = 50
_BEATS: Final = 30
"""In the time of a lease; a run that has not been seen to live for `_SILENCE` of them is gone on with."""
_SILENCE: Final = 5


class LeaseBusy(KisekiError):
    """Somebody else hands the lease over at this moment, or took this run's place."""

    code = "LEASE_BUSY"


class HandingOverRefused(KisekiError):
    """There is nothing to hand over, or not to that site. Nothing was changed."""

    code = "HANDING_OVER_REFUSED"


class HandingOver:
    """One run. Belongs to one event loop."""

    def __init__(
        self,
        store: LeaseStore,
        *,
        operator: str,
        seconds: float,
        clock: Monotonic,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`operator` is for people. `seconds`: of a lease, for how often this says that it lives."""
        self._store = store
        self._operator = operator
        self._beat = seconds / _BEATS
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._operation = secrets.token_hex(8)
        self._began = 0.0
        self.resumed = False
        """Whether it goes on with a run that had begun before."""
        self.record: LeaseRecord | None = None
        """As it was last seen."""
        self.all_let_go = False
        """Whether every writer said that nothing of it is under way, so that none had to be waited out."""

    async def under_way(self) -> bool:
        """Whether a handing over has begun that is not finished. Raises LeaseUnavailable, LeaseBroken."""
        record = await self._store.read()
        return record is not None and record.state == "handing-over"

    async def begin(self, target: str) -> LeaseRecord:
        """Makes the lease say that it is handed over to a site; durable when this returns.

        Raises HandingOverRefused, LeaseBusy, LeaseUnavailable, LeaseBroken.
        """
        for _ in range(_TRIES):
            before = await self._store.read()
            if before is None:
                raise HandingOverRefused(
                    f"there is no lease in {self._store.label} to hand over; `kiseki dr begin` begins one"
                )
            if before.state == "handing-over" and before.operation != self._operation:
                await self._watch(before)
            elif before.state == "active" and before.holder == target:
                raise HandingOverRefused(f"{target} is the site that writes already, in term {before.term}")
            fields: dict[str, object] = {"target": target, "operation": self._operation, "operator": self._operator}
            if before.state == "active":
                fields |= {"state": "handing-over", "since": self._now(), "waited": False}
            after = before.changed(beat=before.beat + 1, **fields)
            if await self._store.swap(before, after):
                self.resumed = before.state == "handing-over"
                self._began = self._clock()
                self.record = after
                return after
        raise LeaseBusy(f"the lease in {self._store.label} is changed by others again and again; try again")

    async def wait(self, waits: Callable[[float, int], None] = lambda left, writers: None) -> float:
        """Returns when no process has permission any more; how long that took, in seconds.

        That is when all have let go, or when the longest of their leases has passed since `begin`, by this clock.
        `waits` hears of the seconds that are left at most, and how many writers. Raises LeaseBusy, LeaseUnavailable.
        """
        record = await self._known()
        longest = wait_of(record)
        while not record.waited:
            left = self._began + longest - self._clock()
            if not record.writers or left <= 0:
                break
            waits(left, len(record.writers))
            await self._sleep(min(self._beat, left))
            try:
                record = await self._change()
            except LeaseUnavailable as problem:
                _log.warning("the wait goes on: %s", problem)
        self.all_let_go = not record.writers and not record.waited
        await self._change(waited=True, writers={})
        return self._clock() - self._began

    async def finish(self) -> LeaseRecord:
        """Lets the other site write, in a new term. Only after `wait`. Raises LeaseBusy, LeaseUnavailable."""
        record = await self._known()
        return await self._end(record.target)

    async def back(self) -> LeaseRecord:
        """Lets the site that wrote before go on, in a new term. Only after `wait`. Raises as `finish`."""
        record = await self._known()
        return await self._end(record.holder)

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Says for the time of the block that this run lives."""

        async def beat() -> None:
            while True:
                await self._sleep(self._beat)
                try:
                    await self._change()
                except LeaseUnavailable as problem:
                    _log.warning("the lease can't be told that this run lives: %s", problem)

        beating = asyncio.ensure_future(beat())
        try:
            yield
        finally:
            beating.cancel()
            try:
                await beating
            except (asyncio.CancelledError, LeaseBusy):
                pass  # whoever took this run's place shows when it ends: `finish` refuses

    async def _end(self, site: str) -> LeaseRecord:
        record = await self._known()
        if not record.waited:
            raise HandingOverRefused("the lease is not waited out yet")
        return await self._change(
            state="active", holder=site, term=record.term + 1, since=self._now(), writers={}, target="", operation=""
        )

    async def _known(self) -> LeaseRecord:
        if self.record is None:
            raise HandingOverRefused("the handing over has not begun")
        return self.record

    async def _change(self, **fields: object) -> LeaseRecord:
        """Changes the record while it is this run's. Raises LeaseBusy, LeaseUnavailable."""
        for _ in range(_TRIES):
            before = await self._store.read()
            if before is None or before.state != "handing-over" or before.operation != self._operation:
                if before is not None and self.record is not None and before.stamp == self.record.stamp:
                    return before
                raise LeaseBusy(
                    f"somebody else took over what this run had begun; see `kiseki dr status` ({self._store.label})"
                )
            after = before.changed(**{"beat": before.beat + 1, **fields})
            self.record = after
            if await self._store.swap(before, after):
                return after
        raise LeaseBusy(f"the lease in {self._store.label} is changed by others again and again; try again")

    async def _watch(self, before: LeaseRecord) -> None:
        """Raises LeaseBusy when the run that is at work lives."""
        until = self._clock() + _SILENCE * self._beat
        while self._clock() < until:
            await self._sleep(self._beat)
            now = await self._store.read()
            if now is None or now.operation != before.operation or now.beat != before.beat:
                raise LeaseBusy(
                    f"{before.operator} is handing the lease over to {before.target} at this moment; wait for that"
                )
