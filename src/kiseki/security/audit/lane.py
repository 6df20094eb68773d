"""`Lane`: the way of the log's records into one sink, with what it could not take yet. Used by the log."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from kiseki.kernel.ports import Clock
from kiseki.security.audit.record import Head, SealedRecord
from kiseki.security.audit.sink import AuditSink, SinkFailed

__all__ = ["Lane"]

_AT_ONCE: Final = 500
_COMPLAIN_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Lane:
    """Keeps the order: a sink never gets a record before it has the one before."""

    def __init__(self, sink: AuditSink, *, clock: Clock, backlog: int, retry: float, start: Head) -> None:
        """`backlog`: how many records may wait; `retry`: seconds between attempts at a sink that fails."""
        self.sink = sink
        self._clock = clock
        self._most = backlog
        self._retry = retry
        self._waiting: deque[SealedRecord] = deque()
        self._written = start
        self.durable = start
        """The newest record that surely is in the sink."""
        self.problem: str | None = None
        self.failures = 0
        self._next_attempt = 0.0
        self._next_complaint = 0.0

    @property
    def room(self) -> int:
        """How many records it takes now."""
        return self._most - len(self._waiting)

    @property
    def backlog(self) -> int:
        """How many records wait."""
        return len(self._waiting)

    def put(self, record: SealedRecord) -> None:
        """A record to be written with the next `flush`."""
        self._waiting.append(record)

    async def flush(self, *, durable: bool) -> bool:
        """Writes what waits; False when that failed, or failed so lately that it is not tried again."""
        if self.problem is not None and self._clock.monotonic() < self._next_attempt:
            return False
        # A sink that failed is believed again when it has made something durable.
        durable = durable or self.problem is not None
        try:
            while self._waiting:
                part = [self._waiting[index] for index in range(min(_AT_ONCE, len(self._waiting)))]
                try:
                    await self.sink.write(part, durable=durable)
                except SinkFailed as problem:
                    self._took(part[: problem.written])
                    raise
                self._took(part)
                if durable:
                    self.durable = self._written
            if durable and self.durable != self._written:
                await self.sink.write((), durable=True)
                self.durable = self._written
        except SinkFailed as problem:
            self._failed(str(problem))
            return False
        if self.problem is not None:
            self.problem = None
            _log.warning("the audit log's sink %s takes records again", self.sink.name)
        return True

    def _took(self, records: Sequence[SealedRecord]) -> None:
        for _ in records:
            self._waiting.popleft()
        if records:
            self._written = Head(writer=self._written.writer, number=records[-1].number, mac=records[-1].mac)

    def _failed(self, problem: str) -> None:
        self.failures += 1
        now = self._clock.monotonic()
        self._next_attempt = now + self._retry
        if self.problem is None or now >= self._next_complaint:
            self._next_complaint = now + _COMPLAIN_SECONDS
            _log.error("security events can't be recorded: %s", problem)
        self.problem = problem
