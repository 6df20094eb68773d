"""`VaultClient`: bounded calls to HashiCorp Vault or OpenBao, logged in by a token file or an AppRole.

Used by the secrets of settings (KV version 2) and by the master key in Vault (transit).
https://developer.hashicorp.com/vault/api-docs
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from kiseki.clients.circuit import Circuit, CircuitOpen
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = ["VaultClient", "VaultRefused", "VaultUnavailable"]

_ATTEMPTS: Final = 6
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_ANSWER_BYTES: Final = 4_194_304
_TOKEN_BYTES: Final = 16_384
_PASSING: Final = frozenset({412, 429, 472, 473})
"""A standby that is behind, a quota, standbys of other kinds. 5xx pass too: 503 is a sealed Vault."""
_log = logging.getLogger(__name__)
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class VaultUnavailable(Unavailable):
    """Vault can't be used now: network, time, sealed, its own failure, or no way to log in."""

    code = "VAULT_UNAVAILABLE"


class VaultRefused(KisekiError):
    """Vault refuses the request, and would again."""

    code = "VAULT_REFUSED"

    def __init__(self, message: str, *, status: int) -> None:
        """`status` of HTTP. Vault's own words are left out: they may repeat a value."""
        super().__init__(message)
        self.status = status


class _Passing(Exception):
    """One attempt failed and another may not."""


