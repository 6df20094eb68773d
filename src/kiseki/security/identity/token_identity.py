"""`TokenIdentity`: the kernel's Identity by bearer tokens (RFC 6750). Made by the composition root."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from kiseki.kernel.ports import AuditEvent, Auditor, Clock, Credentials, Principal, Unauthenticated
from kiseki.security.identity.compact import MAX_TOKEN_BYTES
from kiseki.security.identity.refusals import Cause, TokenRefused
from kiseki.security.identity.token_cache import Known, TokenCache
from kiseki.security.identity.verifier import TokenVerifier

__all__ = ["TokenIdentity"]

# RFC 9110, section 11.4; one space, as every client sends it.
_BEARER: Final = re.compile(rb"(?i:bearer) ([A-Za-z0-9._~+/-]+=*)")
_OTHER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?: [ -~]*)?")


class TokenIdentity:
    """Believes tokens in the Authorization header, and nothing else of a request.

    What is wrong with a token is told to the auditor alone. The cache is asked after revocations, never instead.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        pseudonym: Callable[[str, str], str],
        clock: Clock,
        auditor: Auditor,
        cache_entries: int = 10_000,
    ) -> None:
        """`pseudonym` makes the actor of an issuer and a subject. `cache_entries`: some 1.5 KB each."""
        self._verifier = verifier
        self._pseudonym = pseudonym
        self._clock = clock
        self._auditor = auditor
        self._cache = TokenCache(cache_entries)

    async def identify(self, credentials: Credentials) -> Principal:
        """As Identity. Raises Unauthenticated; Unavailable when keys or revocations can't be known now."""
        headers = credentials.authorization
        if not headers:
            raise Unauthenticated(None)
        match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None:
            raise self._no_bearer(credentials)
        token = match[1]
        generation = self._verifier.keys.generation
        now = self._clock.now().timestamp()
        digest = sha256(token).digest()
        known = self._cache.get(digest, now=now, generation=generation)
        try:
            if known is not None:
                self._verifier.check_revoked(known.claims)
                return known.principal
            claims = await self._verifier.verify(token)
        except TokenRefused as refused:
            self._cache.forget(digest)
            # `from None`: the cause is nobody's business outside the audit log.
            raise self._refused(credentials, refused) from None
        principal = Principal(
            subject=claims.subject,
            actor=self._pseudonym(claims.issuer, claims.subject),
            roles=claims.roles,
            user_id=claims.user_id,
            issuer=claims.issuer,
            expires_at=claims.expires_at,
        )
        until = claims.expires_at + self._verifier.rules.leeway
        self._cache.put(digest, Known(claims, principal, until), now=now, generation=generation)
        return principal

    def _no_bearer(self, credentials: Credentials) -> Unauthenticated:
        headers = credentials.authorization
        # `Bearer` without a token, or with something that is none, is malformed; another scheme is just not ours.
        scheme = _OTHER.fullmatch(headers[0][: MAX_TOKEN_BYTES * 2]) if len(headers) == 1 else None
        if scheme is None or scheme[1].lower() == b"bearer":
            self._note(credentials, Cause.MALFORMED_HEADER)
            return Unauthenticated("invalid_request")
        self._note(credentials, Cause.OTHER_SCHEME)
        return Unauthenticated(None)

    def _refused(self, credentials: Credentials, refused: TokenRefused) -> Unauthenticated:
        self._note(credentials, refused.cause, refused.issuer, refused.subject)
        return Unauthenticated("invalid_token")

    def _note(
        self, credentials: Credentials, cause: Cause, issuer: str | None = None, subject: str | None = None
    ) -> None:
        self._auditor.note(
            AuditEvent(
                kind="authentication.refused",
                outcome="refused",
                code=str(cause),
                address=credentials.address or credentials.peer,
                trace_id=credentials.trace_id,
                issuer=issuer,
                subject=subject,
                actor=self._pseudonym(issuer, subject) if issuer is not None and subject is not None else None,
            )
        )
