"""`DevelopmentIdentity`: in the development profile a request from this machine needs no token.

Used by the composition root when the profile is `development`. What guards it: a page in a browser can reach loopback
ports, by name rebinding too, and a proxy on this machine makes the whole world look like loopback.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from kiseki.kernel.ports import Credentials, Identity, Principal, Unauthenticated

__all__ = ["DEVELOPMENT_SUBJECT", "DevelopmentIdentity", "is_loopback_host", "is_loopback_peer"]

DEVELOPMENT_SUBJECT: Final = "development"

# RFC 6750, 2.1 and RFC 9110, 11.6.2: a scheme and one token68.
_CREDENTIALS: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ +[A-Za-z0-9._~+/-]+=*")
_LOOPBACK_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


class DevelopmentIdentity:
    """Implements the Identity port: requests from loopback are the development user, with every role asked for."""

    def __init__(self, *, actor: str, roles: frozenset[str], tokens: Identity | None = None) -> None:
        """`tokens` knows the tokens of requests that bring one; without it none is believed."""
        self._tokens = tokens
        self._principal = Principal(subject=DEVELOPMENT_SUBJECT, actor=actor, roles=roles, user_id=DEVELOPMENT_SUBJECT)

    async def identify(self, credentials: Credentials) -> Principal:
        """The development user, or whoever a token names. Raises Unauthenticated for a token that is not believed, and
        without one for a request that did not come straight from this machine."""
        if credentials.authorization and self._tokens is not None:
            return await self._tokens.identify(credentials)
        if credentials.authorization:
            malformed = len(credentials.authorization) > 1 or not _CREDENTIALS.fullmatch(credentials.authorization[0])
            raise Unauthenticated("invalid_request" if malformed else "invalid_token")
        if credentials.forwarded or not is_loopback_peer(credentials.peer) or not is_loopback_host(credentials.host):
            raise Unauthenticated(None)
        return self._principal


def is_loopback_peer(address: str | None) -> bool:
    """Whether a TCP peer is this machine (127.0.0.0/8, ::1, and the former as IPv4-mapped IPv6)."""
    if address == "127.0.0.1":
        return True
    try:
        peer = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return peer.is_loopback


def is_loopback_host(host: str | None) -> bool:
    """Whether a Host header names this machine: `localhost`, `127.0.0.1` or `[::1]`, with any port."""
    return host is not None and _LOOPBACK_HOST.fullmatch(host) is not None
