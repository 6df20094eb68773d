"""Client addresses: who is at the other end of a connection, through the proxies that were configured and no others.

Used by the HTTP shell, for rate limits and the audit log. `X-Forwarded-For` is read; `Forwarded` (RFC 7239) is not:
of two headers that say the same, a proxy that knows only one lets a client forge the other.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from kiseki.kernel.errors import DefinitionError

__all__ = ["MAX_HOPS", "UNKNOWN", "ClientAddresses", "Network", "parse_networks", "rate_key", "wide_networks"]

Network: TypeAlias = IPv4Network | IPv6Network
_Address: TypeAlias = IPv4Address | IPv6Address

UNKNOWN: Final = "unknown"
"""The address of a client that has none that is believed, such as the peer of a Unix socket."""
MAX_HOPS: Final = 16
"""So many entries of X-Forwarded-For are read, from the right."""

_MAX_ENTRY: Final = 64
_CACHED: Final = 4_096
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?", re.ASCII)
_BARE: Final = re.compile(r"[0-9A-Fa-f:.]+", re.ASCII)
# Wider than these is more than anybody's own proxies.
_WIDE_PREFIX: Final = {4: 8, 6: 16}


class ClientAddresses:
    """Finds a client's address.

    It is the peer's, unless the peer is a trusted proxy. Then it is the last entry of X-Forwarded-For that is not of a
    trusted proxy: each entry was written by the proxy to its right, so what is left of an untrusted one is only what a
    client says. Where that ends (an entry that is no address, no more entries, too many of them), it is the last
    address that was believed: at worst a proxy's own, never one that a client chose.
    """

    def __init__(self, trusted_proxies: Sequence[Network] = ()) -> None:
        """`trusted_proxies`: networks of the proxies that append to X-Forwarded-For. Raises DefinitionError."""
        self._trusted = tuple(_unmapped(network) for network in trusted_proxies)
        for network in self._trusted:
            if network.prefixlen == 0:
                raise DefinitionError(
                    "trusting every address as a proxy lets each client choose its own; name the proxies' networks"
                )
        # Both come again and again. Each has its own, so that what is written into headers drives out no peers.
        self._peer = lru_cache(maxsize=_CACHED)(self._read_peer)
        self._entry = lru_cache(maxsize=_CACHED)(self._read_entry)

    def resolve(self, peer: str | None, forwarded_for: Sequence[bytes]) -> str:
        """The client's address, canonical, or UNKNOWN.

        `peer`: the address of the TCP peer, None when there is none. `forwarded_for`: the X-Forwarded-For headers, in
        the order they came; several are one list (RFC 9110, 5.3): some proxies append a header, not an entry.
        """
        text, trusted = self._peer(peer)
        if not trusted or not forwarded_for:
            return text
        for entry in _from_the_right(forwarded_for):
            if len(entry) > _MAX_ENTRY:
                break
            found = self._entry(entry)
            if found is None:
                break
            text, trusted = found
            if not trusted:
                break
        return text

    def is_proxy(self, peer: str) -> bool:
        """Whether a TCP peer is a trusted proxy: it brings everyone's connections, so they are not counted as its."""
        return self._peer(peer)[1]

    def _read_peer(self, peer: str | None) -> tuple[str, bool]:
        address = _read(peer.partition("%")[0]) if peer is not None else None
        if address is None:
            return UNKNOWN, False
        return str(address), self._is_trusted(address)

    def _read_entry(self, entry: bytes) -> tuple[str, bool] | None:
        address = _read_entry(entry)
        return None if address is None else (str(address), self._is_trusted(address))

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def parse_networks(names: Iterable[str]) -> tuple[Network, ...]:
    """Networks (`10.0.0.0/8`) or single addresses, as settings name them. Raises DefinitionError."""
    found: list[Network] = []
    for name in names:
        try:
            found.append(_unmapped(ipaddress.ip_network(name.strip())))
        except ValueError:
            raise DefinitionError(
                f"trusted proxies: {name!r} is no network such as 10.0.0.0/8 or 2001:db8::/48 "
                f"(the bits after the prefix are zero)"
            ) from None
    return tuple(found)


def wide_networks(networks: Iterable[Network]) -> list[Network]:
    """Those that are wider than anybody's own proxies, for `check --deploy`."""
    return [network for network in networks if network.prefixlen < _WIDE_PREFIX[network.version]]


def rate_key(address: str) -> str:
    """What is limited for an address: IPv4 as it is, IPv6 by /64 (one customer has at least that much), UNKNOWN else.

    All clients without a believed address share one.
    """
    read = _read(address)
    if read is None:
        return UNKNOWN
    if isinstance(read, IPv4Address):
        return str(read)
    return f"{IPv6Address(int(read) >> 64 << 64)}/64"


def _from_the_right(lines: Sequence[bytes]) -> Iterable[bytes]:
    """The last entries, the last first. What it looks at is bounded, whatever was sent."""
    hops = 0
    for line in reversed(lines):
        for entry in reversed(line.rsplit(b",", MAX_HOPS)):
            if hops == MAX_HOPS:
                return
            hops += 1
            yield entry


def _read_entry(entry: bytes) -> _Address | None:
    """The address in an entry: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`."""
    text = entry.strip(b" \t").decode("latin-1")
    match = _WITH_PORT.fullmatch(text)
    if match is None:
        return _read(text)
    if match[1] is None:
        return _read(match[2])
    address = _read(match[1])
    # Brackets are IPv6's alone.
    return address if ":" in match[1] else None


def _read(text: str) -> _Address | None:
    if len(text) > _MAX_ENTRY or not _BARE.fullmatch(text):
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _unmapped(network: Network) -> Network:
    """A network of IPv4-mapped addresses as the IPv4 network it is."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network