class VaultClient:
    """Calls one Vault. Belongs to one event loop; connects and logs in on the first call."""

    def __init__(
        self,
        address: str,
        *,
        token_file: Path | None = None,
        role_id: str = "",
        secret_id: Callable[[], Awaitable[str]] | None = None,
        ca: Path | None = None,
        namespace: str = "",
        connections: int = 16,
        attempt_timeout: float = 2.0,
        deadline: float = 6.0,
    ) -> None:
        """`address` such as https://vault:8200. Either `token_file` (an agent renews it: it is read again when its
        token is refused), or `role_id` with `secret_id`, which is asked at each login. `ca`: the authority of Vault's
        certificate instead of the system's. Times in seconds: of one try, and of a call with all.

        Raises StoreUrlInvalid for an address that can't be used, or without one way to log in.
        """
        try:
            parts = urlsplit(address)
            _ = parts.port  # looked at only now
        except ValueError:
            parts = urlsplit("")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username is not None
            or parts.path not in ("", "/")
            or parts.query
            or parts.fragment
        ):
            raise StoreUrlInvalid("the address of Vault is https:// with a host and perhaps a port")
        if (token_file is None) == (not role_id or secret_id is None):
            raise StoreUrlInvalid("Vault is logged in to either by a token file or by a role id with a secret id")
        self._base = f"{parts.scheme}://{parts.netloc}/v1/"
        self.name = f"Vault at {parts.netloc}"
        self._token_file = token_file
        self._role_id = role_id
        self._secret_id = secret_id
        self._ca = ca
        self._is_tls = parts.scheme == "https"
        self._namespace = namespace
        self._connections = connections
        self._attempt_timeout = attempt_timeout
        self._deadline = deadline
        self._slots = asyncio.Semaphore(connections)
        self._circuit = Circuit(clock=time.monotonic)
        self._session: aiohttp.ClientSession | None = None
        self._token: str | None = None
        self._token_ends = float("inf")
        self._login = asyncio.Lock()
        self._closed = False

    async def read(self, path: str) -> dict[str, Any]:
        """The answer to GET of a path below /v1. Raises VaultUnavailable, VaultRefused."""
        return await self._call("GET", path, None)

    async def write(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to POST to a path below /v1, which has to be safe to repeat. Raises as `read`."""
        return await self._call("POST", path, msgspec.json.encode(body))

    async def close(self) -> None:
        """Lets go of connections; calls that run fail. Again is fine."""
        self._closed = True
        self._token = None
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _call(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        end = asyncio.get_running_loop().time() + self._deadline
        what = f"{self.name}: {method} {path}"
        problem: _Passing | None = None
        has_renewed = False
        for attempt in range(_ATTEMPTS):
            try:
                async with asyncio.timeout_at(end):
                    async with self._slots:
                        token = await self._logged_in()
                        status, content = await self._send(method, path, body, token)
                if status in (401, 403) and not has_renewed:  # the token ended, or was revoked: once more with another
                    has_renewed = True
                    self._forget(token)
                    continue
                return _read(status, content, what)
            except TimeoutError:
                problem = problem or _Passing(f"no answer in {self._deadline:g} s")
                break
            except _Passing as failed:
                problem = failed
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))  # noqa: S311  # no secret
            if asyncio.get_running_loop().time() + pause >= end:
                break
            await asyncio.sleep(pause)
        raise VaultUnavailable(f"{what}: {problem}") from problem

    def _forget(self, token: str) -> None:
        if self._token == token:
            self._token = None

    async def _logged_in(self) -> str:
        now = asyncio.get_running_loop().time
        if self._token is not None and now() < self._token_ends:
            return self._token
        async with self._login:
            if self._token is None or now() >= self._token_ends:
                if self._token_file is not None:
                    self._token = await asyncio.to_thread(_token_in, self._token_file)
                else:
                    self._token, lease = await self._log_in()
                    # Early, so that no call meets the end; 0 is a token without one.
                    self._token_ends = now() + lease * 0.8 if lease else float("inf")
            return self._token

    async def _log_in(self) -> tuple[str, float]:
        secret_id = "" if self._secret_id is None else await self._secret_id()
        body = msgspec.json.encode({"role_id": self._role_id, "secret_id": secret_id})
        status, content = await self._send("POST", "auth/approle/login", body, None)
        answer = _read(status, content, f"{self.name}: login of the AppRole")
        auth = answer.get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(auth, dict) or not isinstance(token, str) or not token:
            raise _Passing("the answer to the login is incomplete")
        lease = auth.get("lease_duration")
        return token, float(lease) if isinstance(lease, int) else 0.0

    async def _send(self, method: str, path: str, body: bytes | None, token: str | None) -> tuple[int, bytes]:
        session = self._connected()
        headers = {"X-Vault-Request": "true"}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            probe = self._circuit.enter()
        except CircuitOpen as problem:
            raise VaultUnavailable(
                f"{self.name} does not answer and is left alone for a moment", retry_after=ceil(problem.seconds) or 1
            ) from problem
        try:
            async with asyncio.timeout(self._attempt_timeout) as limit:
                url = self._base + quote(path, safe="/-_.~")
                # A redirect would take the token along.
                async with session.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
                    content = await response.content.read(_ANSWER_BYTES)
                    while not response.content.at_eof() and len(content) < _ANSWER_BYTES:
                        content += await response.content.read(_ANSWER_BYTES)
        except TimeoutError as problem:
            if not limit.expired():
                self._circuit.left(probe)
                raise
            self._failed(probe)
            raise _Passing(f"no answer in {self._attempt_timeout:g} s") from problem
        except aiohttp.ClientConnectorCertificateError as problem:
            self._failed(probe)
            raise _Passing("its certificate was not accepted") from problem
        except (aiohttp.ClientError, OSError) as problem:
            self._failed(probe)
            raise _Passing(f"the connection failed ({_reason(problem)})") from problem
        except BaseException:
            self._circuit.left(probe)
            raise
        self._circuit.succeeded(probe)
        return response.status, content

    def _failed(self, probe: bool) -> None:
        if self._circuit.failed(probe):
            _log.warning("%s does not answer; calls fail at once until one gets through", self.name)

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise VaultUnavailable(f"the client of {self.name} is closed")
        if self._session is None:
            # Not before there is a loop.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=self._trust()),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                auto_decompress=False,
            )
        return self._session

    def _trust(self) -> ssl.SSLContext | bool:
        if not self._is_tls or self._ca is None:
            return True
        try:
            context = ssl.create_default_context(cafile=str(self._ca))
        except (OSError, ValueError) as problem:
            raise VaultUnavailable(f"{self.name}: the authority of its certificate can't be read") from problem
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _read(status: int, content: bytes, what: str) -> dict[str, Any]:
    if status >= 500 or status in _PASSING:
        raise _Passing("it is sealed or in maintenance" if status == 503 else f"HTTP {status}")
    if status not in (200, 204):
        advice = {
            400: "the request does not suit it",
            401: "the token is not accepted",
            403: "the token is not accepted, or its policy does not allow this",
            404: "there is nothing at this path",
        }.get(status, "it refuses the request")
        raise VaultRefused(f"{what}: HTTP {status}: {advice}", status=status)
    if not content:
        return {}
    try:
        return _decode(content)
    except msgspec.DecodeError as problem:
        raise _Passing("the answer is no JSON") from problem


def _token_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(_TOKEN_BYTES).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as problem:
        raise VaultUnavailable("the file of the Vault token can't be read") from problem
    if not token or not token.isprintable() or " " in token:
        raise VaultUnavailable("the file of the Vault token holds none")
    return token


def _reason(problem: Exception) -> str:
    """What the system calls it, without an address."""
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno > 0:
        return os.strerror(problem.errno)
    return type(problem).__name__
