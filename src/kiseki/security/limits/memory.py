"""`MemoryLimiter`: a rate limit in the memory of one process. Never suspends; also the local half of a shared limit."""

from __future__ import annotations

from typing import Final

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import Clock
from kiseki.security.limits.verdict import SLOTS, LimitPolicy, Verdict, verdict
from kiseki.security.limits.windows import Windows

__all__ = ["DEFAULT_CAPACITY", "MemoryLimiter"]

DEFAULT_CAPACITY: Final = 100_000


class MemoryLimiter:
    """A Limiter of one process and one event loop. What it promises and how is in `windows`."""

    def __init__(self, policy: LimitPolicy, *, clock: Clock, capacity: int = DEFAULT_CAPACITY) -> None:
        """`capacity`: so many keys at most have a window of their own. Raises DefinitionError."""
        if capacity < 1:
            raise DefinitionError(f"rate limit {policy.name}: a capacity of at least one key")
        self.policy = policy
        self.windows = Windows(capacity=capacity)
        self._monotonic = clock.monotonic
        self._slots_a_second = SLOTS / policy.window

    async def take(self, key: str, cost: int = 1) -> Verdict:
        """As Limiter; never suspends."""
        return self.take_now(key, cost)

    def take_now(self, key: str, cost: int = 1) -> Verdict:
        """As Limiter; never None."""
        return self.take_within(key, cost, limit=self.policy.limit)

    def take_within(self, key: str, cost: int, *, limit: int) -> Verdict:
        """As `take_now`, by another limit."""
        now = self._monotonic()
        slot = int(now * self._slots_a_second)
        window = self.windows.find(key, slot)
        used = 0 if window is None else window.total
        if used + cost > limit:
            return self._refused(key, cost, limit, now, slot)
        if cost > 0:
            # Every request comes here twice, so it is written out: what was added just now is the last to run out.
            used = self.windows.add(key, slot, cost).total
            policy = self.policy
            reset = (slot + SLOTS + 1) / self._slots_a_second - now
            return Verdict(True, limit, limit - used if used < limit else 0, reset, 0, policy.window, policy.name)
        if cost < 0:
            raise ValueError("a request costs no less than nothing")
        reset = 0.0 if window is None else self._until(window.empty_at(), now)
        return verdict(self.policy, limit=limit, used=used, reset_after=reset, wait=None)

    def refusal(self, key: str, cost: int, *, limit: int) -> Verdict | None:
        """The verdict if so many units are not there now, None if they are. Takes nothing."""
        now = self._monotonic()
        slot = int(now * self._slots_a_second)
        window = self.windows.find(key, slot)
        if (0 if window is None else window.total) + cost <= limit:
            return None
        return self._refused(key, cost, limit, now, slot)

    def reserve(self, key: str, cost: int) -> int:
        """Counts units without asking whether they are there. The slot they count in, for `give_back`."""
        slot = int(self._monotonic() * self._slots_a_second)
        self.windows.find(key, slot)
        self.windows.add(key, slot, cost)
        return slot

    def give_back(self, key: str, cost: int, slot: int) -> None:
        """Takes back what was reserved; it was not let in."""
        self.windows.give_back(key, slot, cost)

    def _refused(self, key: str, cost: int, limit: int, now: float, slot: int) -> Verdict:
        window = self.windows.find(key, slot)
        used, empty = (0, 0) if window is None else (window.total, window.empty_at())
        if cost > limit or window is None:
            wait = float(self.policy.window)
        else:
            wait = self._until(window.free_at(used + cost - limit), now)
        return verdict(self.policy, limit=limit, used=used, reset_after=self._until(empty, now), wait=wait)

    def _until(self, slot: int, now: float) -> float:
        return max(0.0, slot / self._slots_a_second - now)
