"""What all limiters share: the policy, the verdict, the contract, and the answer's header fields.

Used by the limiters, and by the HTTP shell for `RateLimit`, `RateLimit-Policy` and `Retry-After`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from kiseki.kernel.errors import DefinitionError

__all__ = ["MAX_LIMIT", "SLOTS", "LimitPolicy", "Limiter", "Verdict", "rate_limit_fields", "verdict"]

SLOTS: Final = 120
"""A window is counted in so many slots. A unit counts for a window and at most one slot more, never less."""
MAX_LIMIT: Final = 1_000_000

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class LimitPolicy(msgspec.Struct, frozen=True):
    """At most `limit` units in any `window` seconds."""

    name: str
    """What is limited, as the header fields and the audit log name it: `address`, `subject`."""
    limit: int
    window: int = 60

    def __post_init__(self) -> None:
        """Raises DefinitionError."""
        if not _NAME.fullmatch(self.name):
            raise DefinitionError("a rate limit's name is 1 to 32 lower-case letters, digits and hyphens")
        if not 1 <= self.limit <= MAX_LIMIT or not 1 <= self.window <= 86_400:
            raise DefinitionError(f"rate limit {self.name}: 1 to {MAX_LIMIT} units in 1 to 86400 seconds")


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether a request may go on, and what its client is told."""

    allowed: bool
    limit: int
    """Units in any window."""
    remaining: int
    """Units that are left after this request."""
    reset_after: float
    """Seconds until the whole limit is there again, if nothing more is taken."""
    retry_after: int
    """When refused: whole seconds, at least 1, after which the same request is allowed if nothing else is taken; the
    window's length when it costs more than the limit and is never allowed. When allowed: 0."""
    window: int
    """Seconds."""
    policy: str

    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields that tell the client, as `rate_limit_fields` of this one."""
        if self.retry_after:
            return rate_limit_fields((self,))
        # The same, written out: it is on every answer.
        name = self.policy
        return (
            (b"ratelimit-policy", f'"{name}";q={self.limit};w={self.window}'.encode()),
            (b"ratelimit", f'"{name}";r={self.remaining};t={math.ceil(self.reset_after)}'.encode()),
        )


class Limiter(Protocol):
    """Counts the units of keys by one policy. A refused request is not counted: who goes on asking is let in again as
    soon as there is room."""

    async def take(self, key: str, cost: int = 1) -> Verdict:
        """Takes `cost` units of a key if they are there. A cost of 0 only looks. Never raises for an unusual key."""
        ...

    def take_now(self, key: str, cost: int = 1) -> Verdict | None:
        """As `take` where the answer is at hand, else None, and nothing was taken: `take` has to be awaited."""
        ...


def verdict(policy: LimitPolicy, *, limit: int, used: int, reset_after: float, wait: float | None) -> Verdict:
    """A Verdict. `used`: units counted now, with this request's if it is allowed. `wait`: seconds until a refused
    request is allowed, None when it is allowed."""
    return Verdict(
        allowed=wait is None,
        limit=limit,
        remaining=limit - used if used < limit else 0,
        reset_after=reset_after,
        retry_after=0 if wait is None else max(1, math.ceil(wait)),
        window=policy.window,
        policy=policy.name,
    )


def rate_limit_fields(verdicts: Sequence[Verdict]) -> tuple[tuple[bytes, bytes], ...]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers, structured fields), one member for each
    verdict (of different policies), and `Retry-After` if one of them refuses.

    `r` is what is left, `t` the seconds until the whole limit is there again if nothing more is taken.
    """
    if not verdicts:
        return ()
    policies = ", ".join([f'"{one.policy}";q={one.limit};w={one.window}' for one in verdicts])
    states = ", ".join([f'"{one.policy}";r={one.remaining};t={math.ceil(one.reset_after)}' for one in verdicts])
    fields = ((b"ratelimit-policy", policies.encode()), (b"ratelimit", states.encode()))
    wait = max([one.retry_after for one in verdicts])
    return (*fields, (b"retry-after", b"%d" % wait)) if wait else fields
