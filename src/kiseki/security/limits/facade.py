"""`RateLimits`: the limits of a service, in the order in which a request meets them. Used by the HTTP shell.

1. By address, before the token is verified, so that guessing tokens is limited.
2. By subject, once it is known who asks: one unit.
3. By subject again, once the document is understood: the units that it costs beyond the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from kiseki.kernel.ports import AuditEvent, Auditor, Principal
from kiseki.security.addresses import rate_key
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.shared import SharedLimiter
from kiseki.security.limits.shared_store import SharedWindows
from kiseki.security.limits.verdict import Verdict
from kiseki.security.limits.windows import Windows

__all__ = ["RateLimits", "subject_key"]

_CODE: Final = "RATE_LIMITED"
_CACHED: Final = 4_096


class RateLimits:
    """The limiters, with an audit note for each refusal (the audit log coalesces repeats) and counts for metrics.

    A method that ends in `_now` gives the answer where it is at hand. None means that it is not, and nothing was taken:
    the other one has to be awaited then. In memory it always is.
    """

    def __init__(
        self,
        *,
        by_address: MemoryLimiter | SharedLimiter,
        by_subject: MemoryLimiter | SharedLimiter,
        auditor: Auditor,
        shared: SharedWindows | None = None,
        api: str | None = None,
    ) -> None:
        """`shared`: what the limiters share, closed with this. `api` goes into audit notes."""
        self._by_address = by_address
        self._by_subject = by_subject
        self._auditor = auditor
        self._shared = shared
        self._api = api
        self._rate_key = lru_cache(maxsize=_CACHED)(rate_key)
        self._counts = dict.fromkeys(
            ((who, how) for who in ("address", "subject") for how in ("allowed", "refused")), 0
        )

    async def by_address(self, address: str, cost: int = 1, *, trace_id: str | None = None) -> Verdict:
        """Takes units of an address, canonical as `ClientAddresses.resolve` gives it. Raises nothing."""
        verdict = await self._by_address.take(self._rate_key(address), cost)
        return self._counted(verdict, None, address, trace_id)

    def by_address_now(self, address: str, cost: int = 1, *, trace_id: str | None = None) -> Verdict | None:
        """As `by_address`."""
        verdict = self._by_address.take_now(self._rate_key(address), cost)
        return None if verdict is None else self._counted(verdict, None, address, trace_id)

    async def by_subject(
        self, principal: Principal, address: str, cost: int = 1, *, trace_id: str | None = None
    ) -> Verdict:
        """Takes units of a subject, whatever address it asks from; that is for the audit note. Raises nothing."""
        verdict = await self._by_subject.take(subject_key(principal.issuer, principal.subject), cost)
        return self._counted(verdict, principal, address, trace_id)

    def by_subject_now(
        self, principal: Principal, address: str, cost: int = 1, *, trace_id: str | None = None
    ) -> Verdict | None:
        """As `by_subject`."""
        verdict = self._by_subject.take_now(subject_key(principal.issuer, principal.subject), cost)
        return None if verdict is None else self._counted(verdict, principal, address, trace_id)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Checks since the start, by limit (`address`, `subject`) and outcome (`allowed`, `refused`)."""
        return dict(self._counts)

    def keys(self) -> Mapping[str, int]:
        """Keys that have a window of their own now, by limit."""
        return {"address": len(_windows(self._by_address)), "subject": len(_windows(self._by_subject))}

    def crowded(self) -> int:
        """How often units came from a window that several keys share, for want of room, since the start."""
        return _windows(self._by_address).crowded + _windows(self._by_subject).crowded

    def shared_available(self) -> bool | None:
        """Whether the shared store answers, None when there is none."""
        return None if self._shared is None else self._shared.available

    async def close(self) -> None:
        """Closes the shared store. Again is fine."""
        if self._shared is not None:
            await self._shared.close()

    def _counted(self, verdict: Verdict, who: Principal | None, address: str, trace_id: str | None) -> Verdict:
        limit = "address" if who is None else "subject"
        if verdict.allowed:
            self._counts[limit, "allowed"] += 1
            return verdict
        self._counts[limit, "refused"] += 1
        self._auditor.note(
            AuditEvent(
                kind="limit.hit",
                outcome="refused",
                actor=None if who is None else who.actor,
                issuer=None if who is None else who.issuer,
                subject=None if who is None else who.subject,
                address=address,
                api=self._api,
                target=verdict.policy,
                code=_CODE,
                trace_id=trace_id,
            )
        )
        return verdict


def subject_key(issuer: str, subject: str) -> str:
    """One text for both, so that no other two give the same."""
    return f"{len(issuer)}:{issuer}{subject}"


def _windows(limiter: MemoryLimiter | SharedLimiter) -> Windows:
    return (limiter.local if isinstance(limiter, SharedLimiter) else limiter).windows
