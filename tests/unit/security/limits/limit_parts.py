"""Parts that the tests of rate limits share: a model of what is promised, an auditor and a store that tests command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kiseki.kernel.ports import AuditEvent
from kiseki.security.limits.shared_store import SharedTake
from kiseki.security.limits.verdict import SLOTS, LimitPolicy


class Admissions:
    """What was let in of one key: the promise, said plainly and slowly."""

    def __init__(self, limit: int, window: float = 60) -> None:
        self.limit = limit
        self.window = window
        self.taken: list[tuple[float, int]] = []

    def within(self, now: float, seconds: float) -> int:
        """Units let in during so many seconds up to now, both ends included."""
        return sum(units for at, units in self.taken if now - seconds <= at <= now)

    def let_in(self, now: float, units: int) -> None:
        """Notes it, and that no window has too many."""
        self.taken.append((now, units))
        assert self.within(now, self.window) <= self.limit

    def must_let_in(self, now: float, units: int) -> bool:
        """Whether even units that count one slot longer leave room."""
        return self.within(now, self.window + self.window / SLOTS) + units <= self.limit


class ListAuditor:
    """An Auditor that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def note(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class CommandedStore:
    """A WindowStore that answers what a test says."""

    def __init__(self, answer: Callable[[int], SharedTake] | None = None) -> None:
        self.answer = answer or (lambda cost: SharedTake(allowed=True, used=cost, reset_after=60.5, wait=0.0))
        self.calls: list[tuple[str, int]] = []
        self.problem: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.closed = 0

    async def take(self, policy: LimitPolicy, key: str, cost: int) -> SharedTake:
        self.calls.append((key, cost))
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        return self.answer(cost)

    async def close(self) -> None:
        self.closed += 1
