"""`WriterLease`: one process's permission to write, renewed in the background. Used by the guarded journal.

With a lease of 60 s it is renewed every 10 s, and permission ends 45 s after the start of the last renewal that went
well: the rest is for appends that are under way, and for clocks that differ in speed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final

from kiseki.journal.lease.port import (
    CLOCK_RATE,
    FencedJournal,
    LeaseBroken,
    LeaseRecord,
    LeaseStore,
    LeaseUnavailable,
    Monotonic,
    NotTheWriter,
    WriterEntry,
)
from kiseki.journal.port import JournalUnavailable

__all__ = ["WriterLease", "first_record"]

_log = logging.getLogger(__name__)

_RENEWALS: Final = 6
"""In the time of a lease."""
_MARGIN: Final = 0.25
"""Of the lease, in which nothing new is begun: longer than the store lets an append take."""
_LEAVING: Final = 2.0
"""Seconds for saying that this process has let go: a shutdown does not wait longer, the lease lapses instead."""
_TRIES: Final = 10
"""To change the record, while other processes change it too."""


def first_record(site: str, *, term: int, now: datetime) -> LeaseRecord:
    """The record of a service that never had one: a site writes."""
    return LeaseRecord(version=1, stamp="first", holder=site, term=term, state="active", since=now)


class WriterLease:
    """Permission to write, for one process of a site. Belongs to one event loop."""

    def __init__(
        self,
        store: LeaseStore,
        *,
        site: str,
        writer: str,
        seconds: float,
        clock: Monotonic,
        now: Callable[[], datetime],
        journal: FencedJournal | None = None,
        may_begin: Callable[[], Awaitable[bool]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`writer` names the process, as no other one; `clock` is by what the permission ends, `now` for people.

        `journal`: it hears of each permission too, and refuses by itself what reaches it later. `may_begin`: asked
        where there is no lease, whether this process may begin it for its site.
        """
        self._may_begin = may_begin
        self._sleep = sleep
        self._store = store
        self._site = site
        self._writer = writer
        self._seconds = seconds
        self._clock = clock
        self._now = now
        self._journal = journal
        self._until = float("-inf")
        self._why = f"the site {site} has not been granted the lease yet"
        self._renewals = 0
        self._fenced = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._changed = asyncio.Event()
        self._others: dict[str, tuple[int, float]] = {}
        self._ended = False
        self.term = 0

    @property
    def site(self) -> str:
        """The site whose process this is."""
        return self._site

    @property
    def interval(self) -> float:
        """Seconds between two renewals."""
        return self._seconds / _RENEWALS

    def check(self) -> None:
        """Returns while this process may begin to write. Raises NotTheWriter."""
        if self._clock() >= self._until:
            raise NotTheWriter(self.refusal)

    @property
    def permitted(self) -> bool:
        """Whether `check` would return."""
        return self._clock() < self._until

    def begin(self) -> None:
        """A write begins, and `end` will be called. Raises NotTheWriter."""
        self.check()
        self._under_way += 1
        self._idle.clear()

    def end(self) -> None:
        """A write that was begun is over, whatever became of it."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    def end_later(self) -> None:
        """As `end`, after the time that a store may go on with it."""
        asyncio.get_running_loop().call_later(self._seconds * _MARGIN, self.end)

    async def run(self) -> None:
        """Renews until it is cancelled, or `let_go` was called. Failures are logged once, and tried again."""
        told = ""
        while not self._ended:
            try:
                await self.renew()
                told = ""
            except (JournalUnavailable, LeaseBroken) as problem:
                if str(problem) != told:
                    _log.warning("the lease was not renewed: %s", problem)
                told = str(problem)
            # Sooner while there is nothing to renew: a handing over ends at any time. Not all processes at once.
            pause = self.interval if self.permitted and not told else self.interval / 4
            await self._sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311  # not a secret

    async def renew(self) -> None:
        """Asks for the permission once. Raises LeaseUnavailable, LeaseBroken, JournalUnavailable."""
        for _ in range(_TRIES):
            started = self._clock()
            before = await self._store.read()
            if before is None and self._may_begin is not None and await self._may_begin():
                await self._store.swap(None, first_record(self._site, term=1, now=self._now()))
                continue
            if before is None:
                self._lose(f"there is no lease in {self._store.label}: it is new, or was lost; see `kiseki dr begin`")
                return
            if not before.admits(self._site):
                await self._refused(before)
                return
            if self._ended:
                return  # it has let go meanwhile
            after = before.changed(writers=self._writers(before, started))
            if await self._store.swap(before, after):
                await self._granted(started, after)
                return
            await self._sleep(random.uniform(0, 0.05))  # noqa: S311  # as above
        raise LeaseUnavailable(f"the lease in {self._store.label} is changed by others again and again")

    async def granted(self) -> None:
        """Returns when this process may write."""
        while not self.permitted:
            self._changed.clear()
            await self._changed.wait()

    @asynccontextmanager
    async def held(self, seconds: float) -> AsyncIterator[None]:
        """Renews for the time of the block, which begins when this process may write: for commands that are no service.

        Raises NotTheWriter when that is not so after so many seconds.
        """
        renewing = asyncio.create_task(self.run(), name="lease")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.granted()
            self.check()
            yield
        finally:
            renewing.cancel()

    async def let_go(self) -> None:
        """Ends the permission, waits for writes under way, and says so in the record, so that nobody waits for this
        process. What can't be said lapses. Raises nothing of the store."""
        self._ended = True
        self._until = float("-inf")
        self._why = "the process ends"
        if self._renewals:
            try:
                async with asyncio.timeout(_LEAVING):
                    await self._leave()
            except (JournalUnavailable, LeaseBroken, TimeoutError) as problem:
                _log.info("the lease was not let go, and lapses: %s", problem or "it took too long")
        await self._store.close()

    async def _granted(self, started: float, record: LeaseRecord) -> None:
        seconds = self._seconds * (1 - CLOCK_RATE - _MARGIN)
        self._renewals += 1
        if self._journal is not None:
            if self._fenced != record.term:
                await self._journal.fence(record.term)
                self._fenced = record.term
            # Until a little later than appends are begun here: it is for those that are late on their way.
            left = started + self._seconds * (1 - CLOCK_RATE - _MARGIN / 2) - self._clock()
            await self._journal.permit(record.term, left)
        if self._ended:
            return
        if not self.permitted:
            _log.info("the site %s writes, term %d", self._site, record.term)
        self.term = record.term
        self._until = max(self._until, started + seconds)
        self._changed.set()

    async def _refused(self, record: LeaseRecord) -> None:
        if record.state == "handing-over":
            self._lose(f"the lease of {record.holder} is being handed over to {record.target}")
        else:
            self._lose(f"the site {record.holder} writes (term {record.term}), and this is {self._site}")
        await self._leave()

    async def _leave(self) -> None:
        """Takes this process out of the record, once nothing it began is under way."""
        await self._idle.wait()
        for _ in range(_TRIES):
            before = await self._store.read()
            if before is None or self._writer not in before.writers:
                return
            writers = {name: entry for name, entry in before.writers.items() if name != self._writer}
            if await self._store.swap(before, before.changed(writers=writers)):
                return

    def _lose(self, why: str) -> None:
        if self.permitted:
            _log.warning("this process does not write any more: %s", why)
        self._until = float("-inf")
        self._why = why

    @property
    def refusal(self) -> str:
        """Why `check` refuses, or would."""
        if self._until > float("-inf"):
            return (
                f"the lease of the site {self._site} has lapsed: {self._store.label} was not reached in time; commands "
                "are refused until it is"
            )
        return f"commands are refused here: {self._why}"

    def _writers(self, record: LeaseRecord, now: float) -> dict[str, WriterEntry]:
        """Those of a record with this process in it, and without those whose lease has lapsed: they crashed."""
        for name, entry in record.writers.items():
            if self._others.get(name, (0, 0.0))[0] != entry.renewals:
                self._others[name] = (entry.renewals, now)
        self._others = {name: seen for name, seen in self._others.items() if name in record.writers}
        kept = {
            name: entry
            for name, entry in record.writers.items()
            if now - self._others[name][1] <= entry.seconds * (1 + 2 * CLOCK_RATE)
        }
        entry = WriterEntry(seconds=self._seconds, renewals=self._renewals + 1, renewed_at=self._now())
        return {**kept, self._writer: entry}
