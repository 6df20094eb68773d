"""What the claims of a token have to say, checked by type and by range. Used by `verifier` after the signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kiseki.kernel.errors import DefinitionError
from kiseki.security.identity.refusals import Cause, TokenRefused

__all__ = ["MAX_LEEWAY", "MAX_ROLES", "MAX_ROLE_LENGTH", "MAX_TEXT", "ClaimRules", "Claims", "is_role", "is_text"]

MAX_TEXT: Final = 255
MAX_ROLES: Final = 32
MAX_ROLE_LENGTH: Final = 64
MAX_LEEWAY: Final = 60.0

_MAX_AUDIENCES: Final = 32
_LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999, in seconds of the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Claims that were checked. Times are in seconds of the epoch."""

    issuer: str
    subject: str
    user_id: str
    roles: frozenset[str]
    issued_at: float
    expires_at: float


class ClaimRules:
    """The rules of one issuer and one audience."""

    def __init__(self, *, issuer: str, audience: str, max_lifetime: float = 3600.0, leeway: float = 10.0) -> None:
        """`max_lifetime`: of a token, seconds. `leeway`: how far clocks may be apart, 0 to 60 seconds.

        Raises DefinitionError.
        """
        for name, text in (("issuer", issuer), ("audience", audience)):
            if not is_text(text):
                raise DefinitionError(f"the {name} of tokens is 1 to {MAX_TEXT} characters without controls")
        if not 1 <= max_lifetime <= 86_400:
            raise DefinitionError("the longest lifetime of a token is 1 to 86400 seconds")
        if not 0 <= leeway <= MAX_LEEWAY:
            raise DefinitionError(f"the leeway of clocks is 0 to {MAX_LEEWAY:.0f} seconds")
        self.issuer = issuer
        self.audience = audience
        self.max_lifetime = max_lifetime
        self.leeway = leeway

    def check(self, claims: Mapping[str, Any], now: float) -> Claims:
        """The claims, typed; `now` in seconds of the epoch. Raises TokenRefused."""
        issuer = _text(claims, "iss")
        if issuer != self.issuer:
            raise TokenRefused(Cause.WRONG_ISSUER, "iss is not the issuer of the settings")
        self._check_audience(claims)
        subject = _text(claims, "sub")
        if not is_text(subject):
            raise TokenRefused(Cause.BAD_CLAIM, f"sub is 1 to {MAX_TEXT} characters without controls")
        user_id = claims.get("userId", subject)
        if not is_text(user_id):
            raise TokenRefused(Cause.BAD_CLAIM, f"userId is 1 to {MAX_TEXT} characters without controls")
        found = Claims(
            issuer=issuer,
            subject=subject,
            user_id=user_id,
            roles=_roles(claims),
            issued_at=_date(claims, "iat"),
            expires_at=_date(claims, "exp"),
        )
        self._check_times(found, _date(claims, "nbf") if "nbf" in claims else None, now)
        return found

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        audience = claims.get("aud")
        audiences = [audience] if isinstance(audience, str) else audience
        if not isinstance(audiences, list) or not 1 <= len(audiences) <= _MAX_AUDIENCES:
            raise TokenRefused(Cause.BAD_CLAIM, f"aud is a text or a list of 1 to {_MAX_AUDIENCES} texts")
        if not all(isinstance(each, str) for each in audiences):
            raise TokenRefused(Cause.BAD_CLAIM, "aud is a text or a list of texts")
        if self.audience not in audiences:
            raise TokenRefused(Cause.WRONG_AUDIENCE, "aud does not name the audience of the settings")

    def _check_times(self, claims: Claims, not_before: float | None, now: float) -> None:
        who = {"issuer": claims.issuer, "subject": claims.subject}
        lifetime = claims.expires_at - claims.issued_at
        if not 0 < lifetime <= self.max_lifetime:
            raise TokenRefused(
                Cause.BAD_LIFETIME, f"exp is after iat, and by at most {self.max_lifetime:.0f} seconds", **who
            )
        if now >= claims.expires_at + self.leeway:
            raise TokenRefused(Cause.EXPIRED, "exp has passed", **who)
        if claims.issued_at > now + self.leeway:
            raise TokenRefused(Cause.ISSUED_IN_FUTURE, "iat is in the future", **who)
        if not_before is not None and not_before > now + self.leeway:
            raise TokenRefused(Cause.NOT_YET_VALID, "nbf is in the future", **who)


def is_text(value: object) -> bool:
    """Whether a value is a text of 1 to 255 characters without control characters or lone surrogates."""
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MAX_TEXT
        and not any(
            character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff" for character in value
        )
    )


def is_role(value: object) -> bool:
    """Whether a value may be the name of a role."""
    return is_text(value) and len(value) <= MAX_ROLE_LENGTH  # type: ignore[arg-type]


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise TokenRefused(Cause.BAD_CLAIM, f"{name} is missing or no text")
    return value


def _roles(claims: Mapping[str, Any]) -> frozenset[str]:
    roles = claims.get("roles", [])
    if not isinstance(roles, list) or len(roles) > MAX_ROLES or not all(is_role(role) for role in roles):
        raise TokenRefused(
            Cause.BAD_CLAIM, f"roles is a list of at most {MAX_ROLES} texts of 1 to {MAX_ROLE_LENGTH} characters"
        )
    return frozenset(roles)


def _date(claims: Mapping[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519, section 2)."""
    value = claims.get(name)
    # bool is a kind of int.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LAST_SECOND:  # NaN neither
        raise TokenRefused(Cause.BAD_CLAIM, f"{name} is missing or no number of seconds since 1970")
    return float(value)
