"""What a request says it is for: strict reading of `Host` and of absolute targets, and the names answered for.

Used by the HTTP shell. A name that nobody listed is how DNS rebinding, poisoned links and misrouted requests arrive.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from kiseki.kernel.errors import KisekiError

__all__ = ["ANY_HOST", "HostName", "Hosts", "InvalidHostName", "read_host"]

# RFC 9110, 7.2 and RFC 3986, 3.2.2, without what no DNS name or address has: percent signs and sub-delimiters.
_HOST: Final = re.compile(
    rb"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*)\.?"
    rb"(?::(?P<port>[0-9]{1,5}))?"
    rb"|\[(?P<ip>[0-9A-Fa-f:.]{2,45})\](?::(?P<ip_port>[0-9]{1,5}))?"
)
_LONGEST_NAME: Final = 253
_LONGEST_LABEL: Final = 63
_LONGEST: Final = 262
_CACHED: Final = 1_024
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class InvalidHostName(KisekiError):
    """A name in the setting `hosts` can't be one."""

    code = "SETTING_INVALID"


class HostName(NamedTuple):
    """A host as it is compared: lower case, no final dot, addresses in their one short form."""

    name: str
    port: int | None


def read_host(value: bytes) -> HostName | None:
    """Reads a Host header or the authority of a target; None for anything that is not exactly a host and a port."""
    match = _HOST.fullmatch(value) if len(value) <= _LONGEST else None
    if match is None:
        return None
    digits = match["port"] or match["ip_port"]
    port = None if digits is None else int(digits)
    if port is not None and not 0 < port < 65_536:
        return None
    literal = match["ip"]
    try:
        if literal is not None:
            return HostName(ipaddress.IPv6Address(literal.decode()).compressed, port)
        name = match["name"].decode().lower()
        if _NUMERIC.fullmatch(name.rpartition(".")[2]):
            # What ends in a number is an IPv4 address and nothing else, in dotted decimal and not 127.1 or 0x7f000001.
            return HostName(str(ipaddress.IPv4Address(name)), port)
    except ValueError:
        return None
    if len(name) > _LONGEST_NAME or any(len(label) > _LONGEST_LABEL for label in name.split(".")):
        return None
    return HostName(name, port)


class Hosts:
    """The names that are answered for. An entry without a port allows every port, one with a port only that."""

    def __init__(self, names: Iterable[str] | None) -> None:
        """`names` as in the setting; None answers for every name. Raises InvalidHostName."""
        self._any = names is None
        # The same few come again and again; what others make up is bounded, and costs what reading it costs.
        self._read = lru_cache(maxsize=_CACHED)(read_host)
        self._names: set[str] = set()
        self._with_port: set[HostName] = set()
        for name in names or ():
            read = read_host(name.encode("ascii", "replace"))
            if read is None:
                raise InvalidHostName(
                    f"`hosts` has {name[:80]!r}, which is no host name; give names or addresses like "
                    "`api.example.com`, `api.example.com:8443` or `[::1]`"
                )
            if read.port is None:
                self._names.add(read.name)
            else:
                self._with_port.add(read)

    @property
    def listed(self) -> bool:
        """Whether there is a list at all."""
        return not self._any

    def read(self, value: bytes) -> HostName | None:
        """As `read_host`, from memory where it was read before."""
        return self._read(value)

    def allow(self, host: HostName) -> bool:
        """Whether requests for this host are answered."""
        return self._any or host.name in self._names or host in self._with_port


ANY_HOST: Final = Hosts(None)
"""No list: the syntax of `Host` is still checked."""
