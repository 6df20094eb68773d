"""`Admission`: how many connections one server holds at a time, in all and from one address.

Used by the server when it accepts and by each connection when it ends. Half-open TLS handshakes count too: a client
that only connects must not take the descriptors of all others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

__all__ = ["Admission", "Seat"]

_IPV6_PREFIX: Final = 64


class Seat:
    """One admitted connection. It is given back once, however often that is said."""

    __slots__ = ("_admission", "_key", "_taken")

    def __init__(self, admission: Admission, key: str | None) -> None:
        self._admission = admission
        self._key = key
        self._taken = True

    def leave(self) -> None:
        """Gives the place back."""
        if self._taken:
            self._taken = False
            self._admission.left(self._key)


class Admission:
    """Counts connections. A limit of 0 is none. `exempt` says for which addresses the second limit does not hold:
    those of the proxies that bring everyone's connections."""

    def __init__(self, *, total: int, per_address: int, exempt: Callable[[str], bool] | None = None) -> None:
        self._total = total
        self._per_address = per_address
        self._exempt = exempt
        self._counts: dict[str, int] = {}
        self.open = 0
        """Connections that are held."""
        self.refused = 0
        """Connections that were turned away, since the start."""

    def enter(self, address: str | None) -> Seat | None:
        """A place for a connection from this address (None for a Unix socket); None when there is none."""
        key = self._key(address)
        if (self._total and self.open >= self._total) or (
            key is not None and self._counts.get(key, 0) >= self._per_address
        ):
            self.refused += 1
            return None
        self.open += 1
        if key is not None:
            self._counts[key] = self._counts.get(key, 0) + 1
        return Seat(self, key)

    def left(self, key: str | None) -> None:
        """Called by a seat."""
        self.open -= 1
        if key is None:
            return
        rest = self._counts[key] - 1
        if rest:
            self._counts[key] = rest
        else:
            del self._counts[key]

    def _key(self, address: str | None) -> str | None:
        if not self._per_address or address is None or (self._exempt is not None and self._exempt(address)):
            return None
        if ":" not in address:
            return address
        ip = ipaddress.IPv6Address(address)
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        # Whoever has one IPv6 address has the 2^64 beside it.
        return str(ipaddress.IPv6Network((int(ip), _IPV6_PREFIX), strict=False))
