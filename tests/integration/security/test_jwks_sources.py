"""Key sets in files and at URLs, on real sockets: rotations, and endpoints that are slow, huge, lying or gone."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kiseki.kernel.ports import Unauthenticated
from kiseki.security.identity.jwks_file import JwksFile
from kiseki.security.identity.jwks_url import JwksUrl, JwksUrlRefused
from kiseki.security.identity.key_sources import KeysUnavailable, RefreshedKeys
from kiseki.security.identity.keys import KeyRefused
from tests.unit.security.identity.token_parts import (
    EC,
    ED,
    EDDSA,
    ES256,
    HS256,
    RS256,
    RSA,
    SECRET,
    Setup,
    b64,
    bearer,
    ec_jwk,
    ed_jwk,
    jwks,
    rsa_jwk,
    signed,
)

Answer: TypeAlias = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Endpoint:
    """An HTTP server that answers with the bytes a test wants."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answer: Answer = text(jwks(ec_jwk(EC, kid="es")))
        self.url = ""
        self.server: asyncio.Server

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/keys"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            await self.answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


def text(body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: application/json\r\n") -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return answer


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    await made.start()
    yield made
    made.server.close()


async def slow_body(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def slow_header(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def silence(_: bytes, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        writer.write(piece)
        await writer.drain()


async def hundred_megabytes(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n")
    for _number in range(1600):
        writer.write(b" " * 65536)
        await writer.drain()


async def cut(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + b'{"keys":[')


async def no_http(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")


async def long_header(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n")
    await writer.drain()


async def nothing(_: bytes, __: asyncio.StreamWriter) -> None:
    return


GOOD = jwks(ec_jwk(EC, kid="es"))
BOMB = gzip.compress(b'{"keys":[' + b" " * 50_000_000 + b"]}")
ZIPPED = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
HOSTILE: dict[str, Answer] = {
    "a slow body": slow_body,
    "slow headers": slow_header,
    "silence": silence,
    "an endless body": endless,
    "a hundred megabytes": hundred_megabytes,
    "a cut body": cut,
    "no HTTP": no_http,
    "a long header": long_header,
    "nothing": nothing,
    "a bomb": text(BOMB, headers=ZIPPED),
    "good keys, compressed": text(gzip.compress(GOOD), headers=ZIPPED),
    "an unknown coding": text(GOOD, headers=ZIPPED.replace("gzip", "zstd")),
    "HTML": text(b"<html>", headers="Content-Type: text/html\r\n"),
    "good keys as text": text(GOOD, headers="Content-Type: text/plain\r\n"),
    "good keys of no type": text(GOOD, headers=""),
    "garbage": text(os.urandom(4000)),
    "no keys": text(b'{"keys":[]}'),
    "another document": text(b'{"issuer":"x"}'),
    "doubled keys": text(b'{"keys":[],"keys":' + GOOD[8:]),
    "depth": text(b'{"keys":' + b"[" * 200_000),
    "only secrets": text(jwks({"kty": "oct", "kid": "x", "alg": "HS256", "k": b64(SECRET).decode()})),
    "500": text(GOOD, status="500 Internal Server Error"),
    "404": text(GOOD, status="404 Not Found"),
    "204": text(b"", status="204 No Content"),
    "206": text(GOOD, status="206 Partial Content"),
    "304 that was not asked for": text(b"", status="304 Not Modified"),
    "401": text(GOOD, status="401 Unauthorized"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_whatever_an_endpoint_does_is_over_soon_and_one_error(endpoint: Endpoint, name: str) -> None:
    endpoint.answer = HOSTILE[name]
    loader = JwksUrl(endpoint.url, loopback=True, timeout=0.5)
    async with asyncio.timeout(10):
        with pytest.raises((KeysUnavailable, KeyRefused)) as problem:
            await loader.load()
    assert "\n" not in str(problem.value)
    assert "/keys" not in str(problem.value)
    endpoint.answer = text(GOOD)
    keys = await JwksUrl(endpoint.url, loopback=True, timeout=30).load()
    assert keys is not None
    assert [key.key_id for key in keys.keys] == ["es"]


@pytest.mark.parametrize("answer", [endless, hundred_megabytes])
async def test_no_more_is_read_than_a_key_set_may_have(endpoint: Endpoint, answer: Answer) -> None:
    endpoint.answer = answer
    async with asyncio.timeout(10):
        with pytest.raises(KeysUnavailable, match="has more than 524288 bytes"):
            await JwksUrl(endpoint.url, loopback=True, timeout=60).load()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(endpoint: Endpoint, status: str) -> None:
    other = Endpoint()
    await other.start()
    for target in (other.url, "/other", "file:///etc/passwd", "http://169.254.169.254/latest"):
        endpoint.answer = text(b"", status=status, headers=f"Location: {target}\r\n")
        with pytest.raises(KeysUnavailable, match=f"answered {status[:3]}"):
            await JwksUrl(endpoint.url, loopback=True, timeout=30).load()
    assert other.requests == []
    assert len(endpoint.requests) == 4
    other.server.close()


async def test_the_request_says_what_is_wanted_and_nothing_more(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    endpoint.answer = text(GOOD, headers="Content-Type: application/jwk-set+json\r\nSet-Cookie: a=b\r\n")
    loader = JwksUrl(endpoint.url, loopback=True)
    await loader.load()
    await loader.load()
    for request in endpoint.requests:
        assert request.startswith(b"GET /keys HTTP/1.1\r\n")
        assert b"Accept-Encoding: identity" in request
        assert b"Cookie" not in request
        assert b"Authorization" not in request


async def test_an_etag_saves_the_document(endpoint: Endpoint) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b'If-None-Match: "v1"' in request:
            await text(b"", status="304 Not Modified")(request, writer)
        else:
            await text(GOOD, headers='Content-Type: application/json\r\nETag: "v1"\r\n')(request, writer)

    endpoint.answer = answer
    loader = JwksUrl(endpoint.url, loopback=True)
    assert await loader.load() is not None
    assert await loader.load() is None


@pytest.mark.parametrize(
    "url",
    [
        "http://keys.example/jwks",
        "http://127.0.0.1.example/jwks",
        "http://10.0.0.1/jwks",
        "file:///etc/passwd",
        "ftp://127.0.0.1/jwks",
        "https://user:p4ssw0rd@keys.example/jwks",
        "https://keys.example/jwks#x",
        "https:///jwks",
        "https://keys.example:99999/jwks",
        "https://keys.example/a b",
        "https://keys.example/\nHost: x",
        "https://ｋeys.example/",
        "keys.example/jwks",
        "",
    ],
)
def test_urls_that_keys_do_not_come_from(url: str) -> None:
    with pytest.raises(JwksUrlRefused) as problem:
        JwksUrl(url, loopback=True)
    assert "p4ssw0rd" not in str(problem.value)
    assert "\n" not in str(problem.value)


def test_http_is_for_development_alone() -> None:
    for url in ("http://127.0.0.1/x", "http://localhost:8080/x", "http://[::1]/x"):
        JwksUrl(url, loopback=True)
        with pytest.raises(JwksUrlRefused):
            JwksUrl(url)


def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of 127.0.0.1, signed by itself: for the server, and for who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keys")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "tls.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=made.public_bytes(Encoding.PEM).decode())


async def test_the_endpoint_proves_who_it_is(tmp_path: Path) -> None:
    server, client = certificate(tmp_path)
    endpoint = Endpoint()
    await endpoint.start(server)
    assert await JwksUrl(endpoint.url, tls=client).load() is not None
    with pytest.raises(KeysUnavailable, match="Certificate"):
        await JwksUrl(endpoint.url).load()
    with pytest.raises(KeysUnavailable):
        await JwksUrl(endpoint.url.replace("127.0.0.1", "localhost"), tls=client).load()
    endpoint.server.close()


async def test_nobody_listens() -> None:
    for url in ("http://127.0.0.1:1/keys", "https://127.0.0.1:1/keys"):
        with pytest.raises(KeysUnavailable):
            await JwksUrl(url, loopback=True, timeout=30).load()


# The whole: tokens, while keys come and go


async def test_tokens_while_the_endpoint_rotates_and_dies(endpoint: Endpoint) -> None:
    setup = Setup()
    loader = JwksUrl(endpoint.url, loopback=True, timeout=30)
    keys = RefreshedKeys(loader, clock=setup.clock, auditor=setup.audited, wait=10)
    await keys.start()
    setup = Setup(source=keys, clock=setup.clock, cache_entries=0)
    await setup.identity.identify(bearer(setup.token(ES256)))
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(setup.token(EDDSA)))

    endpoint.answer = text(jwks(ed_jwk(ED, kid="ed"), ec_jwk(EC, kid="es")))
    setup.clock.advance(10)
    await setup.identity.identify(bearer(setup.token(EDDSA)))

    endpoint.answer = text(jwks(ed_jwk(ED, kid="ed")))
    setup.clock.advance(10)
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(setup.token(RS256)))
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(setup.token(ES256)))

    loader._timeout = 0.3
    for name in ("silence", "a hundred megabytes", "garbage", "500", "no keys"):
        endpoint.answer = HOSTILE[name]
        setup.clock.advance(10)
        async with asyncio.timeout(30):
            with pytest.raises(Unauthenticated):
                await setup.identity.identify(bearer(setup.token(RS256)))
            await setup.identity.identify(bearer(setup.token(EDDSA)))
    await keys.close()


async def test_a_flood_of_invented_key_ids_reaches_the_endpoint_once(endpoint: Endpoint) -> None:
    setup = Setup()
    keys = RefreshedKeys(
        JwksUrl(endpoint.url, loopback=True, timeout=30), clock=setup.clock, auditor=setup.audited, wait=10
    )
    await keys.start()
    setup = Setup(source=keys, clock=setup.clock)
    setup.clock.advance(10)
    flood = [signed(HS256, {"alg": "ES256", "kid": f"k{number}"}, setup.claims()) for number in range(500)]
    results = await asyncio.gather(*(setup.identity.identify(bearer(token)) for token in flood), return_exceptions=True)
    assert all(isinstance(result, Unauthenticated) for result in results)
    assert len(endpoint.requests) == 2
    await keys.close()


# Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "jwks.json"
    made.write_bytes(GOOD)
    return made


async def test_a_file_is_read_again_when_it_changed(path: Path) -> None:
    loader = JwksFile(path)
    assert await loader.load() is not None
    assert await loader.load() is None
    draft = path.with_suffix(".new")
    draft.write_bytes(jwks(rsa_jwk(RSA, kid="rs")))
    draft.replace(path)
    keys = await loader.load()
    assert keys is not None
    assert [key.key_id for key in keys.keys] == ["rs"]


async def test_a_broken_file_is_tried_until_it_is_mended(path: Path) -> None:
    loader = JwksFile(path)
    for broken in (b"", b"{", b'{"keys":[]}', b" " * 1_000_000, os.urandom(100)):
        path.write_bytes(broken)
        for _ in range(2):
            with pytest.raises(KeyRefused):
                await loader.load()
    path.write_bytes(GOOD)
    assert await loader.load() is not None


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "unreadable link"])
async def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "jwks.json"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "unreadable link":
            path.symlink_to(path)
    async with asyncio.timeout(5):
        with pytest.raises(KeysUnavailable) as problem:
            await JwksFile(path).load()
    assert str(tmp_path) not in str(problem.value)


async def test_secrets_count_where_nobody_else_reads(path: Path) -> None:
    entry = {"kty": "oct", "kid": "hs", "alg": "HS256", "k": b64(SECRET).decode()}
    path.write_bytes(json.dumps({"keys": [entry]}).encode())
    path.chmod(0o644)
    with pytest.raises(KeyRefused):
        await JwksFile(path).load()
    path.chmod(0o600)
    keys = await JwksFile(path).load()
    assert keys is not None
    assert [key.algorithm for key in keys.keys] == ["HS256"]
