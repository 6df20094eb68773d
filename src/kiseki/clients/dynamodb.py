"""`DynamoDbClient`: signed calls to DynamoDB with retries, one deadline and a circuit breaker.

Used by everything that is on DynamoDB: the journal, the key store, the tables, the feed of streams. Requests and
answers are DynamoDB's own JSON (`{"S": "text"}`, `{"N": "1"}`, `{"B": "<base64>"}`): the general clients cost several
times as much for each call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import zlib
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
from kiseki.clients.dynamodb_address import DynamoDbAddress
from kiseki.clients.dynamodb_errors import (
    CancellationReason,
    ConditionFailed,
    DynamoDbRefused,
    DynamoDbUnavailable,
    OutOfTime,
    Passing,
    TransactionCanceled,
    failure,
    target_of,
)
from kiseki.clients.urls import StoreUrlInvalid

__all__ = [
    "CancellationReason",
    "ConditionFailed",
    "DynamoDbAddress",
    "DynamoDbClient",
    "DynamoDbRefused",
    "DynamoDbUnavailable",
    "StoreUrlInvalid",
    "TransactionCanceled",
]

_log = logging.getLogger(__name__)
_TABLES: Final = "DynamoDB_20120810."
_STREAMS: Final = "DynamoDBStreams_20120810."
_KEEP_ALIVE: Final = 30.0
_ATTEMPTS: Final = 10
_FIRST_PAUSE: Final = 0.025
_LONGEST_PAUSE: Final = 1.0
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class _Service:
    """One endpoint: where its requests go, what its Host header says, and whether it answers."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = f"{url}/"
        self.host = urlsplit(url).netloc
        self.prefix = prefix
        self.circuit = Circuit(clock=time.monotonic)


