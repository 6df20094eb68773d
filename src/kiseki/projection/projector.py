"""`Projector`: applies events to one build, every event exactly once, whatever order and however often they come.

The feed may repeat, reorder between streams and leave gaps; the guard of each stream makes the result exact. A
projector keeps nothing between calls, so a call that failed or was cancelled at any point is simply made again.
Used by the updater, and by whoever gets events pushed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from msgspec.structs import replace

from kiseki.journal.port import CorruptJournal, Journal, JournalUnavailable, Position, RecordedEvent
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.projection.failure import Failure, place_of
from kiseki.projection.port import (
    Batch,
    GuardMove,
    ParkedStream,
    ProjectionStore,
    StatementFailed,
    StreamProgress,
    TransientFailure,
)
from kiseki.projection.projection import Change
from kiseki.projection.steps import Step, Steps
from kiseki.projection.subscription import Subscription

__all__ = ["Projector"]

_log = logging.getLogger(__name__)


class _Run:
    """What one call knows of the streams it works on; it follows what was committed, never what was tried."""

    def __init__(self, progress: dict[str, StreamProgress], *, retrying: bool = False) -> None:
        self.guards = {stream: of.sequence_number for stream, of in progress.items()}
        self.attempts = {stream: of.parked.attempts for stream, of in progress.items() if of.parked}
        self.retrying = retrying
        self.places = {stream: of.parked for stream, of in progress.items() if of.parked}
        # While a stream is retried, its being parked is what is to end.
        self.parked: set[str] = set() if retrying else set(self.attempts)


class Projector:
    """Applies events to one build of a projection.

    An event that can't be read or applied parks its stream: it and all later events of the stream wait, all
    other streams go on. When the store, the journal or the key store is unavailable nothing is parked: the call
    raises Unavailable, and the same call again is right. So it is when another process was quicker (GuardMoved, see
    `records.undisturbed`).
    """

    def __init__(
        self,
        *,
        subscription: Subscription,
        store: ProjectionStore,
        journal: Journal,
        codec: EventCodec,
        telemetry: Telemetry,
        clock: Clock,
        attempts: int = 5,
        pause: Callable[[int], Awaitable[None]] | None = None,
        refuse_unknown: bool = False,
        found: Callable[[Sequence[RecordedEvent]], Awaitable[bool]] | None = None,
    ) -> None:
        """`attempts` tries are given to an event whose transaction loses against others; `pause(n)` waits after the
        n-th of them. With `refuse_unknown` an event that the application does not know raises UnknownEvent
        instead of parking its stream. `found` is told of events that were read from the journal, before they are
        applied, and says whether personal data is removed by them: for who does not see every commit by itself. Events
        that erase and that the projection follows do so anyway."""
        self._subscription = subscription
        self._name = subscription.projection.name
        self._store = store
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._attempts = attempts
        self._pause = pause or _short_pause
        self._found = found
        types = (event_type.event_type for event_type in subscription.projection.event_types)
        self._erasing = frozenset(one.name for one in types if one.erases_subject)
        self._steps = Steps(
            projection=subscription.projection, codec=codec, refuse_unknown_in=store.name if refuse_unknown else None
        )

    def parks_unknown(self) -> None:
        """From now on an event that the application does not know parks its stream."""
        self._steps.refuse_unknown_in = None

    async def apply(
        self, events: Iterable[RecordedEvent], position: Position | None = None, *, scrub: bool = False
    ) -> int:
        """Applies events in one transaction, and moves the stored position; how many events were new.

        Events that were applied before are skipped; missing ones before them are read from the journal and applied
        first. `position` is the place after these events. `scrub` says that personal data is removed by them: the last
        write scrubs, also when nothing is left to apply, so a call that failed is made again with it.
        Raises Unavailable, UnknownEvent when told to refuse, and CorruptJournal.
        """
        concerned = [event for event in events if self._subscription.concerns(event.stream)]
        streams = {event.stream for event in concerned}
        run = _Run(dict(await self._store.progress(streams)) if streams else {})
        taken: list[RecordedEvent] = []
        reached = dict(run.guards)
        applied = 0
        for event in concerned:
            stream, number = event.stream, event.sequence_number
            if stream in run.parked or number <= reached[stream]:
                continue
            if number > reached[stream] + 1:
                # What was taken so far may be what is missing; it goes first, and then whatever the feed left out.
                applied += await self._write(run, taken)
                taken = []
                applied += await self._repair(run, stream, number - 1)
                reached[stream] = run.guards[stream]
                if stream in run.parked:
                    continue
            taken.append(event)
            reached[stream] = number
        return applied + await self._write(run, taken, position, scrub=scrub)

    async def catch_up(self, stream: str) -> int:
        """Applies what the journal has of a stream after its guard; how many events. None while it is parked.

        A stream whose stored bytes are damaged is parked there: it waits, visibly, and holds up no other. Raises
        Unavailable, and UnknownEvent when told to refuse; what comes before is applied then.
        """
        if not self._subscription.concerns(stream):
            return 0
        run = _Run(dict(await self._store.progress([stream])))
        if stream in run.parked:
            return 0
        before = run.guards[stream]
        try:
            await self._read_and_write(run, stream, None)
        except CorruptJournal as problem:
            await self._park_unreadable(run, stream, problem)
        return run.guards[stream] - before

    async def retry(self, stream: str) -> bool:
        """Applies the waiting events of a parked stream in order; whether the stream is no longer parked.

        Raises Unavailable.
        """
        run = _Run(dict(await self._store.progress([stream])), retrying=True)
        if stream in run.places:
            if self._subscription.concerns(stream):
                try:
                    await self._read_and_write(run, stream, None)
                except CorruptJournal as problem:
                    await self._park_unreadable(run, stream, problem)
                if stream in run.parked:
                    return False
            await self._store.write(Batch(unpark=[run.places[stream]]))
        # An event that came after what was read here was passed by, because its stream was still parked.
        await self.catch_up(stream)
        return (await self._store.progress([stream]))[stream].parked is None

    async def _repair(self, run: _Run, stream: str, upto: int) -> int:
        count = await self._read_and_write(run, stream, upto)
        if stream not in run.parked and run.guards[stream] < upto:
            raise JournalUnavailable(
                f"{stream}: the feed is at sequence number {upto + 1}, but reading ends at {run.guards[stream]}"
            )
        return count

    async def _read_and_write(self, run: _Run, stream: str, upto: int | None) -> int:
        """Applies what the journal has after the guard (up to a number), each page in a transaction of its own."""
        count = 0
        pages: AsyncIterator[Sequence[RecordedEvent]] = self._journal.read(stream, run.guards[stream])
        try:
            async for page in pages:
                wanted = [event for event in page if upto is None or event.sequence_number <= upto]
                for number, event in enumerate(wanted, run.guards[stream] + 1):
                    if event.sequence_number != number:
                        raise CorruptJournal(f"{stream}: sequence number {number} is missing in the journal")
                # With its page: the next run, should this one end here, begins behind it.
                count += await self._write(run, wanted, scrub=await self._removes(wanted))
                if stream in run.parked or len(wanted) < len(page):
                    break
        finally:
            close = getattr(pages, "aclose", None)
            if close is not None:
                await close()
        return count

    async def _removes(self, read: Sequence[RecordedEvent]) -> bool:
        """Tells of what was read; whether personal data is removed by it."""
        told = self._found is not None and bool(read) and await self._found(read)
        return told or any(event.type in self._erasing for event in read)

    async def _write(
        self, run: _Run, taken: Sequence[RecordedEvent], position: Position | None = None, *, scrub: bool = False
    ) -> int:
        """Writes what follows from events that are next in their streams; how many were applied."""
        if not taken and position is None and not scrub:
            return 0
        steps = await self._steps.prepare(taken)
        batch = self._batch(run, steps, position, scrub=scrub)
        try:
            await self._store.write(batch)
        except StatementFailed as problem:
            if isinstance(problem, TransientFailure):
                self._telemetry.projection_retry(self._name, problem.code)
            return await self._isolate(run, steps, position, scrub=scrub)
        self._committed(run, batch)
        return sum(step.failure is None for step in steps)

    async def _isolate(self, run: _Run, steps: Sequence[Step], position: Position | None, *, scrub: bool) -> int:
        """Event by event, each in a transaction of its own, so that only the one that fails is parked.

        Each of them scrubs when the page is to: it may be the last one that is written.
        """
        applied = 0
        for step in steps:
            if step.event.stream in run.parked:
                continue
            failure = step.failure or await self._write_alone(run, step, scrub=scrub)
            if failure is None:
                applied += 1
            else:
                parking = self._batch(run, [Step(step.event, failure=failure)])
                await self._store.write(parking)
                self._committed(run, parking)
        if position is not None or scrub:
            await self._store.write(Batch(position=position, scrub=scrub))
        return applied

    async def _write_alone(self, run: _Run, step: Step, *, scrub: bool) -> Failure | None:
        batch = self._batch(run, [step], scrub=scrub)
        for attempt in range(1, self._attempts + 1):
            try:
                await self._store.write(batch)
            except TransientFailure as problem:
                if attempt == self._attempts:
                    return Failure(problem.code, problem.detail)
                self._telemetry.projection_retry(self._name, problem.code)
                await self._pause(attempt)
            except StatementFailed as problem:
                return Failure(problem.code, problem.detail)
            else:
                break
        self._committed(run, batch)
        return None

    def _batch(
        self, run: _Run, steps: Sequence[Step], position: Position | None = None, *, scrub: bool = False
    ) -> Batch:
        reached: dict[str, int] = {}
        park = []
        changes: list[Change] = []
        for step in steps:
            event = step.event
            if step.failure is None:
                changes.extend(step.changes)
                reached[event.stream] = event.sequence_number
            else:
                park.append(self._parked(run, event, step.failure))
        guards = [GuardMove(stream, run.guards[stream], to, run.retrying) for stream, to in reached.items()]
        if run.retrying:
            # Parked until all is applied: one that is interrupted is found again, and nobody else goes on meanwhile.
            failed = {one.stream for one in park}
            moved = ((run.places[stream], to + 1) for stream, to in reached.items() if stream not in failed)
            park += [replace(one, sequence_number=number, event_type="?") for one, number in moved]
        return Batch(changes=changes, guards=guards, park=park, position=position, scrub=scrub)

    async def _park_unreadable(self, run: _Run, stream: str, problem: CorruptJournal) -> None:
        """Nobody knows what the event is; where it stands follows from the guard."""
        now = self._clock.now()
        parked = ParkedStream(
            stream=stream,
            sequence_number=run.guards[stream] + 1,
            event_type="?",
            code="UNREADABLE",
            detail=place_of(problem),
            occurred_at=now,
            parked_at=now,
            attempts=run.attempts.get(stream, 0) + 1,
        )
        batch = Batch(park=[parked])
        await self._store.write(batch)
        self._committed(run, batch)

    def _parked(self, run: _Run, event: RecordedEvent, failure: Failure) -> ParkedStream:
        return ParkedStream(
            stream=event.stream,
            sequence_number=event.sequence_number,
            event_type=event.type,
            code=failure.code,
            detail=failure.detail,
            occurred_at=event.occurred_at,
            parked_at=self._clock.now(),
            attempts=run.attempts.get(event.stream, 0) + 1,
        )

    def _committed(self, run: _Run, batch: Batch) -> None:
        for move in batch.guards:
            run.guards[move.stream] = move.to
        for parked in batch.park:
            if parked.attempts == run.attempts.get(parked.stream):
                run.places[parked.stream] = parked  # only moved along
                continue
            run.parked.add(parked.stream)
            self._telemetry.parked(self._name, parked.code)
            _log.error(
                "%s: %s is parked at sequence number %d (%s, %s: %s); its later events wait",
                self._store.name,
                parked.stream,
                parked.sequence_number,
                parked.event_type,
                parked.code,
                parked.detail,
            )


async def _short_pause(attempt: int) -> None:
    await asyncio.sleep(0.01 * 2**attempt)
