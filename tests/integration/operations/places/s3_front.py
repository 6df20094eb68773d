"""`S3Front`: stands before the emulator of S3, and lets a test answer, hold, break or change what it wants to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Self, TypeAlias

import aiohttp
from aiohttp import web

__all__ = ["Rule", "S3Front", "Seen", "held", "refusal"]

Rule: TypeAlias = Callable[["Seen"], Awaitable[web.StreamResponse | None]]


class Seen:
    """A request, and a way to have it answered by the emulator."""

    def __init__(self, front: S3Front, request: web.BaseRequest, body: bytes) -> None:
        self._front, self.request, self.body = front, request, body
        self.method, self.path, self.query, self.headers = request.method, request.path, request.query, request.headers

    async def forwarded(self) -> web.Response:
        return await self._front.forward(self)


def refusal(status: int, code: str, *, headers: dict[str, str] | None = None, **more: str) -> web.Response:
    """An error as S3 writes it."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in {"Code": code, **more}.items())
    return web.Response(
        status=status, body=f"<Error>{inner}</Error>".encode(), content_type="application/xml", headers=headers
    )


class S3Front:
    """Serves on loopback. `rule` may answer a request; what it answers with None goes to the emulator. `ahead` moves
    the clock that answers show."""

    def __init__(self, behind: str) -> None:
        self._behind = behind
        self.rule: Rule | None = None
        self.ahead = timedelta()
        self.requests: list[Seen] = []
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"
        self._session = aiohttp.ClientSession(auto_decompress=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def forward(self, seen: Seen) -> web.Response:
        url = f"{self._behind}{seen.request.raw_path}"
        headers = {name: value for name, value in seen.headers.items() if name.lower() not in ("host", "expect")}
        async with self._session.request(seen.method, url, data=seen.body, headers=headers) as answer:
            content = await answer.read()
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date")
            }
            there = answer.headers.get("Date")
            now = parsedate_to_datetime(there) if there else datetime.now(UTC)
            kept["Date"] = format_datetime((now + self.ahead).astimezone(UTC), usegmt=True)
            response = web.Response(status=answer.status, headers=kept, body=content)
            if seen.method == "HEAD" and "Content-Length" in answer.headers:
                response.headers["Content-Length"] = answer.headers["Content-Length"]
            return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect"):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()
        seen = Seen(self, request, body)
        self.requests.append(seen)
        if self.rule is not None and (answer := await self.rule(seen)) is not None:
            return answer
        return await self.forward(seen)


async def held(seen: Seen) -> web.StreamResponse:
    """No answer, until the client goes away."""
    await asyncio.Event().wait()
    raise AssertionError(seen.path)
