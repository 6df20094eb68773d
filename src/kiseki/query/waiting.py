"""Reading one's own writes: a query waits, in bounds, until its projections have applied what its token names.

The guards are looked at before the query opens its state, so what the query sees is as new as what was looked at, or
newer. In the process that applies events a wait ends at once, by `notify`; everywhere else the guards are looked at
every few milliseconds while somebody waits: by one task for each projection, however many wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kiseki.kernel.errors import KisekiError
from kiseki.projection.pause import happens
from kiseki.projection.port import StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.database import ReadDatabase

__all__ = ["ConsistencyWaiter", "Stale", "StreamParked", "TooManyWaiters"]


class Stale(KisekiError):
    """The read model did not get there in time; ask again, or without the token for what there is."""

    code = "STALE"


class StreamParked(KisekiError):
    """An event of the stream could not be applied and waits for a person, so waiting is of no use."""

    code = "PARKED"


class TooManyWaiters(KisekiError):
    """Too many queries wait already, of the same subject or altogether."""

    code = "TOO_MANY_WAITERS"


class _Pending(NamedTuple):
    stream: str
    number: int
    done: asyncio.Future[None]


class _Watch:
    """The waits for one projection, and the task that looks at its guards while there are any."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.pending: set[_Pending] = set()
        self.notified = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class ConsistencyWaiter:
    """Waits for projections to apply what a token names. One for each process; used on its event loop."""

    def __init__(
        self,
        database: ReadDatabase,
        *,
        follows: Callable[[Projection, str], bool],
        timeout: float = 2.0,
        per_subject: int = 32,
        total: int = 1_000,
        poll: tuple[float, float] = (0.005, 0.02),
    ) -> None:
        """`follows` says whether a projection keeps a guard for a stream; the others need no wait.

        `timeout` in seconds. At most `per_subject` queries of one subject and `total` of all wait at a time. `poll`:
        seconds between two looks at the guards, when somebody begins to wait and later on.
        """
        self._database = database
        self._follows = follows
        self._timeout = timeout
        self._per_subject = per_subject
        self._total = total
        self._poll = poll
        self._waiting: dict[str, int] = {}
        self._waiting_total = 0
        self._watches: dict[str, _Watch] = {}
        self._closed = False

    async def wait(self, reads: Sequence[Projection], token: ConsistencyToken, *, subject: str) -> None:
        """Returns when all of `reads` have applied everything the token names.

        Raises Stale after the timeout, StreamParked as soon as that is known, TooManyWaiters, Unavailable.
        """
        missing = [
            (projection, stream, number)
            for projection in reads
            for stream, number in await self._not_applied(projection, token)
        ]
        if not missing:
            return
        try:
            with self._counted(subject):
                async with asyncio.timeout(self._timeout):
                    await self._applied(missing)
        except TimeoutError:
            raise Stale(
                f"the read model has not applied this client's write within {self._timeout:g} s; ask again"
            ) from None

    async def _not_applied(self, projection: Projection, token: ConsistencyToken) -> list[tuple[str, int]]:
        wanted = [(stream, number) for stream, number in token.pairs if self._follows(projection, stream)]
        if not wanted:
            return []
        progress = await self._database.progress(projection, [stream for stream, _ in wanted])
        return [(stream, number) for stream, number in wanted if not _has_applied(progress[stream], number)]

    async def _applied(self, missing: Sequence[tuple[Projection, str, int]]) -> None:
        loop = asyncio.get_running_loop()
        added: list[tuple[_Watch, _Pending]] = []
        try:
            for projection, stream, number in missing:
                watch = self._watches.setdefault(projection.name, _Watch(projection))
                pending = _Pending(stream, number, loop.create_future())
                watch.pending.add(pending)
                added.append((watch, pending))
                if watch.task is None:
                    watch.task = loop.create_task(self._look(watch), name=f"guards of {projection.name}")
                # Whatever was applied between the first look and now is seen by a look that begins after this.
                watch.notified.set()
            await asyncio.gather(*(pending.done for _, pending in added))
        finally:
            for watch, pending in added:
                watch.pending.discard(pending)
                if not pending.done.done():
                    pending.done.cancel()
                elif not pending.done.cancelled():
                    pending.done.exception()  # seen: only the first of several is raised

    async def _look(self, watch: _Watch) -> None:
        """Looks at the guards while somebody waits: when notified, and now and then."""
        pause = self._poll[0]
        try:
            while watch.pending and not self._closed:
                if await happens(watch.notified, pause):
                    watch.notified.clear()
                    pause = self._poll[0]
                else:
                    pause = min(pause * 1.5, self._poll[1])
                await self._resolve(watch)
        finally:
            watch.task = None

    async def _resolve(self, watch: _Watch) -> None:
        looked_at = [pending for pending in watch.pending if not pending.done.done()]
        if not looked_at:
            return
        try:
            progress = await self._database.progress(watch.projection, {pending.stream for pending in looked_at})
        except Exception as problem:  # noqa: BLE001  # it is for those who wait, each of whom gets it
            for pending in looked_at:
                if not pending.done.done():
                    pending.done.set_exception(problem)
            return
        for pending in looked_at:
            if pending.done.done():
                continue
            try:
                if _has_applied(progress[pending.stream], pending.number):
                    pending.done.set_result(None)
            except StreamParked as parked:
                pending.done.set_exception(parked)

    @contextmanager
    def _counted(self, subject: str) -> Iterator[None]:
        mine = self._waiting.get(subject, 0)
        if mine >= self._per_subject or self._waiting_total >= self._total:
            whose = "of this client" if mine >= self._per_subject else "altogether"
            raise TooManyWaiters(f"too many queries {whose} wait for their writes; ask again later")
        self._waiting[subject] = mine + 1
        self._waiting_total += 1
        try:
            yield
        finally:
            self._waiting_total -= 1
            self._waiting[subject] -= 1
            if not self._waiting[subject]:
                del self._waiting[subject]

    def notify(self, projection: str) -> None:
        """Something new can be seen in a projection; to be called on the event loop, cheap when nobody waits."""
        watch = self._watches.get(projection)
        if watch is not None:
            watch.notified.set()

    async def close(self) -> None:
        """Ends the looking; whoever still waits is told that the read model is not available."""
        self._closed = True
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        for watch in self._watches.values():
            watch.notified.set()
            for pending in watch.pending:
                if not pending.done.done():
                    pending.done.set_exception(Stale("the service is stopping; ask again"))
        await asyncio.gather(*tasks)


def _has_applied(progress: StreamProgress, number: int) -> bool:
    """Whether a stream's event was applied. Raises StreamParked when the stream is parked at or before it."""
    if progress.sequence_number >= number:
        return True
    if progress.parked is not None and progress.parked.sequence_number <= number:
        raise StreamParked("an event of what was written waits to be mended and can't be read yet")
    return False
