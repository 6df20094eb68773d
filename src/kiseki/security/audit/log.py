"""`AuditLog`: the Auditor of a running process. Made by the composition root, one for each process.

Events go through a bounded queue to one task, which chains them and hands them to every sink; what is recorded at the
same time shares one durable write. What can't be recorded is either refused or goes on, as the setting says:

- `refuse`: `record` raises AuditUnavailable unless every sink has the record for good. While a sink fails, or when
  events were dropped that the log could not say so far, the log is not `healthy`, and whoever asks should not let
  security events happen. Noted events wait in memory, as many as the bounds allow. A record whose `record` raised may
  still get into the log: the answer of a sink can get lost.
- `continue`: `record` returns, the failure is logged as an error and counted, and records wait in memory, as many as
  the bounds allow, for a sink that works again. The log is always `healthy`.

In both a dropped event is counted, and the log says how many as soon as it can (`audit.overflow`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, Self

from ulid import ULID

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AuditEvent, AuditUnavailable, Clock
from kiseki.security.audit.anchor import AnchorChain
from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.lane import Lane
from kiseki.security.audit.record import Chain, Entry, Head, RecordProblem, bounded, read_line
from kiseki.security.audit.sink import AnchorStore, AuditSink, SinkFailed
from kiseki.security.audit.windows import Windows
from kiseki.security.masking import Masker

__all__ = ["AuditLog", "AuditLogSettings", "AuditStatistics", "new_writer"]

_AT_ONCE: Final = 500
_KINDS: Final = 32
_NAMED_WRITERS: Final = 32
_ANCHOR_ANYWAY: Final = 3_600.0

_log = logging.getLogger(__name__)


def new_writer() -> str:
    """The id of a writer: one for each start of a process, and each worker its own."""
    return str(ULID())


@dataclass(frozen=True, kw_only=True)
class AuditLogSettings:
    """The bounds of a log. Times in seconds."""

    failure: Literal["refuse", "continue"] = "refuse"
    window: float = 10.0
    """Repeats within this time become one record."""
    windows: int = 200
    """So many actors, and apart from them so many addresses, are counted apart at a time, for each kind of event."""
    queue: int = 4_096
    """Events that wait to be chained."""
    backlog: int = 4_096
    """Records that wait for one sink."""
    retry: float = 1.0
    """Between attempts at a sink that fails."""
    record_timeout: float = 10.0
    """The longest that `record` takes."""
    anchor_interval: float = 60.0


class AuditStatistics(NamedTuple):
    """Counts since the start, and how things stand."""

    written: int
    coalesced: int
    dropped: int
    refused: int
    failures: int
    waiting: int
    anchor_age: float | None
    """Seconds since heads were anchored last; None without anchors."""


class _Waiting(NamedTuple):
    entry: Entry | None
    """None asks only that all before is durable."""
    done: asyncio.Future[bool] | None


class AuditLog:
    """Implements Auditor. Belongs to one event loop; `note` may be called from other threads too."""

    def __init__(
        self,
        *,
        keys: AuditKeys,
        writer: str,
        sinks: Sequence[AuditSink],
        clock: Clock,
        masker: Masker,
        anchors: AnchorStore | None,
        settings: AuditLogSettings,
    ) -> None:
        """`open` is the way in."""
        self._keys = keys
        self._clock = clock
        self._masker = masker
        self._anchors = anchors
        self._settings = settings
        self._chain = Chain(keys.current, writer)
        self._anchor_chain = AnchorChain(keys.current, writer)
        self._lanes = [
            Lane(sink, clock=clock, backlog=settings.backlog, retry=settings.retry, start=self._chain.head())
            for sink in sinks
        ]
        self._windows = Windows(seconds=settings.window, most=settings.windows, bound=self._bound)
        self._queue: deque[_Waiting] = deque()
        self._dropped: Counter[str] = Counter()
        self._dropped_from: datetime | None = None
        self._dropped_to: datetime | None = None
        self._dropped_in_all = 0
        self._refused = 0
        self._written = 0
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._is_closed = False
        self._anchored_at = self._anchor_stored_at = clock.monotonic()
        self._anchoring = asyncio.Lock()
        self._is_late = False

    @classmethod
    async def open(
        cls,
        *,
        keys: AuditKeys,
        writer: str,
        sinks: Sequence[AuditSink],
        clock: Clock,
        masker: Masker | None = None,
        anchors: AnchorStore | None = None,
        settings: AuditLogSettings | None = None,
    ) -> Self:
        """A log whose first record, `audit.started`, is durable. It closes sinks and anchors.

        Raises AuditUnavailable when that can't be recorded and the setting is to refuse.
        """
        log = cls(
            keys=keys,
            writer=writer,
            sinks=sinks,
            clock=clock,
            masker=masker or Masker(),
            anchors=anchors,
            settings=settings or AuditLogSettings(),
        )
        try:
            await log._start()
        except BaseException:
            await log._end()
            raise
        return log

    @property
    def writer(self) -> str:
        """The id of this run."""
        return self._chain.writer

    @property
    def problem(self) -> str | None:
        """What keeps events from being recorded now, for people; None when nothing does."""
        if self._is_closed:
            return "the audit log is closed"
        for lane in self._lanes:
            if lane.problem is not None:
                return lane.problem
        if self._is_late:
            return "the audit log does not answer in time"
        return "events were dropped from the audit log" if self._dropped else None

    @property
    def healthy(self) -> bool:
        """Whether security events may happen: always with `continue`, and with `refuse` while all can be recorded."""
        return self._settings.failure == "continue" or self.problem is None

    def statistics(self) -> AuditStatistics:
        """For metrics."""
        return AuditStatistics(
            written=self._written,
            coalesced=self._windows.coalesced,
            dropped=self._dropped_in_all,
            refused=self._refused,
            failures=sum(lane.failures for lane in self._lanes),
            waiting=len(self._queue) + max((lane.backlog for lane in self._lanes), default=0),
            anchor_age=None if self._anchors is None else self._clock.monotonic() - self._anchored_at,
        )

    def note(self, event: AuditEvent) -> None:
        """As Auditor."""
        try:
            if threading.get_ident() != self._thread:
                self._loop.call_soon_threadsafe(self.note, event)
                return
            if self._is_closing:
                self._drop(event.kind)
                _log.error("a security event came after the audit log was closed: %s", event.kind)
                return
            now, at = self._clock.monotonic(), self._clock.now()
            self._collect(at=at, now=now)
            entry = self._windows.add(event, at=at, now=now)
            if entry is not None:
                self._put(entry)
        except Exception:  # noqa: BLE001 - whoever notes an event has other work to do
            self._drop("audit.unreadable")
            _log.exception("a security event could not be noted")

    async def record(self, event: AuditEvent) -> None:
        """As Auditor: never coalesced; concurrent calls share one durable write."""
        if self._is_closing:
            self._refuse("it is closed")
            return
        if len(self._queue) >= self._settings.queue:
            self._drop(event.kind)
            self._refuse("too many events wait")
            return
        if await self._ask(Entry(event=self._bound(event), at=self._clock.now())) is not True:
            self._refuse(self.problem or "it does not answer in time")

    async def flush(self) -> bool:
        """Makes everything that was noted durable, open windows excepted. False when that is not possible now."""
        return await self._ask(None)

    async def close(self) -> None:
        """Ends all windows, writes `audit.stopped`, anchors, and closes the sinks. Logs what it could not. Once."""
        if self._is_closing:
            return
        self._is_closing = True
        at = self._clock.now()
        for entry in self._windows.all(at=at):
            self._put(entry)
        try:
            if not await self._ask(Entry(event=AuditEvent(kind="audit.stopped", outcome="done"), at=at)):
                _log.error("the end of the audit log could not be recorded: %s", self.problem or "no answer in time")
            await self._anchor()
        finally:
            await self._end()

    async def _start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name="audit log")]
        after, found = await self._latest()
        event = AuditEvent(kind="audit.started", outcome="done", detail=found)
        if not await self._ask(Entry(event=event, at=self._clock.now(), after=after)):
            self._refuse(self.problem or "it does not answer in time")
        if self._anchors is not None:
            await self._anchor()
            self._tasks.append(asyncio.create_task(self._keep_anchoring(), name="audit anchors"))

    async def _latest(self) -> tuple[Head | None, str | None]:
        """The newest record that is here, and what is wrong with it."""
        for lane in self._lanes:
            try:
                line = await lane.sink.latest()
                if line is None:
                    continue
                found = read_line(line, self._keys)
            except SinkFailed as problem:
                _log.warning("the newest record of the audit log's sink %s is unknown: %s", lane.sink.name, problem)
                return None, f"the newest record of the sink {lane.sink.name} could not be read"
            except RecordProblem as problem:
                _log.error(
                    "the newest record of the audit log's sink %s is not authentic: %s; run `kiseki audit verify`",
                    lane.sink.name,
                    problem,
                )
                return None, f"the newest record of the sink {lane.sink.name} is not authentic"
            else:
                return Head(writer=found.writer, number=found.number, mac=found.mac), None
        return None, None

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        if self._settings.failure == "refuse":
            raise AuditUnavailable(f"a security event can't be recorded: {reason}")
        _log.error("a security event goes on unrecorded for now: %s", reason)

    def _bound(self, event: AuditEvent) -> AuditEvent:
        return bounded(event, self._masker)

    def _put(self, entry: Entry) -> None:
        if len(self._queue) >= self._settings.queue:
            self._drop(entry.event.kind, entry.count)
            return
        self._queue.append(_Waiting(entry, None))
        self._wake.set()

    def _drop(self, kind: str, count: int = 1) -> None:
        at = self._clock.now()
        if not self._dropped:
            _log.error("the audit log's queue is full: security events are dropped and counted")
            self._dropped_from = at
        self._dropped_to = at
        self._dropped[kind if kind in self._dropped or len(self._dropped) < _KINDS else "others"] += count
        self._dropped_in_all += count
        self._wake.set()

    def _collect(self, *, at: datetime, now: float) -> None:
        for entry in self._windows.ended(at=at, now=now):
            self._put(entry)

    async def _ask(self, entry: Entry | None) -> bool:
        future: asyncio.Future[bool] = self._loop.create_future()
        self._queue.append(_Waiting(entry, future))
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.record_timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            self._is_late = True
            return False

    async def _run(self) -> None:
        while True:
            await self._pause()
            try:
                await self._turn()
                self._is_late = False
            except Exception:  # noqa: BLE001 - nothing may pass for recorded because of a fault in here
                _log.exception("the audit log failed; it goes on")
                waiting, self._queue = list(self._queue), deque()
                self._answer(waiting, recorded=False)
                for each in waiting:
                    if each.entry is not None and each.done is None:
                        self._drop(each.entry.event.kind, each.entry.count)
                await asyncio.sleep(self._settings.retry)

    async def _pause(self) -> None:
        """Until there is something to do."""
        now = self._clock.monotonic()
        ends = self._windows.next_end()
        times = [ends - now] if ends is not None else []
        if any(lane.problem is not None for lane in self._lanes):
            times.append(self._settings.retry)
        elif self._queue:
            return
        try:
            async with asyncio.timeout(max(0.001, min(times)) if times else None):
                await self._wake.wait()
        except TimeoutError:
            pass  # it is time
        self._wake.clear()

    async def _turn(self) -> None:
        self._collect(at=self._clock.now(), now=self._clock.monotonic())
        failing = [lane for lane in self._lanes if lane.problem is not None]
        if failing:
            await asyncio.gather(*(lane.flush(durable=True) for lane in failing))
            failing = self._say_resumed(failing)
        if self._settings.failure == "refuse" and any(lane.problem is not None for lane in self._lanes):
            # They are refused unchained: what did not happen should not stand in the log.
            refused = [waiting for waiting in self._queue if waiting.done is not None]
            self._queue = deque(waiting for waiting in self._queue if waiting.done is None)
            self._answer(refused, recorded=False)
        room = min((lane.room for lane in self._lanes), default=_AT_ONCE)
        if room < 2:  # one more for what was dropped
            if self._settings.failure == "continue":
                self._answer([waiting for waiting in self._queue if waiting.done is not None], recorded=False)
            return
        batch = [self._queue.popleft() for _ in range(min(_AT_ONCE, room - 1, len(self._queue)))]
        entries = [waiting.entry for waiting in batch if waiting.entry is not None]
        overflow = self._overflow()
        if overflow is not None:
            entries.append(overflow)
        for entry in entries:
            record = self._chain.seal(entry)
            for lane in self._lanes:
                lane.put(record)
        durable = any(waiting.done is not None for waiting in batch) or overflow is not None
        try:
            recorded = all(await asyncio.gather(*(lane.flush(durable=durable) for lane in self._lanes)))
        except BaseException:
            self._answer(batch, recorded=False)
            raise
        self._say_resumed(failing)
        self._written += len(entries)
        self._answer(batch, recorded=recorded)

    def _say_resumed(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Notes which of them work again; the others."""
        for lane in lanes:
            if lane.problem is None:
                event = AuditEvent(kind="audit.resumed", outcome="done", target=lane.sink.name)
                # Also when the queue is full, which it often is then.
                self._queue.append(_Waiting(Entry(event=event, at=self._clock.now()), None))
                self._wake.set()
        return [lane for lane in lanes if lane.problem is not None]

    def _overflow(self) -> Entry | None:
        if not self._dropped:
            return None
        dropped, self._dropped = self._dropped, Counter()
        event = AuditEvent(
            kind="audit.overflow",
            outcome="failed",
            detail="dropped: " + ", ".join(f"{kind} {count}" for kind, count in sorted(dropped.items())),
        )
        return Entry(
            event=self._bound(event),
            at=self._clock.now(),
            count=dropped.total(),
            first_at=self._dropped_from,
            last_at=self._dropped_to,
        )

    @staticmethod
    def _answer(waiting: Sequence[_Waiting], *, recorded: bool) -> None:
        for each in waiting:
            if each.done is not None and not each.done.done():
                each.done.set_result(recorded)

    async def _keep_anchoring(self) -> None:
        while True:
            await asyncio.sleep(self._settings.anchor_interval)
            await self._anchor()

    async def _anchor(self) -> None:
        """Says elsewhere what the newest record is that every sink has for good."""
        if self._anchors is None:
            return
        await self.flush()
        async with self._anchoring:
            head = min((lane.durable for lane in self._lanes), key=lambda each: each.number)
            now = self._clock.monotonic()
            chain = self._anchor_chain
            is_new = head.number > chain.number or now - self._anchor_stored_at >= _ANCHOR_ANYWAY
            while head.number and is_new:
                try:
                    async with asyncio.timeout(self._settings.record_timeout):
                        await self._store_anchor(head)
                except (KisekiError, TimeoutError) as problem:
                    reason = str(problem) or "no answer in time"
                    _log.error("the audit log can't be anchored, so a cut could go unnoticed: %s", reason)
                    return
                self._anchor_stored_at = now
                is_new = chain.number < head.number  # that was one whose storing had been in doubt
            self._anchored_at = now

    async def _store_anchor(self, head: Head) -> None:
        assert self._anchors is not None  # noqa: S101 - its callers looked
        chain = self._anchor_chain
        others = [writer for writer in await self._anchors.recent(_NAMED_WRITERS) if writer != self.writer]
        at = self._clock.now()
        await self._anchors.add(
            chain.next(head, at=at, writers=others), writer=self.writer, index=chain.index + 1, at=at
        )
        chain.stored()

    async def _end(self) -> None:
        self._is_closing = self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._answer(list(self._queue), recorded=False)
        lost = sum(waiting.entry is not None for waiting in self._queue) + max(
            (lane.backlog for lane in self._lanes), default=0
        )
        if lost or self._dropped:
            _log.error("%d security events were lost at the end of the audit log", lost + self._dropped.total())
        for lane in self._lanes:
            try:
                await lane.sink.close()
            except KisekiError as problem:
                _log.error("a sink of the audit log was not closed well: %s", problem)
        if self._anchors is not None:
            await self._anchors.close()
