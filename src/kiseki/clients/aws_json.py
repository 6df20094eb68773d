"""`AwsJsonClient`: signed calls to AWS services that speak JSON 1.1, with retries, one deadline and a circuit breaker.

Used by the clients of KMS and Secrets Manager. Every operation that goes through here is safe to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from kiseki.clients.aws_credentials import AwsCredentials, AwsCredentialsMissing
from kiseki.clients.aws_signing import AwsKeys, Signer
from kiseki.clients.circuit import Circuit, CircuitOpen
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = ["REGION", "AwsJsonClient", "AwsRefused", "AwsUnavailable", "endpoint_of"]

REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
"""What a name of a region looks like."""

_CONTENT_TYPE: Final = "application/x-amz-json-1.1"
_KEEP_ALIVE: Final = 30.0
_ATTEMPTS: Final = 8
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_ANSWER_BYTES: Final = 1_048_576
_KIND: Final = re.compile(r"[A-Za-z]{1,80}")

# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html, and those of the single operations.
_PASSING: Final = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestLimitExceeded",
        "LimitExceededException",
        "TooManyRequestsException",
        "KMSInternalException",
        "DependencyTimeoutException",
        "KeyUnavailableException",
        "InternalServiceError",
        "InternalFailure",
        "ServiceUnavailable",
    }
)
_CREDENTIALS: Final = frozenset(
    {
        "ExpiredTokenException",
        "ExpiredToken",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
    }
)
_log = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class AwsUnavailable(Unavailable):
    """An AWS service can't be used now: network, time, throttling, its own failure, or credentials."""

    code = "AWS_UNAVAILABLE"


class AwsRefused(KisekiError):
    """An AWS service refuses the request, and would again."""

    code = "AWS_REFUSED"

    def __init__(self, message: str, *, kind: str) -> None:
        """`kind` is the short name of the exception. The service's own words are left out: they may repeat a value."""
        super().__init__(message)
        self.kind = kind


class _Passing(Exception):
    """One attempt failed and another may not."""

    def __init__(self, why: str, *, is_credentials: bool = False) -> None:
        super().__init__(why)
        self.is_credentials = is_credentials


class AwsJsonClient:
    """Calls one service in one region. Belongs to one event loop; connects on the first call."""

    def __init__(
        self,
        *,
        service: str,
        target: str,
        region: str,
        endpoint: str | None = None,
        connections: int = 32,
        attempt_timeout: float = 2.0,
        deadline: float = 6.0,
        content_type: str = _CONTENT_TYPE,
    ) -> None:
        """`service` as in a scope of signatures, `target` what stands before an operation in X-Amz-Target. At most
        `connections` requests run at once, others wait. Times in seconds: of one try, and of a call with all.
        `content_type` as the version of JSON wants it that the service speaks."""
        self.name = f"{service} in {region}"
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        url = endpoint or f"https://{service}.{region}.{domain}"
        self._url = f"{url}/"
        self._host = urlsplit(url).netloc
        self._target = target
        self._connections = connections
        self._attempt_timeout = attempt_timeout
        self._deadline = deadline
        self._signer = Signer(region=region, service=service, content_type=content_type)
        self._credentials = AwsCredentials(region=region)
        self._slots = asyncio.Semaphore(connections)
        self._circuit = Circuit(clock=time.monotonic)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an operation. Raises AwsUnavailable, AwsRefused."""
        now = asyncio.get_running_loop().time
        end = now() + self._deadline
        body = _encode(request)
        problem: _Passing | None = None
        refusals = 0
        for attempt in range(_ATTEMPTS):
            try:
                async with asyncio.timeout_at(end):
                    async with self._slots:
                        return await self._attempt(operation, body, end)
            except TimeoutError:
                problem = problem or _Passing(f"no answer in {self._deadline:g} s")
                break
            except AwsCredentialsMissing as missing:
                raise AwsUnavailable(f"{self.name}: {operation}: {missing}") from missing
            except _Passing as failed:
                problem = failed
                refusals += failed.is_credentials
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))  # noqa: S311  # no secret
            if refusals > 1 or now() + pause >= end:
                break
            await asyncio.sleep(pause)
        raise AwsUnavailable(f"{self.name}: {operation}: {problem}") from problem

    async def close(self) -> None:
        """Lets go of connections; calls that run fail. Again is fine."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._credentials.close()

    async def _attempt(self, operation: str, body: bytes, end: float) -> dict[str, Any]:
        keys = await self._credentials.keys()
        session = self._connected()
        headers = self._signer.headers(
            keys, host=self._host, target=f"{self._target}.{operation}", body=body, now=datetime.now(UTC)
        )
        try:
            probe = self._circuit.enter()
        except CircuitOpen as problem:
            raise AwsUnavailable(
                f"{self.name}: {operation}: it does not answer and is left alone for a moment",
                retry_after=ceil(problem.seconds) or 1,
            ) from problem
        status, content = await self._post(session, headers, body, probe)
        return self._read(status, content, operation, keys)

    async def _post(
        self, session: aiohttp.ClientSession, headers: Mapping[str, str], body: bytes, probe: bool
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._attempt_timeout) as limit:
                async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                    content = await response.content.read(_ANSWER_BYTES)
                    while not response.content.at_eof() and len(content) < _ANSWER_BYTES:
                        content += await response.content.read(_ANSWER_BYTES)
        except TimeoutError as problem:
            if not limit.expired():  # the call's own deadline, or aiohttp's
                self._circuit.left(probe)
                raise
            self._failed(probe)
            raise _Passing(f"no answer in {self._attempt_timeout:g} s") from problem
        except (aiohttp.ClientError, OSError) as problem:
            self._failed(probe)
            raise _Passing(f"the connection failed ({_reason(problem)})") from problem
        except BaseException:
            self._circuit.left(probe)
            raise
        self._circuit.succeeded(probe)
        return response.status, content

    def _read(self, status: int, content: bytes, operation: str, keys: AwsKeys) -> dict[str, Any]:
        try:
            answer = _decode(content)
        except msgspec.DecodeError as problem:
            if status == 200:
                raise _Passing("the answer is no JSON") from problem
            answer = {}
        if status == 200:
            return answer
        kind = str(answer.get("__type", "")).rpartition("#")[2]
        if not _KIND.fullmatch(kind):
            kind = f"HTTP {status}"
        if kind in _CREDENTIALS:
            self._credentials.forget(keys)
            raise _Passing(
                f"the credentials are refused ({kind}): they ended, are wrong, or the clock here is",
                is_credentials=True,
            )
        if kind in _PASSING or status >= 500 or status == 429:
            raise _Passing(kind)
        raise AwsRefused(f"{self.name}: {operation}: {kind}", kind=kind)

    def _failed(self, probe: bool) -> None:
        if self._circuit.failed(probe):
            _log.warning("%s does not answer; calls fail at once until one gets through", self.name)

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise AwsUnavailable(f"the client of {self.name} is closed")
        if self._session is None:
            # Not before there is a loop.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=_KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                auto_decompress=False,
            )
        return self._session


def endpoint_of(url: str) -> str:
    """Scheme, host and port of an endpoint in a setting. Raises StoreUrlInvalid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only now
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        if plain and parts.path in ("", "/") and not parts.query and not parts.fragment:
            return f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        pass
    raise StoreUrlInvalid("an endpoint of AWS is http:// or https:// with a host and perhaps a port")


def _reason(problem: Exception) -> str:
    """What the system calls it, without an address."""
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno > 0:
        return os.strerror(problem.errno)
    return type(problem).__name__
