"""`SharedLimiter`: a rate limit that several processes hold together. Asks the local half first, then the shared one.

What is over the limit here is over it everywhere, so it never asks the shared store; nor does a request of which the
store has just said that it is over. Without an answer the local limit decides alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from kiseki.kernel.ports import Clock
from kiseki.security.limits.memory import DEFAULT_CAPACITY, MemoryLimiter
from kiseki.security.limits.shared_store import SharedTake, SharedWindows
from kiseki.security.limits.verdict import LimitPolicy, Verdict, verdict

__all__ = ["SharedLimiter"]

_REMEMBERED: Final = 10_000


class _Refusal(msgspec.Struct, frozen=True, gc=False):
    """What costs this much or more is refused until then."""

    cost: int
    until: float
    used: int
    reset_at: float


class SharedLimiter:
    """A Limiter over several processes.

    While the shared store does not answer, each process allows `local_limit` units. Around the beginning and the end of
    such a time the sum can reach the limit once more; each process keeps to its own at all times.
    """

    def __init__(
        self,
        policy: LimitPolicy,
        *,
        shared: SharedWindows,
        clock: Clock,
        processes: int | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        """`processes`: how many share the limit, if that is known: each has its part of it while they can't. Raises
        DefinitionError."""
        self.policy = policy
        self.local = MemoryLimiter(policy, clock=clock, capacity=capacity)
        self.local_limit = max(1, policy.limit // processes) if processes else policy.limit
        self._shared = shared
        self._monotonic = clock.monotonic
        # Bounded by forgetting: who is forgotten asks the store again.
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()

    def take_now(self, key: str, cost: int = 1) -> Verdict | None:
        """As Limiter."""
        if not self._shared.asks():
            self._shared.passed_over()
            return self.local.take_within(key, cost, limit=self.local_limit)
        return self._remembered(key, cost) or self.local.refusal(key, cost, limit=self.policy.limit)

    async def take(self, key: str, cost: int = 1) -> Verdict:
        """As Limiter. Waits for the shared store as long as its budget allows."""
        at_once = self.take_now(key, cost)
        if at_once is not None:
            return at_once
        slot = self.local.reserve(key, cost)
        asked_at = self._monotonic()
        answer = await self._shared.take(self.policy, key, cost)
        if answer is None:
            # This request is among those that are counted already.
            looked = self.local.take_within(key, 0, limit=self.local_limit)
            if looked.allowed:
                return looked
            self.local.give_back(key, cost, slot)
            return self.local.take_within(key, cost, limit=self.local_limit)
        if not answer.allowed:
            self.local.give_back(key, cost, slot)
            self._remember(key, cost, answer, asked_at)
        return self._verdict(answer)

    def _verdict(self, answer: SharedTake) -> Verdict:
        return verdict(
            self.policy,
            limit=self.policy.limit,
            used=answer.used,
            reset_after=answer.reset_after,
            wait=None if answer.allowed else answer.wait,
        )

    def _remember(self, key: str, cost: int, answer: SharedTake, asked_at: float) -> None:
        # Counted from before the store looked at its clock, so that nobody waits longer than it says.
        self._refusals[key] = _Refusal(cost, asked_at + answer.wait, answer.used, asked_at + answer.reset_after)
        self._refusals.move_to_end(key)
        if len(self._refusals) > _REMEMBERED:
            self._refusals.popitem(last=False)

    def _remembered(self, key: str, cost: int) -> Verdict | None:
        refusal = self._refusals.get(key)
        if refusal is None:
            return None
        now = self._monotonic()
        if now >= refusal.until:
            del self._refusals[key]
            return None
        if cost < refusal.cost:
            return None
        return verdict(
            self.policy,
            limit=self.policy.limit,
            used=refusal.used,
            reset_after=max(0.0, refusal.reset_at - now),
            # What costs more certainly is not refused any more when nothing counts.
            wait=(refusal.until if cost == refusal.cost else refusal.reset_at) - now,
        )
