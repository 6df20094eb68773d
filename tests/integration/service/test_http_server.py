"""Integration: the HTTP server over real sockets: slow, broken and large requests, and shutdown step by step."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from kiseki.application.system import UlidSource
from kiseki.graphql.answers import Answer
from kiseki.graphql.endpoint import GraphQLRequest
from kiseki.service.development import DevelopmentIdentity
from kiseki.service.http import api_app
from kiseki.service.protocol import ConnectionLimits
from kiseki.service.server import CannotListen, HttpServer, bind
from kiseki.service.serving import Serving
from kiseki.service.shell import HttpLimits
from tests.support import gate

READ_TIMEOUT = 0.6
LARGE = bytes(8_000_000)
HEAD = b"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


class Endpoint:
    """Stands in for GraphQL. `gate` holds answers back while it is not set."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def handle(self, request: GraphQLRequest) -> Answer:
        self.bodies.append(request.body)
        self.entered.set()
        await self.gate.wait()
        body = LARGE if request.body == b"large" else request.body
        return Answer(200, ((b"content-type", b"application/json"),), body)


class Telemetry:
    def http(self, api: str, status: int, seconds: float) -> None: ...


class Service:
    def __init__(self, server: HttpServer, endpoint: Endpoint, serving: Serving) -> None:
        self.server = server
        self.endpoint = endpoint
        self.serving = serving
        self.port = server.port

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    async def eventually(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, body: bytes) -> None:
        self.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def response(self) -> Response:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            while head.startswith("HTTP/1.1 100"):
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *fields = head.strip().split("\r\n")
            headers = dict(field.split(": ", 1) for field in fields)
            body = await self.reader.readexactly(int(headers["content-length"]))
            return Response(int(first.split()[1]), headers, body)

    async def ended(self) -> bool:
        """Whether the server closes the connection, with nothing more on it."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as made:
        yield made


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Service]:
    serving = Serving(time.monotonic)
    read_timeout = changes.get("read_timeout", READ_TIMEOUT)
    endpoint = Endpoint()
    app = api_app(
        "command",
        endpoint=endpoint,
        sdl="",
        gate=gate(DevelopmentIdentity(actor="a", roles=frozenset({"user"}))),
        development=False,
        serving=serving,
        limits=HttpLimits(body=65_536, uri=2_048, headers=16_384, read_timeout=read_timeout, request_timeout=10),
        ids=UlidSource(),
        telemetry=Telemetry(),
    )
    limits = ConnectionLimits(head_bytes=32_768, read_timeout=read_timeout, idle=changes.get("idle", 75))
    server = HttpServer(
        app, bind("127.0.0.1", 0, "command_port"), serving=serving, limits=limits, keep_alive=changes.get("idle", 75)
    )
    await server.start()
    try:
        yield Service(server, endpoint, serving)
    finally:
        await server.close()


# What is good is answered


async def test_a_request_is_answered_and_the_connection_kept(service: Service) -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
    async with service.connection() as connection:
        for number in range(3):
            connection.post(b'{"n":%d}' % number)
            response = await connection.response()
            assert (response.status, response.body) == (200, b'{"n":%d}' % number)
            assert "connection" not in response.headers
            assert "server" not in response.headers
            assert "date" not in response.headers


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    async with service.connection() as connection:
        for number in range(20):
            connection.post(b"%d" % number)
        assert [(await connection.response()).body for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_a_body_in_chunks_is_put_together(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for part in (b'{"a"', b":", b"1}"):
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            await asyncio.sleep(0.02)
        connection.send(b"0\r\n\r\n")
        assert (await connection.response()).body == b'{"a":1}'


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
async def test_an_upgrade_is_passed_over(service: Service, protocol: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with service.connection() as connection:
        for _ in range(2):
            connection.send(HEAD + b"Connection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 2\r\n\r\n{}" % protocol)
            assert (await connection.response()).status == 200
    assert caplog.text == ""


# What is slow is cut


async def test_half_a_head_gets_408(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD)
        response = await connection.response()
        assert (response.status, response.code) == (408, "REQUEST_TIMEOUT")
        assert response.headers["connection"] == "close"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert await connection.ended()


async def test_half_a_body_gets_408(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Content-Length: 100\r\n\r\n{")
        response = await connection.response()
        assert (response.status, response.code) == (408, "REQUEST_TIMEOUT")
        assert await connection.ended()
    assert service.endpoint.bodies == []
    await service.eventually(lambda: service.serving.in_flight == 0)


@pytest.mark.parametrize("start", [HEAD, HEAD + b"Content-Length: 10000\r\n\r\n"], ids=["head", "body"])
async def test_a_byte_now_and_then_buys_no_time(service: Service, start: bytes) -> None:
    async with service.connection() as connection:
        connection.send(start)
        started = time.monotonic()
        dripping = asyncio.create_task(drip(connection))
        response = await connection.response()
        dripping.cancel()
        assert response.status == 408
        assert time.monotonic() - started < 3 * READ_TIMEOUT


async def drip(connection: Connection) -> None:
    while True:
        connection.send(b"x")
        await asyncio.sleep(0.05)


async def test_a_slow_client_does_not_hold_up_others(service: Service) -> None:
    async with service.connection() as slow, service.connection() as other:
        slow.send(HEAD + b"Content-Length: 100\r\n\r\n{")
        other.post(b"{}")
        assert (await other.response()).status == 200
        assert (await slow.response()).status == 408


async def test_a_refused_body_that_goes_on_is_cut(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Authorization: Bearer x\r\nContent-Length: 1000\r\n\r\n")
        assert (await connection.response()).status == 401
        dripping = asyncio.create_task(drip(connection))
        assert await connection.ended()
        dripping.cancel()


async def test_a_refused_body_that_is_complete_keeps_the_connection(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Authorization: Bearer x\r\nContent-Length: 4\r\n\r\nabcd")
        assert (await connection.response()).status == 401
        connection.post(b"{}")
        assert (await connection.response()).status == 200


async def test_a_refused_request_that_expects_continue_ends_the_connection(service: Service) -> None:
    # The client will not send its body; what it sends next must not be taken for one.
    async with service.connection() as connection:
        connection.send(HEAD + b"Authorization: Bearer x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        response = await connection.response()
        assert (response.status, response.headers["connection"]) == (401, "close")


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with running(idle=0.2) as service, service.connection() as silent:
        assert await silent.ended()
        async with service.connection() as kept:
            kept.post(b"{}")
            assert (await kept.response()).status == 200
            assert await kept.ended()


# What is too large is refused, and the client sees it


@pytest.mark.parametrize("chunked", [True, False])
async def test_ten_megabytes_get_413_while_they_are_sent(service: Service, chunked: bool) -> None:
    async with service.connection() as connection:
        part = b"x" * 100_000
        connection.send(
            HEAD + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 10000000\r\n\r\n")
        )
        for _ in range(100):
            connection.send(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            await connection.writer.drain()
        if chunked:
            connection.send(b"0\r\n\r\n")
        response = await connection.response()
        assert (response.status, response.code) == (413, "BODY_TOO_LARGE")
        assert response.headers["connection"] == "close"
        assert await connection.ended()
    assert service.endpoint.bodies == []


async def test_a_head_without_end_gets_431(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(100):
            connection.send(b"X-%d: %s\r\n" % (number, b"y" * 1_000))
            await asyncio.sleep(0)
        response = await connection.response()
        assert (response.status, response.code) == (431, "HEADERS_TOO_LARGE")


async def test_one_header_without_end_gets_431(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(b"GET /api/health HTTP/1.1\r\nX: ")
        for _ in range(100):
            connection.send(b"y" * 1_000)
            await asyncio.sleep(0)
        assert (await connection.response()).status == 431


async def test_a_long_uri_gets_414(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(b"GET /api/health?%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"x" * 3_000))
        assert (await connection.response()).code == "URI_TOO_LONG"


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"POST /api/graphql HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/graphql HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /api/graphql HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_400_and_the_headers_of_every_response(service: Service, data: bytes) -> None:
    async with service.connection() as connection:
        connection.send(data)
        response = await connection.response()
        assert response.status == 400
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["cache-control"] == "no-store"
    async with service.connection() as other:
        other.post(b"{}")
        assert (await other.response()).status == 200


async def test_an_answer_to_a_broken_request_never_passes_for_that_of_an_earlier_one(service: Service) -> None:
    service.endpoint.gate.clear()
    async with service.connection() as connection:
        connection.post(b'{"first":1}')
        await service.endpoint.entered.wait()
        connection.send(b"nonsense\r\n\r\n")
        await asyncio.sleep(0.05)
        service.endpoint.gate.set()
        response = await connection.response()
        assert (response.status, response.body) == (200, b'{"first":1}')
        assert await connection.ended()


async def test_nothing_is_left_behind(service: Service) -> None:
    for _ in range(50):
        async with service.connection() as connection:
            connection.send(HEAD + b"Content-Length: 100\r\n\r\n{")
    await service.eventually(lambda: service.serving.in_flight == 0 and service.server.connections == 0)


# Shutdown, step by step


async def test_draining_asks_kept_connections_to_end_and_serves_new_ones(service: Service) -> None:
    async with service.connection() as kept, service.connection() as fresh:
        kept.post(b"{}")
        await kept.response()
        service.serving.draining = True
        for connection in (kept, fresh):
            connection.post(b"{}")
            response = await connection.response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert await connection.ended()


async def test_after_unbinding_requests_on_kept_connections_get_503(service: Service) -> None:
    async with service.connection() as kept:
        kept.post(b"{}")
        await kept.response()
        await service.server.unbind()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", service.port)
        kept.post(b"{}")
        response = await kept.response()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert await kept.ended()


async def test_what_is_in_flight_at_unbinding_is_answered(service: Service) -> None:
    service.endpoint.gate.clear()
    async with service.connection() as connection:
        connection.post(b'{"x":1}')
        await service.endpoint.entered.wait()
        await service.server.unbind()
        done = asyncio.create_task(service.server.requests_done())
        await asyncio.sleep(0.1)
        assert not done.done()
        service.endpoint.gate.set()
        assert (await connection.response()).body == b'{"x":1}'
        await asyncio.wait_for(done, 5)
        await service.server.stop()
        assert await connection.ended()


async def test_what_the_kernel_had_accepted_at_unbinding_is_answered(service: Service) -> None:
    # These connections are made while the event loop does not run, so they wait in the socket's queue.
    waiting = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(50)]
    for number, client in enumerate(waiting):
        if number % 2:
            client.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
    await service.server.unbind()
    done = asyncio.create_task(service.server.requests_done())
    await asyncio.sleep(0.1)
    # Half of them have not sent their request yet; it is waited for.
    assert not done.done()
    for number, client in enumerate(waiting):
        if not number % 2:
            client.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
    await asyncio.wait_for(done, 5)
    for client in waiting:
        client.settimeout(5)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
        client.close()


async def test_pipelined_requests_are_all_answered_while_it_drains(service: Service) -> None:
    async with service.connection() as connection:
        service.endpoint.gate.clear()
        for number in range(5):
            connection.post(b"%d" % number)
        await service.endpoint.entered.wait()
        service.serving.draining = True
        service.endpoint.gate.set()
        answers = [await connection.response() for _ in range(5)]
        assert [answer.body for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]
        # Only the last one closes: a client need not look at what comes behind an answer that does.
        assert ["connection" in answer.headers for answer in answers] == [False] * 4 + [True]
        assert await connection.ended()


async def test_pipelined_requests_that_came_before_unbinding_are_all_answered(service: Service) -> None:
    async with service.connection() as connection:
        service.endpoint.gate.clear()
        for number in range(5):
            connection.post(b"%d" % number)
        await service.endpoint.entered.wait()
        await service.server.unbind()
        service.endpoint.gate.set()
        assert [(await connection.response()).status for _ in range(5)] == [200] * 5
        assert await connection.ended()
        await asyncio.wait_for(service.server.requests_done(), 5)


async def test_a_request_that_had_begun_on_a_kept_connection_at_unbinding_is_served(service: Service) -> None:
    async with service.connection() as kept:
        kept.post(b"{}")
        await kept.response()
        (protocol,) = service.server._connections()
        kept.send(HEAD)
        await service.eventually(lambda: protocol.requests == 2)
        await service.server.unbind()
        kept.send(b"Content-Length: 2\r\n\r\n{}")
        assert (await kept.response()).status == 200
        assert await kept.ended()


async def test_what_is_not_done_in_time_is_answered_and_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    async with running(read_timeout=60) as service:
        service.endpoint.gate.clear()
        async with service.connection() as stuck, service.connection() as half, service.connection() as slow:
            stuck.post(b"{}")
            half.send(HEAD)
            slow.send(HEAD + b"Content-Length: 100\r\n\r\n{")
            await service.endpoint.entered.wait()
            await service.eventually(lambda: service.server.connections == 3)
            await service.server.unbind()
            begun = asyncio.get_running_loop().time()
            done = asyncio.create_task(service.server.requests_done(2.0))
            answers = [await connection.response() for connection in (stuck, half, slow)]
            await done
            assert asyncio.get_running_loop().time() - begun < 2.0
            await service.server.stop()
            assert [answer.status for answer in answers] == [503, 408, 408]
            assert answers[0].code == "TIMEOUT"
            assert all(answer.headers["connection"] == "close" for answer in answers)


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(service: Service) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.setblocking(False)
        await loop.sock_sendall(client, HEAD + b"Content-Length: 5\r\n\r\nlarge")
        await service.eventually(lambda: bool(service.endpoint.bodies) and service.serving.in_flight == 0)
        await service.server.unbind()
        done = asyncio.create_task(service.server.requests_done(10.0))
        await asyncio.sleep(0.1)
        assert not done.done()
        answer = b""
        while not answer.endswith(LARGE):
            part = await loop.sock_recv(client, 1_000_000)
            assert part
            answer += part
        await asyncio.wait_for(done, 5)


async def test_a_client_that_does_not_take_its_answer_holds_up_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.setblocking(False)
        await loop.sock_sendall(client, HEAD + b"Content-Length: 5\r\n\r\nlarge")
        await service.eventually(lambda: bool(service.endpoint.bodies) and service.serving.in_flight == 0)
        await service.server.unbind()
        await asyncio.wait_for(service.server.requests_done(0.4), 5)
    assert "do not take their answers" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel can't hold connections back")
async def test_while_it_unbinds_no_connection_begins_that_would_be_reset(service: Service) -> None:
    loop = asyncio.get_running_loop()
    queued = socket.create_connection(("127.0.0.1", service.port))
    unbinding = asyncio.create_task(service.server.unbind(0.5))
    await asyncio.sleep(0)
    late = socket.socket()
    late.setblocking(False)
    connecting = asyncio.create_task(loop.sock_connect(late, ("127.0.0.1", service.port)))
    await unbinding
    # Without the filter it would be connected by now: the event loop has run all the time.
    assert not connecting.done()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.wait_for(connecting, 10)
    late.close()
    queued.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
    await asyncio.wait_for(service.server.requests_done(), 5)
    with queued:
        assert queued.recv(65_536).startswith(b"HTTP/1.1 200 ")


async def test_stopping_ends_every_connection(service: Service) -> None:
    async with service.connection() as idle, service.connection() as half:
        half.send(HEAD)
        await service.eventually(lambda: service.server.connections == 2)
        await service.server.unbind()
        await service.server.stop()
        assert await idle.ended()
        assert await half.ended()


# Ports


def test_a_port_in_use_is_one_clear_line() -> None:
    with bind("127.0.0.1", 0, "command_port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1 port {port}: the port is in use.*`command_port`"):
            bind("127.0.0.1", port, "command_port")


def test_a_host_that_is_not_here_is_one_clear_line() -> None:
    with pytest.raises(CannotListen, match="change `host`"):
        bind("192.0.2.1", 0, "command_port")
    with pytest.raises(CannotListen, match="change `host`"):
        bind("no such host", 0, "command_port")


def test_ipv6_loopback_can_be_listened_on() -> None:
    with bind("::1", 0, "command_port") as bound:
        assert bound.family is socket.AF_INET6


async def test_thousands_of_pipelined_requests_are_all_answered(service: Service) -> None:
    async with service.connection() as connection:
        body = b'{"query": "{ health }"}'
        one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        connection.send(one * 2_000)
        for _ in range(2_000):
            assert (await connection.response()).status == 200


async def test_a_broken_chunk_gets_400_at_once_and_not_a_time_out(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.send(b"ZZ\r\n")
        assert (await connection.response()).status == 400
        assert service.endpoint.bodies == []


async def test_another_transfer_coding_is_not_read_as_plain(service: Service) -> None:
    for coding in (b"gzip, chunked", b"chunked, chunked"):
        async with service.connection() as connection:
            connection.send(HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
            assert (await connection.response()).status in {400, 501}
            assert service.endpoint.bodies == []


@pytest.mark.parametrize("piece", [b"X: a\r\n" * 10_000, b"X" * 60_000], ids=["fields", "one field"])
async def test_trailers_without_end_are_cut(service: Service, piece: bytes) -> None:
    async with service.connection() as connection:
        connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        response = asyncio.create_task(connection.response())
        sent = 0
        while not response.done() and sent < 20_000_000:
            connection.send(piece)
            await connection.writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
        assert (await response).status == 431
        assert service.endpoint.bodies == []
