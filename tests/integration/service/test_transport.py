"""Integration: what an attacker can send over the wire, and what every answer has, with TLS and without."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.security.tls import ReloadingTls, TlsFiles
from kiseki.service.admission import Admission
from kiseki.service.cors import Cors
from kiseki.service.hosts import Hosts
from tests.integration.service.transport_parts import (
    GOOD,
    HEAD,
    HEALTH,
    HOST,
    WRITE_TIMEOUT,
    Response,
    Service,
    running,
)
from tests.servers.certificates import Authority

POST = b"POST /api/graphql HTTP/1.1\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as made:
        yield made


# Every answer has the headers of every answer


ANSWERS: list[tuple[int, bytes]] = [
    (200, HEALTH),
    (200, GOOD),
    (200, b"HEAD /api/health HTTP/1.1\r\n" + HOST + b"\r\n"),
    (200, HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"),
    (400, b"nonsense\r\n\r\n"),
    (400, b"GET /api/health HTTP/1.1\r\n\r\n"),
    (400, POST + b"Host: a\r\nHost: a\r\n\r\n"),
    (400, HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    (404, b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n"),
    (404, b"HEAD /nothing HTTP/1.1\r\n" + HOST + b"\r\n"),
    (405, b"GET /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n"),
    (405, b"OPTIONS /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n"),
    (405, b"TRACE /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n"),
    (405, b"FOO /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n"),
    (408, HEAD),
    (408, HEAD + b"Content-Length: 10\r\n\r\n"),
    (413, HEAD + b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000),
    (414, b"GET /%s HTTP/1.1\r\n" % (b"x" * 3_000) + HOST + b"\r\n"),
    (414, b"GET /%s HTTP/1.1\r\n" % (b"x" * 200_000) + HOST + b"\r\n"),
    (431, b"GET /api/health HTTP/1.1\r\n" + HOST + b"X: %s\r\n\r\n" % (b"x" * 20_000)),
    (500, b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n"),
    (500, b"GET /crash HTTP/1.1\r\n" + HOST + b"\r\n"),
    (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    (505, b"GET /api/health HTTP/2.0\r\n" + HOST + b"\r\n"),
]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_every_answer_has_the_headers_of_every_answer(tmp_path: Path, secure: bool) -> None:
    authority = Authority(tmp_path)
    client = authority.client() if secure else None
    pair = authority.issue()
    tls = ReloadingTls(TlsFiles(certificate=pair.certificate, key=pair.key), clock=SystemClock()) if secure else None
    async with running(tls=tls) as service:

        async def ask(status: int, data: bytes) -> Response:
            async with service.connection(client) as connection:
                connection.send(data)
                response = await connection.response(head=data.startswith(b"HEAD"))
                if response.status == 100:
                    response = await connection.response()
                assert response.status == status, data[:60]
                return response

        for status, data in ANSWERS:
            response = await ask(status, data)
            assert response.protected(tls=secure), data[:60]
            if status >= 400 and not data.startswith(b"HEAD"):
                assert response.headers["content-type"] == "application/problem+json"
                assert b"secret" not in response.body
                assert b"Traceback" not in response.body
                assert b"uvicorn" not in response.body
            if status == 405:
                assert response.headers["allow"] == "POST"
        await service.server.unbind()
        await service.empty()


async def test_behind_a_proxy_with_tls_every_answer_has_hsts() -> None:
    async with running(hsts=True) as service:
        for data in (HEALTH, b"nonsense\r\n\r\n", b"GET /crash HTTP/1.1\r\n" + HOST + b"\r\n"):
            assert (await service.ask(data)).protected(tls=True)


async def test_after_unbinding_503_has_them_too(service: Service) -> None:
    async with service.connection() as kept:
        kept.send(GOOD)
        await kept.response()
        await service.server.unbind()
        kept.send(GOOD)
        response = await kept.response()
        assert response.status == 503
        assert response.protected(tls=False)


# Methods and targets


@pytest.mark.parametrize(
    "method",
    [
        b"FOO",
        b"get",
        b"Post",
        b"G",
        b"GETT",
        b"P",
        b"POSTS",
        b"UNLINK",
        b"MKCOL",
        b"QUERY",
        b"PATCH",
        b"DELETE",
        b"PUT",
        b"TRACE",
        b"CONNECT",
        b"M-SEARCH",
        b"!#$%&'*+.^_`|~",
        b"X" * 32,
    ],
)
async def test_any_other_method_on_a_path_gets_405_and_allow(service: Service, method: bytes) -> None:
    async with service.connection() as connection:
        connection.send(method + b" /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n")
        response = await connection.response()
        assert (response.status, response.code) == (405, "METHOD_NOT_ALLOWED")
        assert response.headers["allow"] == "POST"
        connection.send(GOOD)
        assert (await connection.response()).status == 200


async def test_a_method_that_comes_in_pieces_is_the_same_method(service: Service) -> None:
    async with service.connection() as connection:
        for method, status in ((b"FOO", 405), (b"POST", 200), (b"POSTAGE", 405)):
            for letter in b"\r\n" + method + b" /api":
                connection.send(bytes([letter]))
                await connection.writer.drain()
                await asyncio.sleep(0.005)
            connection.send(b"/graphql HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}")
            assert (await connection.response()).status == status


async def test_pieces_of_a_method_are_never_dropped(service: Service) -> None:
    for first in (b"X", b"POST", b"GET"):
        async with service.connection() as connection:
            connection.send(first)
            await connection.writer.drain()
            await asyncio.sleep(0.05)
            connection.send(GOOD)
            assert (await connection.response()).status == 405
    assert service.app.bodies == []


async def test_empty_lines_buy_no_time() -> None:
    async with running(idle=0.3) as service, service.connection() as fresh, service.connection() as kept:
        kept.send(GOOD)
        await kept.response()

        async def drip() -> None:
            while True:
                for connection in (fresh, kept):
                    connection.send(b"\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await fresh.ended()
        assert await kept.ended()
        dripping.cancel()


async def test_half_a_method_gets_408(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(b"FO")
        assert (await connection.response()).code == "REQUEST_TIMEOUT"
        assert await connection.ended()


async def test_a_method_letter_by_letter_buys_no_time(service: Service) -> None:
    async with service.connection() as connection:

        async def drip() -> None:
            for _ in range(30):
                connection.send(b"A")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert (await connection.response()).status == 408
        assert not dripping.done()
        dripping.cancel()


@pytest.mark.parametrize("method", [b"X" * 33, b"X" * 100_000, b"F(O", b"F\xffO", b"F\x00O", b"", b":", b'"FOO"'])
async def test_what_is_no_method_gets_400(service: Service, method: bytes) -> None:
    response = await service.ask(method + b" /api/graphql HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (response.status, response.code) == (400, "MALFORMED_REQUEST")


async def test_the_body_of_an_unknown_method_is_no_next_request(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(b"FOO /api/graphql HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED))
        connection.send(SMUGGLED + GOOD)
        assert [(await connection.response()).status for _ in range(2)] == [405, 200]


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"x",
        b"api/graphql",
        b"/api/graphql#x",
        b"/\x80",
        b"/a\x00b",
        b"ftp://localhost/api/health",
        b"http:///api/health",
        b"http:/localhost/api/health",
        b"localhost:80",
        b"javascript:alert(1)",
        b"http://local\\host/",
    ],
)
async def test_what_is_no_target_gets_400(service: Service, target: bytes) -> None:
    response = await service.ask(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert response.status == 400


@pytest.mark.parametrize("target", [b"*", b"localhost:443", b"evil.example:22", b"http://localhost/api/graphql"])
async def test_tunnels_are_not_opened(service: Service, target: bytes) -> None:
    response = await service.ask(b"CONNECT " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert response.status in {400, 405}


async def test_absolute_targets_are_served_when_their_host_is_the_host(service: Service) -> None:
    good = b"GET http://localhost:80/api/health?x HTTP/1.1\r\nHost: LOCALHOST:80\r\n\r\n"
    assert (await service.ask(good)).status == 200
    for target, host in [
        (b"http://evil.example/api/health", b"localhost"),
        (b"http://localhost/api/health", b"evil.example"),
        (b"http://localhost:81/api/health", b"localhost:80"),
        (b"http://localhost/api/health", b"localhost:80"),
        (b"http://user@localhost/api/health", b"localhost"),
        (b"http://localhost,evil/api/health", b"localhost"),
    ]:
        response = await service.ask(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert response.status == 400
        assert response.code in {"INVALID_HOST", "MALFORMED_REQUEST"}


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/3.0", b"http/1.1", b"HTTP/11", b""])
async def test_other_versions_are_refused(service: Service, version: bytes) -> None:
    response = await service.ask((b"GET /api/health " + version).rstrip() + b"\r\n" + HOST + b"\r\n")
    assert response.status in {400, 505}


async def test_a_long_target_is_414_and_a_long_field_431_however_they_come(service: Service) -> None:
    for piece in (1_000, 300_000):
        for start, code in (
            (b"GET /", "URI_TOO_LONG"),
            (b"GET /api/health HTTP/1.1\r\n" + HOST + b"X: ", "HEADERS_TOO_LARGE"),
        ):
            async with service.connection() as connection:
                connection.send(start)
                for _ in range(300_000 // piece):
                    connection.send(b"y" * piece)
                    await asyncio.sleep(0)
                connection.send(b" HTTP/1.1\r\n" + HOST + b"\r\n" if start == b"GET /" else b"\r\n\r\n")
                response = await connection.response()
                assert response.code == code
                # One that came whole is refused by the app, and the connection is kept.
                if response.headers.get("connection") == "close":
                    assert await connection.ended()
        await service.empty()


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b" ",
        b"a b",
        b"a,b",
        b"user@localhost",
        b"localhost:x",
        b"localhost:0",
        b"http://localhost",
        b"a/b",
        b"[::1",
    ],
)
async def test_a_host_that_is_none_gets_400_and_is_recorded(service: Service, host: bytes) -> None:
    response = await service.ask(b"GET /api/health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert (response.status, response.code) == (400, "INVALID_HOST")
    [event] = service.audit.events
    assert (event.kind, event.outcome, event.code) == ("request.refused", "refused", "INVALID_HOST")
    assert (event.address, event.api) == ("127.0.0.1", "command")


async def test_only_listed_hosts_are_answered_and_health_for_any() -> None:
    async with running(hosts=Hosts(["api.example.com", "localhost:8443"])) as service:
        for host, status in [
            (b"api.example.com", 200),
            (b"API.example.com:9", 200),
            (b"localhost:8443", 200),
            (b"localhost", 400),
            (b"api.example.com.evil.example", 400),
            (b"127.0.0.1", 400),
        ]:
            body = b"\r\nContent-Length: 2\r\n\r\n{}"
            assert (await service.ask(POST + b"Host: " + host + body)).status == status
        assert (await service.ask(b"GET /api/health HTTP/1.1\r\nHost: 10.0.0.5:80\r\n\r\n")).status == 200
        assert (await service.ask(b"GET /nothing HTTP/1.1\r\nHost: evil.example\r\n\r\n")).code == "INVALID_HOST"
        assert (await service.ask(b"GET /nothing HTTP/1.0\r\n\r\n")).code == "INVALID_HOST"


# Other origins


def preflight(origin: bytes, method: bytes = b"POST", headers: bytes = b"content-type, authorization") -> bytes:
    return (
        b"OPTIONS /api/graphql HTTP/1.1\r\n"
        + HOST
        + b"Origin: "
        + origin
        + b"\r\nAccess-Control-Request-Method: "
        + method
        + b"\r\nAccess-Control-Request-Headers: "
        + headers
        + b"\r\n\r\n"
    )


def cross_origin(response: Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


async def test_without_a_list_no_origin_is_allowed(service: Service) -> None:
    response = await service.ask(preflight(b"https://console.example.com"))
    assert (response.status, response.headers["allow"]) == (405, "POST")
    assert not cross_origin(response)
    response = await service.ask(GOOD.replace(HOST, HOST + b"Origin: https://console.example.com\r\n"))
    assert not cross_origin(response)


async def test_only_listed_origins_may_call_and_read() -> None:
    good = b"https://console.example.com"
    async with running(cors=Cors([good.decode()])) as service:
        response = await service.ask(preflight(good))
        assert response.status == 204
        assert response.headers["access-control-allow-origin"] == good.decode()
        assert response.headers["access-control-allow-methods"] == "POST"
        assert "content-length" not in response.headers
        for refused in (
            preflight(b"https://evil.example"),
            preflight(b"null"),
            preflight(good, b"DELETE"),
            preflight(good, headers=b"cookie"),
        ):
            response = await service.ask(refused)
            assert (response.status, response.code) == (403, "ORIGIN_NOT_ALLOWED")
            assert "access-control-allow-methods" not in response.headers
        for origin, named in ((good, True), (b"https://evil.example", False), (b"null", False), (b"*", False)):
            for data in (GOOD, GOOD.replace(b"/api/graphql", b"/nothing")):
                response = await service.ask(data.replace(HOST, HOST + b"Origin: " + origin + b"\r\n"))
                assert (response.headers.get("access-control-allow-origin") == good.decode()) is named
                assert "access-control-allow-credentials" not in response.headers
                assert response.headers["vary"] == "Origin"
        twice = HOST + b"Origin: " + good + b"\r\nOrigin: https://evil.example\r\n"
        assert (await service.ask(GOOD.replace(HOST, twice))).code == "REPEATED_HEADER"


# Smuggling: whatever two readers could read differently ends the connection


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
        HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"Content-Length: -2\r\n\r\n{}",
        HEAD + b"Content-Length: 0x2\r\n\r\n{}",
        HEAD + b"Content-Length: 2e0\r\n\r\n{}",
        HEAD + b"Content-Length: 2 2\r\n\r\n{}",
        HEAD + b"Content-Length:\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        HEAD + b"Content-Length: \xef\xbc\x92\r\n\r\n{}",
        HEAD + b"Content-Length : 2\r\n\r\n{}",
        HEAD + b"Content-Length\t: 2\r\n\r\n{}",
        HEAD + b"Content-Length\x0b: 2\r\n\r\n{}",
        HEAD + b"Content-Length:\x0b2\r\n\r\n{}",
        HEAD + b" Content-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\r\n Content-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\r\n\tb\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\rContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\n\n{}",
        HEAD + b"Content-Length: 2\r\r{}",
        HEAD + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X\x00: b\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\x01b\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: a\x7f\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b": b\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X(Y): b\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"no colon\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
        HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\n\r\n0\r\n\r\n",
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"2\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r0\r\n\r\n",
        CHUNKED + b"2\r\n{}X\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}0\r\n\r\n",
        CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2_0\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"G\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b'2;a="\nb"\r\n{}\r\n0\r\n\r\n',
        CHUNKED + b"2;\xff\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\n\r\n",
        CHUNKED + b"2\r\n{}\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nX\x00: a\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nX : a\r\n\r\n",
    ],
)
async def test_a_request_with_two_readings_is_refused_and_its_connection_ends(service: Service, data: bytes) -> None:
    async with service.connection() as connection:
        connection.send(data + SMUGGLED)
        response = await connection.response()
        assert response.status in {400, 501}
        assert response.headers["connection"] == "close"
        assert response.protected(tls=False)
        # Nothing after it is read as a request.
        assert await connection.ended()
    assert service.app.bodies == []
    assert [event.kind for event in service.audit.events] == ["request.refused"]
    assert (await service.ask(GOOD)).status == 200
    await service.empty()


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"content-LENGTH:2\r\n\r\n{}",
        HEAD + b"Content-Length:  2 \r\n\r\n{}",
        HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b'2;name=value;other="quoted"\r\n{}\r\n0\r\nTrailer: x\r\n\r\n',
        b"\r\n\r\n" + GOOD,
        HEAD + b"X: \xe5\xa4\xaa\xe9\x83\x8e\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_what_has_one_reading_is_served(service: Service, data: bytes) -> None:
    assert (await service.ask(data)).body == b"{}"


async def test_what_comes_after_a_request_that_closes_is_not_served(service: Service) -> None:
    async with service.connection() as connection:
        connection.send(GOOD.replace(HOST, HOST + b"Connection: close\r\n") + GOOD)
        assert (await connection.response()).status == 200
        assert await connection.ended()
    assert service.app.bodies == [b"{}"]


# Slow readers and too many connections


async def test_a_client_that_does_not_read_is_cut(service: Service) -> None:
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        plain.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(plain, ("127.0.0.1", service.port))
        await loop.sock_sendall(plain, b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await service.eventually(lambda: service.server.connections == 1)
        started = loop.time()
        await service.empty()
        assert loop.time() - started < 5 * WRITE_TIMEOUT


async def test_a_client_that_asks_for_more_than_it_reads_is_cut(service: Service) -> None:
    async with service.connection() as connection:
        transport = connection.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        body = b"x" * 60_000
        one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for _ in range(300):
            connection.send(one)
        await service.eventually(lambda: len(service.app.bodies) > 1)
        await service.empty()
        assert len(service.app.bodies) < 300


async def test_one_connection_too_many_gets_503_and_the_others_go_on() -> None:
    admission = Admission(total=3, per_address=0)
    async with running(admission=admission) as service:
        async with service.connection() as first, service.connection(), service.connection():
            await service.eventually(lambda: admission.open == 3)
            async with service.connection() as refused:
                response = await refused.response()
                assert (response.status, response.code) == (503, "TOO_MANY_CONNECTIONS")
                assert response.headers["retry-after"] == "5"
                assert response.protected(tls=False)
                assert await refused.ended()
            first.send(GOOD)
            assert (await first.response()).status == 200
        await service.eventually(lambda: admission.open == 0)
        assert (await service.ask(GOOD)).status == 200


async def test_one_address_gets_no_more_than_its_share() -> None:
    async with (
        running(admission=Admission(total=0, per_address=2)) as service,
        service.connection(),
        service.connection(),
        service.connection() as third,
    ):
        assert (await third.response()).code == "TOO_MANY_CONNECTIONS"


async def test_hundreds_of_half_heads_leave_nothing_behind(service: Service) -> None:
    @asynccontextmanager
    async def half() -> AsyncIterator[None]:
        async with service.connection() as connection:
            connection.send(HEAD)
            yield

    halves = [half() for _ in range(200)]
    for one in halves:
        await one.__aenter__()
    assert (await service.ask(GOOD)).status == 200
    await service.empty()
    for one in halves:
        await one.__aexit__(None, None, None)


async def test_refusals_do_not_write_to_the_log_what_was_sent(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for data in (
        b"secret-token\r\n\r\n",
        b"GET /\x00secret-token HTTP/1.1\r\n\r\n",
        b"secret-token / HTTP/1.1\r\n\r\n",
    ):
        await service.ask(data)
    assert "secret-token" not in caplog.text
