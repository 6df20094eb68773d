"""What the tests of the transport share: a running server, with TLS or without, and clients that send bytes."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from kiseki.application.system import UlidSource
from kiseki.graphql.answers import Answer
from kiseki.kernel.ports import AuditEvent
from kiseki.service.admission import Admission
from kiseki.service.cors import Cors
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.protocol import ConnectionLimits
from kiseki.service.server import HttpServer, ServerTls, bind
from kiseki.service.serving import Serving
from kiseki.service.shell import Exchange, HttpLimits, Route, Shell, Uncounted

READ_TIMEOUT = 0.5
WRITE_TIMEOUT = 0.8
HANDSHAKE_TIMEOUT = 0.5
URI_LIMIT = 2_048
HOST = b"Host: localhost\r\n"
HEAD = b"POST /api/graphql HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: 2\r\n\r\n{}"
HEALTH = b"GET /api/health HTTP/1.1\r\n" + HOST + b"\r\n"

SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
HSTS = {"strict-transport-security": "max-age=31536000"}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])

    def protected(self, *, tls: bool) -> bool:
        """Whether it has the headers of every response, and none that tells what it runs on."""
        expected = SECURITY | HSTS if tls else SECURITY
        unwanted = {"server", "x-powered-by", "date", *([] if tls else HSTS)}
        return expected.items() <= self.headers.items() and not unwanted & self.headers.keys()


class App:
    """The routes. `gate` holds answers back while it is not set."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def post(self, exchange: Exchange) -> Answer:
        body = await exchange.body()
        if isinstance(body, Answer):
            return body
        self.bodies.append(body)
        self.entered.set()
        await self.gate.wait()
        return Answer(200, ((b"content-type", b"application/json"),), body)

    async def health(self, _exchange: Exchange) -> Answer:
        return Answer(200, (), b"ok")

    async def large(self, _exchange: Exchange) -> Answer:
        return Answer(200, (), b"x" * 20_000_000)

    async def broken(self, _exchange: Exchange) -> Answer:
        raise RuntimeError("secret of /etc/kiseki")


class Audit:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def note(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def record(self, event: AuditEvent) -> None:
        self.events.append(event)


class Service:
    def __init__(self, server: HttpServer, app: App, serving: Serving, audit: Audit) -> None:
        self.server = server
        self.app = app
        self.serving = serving
        self.audit = audit
        self.port = server.port

    @asynccontextmanager
    async def connection(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=tls, server_hostname=None if tls is None else "localhost"
            )
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    async def ask(self, data: bytes, tls: ssl.SSLContext | None = None) -> Response:
        async with self.connection(tls) as connection:
            connection.send(data)
            return await connection.response()

    async def eventually(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    async def empty(self) -> None:
        """Waits until no connection and no request is left."""
        await self.eventually(lambda: self.server.connections == 0 and self.serving.in_flight == 0)


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def tls(self) -> ssl.SSLObject:
        found: ssl.SSLObject = self.writer.get_extra_info("ssl_object")
        return found

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self, *, head: bool = False) -> Response:
        async with asyncio.timeout(10):
            first, *fields = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            pairs = [field.split(": ", 1) for field in fields]
            headers = {pair[0]: pair[1] for pair in pairs}
            assert len(headers) == len(pairs), "a header came twice"
            length = 0 if head else int(headers.get("content-length", "0"))
            return Response(int(first.split()[1]), headers, await self.reader.readexactly(length))

    async def ended(self) -> bool:
        """Whether the server closes the connection, with nothing more on it."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read() == b""
        except (ConnectionError, ssl.SSLError):
            return True


@asynccontextmanager
async def running(
    *,
    tls: ServerTls | None = None,
    idle: float = 75,
    hosts: Hosts = ANY_HOST,
    cors: Cors | None = None,
    hsts: bool = False,
    admission: Admission | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> AsyncIterator[Service]:
    serving = Serving(time.monotonic)
    app = App()
    audit = Audit()
    shell = Shell(
        "command",
        routes={
            "/api/graphql": Route({"POST": app.post}, graphql=True),
            "/api/health": Route({"GET": app.health}, any_host=True),
            "/large": Route({"GET": app.large}),
            "/broken": Route({"GET": app.broken}),
        },
        serving=serving,
        limits=HttpLimits(body=65_536, uri=URI_LIMIT, headers=16_384, read_timeout=READ_TIMEOUT, request_timeout=10),
        ids=UlidSource(),
        telemetry=Uncounted(),
        hosts=hosts,
        cors=cors,
        hsts=hsts,
        auditor=audit,
    )

    async def front(scope: Any, receive: Any, send: Any) -> None:
        # What no shell does: an app that fails before it answers.
        if scope["raw_path"] == b"/crash":
            raise RuntimeError("secret of /etc/kiseki")
        await shell(scope, receive, send)

    server = HttpServer(
        front,
        bind("127.0.0.1", 0, "command_port"),
        serving=serving,
        limits=ConnectionLimits(
            head_bytes=32_768,
            uri_bytes=8_192,
            read_timeout=READ_TIMEOUT,
            write_timeout=WRITE_TIMEOUT,
            idle=idle,
        ),
        keep_alive=idle,
        tls=tls,
        handshake_timeout=handshake_timeout,
        hsts=hsts,
        admission=admission,
        auditor=audit,
        api="command",
    )
    await server.start()
    try:
        yield Service(server, app, serving, audit)
    finally:
        await server.close()
