"""A key set at a URL, fetched with aiohttp (`kiseki[jwks]`). Made by the composition root, for `RefreshedKeys`.

The URL is the operator's and the answer is not believed in anything: no redirects, no cookies, no proxies of the
environment, no compression, one total time, and a bound on what is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from kiseki.kernel.errors import KisekiError
from kiseki.security.identity.compact import ALGORITHMS
from kiseki.security.identity.jwks import MAX_JWKS_BYTES, parse_jwks
from kiseki.security.identity.key_sources import KeysUnavailable
from kiseki.security.identity.keys import KeySet

__all__ = ["JwksUrl", "JwksUrlRefused"]

_CONTENT_TYPES: Final = ("application/json", "application/jwk-set+json")
_MAX_HEADER_BYTES: Final = 8190
_MAX_ETAG: Final = 256


class JwksUrlRefused(KisekiError):
    """The URL of a key set is not one that keys may come from."""

    code = "JWKS_URL_REFUSED"


class JwksUrl:
    """A KeyLoader. Each fetch is a connection of its own: it happens every few minutes."""

    def __init__(
        self,
        url: str,
        *,
        algorithms: Collection[str] = ALGORITHMS,
        rsa_algorithm: str = "RS256",
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
        loopback: bool = False,
    ) -> None:
        """`timeout`: for a whole fetch, seconds. `tls`: whom to trust, instead of the system's authorities.
        `loopback`: http on this machine is fine, for development. Raises JwksUrlRefused."""
        self._url = url
        self.name = f"the key set at {_host(url, loopback=loopback)}"
        self._algorithms = algorithms
        self._rsa_algorithm = rsa_algorithm
        self._timeout = timeout
        self._tls = tls if tls is not None else ssl.create_default_context()
        self._etag: str | None = None

    async def load(self) -> KeySet | None:
        """As KeyLoader."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._fetch()
        except TimeoutError as problem:
            raise KeysUnavailable(f"{self.name} gave no answer in {self._timeout:g} seconds") from problem
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise KeysUnavailable(f"{self.name} can't be fetched: {type(problem).__name__}") from problem

    async def _fetch(self) -> KeySet | None:
        headers = {"Accept": ", ".join(reversed(_CONTENT_TYPES)), "Accept-Encoding": "identity"}
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, force_close=True, limit=1),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                read_bufsize=64 * 1024,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
            ) as session,
            session.get(self._url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status == 304 and self._etag is not None:
                return None
            if response.status != 200:
                raise KeysUnavailable(f"{self.name} answered {response.status}")
            if response.content_type not in _CONTENT_TYPES:
                raise KeysUnavailable(f"{self.name} is not of type {' or '.join(_CONTENT_TYPES)}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise KeysUnavailable(f"{self.name} is compressed, which was not asked for")
            document = await self._read(response)
            # On another thread: a large set takes a moment, which requests would have to wait for.
            keys = await asyncio.to_thread(
                parse_jwks, document, where=self.name, algorithms=self._algorithms, rsa_algorithm=self._rsa_algorithm
            )
            etag = response.headers.get("ETag")
            self._etag = etag if etag is not None and len(etag) <= _MAX_ETAG else None
            return keys

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        document = bytearray()
        async for piece in response.content.iter_any():
            document += piece
            if len(document) > MAX_JWKS_BYTES:
                raise KeysUnavailable(f"{self.name} has more than {MAX_JWKS_BYTES} bytes")
        return bytes(document)


def _host(url: str, *, loopback: bool) -> str:
    """Host and port of a URL that may be used."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        raise JwksUrlRefused("the URL of a key set can't be read; write it as https://host/path") from None
    if not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise JwksUrlRefused("the URL of a key set names a host, as in https://host/path")
    if parts.username is not None or parts.password is not None:
        raise JwksUrlRefused("the URL of a key set has no user or password")
    if parts.fragment:
        raise JwksUrlRefused("the URL of a key set has no fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback and _is_loopback(parts.hostname)):
        raise JwksUrlRefused("the URL of a key set is https (in development also http on a loopback address)")
    return f"{parts.hostname}{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
