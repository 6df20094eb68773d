"""The shared half of a rate limit: the port `WindowStore`, and `SharedWindows`, which no request has to wait for long.

Used by the shared limiters. `redis_windows` has the store; this module knows no Redis.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

import msgspec

from kiseki.clients.circuit import Circuit, CircuitOpen
from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, Clock
from kiseki.security.limits.verdict import LimitPolicy

__all__ = ["SharedTake", "SharedWindows", "SharedWindowsUnavailable", "WindowStore"]

_MOST_CALLS: Final = 128
_FAILURES: Final = 5
_FAILING_SECONDS: Final = 0.2

_log = logging.getLogger(__name__)


class SharedWindowsUnavailable(Unavailable):
    """The store that processes share rate limits in does not answer, or not as it should. `reason` is a stable word."""

    code = "SHARED_LIMIT_UNAVAILABLE"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the shared store of rate limits can't be used: {reason}")
        self.reason = reason


class SharedTake(msgspec.Struct, frozen=True, gc=False):
    """What the shared store says."""

    allowed: bool
    used: int
    """Units that count, with this request's if it is allowed."""
    reset_after: float
    """Seconds until nothing counts."""
    wait: float
    """Seconds until a refused request would be allowed, 0 when it is."""


class WindowStore(Protocol):
    """Windows that several processes share, by the clock of the store."""

    async def take(self, policy: LimitPolicy, key: str, cost: int) -> SharedTake:
        """Takes units if they are there, atomically. Ends within a second or two. Raises SharedWindowsUnavailable."""
        ...

    async def close(self) -> None:
        """Again is fine."""
        ...


class SharedWindows:
    """Asks a WindowStore, for at most `budget` seconds a request, and not at all while it is known not to answer.

    A call goes on after the budget: a connection that takes longer to open is there for the next one, and units that
    were let in locally still count. The first failure and the recovery are audited and logged.
    """

    def __init__(self, store: WindowStore, *, clock: Clock, auditor: Auditor, budget: float = 0.05) -> None:
        """Owns the store. Belongs to one event loop. Raises DefinitionError."""
        if not 0 < budget <= 5:
            raise DefinitionError("the time a request waits for the shared rate limit is above 0 and at most 5 s")
        self._store = store
        self._auditor = auditor
        self._budget = budget
        self._circuit = Circuit(clock=clock.monotonic, failures=_FAILURES, window=_FAILING_SECONDS)
        self._calls: set[asyncio.Task[SharedTake]] = set()
        self._closed = False
        self.available = True
        """Whether the last call that ended was answered."""
        self.answers = 0
        self.failures = 0
        """Requests that were decided locally because the store did not answer or was known not to."""

    def asks(self) -> bool:
        """Whether a call may go now."""
        try:
            self._circuit.left(self._circuit.enter())
        except CircuitOpen:
            return False
        return not self._closed

    async def take(self, policy: LimitPolicy, key: str, cost: int) -> SharedTake | None:
        """As WindowStore; None when there is no answer in time. Raises nothing but CancelledError."""
        try:
            probe = self._circuit.enter()
        except CircuitOpen:
            self._unanswered(None)
            return None
        if self._closed or len(self._calls) >= _MOST_CALLS:
            self._circuit.failed(probe)
            self._unanswered("busy")
            return None
        call = asyncio.create_task(self._store.take(policy, key, cost), name="shared rate limit")
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait((call,), timeout=self._budget)
        except asyncio.CancelledError:
            self._circuit.left(probe)
            raise
        if not call.done():
            self._circuit.failed(probe)
            self._unanswered("slow")
            return None
        if call.cancelled():
            self._circuit.left(probe)
            self._unanswered(None)
            return None
        problem = call.exception()
        if problem is not None:
            self._circuit.failed(probe)
            self._unanswered(problem.reason if isinstance(problem, SharedWindowsUnavailable) else "error")
            return None
        self._circuit.succeeded(probe)
        self._answered()
        return call.result()

    def passed_over(self) -> None:
        """To be called when a request is decided without the store, because `asks` said so."""
        self.failures += 1

    async def close(self) -> None:
        """Ends calls that are under way, and the store. Again is fine."""
        self._closed = True
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        await self._store.close()

    def _ended(self, call: asyncio.Task[SharedTake]) -> None:
        self._calls.discard(call)
        if call.cancelled():
            return
        problem = call.exception()
        if problem is not None and not isinstance(problem, SharedWindowsUnavailable):
            # Its kind alone: the text of an error that nobody foresaw may hold anything.
            _log.error(
                "the shared store of rate limits failed in a way that it should not: %s", type(problem).__qualname__
            )

    def _answered(self) -> None:
        self.answers += 1
        if not self.available:
            self.available = True
            _log.warning("the shared store of rate limits answers again")
            self._auditor.note(AuditEvent(kind="limit.shared_available", outcome="done"))

    def _unanswered(self, reason: str | None) -> None:
        self.failures += 1
        if reason is not None and self.available:
            self.available = False
            _log.warning("the shared store of rate limits can't be used (%s): each process limits for itself", reason)
            self._auditor.note(
                AuditEvent(
                    kind="limit.shared_unavailable",
                    outcome="failed",
                    code=reason.upper().replace(" ", "_"),
                    detail="rate limits are counted in each process for itself until the shared store answers",
                )
            )
