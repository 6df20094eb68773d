"""Issues tokens of one's own: for development, tests, and operators (`kiseki token issue`)."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection
from typing import Any, Final

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AuditEvent, Auditor, Clock
from kiseki.security.identity.claims import MAX_ROLE_LENGTH, MAX_ROLES, MAX_TEXT, ClaimRules, is_role, is_text
from kiseki.security.identity.keys import SigningKey

__all__ = ["IssuedToken", "IssuingRefused", "TokenIssuer"]

_ID_BYTES: Final = 16


class IssuingRefused(KisekiError):
    """A token that is not issued."""

    code = "ISSUING_REFUSED"


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token and what it is called; shown without the token."""

    token: str
    id: str
    """The claim `jti`, which the audit log has too."""
    expires_at: int
    """Seconds of the epoch."""

    def __repr__(self) -> str:
        return f"IssuedToken({self.id})"


class TokenIssuer:
    """Issues tokens that the rules accept."""

    def __init__(
        self,
        key: SigningKey,
        *,
        rules: ClaimRules,
        clock: Clock,
        auditor: Auditor,
        production: bool,
        token_type: str = "JWT",  # noqa: S107  # not a password
    ) -> None:
        """`production`: whether this is a production's key, with which nothing is issued by mistake."""
        self._key = key
        self._rules = rules
        self._clock = clock
        self._auditor = auditor
        self._production = production
        self._type = token_type

    async def issue(
        self,
        subject: str,
        *,
        roles: Collection[str] = (),
        lifetime: int = 3600,
        user_id: str | None = None,
        actor: str | None = None,
        production: bool = False,
    ) -> IssuedToken:
        """A new token; `lifetime` in seconds; `production` says that production is meant. `actor`: who asked.

        Audited before it exists. Raises IssuingRefused, AuditUnavailable.
        """
        if self._production and not production:
            raise IssuingRefused("this is production's key: give --production when a token of production is meant")
        if not is_text(subject) or (user_id is not None and not is_text(user_id)):
            raise IssuingRefused(f"a subject or user id is 1 to {MAX_TEXT} characters without controls")
        if len(set(roles)) > MAX_ROLES or not all(is_role(role) for role in roles):
            raise IssuingRefused(f"roles are at most {MAX_ROLES}, each of 1 to {MAX_ROLE_LENGTH} characters")
        if not 1 <= lifetime <= self._rules.max_lifetime:
            raise IssuingRefused(f"the lifetime is 1 to {self._rules.max_lifetime:.0f} seconds")
        issued_at = int(self._clock.now().timestamp())
        token_id = secrets.token_urlsafe(_ID_BYTES)
        claims: dict[str, Any] = {
            "iss": self._rules.issuer,
            "aud": self._rules.audience,
            "sub": subject,
            "iat": issued_at,
            "exp": issued_at + lifetime,
            "jti": token_id,
            "roles": sorted(set(roles)),
        }
        if user_id is not None:
            claims["userId"] = user_id
        await self._auditor.record(
            AuditEvent(
                kind="token.issued",
                outcome="done",
                actor=actor,
                issuer=self._rules.issuer,
                subject=subject,
                target=token_id,
                detail=f"lifetime {lifetime} s, roles {', '.join(claims['roles']) or 'none'}",
            )
        )
        return IssuedToken(token=self._signed(claims), id=token_id, expires_at=issued_at + lifetime)

    def _signed(self, claims: dict[str, Any]) -> str:
        header: dict[str, Any] = {"alg": self._key.algorithm, "typ": self._type}
        if self._key.key_id is not None:
            header["kid"] = self._key.key_id
        signing_input = b".".join(_segment(msgspec.json.encode(part)) for part in (header, claims))
        return (signing_input + b"." + _segment(self._key.sign(signing_input))).decode("ascii")


def _segment(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
