"""A small HTTP/1.1 client over one kept-alive connection, for tests that cut, kill and count."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple, Self


class Reply(NamedTuple):
    """An answer that arrived whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ConnectionLost(Exception):
    """The connection ended before a whole answer had come; what became of the request is unknown."""


class Client:
    """One connection; opens it anew when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def graphql(self, query: str, variables: Any = None, **headers: str) -> Reply:
        """Posts a document. Raises ConnectionLost."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        return await self.request("POST", "/api/graphql", body, {"content-type": "application/json", **headers})

    async def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        """Sends one request and reads its answer. Raises ConnectionLost."""
        try:
            if self._writer is None or self._reader is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            fields = {"host": f"127.0.0.1:{self._port}", "content-length": str(len(body)), **(headers or {})}
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            await self._writer.drain()
            reply = await self._read(self._reader)
        except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
            self.close()
            raise ConnectionLost(str(problem)) from problem
        except BaseException:
            self.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    async def _read(self, reader: asyncio.StreamReader) -> Reply:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(status, headers, body)
