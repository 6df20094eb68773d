"""Integration: the TLS port: which clients it lets in, what it cuts, and shutdown, as without TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiseki.application.system import SystemClock
from kiseki.security.tls import ReloadingTls, TlsFiles
from kiseki.service.admission import Admission
from tests.integration.service.transport_parts import (
    GOOD,
    HANDSHAKE_TIMEOUT,
    HEAD,
    HEALTH,
    HOST,
    READ_TIMEOUT,
    Service,
    running,
)
from tests.servers.certificates import Authority

PLAIN_HTTP = [
    HEALTH,
    GOOD,
    b"GET / HTTP/1.0\r\n\r\n",
    b"nonsense\r\n",
    b"\x00" * 400,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority) -> ReloadingTls:
    pair = authority.issue()
    return ReloadingTls(TlsFiles(certificate=pair.certificate, key=pair.key), clock=SystemClock())


@pytest.fixture
async def service(tls: ReloadingTls) -> AsyncIterator[Service]:
    async with running(tls=tls) as made:
        yield made


@pytest.fixture
def client(authority: Authority) -> ssl.SSLContext:
    return authority.client()


# What is good is answered


async def test_requests_are_answered_over_tls_1_3_and_the_connection_is_kept(
    service: Service, client: ssl.SSLContext
) -> None:
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with service.connection(client) as connection:
        for _ in range(3):
            connection.send(GOOD)
            response = await connection.response()
            assert (response.status, response.body) == (200, b"{}")
            assert response.protected(tls=True)
        assert connection.tls.version() == "TLSv1.3"
        assert connection.tls.selected_alpn_protocol() == "http/1.1"
        assert connection.tls.compression() is None
        assert not connection.tls.session_reused


async def test_no_session_can_be_resumed(service: Service, client: ssl.SSLContext) -> None:
    def handshake() -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(HEALTH)
            wrapped.recv(1_000)
            return wrapped.session

    session = await asyncio.to_thread(handshake)
    assert session is None or not session.has_ticket


async def test_a_large_answer_arrives_whole(service: Service, client: ssl.SSLContext) -> None:
    async with service.connection(client) as connection:
        connection.send(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        assert len((await connection.response()).body) == 20_000_000


# What is not TLS 1.3 is refused


@pytest.mark.parametrize("data", PLAIN_HTTP)
async def test_plain_http_on_the_tls_port_gets_no_answer(service: Service, data: bytes) -> None:
    async with service.connection() as connection:
        connection.send(data)
        async with asyncio.timeout(10):
            try:
                received = await connection.reader.read()
            except ConnectionError:
                received = b""
    # At most a TLS alert (record type 21): nothing of HTTP.
    assert received == b"" or received[0] == 21
    assert b"HTTP" not in received
    assert service.app.bodies == []
    await service.empty()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_older_versions_are_refused(service: Service, authority: Authority, version: ssl.TLSVersion) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with service.connection(authority.client(maximum=version)):
            pass
    await service.empty()


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
async def test_openssl_can_not_connect_with_older_versions(service: Service, version: str) -> None:
    outcome = await _s_client(service.port, version, "-cipher", "ALL:@SECLEVEL=0")
    assert outcome.returncode != 0
    assert "Cipher is (NONE)" in outcome.stdout
    assert (await _s_client(service.port, "-tls1_3")).returncode == 0


async def test_tls_1_2_by_setting_has_forward_secrecy_only(authority: Authority) -> None:
    pair = authority.issue()
    tls = ReloadingTls(
        TlsFiles(certificate=pair.certificate, key=pair.key, minimum="1.2"),
        clock=SystemClock(),
    )
    async with running(tls=tls) as service:
        async with service.connection(authority.client(maximum=ssl.TLSVersion.TLSv1_2)) as connection:
            connection.send(GOOD)
            assert (await connection.response()).status == 200
            assert connection.tls.version() == "TLSv1.2"
        for refused in ("-tls1", "-tls1_1"):
            assert (await _s_client(service.port, refused, "-cipher", "ALL:@SECLEVEL=0")).returncode != 0
        for suites, accepted in [
            ("ECDHE+AESGCM", True),
            ("ECDHE+CHACHA20", True),
            ("ECDHE+AES:!AESGCM:!AESCCM", False),
            ("AESCCM", False),
            ("kRSA", False),
            ("DHE", False),
            ("aNULL", False),
        ]:
            outcome = await _s_client(service.port, "-tls1_2", "-cipher", f"{suites}:@SECLEVEL=0")
            assert (outcome.returncode == 0) is accepted, suites


async def test_renegotiation_is_refused(authority: Authority) -> None:
    pair = authority.issue()
    files = TlsFiles(certificate=pair.certificate, key=pair.key, minimum="1.2")
    async with running(tls=ReloadingTls(files, clock=SystemClock())) as service:
        outcome = await _s_client(service.port, "-tls1_2", stdin="R\n")
        assert "no renegotiation" in outcome.stderr


async def test_a_client_that_does_not_trust_the_authority_goes_away(service: Service) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        async with service.connection(ssl.create_default_context()):
            pass
    await service.empty()


# Client certificates


async def test_with_a_trust_store_only_clients_of_its_authorities_are_let_in(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    stranger = Authority(tmp_path, "Stranger")
    pair = authority.issue()
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    known = authority.issue("client", usage=usage)
    unknown = stranger.issue("stranger", usage=usage)
    no_client = authority.issue("another server")
    files = TlsFiles(certificate=pair.certificate, key=pair.key, client_ca=authority.trust)
    async with running(tls=ReloadingTls(files, clock=SystemClock())) as service:
        assert (await service.ask(GOOD, authority.client(known))).status == 200
        for context in (authority.client(), authority.client(unknown), authority.client(no_client)):
            # In TLS 1.3 a client learns of it when it reads.
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await service.ask(GOOD, context)
        assert service.app.bodies == [b"{}"]
        await service.empty()


# What is slow or half open is cut


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_that_stalls_is_cut(service: Service, data: bytes) -> None:
    async with service.connection() as connection:
        connection.send(data)
        await service.eventually(lambda: service.server.connections == 1)
        assert await connection.ended()
    await service.empty()


async def test_a_handshake_byte_by_byte_buys_no_time(service: Service) -> None:
    async with service.connection() as connection:
        started = asyncio.get_running_loop().time()

        async def drip() -> None:
            while True:
                connection.send(b"\x16")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await connection.ended()
        dripping.cancel()
        assert asyncio.get_running_loop().time() - started < 4 * HANDSHAKE_TIMEOUT


async def test_stalled_handshakes_do_not_hold_up_others(service: Service, client: ssl.SSLContext) -> None:
    stalled = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
    assert (await service.ask(GOOD, client)).status == 200
    for one in stalled:
        one.close()
    await service.empty()


async def test_half_open_handshakes_are_bounded(tls: ReloadingTls, client: ssl.SSLContext) -> None:
    admission = Admission(total=5, per_address=0)
    async with running(tls=tls, admission=admission) as service:
        stalled = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(5)]
        await service.eventually(lambda: admission.open == 5)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with service.connection(client):
                pass
        assert admission.refused == 1
        # They run into the handshake's timeout, and others are let in.
        await service.eventually(lambda: admission.open == 0)
        assert (await service.ask(GOOD, client)).status == 200
        for one in stalled:
            one.close()
        await service.eventually(lambda: admission.open == 0)


@pytest.mark.parametrize("start", [HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"], ids=["head", "body"])
async def test_half_a_request_gets_408(service: Service, client: ssl.SSLContext, start: bytes) -> None:
    async with service.connection(client) as connection:
        connection.send(start)
        response = await connection.response()
        assert (response.status, response.code) == (408, "REQUEST_TIMEOUT")
        assert response.protected(tls=True)
        assert await connection.ended()
    await service.empty()


async def test_a_client_that_does_not_read_is_cut(service: Service, client: ssl.SSLContext) -> None:
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)

        def ask() -> ssl.SSLSocket:
            plain.connect(("127.0.0.1", service.port))
            plain.settimeout(5)
            wrapped = client.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
            wrapped.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
            return wrapped

        wrapped = await asyncio.to_thread(ask)
        await service.eventually(lambda: service.server.connections == 1)
        await service.empty()
        wrapped.close()


async def test_a_connection_that_says_nothing_after_its_handshake_is_closed(
    tls: ReloadingTls, client: ssl.SSLContext
) -> None:
    async with running(tls=tls, idle=0.2) as service, service.connection(client) as silent:
        assert await silent.ended()


async def test_a_client_that_vanishes_leaves_nothing_behind(service: Service, client: ssl.SSLContext) -> None:
    for _ in range(20):
        async with service.connection(client) as connection:
            connection.send(HEAD + b"Content-Length: 100\r\n\r\n{")
            transport: Any = connection.writer.transport
            transport.abort()
    await service.empty()


# Refusals are seen by clients that are still sending


async def test_what_is_not_http_gets_400_over_tls(service: Service, client: ssl.SSLContext) -> None:
    async with service.connection(client) as connection:
        connection.send(b"nonsense\r\n\r\n")
        response = await connection.response()
        assert response.status == 400
        assert response.protected(tls=True)
        assert await connection.ended()


async def test_a_client_that_goes_on_sending_sees_its_refusal(service: Service, client: ssl.SSLContext) -> None:
    async with service.connection(client) as connection:
        connection.send(b"GET /api/health HTTP/1.1\r\nX: " + b"y" * 1_000_000)
        response = await connection.response()
        assert response.status == 431
        assert response.protected(tls=True)


async def test_ten_megabytes_get_413_while_they_are_sent(service: Service, client: ssl.SSLContext) -> None:
    async with service.connection(client) as connection:
        connection.send(HEAD + b"Content-Length: 10000000\r\n\r\n")
        for _ in range(100):
            connection.send(b"x" * 100_000)
            await connection.writer.drain()
        response = await connection.response()
        assert (response.status, response.code) == (413, "BODY_TOO_LARGE")
    assert service.app.bodies == []


# Shutdown, step by step


async def test_draining_asks_connections_to_end_and_serves_new_ones(service: Service, client: ssl.SSLContext) -> None:
    service.serving.draining = True
    async with service.connection(client) as connection:
        connection.send(GOOD)
        response = await connection.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        # An end without close_notify would be an SSLError (or nothing) here, which `ended` takes for a reset.
        async with asyncio.timeout(10):
            assert await connection.reader.read() == b""


async def test_what_the_kernel_had_accepted_at_unbinding_is_answered(service: Service, client: ssl.SSLContext) -> None:
    waiting = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(10)]
    await service.server.unbind()
    done = asyncio.create_task(service.server.requests_done())
    await asyncio.sleep(0.1)
    # None of them has begun its handshake yet; it is waited for.
    assert not done.done()

    def ask(plain: socket.socket) -> bytes:
        plain.settimeout(5)
        with client.wrap_socket(plain, server_hostname="localhost") as wrapped:
            wrapped.sendall(GOOD)
            return wrapped.recv(1_000)

    for answer in await asyncio.gather(*(asyncio.to_thread(ask, one) for one in waiting)):
        assert answer.startswith(b"HTTP/1.1 200 ")
    await asyncio.wait_for(done, 5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", service.port))


async def test_what_is_in_flight_is_answered_and_then_the_end_is_proper(
    service: Service, client: ssl.SSLContext
) -> None:
    service.app.gate.clear()
    async with service.connection(client) as connection:
        connection.send(GOOD)
        await service.app.entered.wait()
        await service.server.unbind()
        done = asyncio.create_task(service.server.requests_done())
        await asyncio.sleep(READ_TIMEOUT / 5)
        assert not done.done()
        service.app.gate.set()
        assert (await connection.response()).status == 200
        await asyncio.wait_for(done, 5)
        await service.server.stop()
        async with asyncio.timeout(10):
            assert await connection.reader.read() == b""
    assert service.server.connections == 0


async def test_stopping_ends_every_connection_and_every_handshake(tls: ReloadingTls, client: ssl.SSLContext) -> None:
    async with (
        running(tls=tls, handshake_timeout=60) as service,
        service.connection(client) as idle,
        service.connection(client) as half,
        service.connection() as stalled,
    ):
        half.send(HEAD)
        await service.eventually(lambda: service.server.connections == 3)
        await service.server.unbind()
        await asyncio.wait_for(service.server.stop(), 5)
        assert service.server.connections == 0
        for connection in (idle, half, stalled):
            assert await connection.ended()


async def _s_client(port: int, *options: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", *options],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
