"""`Doors`: the sockets of a process's APIs, and what answers on them while the process starts and once it serves.

A process whose stores are not there yet answers 503 with `Retry-After`, instead of letting clients wait for a reply.
Used by `kiseki.service.process`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, ItemsView, Mapping, Sequence

from kiseki.graphql.answers import Answer
from kiseki.kernel.ports import Auditor, IdSource
from kiseki.service.admission import Admission
from kiseki.service.cors import Cors
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.protocol import ConnectionLimits
from kiseki.service.responses import Receive, Scope, Send
from kiseki.service.server import HttpServer, ServerTls
from kiseki.service.serving import Serving
from kiseki.service.shell import Exchange, HttpLimits, HttpTelemetry, Route, Shell

__all__ = ["Door", "Doors"]

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Door:
    """One API's socket, server, and the app behind it, which may be exchanged."""

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        *,
        limits: HttpLimits,
        connections: ConnectionLimits,
        keep_alive: float,
        ids: IdSource,
        telemetry: HttpTelemetry,
        tls: ServerTls | None = None,
        handshake_timeout: float = 10.0,
        hosts: Hosts = ANY_HOST,
        cors: Cors | None = None,
        hsts: bool = False,
        admission: Admission | None = None,
        auditor: Auditor | None = None,
        peers: Callable[[str | None], bool] | None = None,
        client: Callable[[str | None, Sequence[bytes]], str] | None = None,
    ) -> None:
        self.name = name
        self.serving = Serving(time.monotonic)
        refuse = Route(dict.fromkeys(("GET", "POST"), _refuse), graphql=True)
        # The app of a process whose stores can't be reached: every request is refused for now.
        self.app: App = Shell(
            name,
            routes={"/api/graphql": refuse},
            prefixes={"/": Route(dict.fromkeys(("GET", "POST"), _refuse), any_host=True)},
            serving=self.serving,
            limits=limits,
            ids=ids,
            telemetry=telemetry,
            hosts=hosts,
            cors=cors,
            hsts=hsts,
            auditor=auditor,
            peers=peers,
            client=client,
        )
        self.server = HttpServer(
            self._answer,
            listener,
            serving=self.serving,
            limits=connections,
            keep_alive=keep_alive,
            tls=tls,
            handshake_timeout=handshake_timeout,
            hsts=hsts,
            admission=admission,
            auditor=auditor,
            api=name,
        )
        self._open = False

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def open(self) -> None:
        """Begins to accept connections; again is fine."""
        if not self._open:
            self._open = True
            await self.server.start()

    async def unbind(self, handshakes: float = 0.0) -> None:
        """As the server does. A door that was never open answers who waits before it: they would be cut off."""
        await self.open()
        await self.server.unbind(handshakes)


class Doors:
    """The doors of a process, by API."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self._doors = doors

    def __getitem__(self, api: str) -> Door:
        return self._doors[api]

    def items(self) -> ItemsView[str, Door]:
        """The doors with the names of their APIs."""
        return self._doors.items()

    async def open(self) -> None:
        """Opens all of them."""
        for door in self._doors.values():
            await door.open()


async def _refuse(exchange: Exchange) -> Answer:
    return exchange.refuse(503, "UNAVAILABLE", "the service is starting; try again", (b"retry-after", b"2"))
