"""`RedisAddress`: where the shared store of rate limits is, and how it is reached. Imports no Redis client."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote, urlsplit

from kiseki.clients.urls import StoreUrlInvalid

__all__ = ["RedisAddress"]

_MAX_DATABASE: Final = 1_023


class RedisAddress:
    """A server's address. Shows no password, whatever prints it."""

    __slots__ = ("ca_file", "database", "host", "password", "port", "tls", "user")

    def __init__(self, url: str, *, ca_file: str | None = None) -> None:
        """`redis://[[user]:password@]host[:port][/database]`, or `rediss://…` for TLS, whose certificate is always
        checked: against `ca_file` (PEM), else against the authorities of this machine.

        A query is refused: there a URL could turn the check off. Raises StoreUrlInvalid.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _invalid("it can't be read; a password's special characters are percent-encoded") from None
        if parts.scheme not in ("redis", "rediss"):
            raise _invalid("it begins with redis:// or rediss://")
        if not parts.hostname:
            raise _invalid("it names no host")
        if parts.query or parts.fragment or "?" in url or "#" in url:
            raise _invalid("it has a query or a fragment, which is not supported; settings say the rest")
        database = parts.path.removeprefix("/")
        if database and not (database.isascii() and database.isdigit() and int(database) <= _MAX_DATABASE):
            raise _invalid("after the host there is the number of a database or nothing")
        self.tls = parts.scheme == "rediss"
        self.host = parts.hostname
        self.port = port or 6379
        self.user = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None
        self.database = int(database or 0)
        if ca_file is not None and not self.tls:
            raise _invalid("a certificate authority is given, but the address is not rediss://")
        self.ca_file = ca_file

    def __repr__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"<RedisAddress {'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}>"


def _invalid(what: str) -> StoreUrlInvalid:
    return StoreUrlInvalid(f"the address of the shared store of rate limits: {what}")
