"""`Gate`: what a request passes before anything reads it: how often its address asks, who it is, how often they ask.

Used by the HTTP apps. The order is that of requirement S3: the address before the token is verified, which costs more;
the subject after it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from kiseki.graphql.answers import Answer
from kiseki.kernel.ports import AuditEvent, Auditor, Identity, Principal, Unauthenticated
from kiseki.security.addresses import ClientAddresses
from kiseki.security.limits.facade import RateLimits
from kiseki.security.limits.verdict import Verdict
from kiseki.service.shell import Exchange

__all__ = ["Admitted", "Gate", "event_of", "with_fields"]

_REMEMBERED: Final = 100_000
_CHALLENGE: Final = b'Bearer realm="kiseki"'
_Fields = tuple[tuple[bytes, bytes], ...]


class Admitted(msgspec.Struct):
    """A request that may be read."""

    principal: Principal
    address: str
    fields: _Fields
    """Header fields for its answer."""


class Gate:
    """Lets requests in, or answers them."""

    def __init__(self, identity: Identity, *, limits: RateLimits, addresses: ClientAddresses, auditor: Auditor) -> None:
        self._identity = identity
        self._auditor = auditor
        self._limits = limits
        self._addresses = addresses
        self._known: OrderedDict[str, None] = OrderedDict()

    async def admit(self, exchange: Exchange) -> Admitted | Answer:
        """Who sent the request, or the refusal: 429, or 400 and 401 as RFC 6750 has them. Raises Unavailable."""
        credentials = exchange.head.credentials(exchange.peer)
        address = self._addresses.resolve(credentials.peer, exchange.head.forwarded_for)
        trace_id = exchange.trace_id
        verdict = self._limits.by_address_now(address, trace_id=trace_id)
        if verdict is None:
            verdict = await self._limits.by_address(address, trace_id=trace_id)
        if not verdict.allowed:
            return _limited(exchange, verdict)
        try:
            credentials = msgspec.structs.replace(credentials, address=address, trace_id=trace_id)
            principal = await self._identity.identify(credentials)
        except Unauthenticated as refused:
            return _unauthenticated(exchange, refused)
        verdict = self._limits.by_subject_now(principal, address, trace_id=trace_id)
        if verdict is None:
            verdict = await self._limits.by_subject(principal, address, trace_id=trace_id)
        if not verdict.allowed:
            return _limited(exchange, verdict)
        if principal.actor not in self._known:
            self._remember(principal, address, trace_id)
        return Admitted(principal, address, verdict.fields())

    def _remember(self, principal: Principal, address: str, trace_id: str) -> None:
        """Records who a pseudonym stands for, once in this process: events hold nothing but that."""
        self._known[principal.actor] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        self._auditor.note(
            AuditEvent(
                kind="actor.seen",
                outcome="done",
                actor=principal.actor,
                issuer=principal.issuer,
                subject=principal.subject,
                address=address,
                trace_id=trace_id,
            )
        )

    async def charge(self, exchange: Exchange, admitted: Admitted, units: int) -> Answer | None:
        """Takes further units of the subject's limit; the refusal when there are not that many."""
        verdict = await self._limits.by_subject(admitted.principal, admitted.address, units, trace_id=exchange.trace_id)
        if not verdict.allowed:
            return _limited(exchange, verdict)
        admitted.fields = verdict.fields()
        return None

    def forbid(self, exchange: Exchange, admitted: Admitted, operation: str) -> Answer:
        """The refusal of what the principal's roles do not allow, recorded."""
        self._auditor.note(event_of(admitted, "access.denied", "refused", exchange, operation, code="ROLES"))
        return exchange.refuse(
            403,
            "FORBIDDEN",
            f"your roles do not allow {operation}",
            (b"www-authenticate", _CHALLENGE + b', error="insufficient_scope"'),
        )


def event_of(
    admitted: Admitted, kind: str, outcome: str, exchange: Exchange, operation: str, **about: str
) -> AuditEvent:
    """A security event of a request that was let in."""
    who = admitted.principal
    return AuditEvent(
        kind=kind,
        outcome=outcome,
        actor=who.actor,
        issuer=who.issuer,
        subject=who.subject,
        address=admitted.address,
        operation=operation,
        trace_id=exchange.trace_id,
        **about,
    )


def with_fields(answer: Answer, fields: _Fields) -> Answer:
    """An answer with further header fields."""
    return msgspec.structs.replace(answer, headers=(*answer.headers, *fields)) if fields else answer


def _limited(exchange: Exchange, verdict: Verdict) -> Answer:
    return exchange.refuse(429, "RATE_LIMITED", "this is asked too often; wait as Retry-After says", *verdict.fields())


def _unauthenticated(exchange: Exchange, refused: Unauthenticated) -> Answer:
    if refused.error == "invalid_request":
        return exchange.refuse(
            400,
            "INVALID_AUTHORIZATION",
            "the Authorization header is malformed",
            (b"www-authenticate", _CHALLENGE + b', error="invalid_request"'),
        )
    challenge = _CHALLENGE if refused.error is None else b'%s, error="%s"' % (_CHALLENGE, refused.error.encode())
    return exchange.refuse(401, refused.code, str(refused), (b"www-authenticate", challenge))
