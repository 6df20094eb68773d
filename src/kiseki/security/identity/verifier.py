"""Verifies one token: its form, its key, its signature, its claims, and whether it was revoked, in this order.

Used by `TokenIdentity` for requests and by `kiseki token inspect`.
"""

from __future__ import annotations

from typing import Final

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import Clock
from kiseki.security.identity.claims import ClaimRules, Claims
from kiseki.security.identity.compact import CompactToken, parse
from kiseki.security.identity.key_sources import KeySource
from kiseki.security.identity.refusals import Cause, TokenRefused
from kiseki.security.identity.revocations import RevocationView

__all__ = ["TokenVerifier"]

_TYPES: Final = (None, "JWT", "at+jwt")


class TokenVerifier:
    """Says what a token says, when it can be believed."""

    def __init__(
        self,
        *,
        keys: KeySource,
        rules: ClaimRules,
        clock: Clock,
        revocations: RevocationView,
        required_type: str | None = None,
    ) -> None:
        """`required_type`: `JWT` or `at+jwt` (RFC 9068), which the header must then name. Raises DefinitionError."""
        if required_type not in _TYPES:
            raise DefinitionError("the required type of tokens is JWT or at+jwt, or none")
        self.keys = keys
        self.rules = rules
        self._clock = clock
        self._revocations = revocations
        self._required_type = required_type

    async def verify(self, token: bytes) -> Claims:
        """The claims of a token. Waits only for keys that are being fetched, and for a bounded time.

        Raises TokenRefused; Unavailable when nobody can tell now whether it is good.
        """
        parsed = parse(token)
        if self._required_type is not None and parsed.type != self._required_type:
            raise TokenRefused(Cause.WRONG_TYPE, f"typ is {self._required_type}")
        await self._check_signature(parsed)
        claims = self.rules.check(parsed.claims, self._clock.now().timestamp())
        self.check_revoked(claims)
        return claims

    def check_revoked(self, claims: Claims) -> None:
        """Whether the subject's tokens of that time were revoked. Raises TokenRefused, Unavailable."""
        not_before = self._revocations.not_before(claims.issuer, claims.subject)
        # The issuer's clock may be ahead of ours by the leeway: a token from before the revocation must not pass.
        if not_before is not None and claims.issued_at <= not_before + self.rules.leeway:
            raise TokenRefused(
                Cause.REVOKED, "the subject's tokens were revoked", issuer=claims.issuer, subject=claims.subject
            )

    async def _check_signature(self, token: CompactToken) -> None:
        candidates = await self.keys.find(token.algorithm, token.key_id)
        if not candidates:
            raise TokenRefused(Cause.UNKNOWN_KEY, "no key has this kid")
        fitting = [key for key in candidates if key.algorithm == token.algorithm]
        if not fitting:
            raise TokenRefused(Cause.WRONG_ALGORITHM, "alg is not the algorithm of the key")
        if not any(key.verifies(token.signing_input, token.signature) for key in fitting):
            raise TokenRefused(Cause.BAD_SIGNATURE, "the signature is not of this key and these segments")
