"""Why a token is refused: for the audit log and `kiseki token inspect`, never for the client. Used by this package."""

from __future__ import annotations

from enum import StrEnum

from kiseki.kernel.errors import KisekiError

__all__ = ["Cause", "TokenRefused"]


class Cause(StrEnum):
    """The stable codes of refusals."""

    MALFORMED_HEADER = "MALFORMED_HEADER"
    """The Authorization header is no `Bearer <token>`, or there are several."""
    OTHER_SCHEME = "OTHER_SCHEME"
    TOO_LARGE = "TOO_LARGE"
    MALFORMED = "MALFORMED"
    """Not three segments of canonical base64url with strict JSON objects in the first two."""
    HEADER_REFUSED = "HEADER_REFUSED"
    """A member of the header that brings a key, changes the meaning of the token, or is mistyped."""
    WRONG_TYPE = "WRONG_TYPE"
    WRONG_ALGORITHM = "WRONG_ALGORITHM"
    """Not on the allow list, or not the one algorithm of the key."""
    UNKNOWN_KEY = "UNKNOWN_KEY"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    BAD_CLAIM = "BAD_CLAIM"
    """A claim is missing, mistyped, or out of its range."""
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    ISSUED_IN_FUTURE = "ISSUED_IN_FUTURE"
    BAD_LIFETIME = "BAD_LIFETIME"
    REVOKED = "REVOKED"


class TokenRefused(KisekiError):
    """A token is not accepted. The message names the rule and shows nothing of the token."""

    code = "TOKEN_REFUSED"

    def __init__(self, cause: Cause, rule: str, *, issuer: str | None = None, subject: str | None = None) -> None:
        """`issuer` and `subject` only when the signature was good: nobody else's word is recorded."""
        super().__init__(f"{cause}: {rule}")
        self.cause = cause
        self.issuer = issuer
        self.subject = subject