class DynamoDbClient:
    """Calls DynamoDB. Belongs to one event loop; connects on the first call, so making one never fails."""

    def __init__(
        self,
        address: DynamoDbAddress,
        *,
        connections: int = 64,
        attempt_timeout: float = 2.0,
        deadline: float = 6.0,
    ) -> None:
        """At most `connections` requests run at once, others wait. `attempt_timeout` is for one try, `deadline` for a
        call with all its tries and waits, both in seconds."""
        self.address = address
        self._connections = connections
        self._attempt_timeout = attempt_timeout
        self._deadline = deadline
        self._signer = Signer(region=address.region, service="dynamodb")
        self._credentials = AwsCredentials(region=address.region)
        self._slots = asyncio.Semaphore(connections)
        self._session: aiohttp.ClientSession | None = None
        self._tables = _Service(address.service_url, _TABLES)
        self._streams = _Service(address.streams_url, _STREAMS)
        self._closed = False

    async def call(
        self, operation: str, request: Mapping[str, Any], *, deadline: float | None = None
    ) -> dict[str, Any]:
        """The answer to an operation such as `PutItem`. `deadline` in seconds, instead of the client's own.

        Raises DynamoDbUnavailable, DynamoDbRefused, ConditionFailed, TransactionCanceled. Throttling, outages and
        conflicts of transactions with other writes are retried inside, so a write has to be safe to repeat: its
        condition decides, and a transaction carries a ClientRequestToken.
        """
        return await self._call(self._tables, operation, request, deadline)

    async def call_streams(
        self, operation: str, request: Mapping[str, Any], *, deadline: float | None = None
    ) -> dict[str, Any]:
        """The answer to an operation of DynamoDB Streams, such as `GetRecords`. Raises as `call`."""
        return await self._call(self._streams, operation, request, deadline)

    async def close(self) -> None:
        """Lets go of connections; calls that run fail. Again is fine."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._credentials.close()

    async def _call(
        self, service: _Service, operation: str, request: Mapping[str, Any], deadline: float | None
    ) -> dict[str, Any]:
        now = asyncio.get_running_loop().time
        seconds = self._deadline if deadline is None else deadline
        end = now() + seconds
        body = _encode(request)
        problem: Passing | None = None
        refusals = 0
        for attempt in range(_ATTEMPTS):
            try:
                return await self._attempt(service, operation, body, request, end)
            except Passing as failed:
                if problem is None or not isinstance(failed, OutOfTime):  # an earlier one says more
                    problem = failed
                refusals += failed.is_credentials
            pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))  # noqa: S311  # no secret
            if refusals > 1 or now() + pause >= end:
                break
            await asyncio.sleep(pause)
        raise DynamoDbUnavailable(f"{target_of(operation, request)}: {problem}") from problem

    async def _attempt(
        self, service: _Service, operation: str, body: bytes, request: Mapping[str, Any], end: float
    ) -> dict[str, Any]:
        await self._take_slot(end)
        try:
            keys = self._credentials.at_hand()
            if keys is None:
                keys = await self._find_keys(end, operation, request)
            session = self._connected()
            granted = min(self._attempt_timeout, end - asyncio.get_running_loop().time())
            if granted <= 0:
                raise OutOfTime("no time was left")
            headers = self._signer.headers(
                keys, host=service.host, target=service.prefix + operation, body=body, now=datetime.now(UTC)
            )
            try:
                probe = service.circuit.enter()
            except CircuitOpen as problem:
                raise DynamoDbUnavailable(
                    f"{target_of(operation, request)}: DynamoDB does not answer and is left alone for a moment",
                    retry_after=ceil(problem.seconds) or 1,
                ) from problem
            status, checksum, content = await self._post(session, service, headers, body, granted=granted, probe=probe)
        finally:
            self._slots.release()
        try:
            return _read(status, checksum, content, operation, request)
        except Passing as problem:
            if problem.is_credentials:
                self._credentials.forget(keys)
            raise

    async def _take_slot(self, end: float) -> None:
        if not self._slots.locked():  # no timer for what does not wait
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout_at(end):
                await self._slots.acquire()
        except TimeoutError as problem:
            raise OutOfTime(f"no connection was free, {self._connections} are in use") from problem

    async def _find_keys(self, end: float, operation: str, request: Mapping[str, Any]) -> AwsKeys:
        try:
            async with asyncio.timeout_at(end):
                return await self._credentials.keys()
        except TimeoutError as problem:
            raise OutOfTime("no AWS credentials were found in time") from problem
        except AwsCredentialsMissing as problem:
            raise DynamoDbUnavailable(f"{target_of(operation, request)}: {problem}") from problem

    async def _post(
        self,
        session: aiohttp.ClientSession,
        service: _Service,
        headers: Mapping[str, str],
        body: bytes,
        *,
        granted: float,
        probe: bool,
    ) -> tuple[int, str | None, bytes]:
        try:
            async with asyncio.timeout(granted):
                async with session.post(service.url, data=body, headers=headers, allow_redirects=False) as response:
                    content = await response.read()
        except TimeoutError as problem:
            why = f"no answer in {granted:.3g} s"
            if granted < self._attempt_timeout / 2:  # so little time proves nothing
                service.circuit.left(probe)
                raise OutOfTime(why) from problem
            _failed(service, probe)
            raise Passing(why) from problem
        except (aiohttp.ClientError, OSError) as problem:
            _failed(service, probe)
            raise Passing(f"the connection failed ({_reason(problem)})") from problem
        except BaseException:
            service.circuit.left(probe)
            raise
        service.circuit.succeeded(probe)
        return response.status, response.headers.get("x-amz-crc32"), content

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise DynamoDbUnavailable("the client of DynamoDB is closed")
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


def _read(
    status: int, checksum: str | None, content: bytes, operation: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    if checksum is not None and checksum != str(zlib.crc32(content)):
        raise Passing("the answer arrived damaged")
    try:
        answer = _decode(content)
    except msgspec.DecodeError as problem:
        if status == 200:
            raise Passing("the answer is no JSON") from problem
        answer = {}
    if status != 200:
        raise failure(status, answer, target=target_of(operation, request))
    return answer


def _failed(service: _Service, probe: bool) -> None:
    if service.circuit.failed(probe):
        _log.warning("DynamoDB at %s does not answer; calls fail at once until one gets through", service.host)


def _reason(problem: Exception) -> str:
    """What the system calls it, without an address."""
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno > 0:
        return os.strerror(problem.errno)
    return type(problem).__name__
