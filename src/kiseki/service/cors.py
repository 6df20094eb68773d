"""`Cors`: which other origins a browser may call the APIs from. Closed unless origins are listed, each exactly.

Used by the HTTP shell. Tokens travel in a header that a page must set itself, so credentials of the browser's own are
never allowed, and no origin is echoed that is not in the list (https://fetch.spec.whatwg.org/#http-cors-protocol).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from kiseki.graphql.answers import Answer
from kiseki.kernel.errors import KisekiError
from kiseki.service.hosts import read_host

__all__ = ["Cors", "InvalidOrigin"]

Headers = tuple[tuple[bytes, bytes], ...]

_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]+)")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_AGE: Final = b"600"
"""Seconds for which a browser keeps a preflight's answer."""

ALLOWED_HEADERS: Final = frozenset(
    {
        b"accept",
        b"authorization",
        b"content-type",
        b"idempotency-key",
        b"kiseki-consistency-token",
        b"traceparent",
        b"x-correlation-id",
    }
)
_ALLOW_HEADERS: Final = b", ".join(sorted(ALLOWED_HEADERS))
_EXPOSED: Final = (
    b"kiseki-consistency-token, ratelimit, ratelimit-policy, retry-after, www-authenticate, x-correlation-id"
)
_VARY: Final = (b"vary", b"Origin")


class InvalidOrigin(KisekiError):
    """An origin in the setting `cors_origins` can't be one."""

    code = "SETTING_INVALID"


class Cors:
    """Answers preflights and marks answers for the origins of the list."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins` as browsers send them. Raises InvalidOrigin."""
        self._allowed: dict[bytes, Headers] = {}
        for origin in origins:
            value = _checked(origin)
            self._allowed[value] = (
                (b"access-control-allow-origin", value),
                (b"access-control-expose-headers", _EXPOSED),
                _VARY,
            )

    def headers(self, origin: bytes | None) -> Headers:
        """What an answer to a request of this origin carries."""
        return (_VARY,) if origin is None else self._allowed.get(origin, (_VARY,))

    def preflight(self, origin: bytes, method: bytes, headers: bytes | None, allow: bytes) -> Answer | None:
        """The answer to a preflight for a path whose methods are `allow`; None when it is refused."""
        names = {part.strip().lower() for part in (headers or b"").split(b",")} - {b""}
        if origin not in self._allowed or method not in allow.split(b", ") or not names <= ALLOWED_HEADERS:
            return None
        return Answer(
            204,
            (
                (b"access-control-allow-methods", allow),
                (b"access-control-allow-headers", _ALLOW_HEADERS),
                (b"access-control-max-age", _MAX_AGE),
            ),
            b"",
        )


def _checked(origin: str) -> bytes:
    match = _ORIGIN.fullmatch(origin)
    host = None if match is None or not origin.isascii() else read_host(match[2].encode())
    if match is None or host is None or origin != origin.lower() or host.port == _DEFAULT_PORTS[match[1]]:
        raise InvalidOrigin(
            f"`cors_origins` has {origin[:80]!r}, which no browser sends; list each origin exactly, in lower case and "
            "without a path or a default port, like `https://console.example.com`"
        )
    return origin.encode()
