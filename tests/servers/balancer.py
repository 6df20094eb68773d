"""`Balancer`: a small HTTP balancer, as ordinary ones are, for tests that replace what is behind it.

It asks each target for health and sends nothing new to one that fails; keeps connections to clients and to targets
open; takes targets in turn; and repeats nothing: what a target does not answer in full is a 502, and without a target
a 503.

async with Balancer(interval=0.1) as balancer:
    await balancer.add("a", port, "/ready?scope=local", management_port)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import Final, Self

__all__ = ["Balancer", "Target"]

_HEALTHY_AFTER: Final = 2
_UNHEALTHY_AFTER: Final = 2
"""Answers in a row before a target counts as healthy or not; ALB has at least 2, nginx 1."""
_ANSWER_SECONDS: Final = 30.0
_HOP_BY_HOP: Final = ("connection:", "keep-alive:")


class _Broken(Exception):
    """A target did not answer in full. What became of the request is unknown."""


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer


class Target:
    """One process behind the balancer."""

    def __init__(self, name: str, port: int, health_port: int) -> None:
        self.name = name
        self.port = port
        self.health_port = health_port
        self.healthy = False
        self.changed = asyncio.Event()
        """Set whenever `healthy` has changed."""
        self.idle: list[_Connection] = []
        self._row = 0

    def heard(self, well: bool) -> None:
        """Counts an answer to a question for health."""
        self._row = 0 if well == self.healthy else self._row + 1
        if self._row >= (_UNHEALTHY_AFTER if self.healthy else _HEALTHY_AFTER):
            self.healthy, self._row = well, 0
            self.changed.set()


class Balancer:
    """Listens on `port`. `interval` and `timeout` of health checks are in seconds."""

    def __init__(self, *, interval: float, timeout: float = 1.0, path: str = "/ready?scope=local") -> None:
        self.port = 0
        self.answered: Counter[str] = Counter()
        """Answers that were passed on, by target."""
        self.broken: list[str] = []
        """What became a 502 or 503, and why."""
        self._interval = interval
        self._timeout = timeout
        self._path = path
        self._targets: list[Target] = []
        self._turn = 0
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [*self._checks.values(), *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for target in self._targets:
            _close_idle(target)

    async def add(self, name: str, port: int, health_port: int) -> Target:
        """Adds a target and returns once it is healthy and gets requests."""
        target = Target(name, port, health_port)
        self._checks[name] = asyncio.create_task(self._check(target), name=f"health of {name}")
        self._targets.append(target)
        await target.changed.wait()
        return target

    def remove(self, target: Target) -> None:
        """Forgets a target that has ended."""
        self._checks.pop(target.name).cancel()
        self._targets.remove(target)
        _close_idle(target)

    async def _check(self, target: Target) -> None:
        while True:
            target.heard(await self._is_well(target))
            await asyncio.sleep(self._interval)

    async def _is_well(self, target: Target) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection("127.0.0.1", target.health_port)
                try:
                    writer.write(f"GET {self._path} HTTP/1.1\r\nHost: balancer\r\nConnection: close\r\n\r\n".encode())
                    return (await reader.readline()).split()[1:2] == [b"200"]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while (request := await _message(reader)) is not None:
                writer.write(await self._answer(b"".join(request)))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        healthy = [target for target in self._targets if target.healthy]
        if not healthy:
            return self._failed(503, "no target is healthy")
        self._turn += 1
        target = healthy[self._turn % len(healthy)]
        try:
            answer = await self._ask(target, request)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, _Broken) as problem:
            return self._failed(502, f"{target.name}: {problem!r}")
        self.answered[target.name] += 1
        return answer

    async def _ask(self, target: Target, request: bytes) -> bytes:
        async with asyncio.timeout(_ANSWER_SECONDS):
            connection = _kept(target)
            if connection is None:
                connection = _Connection(*await asyncio.open_connection("127.0.0.1", target.port))
            try:
                connection.writer.write(request)
                answer = await _message(connection.reader)
                if answer is None:
                    raise _Broken("it closed the connection without an answer")
            except BaseException:
                connection.writer.close()
                raise
        head, body = answer
        lines = head.decode("latin-1").split("\r\n")
        if any(line.lower().replace(" ", "") == "connection:close" for line in lines):
            connection.writer.close()
        else:
            target.idle.append(connection)
        return "\r\n".join(line for line in lines if not line.lower().startswith(_HOP_BY_HOP)).encode("latin-1") + body

    def _failed(self, status: int, why: str) -> bytes:
        self.broken.append(why)
        return f"HTTP/1.1 {status} Failed\r\nContent-Length: 0\r\n\r\n".encode()


def _kept(target: Target) -> _Connection | None:
    """An idle connection that the target has not closed yet, as far as can be seen here."""
    while target.idle:
        connection = target.idle.pop()
        if not connection.reader.at_eof():
            return connection
        connection.writer.close()
    return None


def _close_idle(target: Target) -> None:
    for connection in target.idle:
        connection.writer.close()
    target.idle.clear()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Head and body of a request or an answer with a Content-Length; None when the connection has ended before it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise
        return None
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)
