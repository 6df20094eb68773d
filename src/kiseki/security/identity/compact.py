"""The form of a token: three base64url segments, and a header in which nothing is left to choose.

Everything here looks at bytes that nobody vouches for yet, and happens before any library is asked: those accept
padding, non-canonical endings, duplicate members, keys in headers and more. Used by `verifier` and `jwks`.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Final

from kiseki.security.identity.refusals import Cause, TokenRefused
from kiseki.security.identity.strict_json import strict_object

__all__ = ["ALGORITHMS", "MAX_TOKEN_BYTES", "CompactToken", "is_key_id", "parse", "unbase64url"]

ALGORITHMS: Final = ("HS256", "RS256", "PS256", "ES256", "EdDSA", "Ed25519")
"""RFC 7518; EdDSA of RFC 8037 and Ed25519 of RFC 9864 are the same signatures under two names."""

MAX_TOKEN_BYTES: Final = 8192

_DEPTH: Final = 8
_SEGMENT: Final = re.compile(rb"[A-Za-z0-9_-]+")
_KEY_ID: Final = re.compile(r"[ -~]{1,128}")
_TYPES: Final = {"jwt": "JWT", "at+jwt": "at+jwt"}

# Keys or addresses of keys in a token are the sender's, not the issuer's. The others change what the bytes mean.
_REFUSED: Final = ("jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "enc", "cty", "epk", "p2c")


@dataclass(frozen=True, slots=True, repr=False)
class CompactToken:
    """A well-formed token; nothing in it is believed yet."""

    algorithm: str
    key_id: str | None
    type: str | None
    """`JWT`, `at+jwt`, or None when the header has none."""
    header: dict[str, Any]
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return f"CompactToken({self.algorithm})"


def parse(token: bytes) -> CompactToken:
    """Takes a token apart. Raises TokenRefused."""
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(Cause.TOO_LARGE, f"a token has at most {MAX_TOKEN_BYTES} bytes")
    segments = token.split(b".", 3)
    if len(segments) != 3:
        raise TokenRefused(Cause.MALFORMED, "a token has three segments")
    header_segment, claims_segment, signature_segment = segments
    try:
        header = strict_object(unbase64url(header_segment), depth=_DEPTH)
        claims = strict_object(unbase64url(claims_segment), depth=_DEPTH)
        signature = unbase64url(signature_segment)
    except ValueError:
        # `from None`: the cause would show pieces of the token.
        raise TokenRefused(
            Cause.MALFORMED, "segments are base64url without padding, the first two of strict JSON objects"
        ) from None
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefused(Cause.WRONG_ALGORITHM, f"alg is one of {', '.join(ALGORITHMS)}")
    for name in _REFUSED:
        if name in header:
            raise TokenRefused(Cause.HEADER_REFUSED, f"a header has no {name}")
    key_id = header.get("kid")
    if "kid" in header and not is_key_id(key_id):
        raise TokenRefused(Cause.HEADER_REFUSED, "kid is 1 to 128 printable ASCII characters")
    return CompactToken(
        algorithm=algorithm,
        key_id=key_id,
        type=_type(header),
        header=header,
        claims=claims,
        signing_input=header_segment + b"." + claims_segment,
        signature=signature,
    )


def unbase64url(segment: bytes) -> bytes:
    """Decodes base64url without padding (RFC 7515, section 2), canonical: one text for the same bytes, and not none.

    Raises ValueError.
    """
    if not _SEGMENT.fullmatch(segment) or len(segment) % 4 == 1:
        raise ValueError("not base64url")
    decoded = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != segment:
        raise ValueError("not canonical base64url")
    return decoded


def is_key_id(value: object) -> bool:
    """Whether a value may be a `kid`, which is compared and looked up and never anything else."""
    return isinstance(value, str) and _KEY_ID.fullmatch(value) is not None


def _type(header: dict[str, Any]) -> str | None:
    if "typ" not in header:
        return None
    given = header["typ"]
    # A media type without `application/`, and without regard to case (RFC 7515, section 4.1.9).
    found = _TYPES.get(given.lower()) if isinstance(given, str) else None
    if found is None:
        raise TokenRefused(Cause.WRONG_TYPE, "typ is JWT or at+jwt, or not there")
    return found
