"""`FakeDynamoDb`: a server that answers as it is told: throttled, silent, broken, which no emulator does."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self, TypeAlias

from aiohttp import web

__all__ = ["OK", "Answer", "FakeDynamoDb", "damaged", "error", "half", "not_json", "ok", "reset", "silence"]

Answer: TypeAlias = Callable[[web.BaseRequest], web.Response | Coroutine[None, None, web.StreamResponse]]


def error(kind: str, status: int = 400, **more: Any) -> Answer:
    """An exception of DynamoDB's."""
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{kind}", "message": "some words, perhaps with a value", **more}
    return lambda _: _json(body, status)


def ok(body: Mapping[str, Any]) -> Answer:
    """A result."""
    return lambda _: _json(body, 200)


OK: Answer = ok({})


def damaged(_: web.BaseRequest) -> web.Response:
    """An answer that is not what its checksum says."""
    return web.Response(body=b'{"Item":{}}', headers={"x-amz-crc32": str(zlib.crc32(b'{"Item":{"a":1}}'))})


def not_json(status: int) -> Answer:
    """As a proxy might answer."""
    return lambda _: web.Response(text="<html>welcome</html>", status=status)


async def silence(request: web.BaseRequest) -> web.Response:
    """No answer, until the client goes away."""
    await asyncio.Event().wait()
    raise AssertionError(request)


async def half(request: web.BaseRequest) -> web.StreamResponse:
    """Half of an answer, then the connection ends."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"Item":')
    _transport(request).close()
    return response


async def reset(request: web.BaseRequest) -> web.Response:
    """The connection is torn down."""
    _transport(request).abort()
    await asyncio.Event().wait()
    raise AssertionError


class FakeDynamoDb:
    """Serves on loopback. `answers` are given in turn, and `afterwards` when there are none left."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.afterwards: Answer = OK
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Mapping[str, str]] = []
        self.arrived = asyncio.Event()
        self.at_once = 0
        self.most_at_once = 0
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.requests.append((request.headers["X-Amz-Target"], json.loads(await request.read())))
            self.headers.append(request.headers)
            self.arrived.set()
            answer = (self.answers.pop(0) if self.answers else self.afterwards)(request)
            return answer if isinstance(answer, web.Response) else await answer
        finally:
            self.at_once -= 1


def _json(body: Mapping[str, Any], status: int) -> web.Response:
    content = json.dumps(body).encode()
    return web.Response(
        body=content,
        status=status,
        content_type="application/x-amz-json-1.0",
        headers={"x-amz-crc32": str(zlib.crc32(content))},
    )


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    assert isinstance(transport, asyncio.Transport)
    return transport
