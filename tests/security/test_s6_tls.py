"""S6, TLS of the API ports of a production service: nothing but TLS 1.3, unless a setting says 1.2 too; what is plain
gets no answer; certificates are exchanged while requests run; client certificates are asked for when they are to be.
What sslyze finds is in tests/integration/service/test_tls_scan.py."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.servers.certificates import Authority
from tests.servers.production import Production, TlsClient

ANYTHING: Final = "{ __typename }"
PLAIN: Final = (
    b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://localhost/api/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),  # SSL 2
    b"\x16\x03\x01\xff\xff" + bytes(100),
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"SSH-2.0-OpenSSH\r\n",
    b"\r\n\r\n",
)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    with Production(tmp_path_factory.mktemp("tls"), TLS_HANDSHAKE_TIMEOUT=1) as running:
        yield running


@pytest.mark.parametrize("api", ["command", "query"])
@pytest.mark.parametrize("sent", PLAIN, ids=[f"{sent[:24]!r}" for sent in PLAIN])
async def test_what_is_plain_gets_no_http(production: Production, api: str, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", production.port(api))
    writer.write(sent)
    received = b""
    try:
        async with asyncio.timeout(10):
            while part := await reader.read(4096):
                received += part
    except ConnectionResetError:
        pass
    writer.close()
    assert b"HTTP" not in received
    # An alert of TLS at most.
    assert len(received) <= 7
    assert received[:1] in (b"", b"\x15")
    assert (await production.graphql(api, ANYTHING, token=production.tokens.user())).status == 200


def spoken(
    production: Production, version: ssl.TLSVersion, *, api: str = "query", host: str = "localhost"
) -> str | None:
    """The version agreed on by a client that speaks only one; None when there is no agreement."""
    context = production.authority.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        with (
            socket.create_connection(("127.0.0.1", production.port(api)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            return tls.version()
    except (ssl.SSLError, ConnectionResetError):
        return None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("api", ["command", "query"])
def test_old_versions_are_refused(production: Production, api: str, version: ssl.TLSVersion) -> None:
    assert spoken(production, version, api=api) is None
    assert spoken(production, ssl.TLSVersion.TLSv1_3, api=api) == "TLSv1.3"


def test_tls_1_2_is_a_setting_and_1_1_is_none(tmp_path: Path) -> None:
    with Production(tmp_path / "p", TLS_MINIMUM="1.2") as service:
        assert spoken(service, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert spoken(service, ssl.TLSVersion.TLSv1_1) is None
        assert spoken(service, ssl.TLSVersion.TLSv1) is None
    done = Production(tmp_path / "q", TLS_MINIMUM="1.1").kiseki("check", "--deploy")
    assert done.returncode != 0
    assert "KISEKI_TLS_MINIMUM" in done.stderr


def test_a_client_that_checks_is_not_fooled_by_a_name_or_an_authority(production: Production, tmp_path: Path) -> None:
    assert spoken(production, ssl.TLSVersion.TLSv1_3, host="other.example") is None
    stranger = Authority(tmp_path, "Stranger")
    with (
        socket.create_connection(("127.0.0.1", production.port("query")), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.client().wrap_socket(plain, server_hostname="localhost")


async def serial(production: Production, client: TlsClient) -> str:
    """Of the certificate on the client's connection."""
    assert (await client.graphql(ANYTHING, authorization=f"Bearer {production.tokens.user()}")).status == 200
    assert client._writer is not None
    return str(client._writer.get_extra_info("ssl_object").getpeercert()["serialNumber"])


async def test_certificates_are_exchanged_while_requests_run_and_none_is_lost(production: Production) -> None:
    ended = asyncio.Event()
    answered = 0

    async def load(api: str) -> None:
        nonlocal answered
        while not ended.is_set():
            async with production.client(api) as client:
                for _ in range(3):
                    await serial(production, client)
                    answered += 1

    loads = [asyncio.create_task(load(api)) for api in ("command", "query")]
    kept = {api: production.client(api) for api in ("command", "query")}
    first = {api: await serial(production, client) for api, client in kept.items()}
    assert len(set(first.values())) == 1
    production.authority.issue()
    for api in ("command", "query"):
        async with asyncio.timeout(15):
            while True:
                async with production.client(api) as client:
                    if await serial(production, client) != first[api]:
                        break
                await asyncio.sleep(0.1)
    # Connections that were open go on as they are.
    assert {api: await serial(production, client) for api, client in kept.items()} == first
    ended.set()
    await asyncio.gather(*loads)
    print(f"{answered} requests on new connections meanwhile, all answered")
    assert answered > 20
    assert await production.recorded(lambda one: one["kind"] == "certificate.reloaded" and one["outcome"] == "done")
    assert "PRIVATE KEY" not in production.log()
    for client in kept.values():
        client.close()


async def test_client_certificates_are_asked_for_when_they_are_to_be(tmp_path: Path) -> None:
    staff = Authority(tmp_path, "Staff")
    service = Production(tmp_path / "p", TLS_CLIENT_CA=staff.trust)
    service.service.start()
    try:
        await service.service.ready()
        member = staff.issue("member", usage=ExtendedKeyUsageOID.CLIENT_AUTH)
        stranger = Authority(tmp_path, "Stranger").issue("stranger", usage=ExtendedKeyUsageOID.CLIENT_AUTH)

        async def status(pair: object) -> int | None:
            client = TlsClient(service.port("query"), service.authority.client(pair))  # type: ignore[arg-type]
            try:
                async with asyncio.timeout(10), client:
                    return (await client.graphql(ANYTHING, authorization=f"Bearer {service.tokens.user()}")).status
            except Exception:
                return None

        assert await status(member) == 200
        assert await status(None) is None
        assert await status(stranger) is None
        # A certificate does not stand for a token.
        client = TlsClient(service.port("query"), service.authority.client(member))
        async with client:
            assert (await client.graphql(ANYTHING)).status == 401
    finally:
        service.kill()


@pytest.mark.parametrize(
    "what", ["key of another", "key that others may read", "no key", "no certificate", "wrong password"]
)
def test_a_pair_that_can_not_be_used_is_no_start(tmp_path: Path, what: str) -> None:
    service = Production(tmp_path / "p")
    settings: dict[str, Any] = {}
    match what:
        case "key of another":
            settings["TLS_KEY"] = str(service.authority.issue("other").key)
        case "key that others may read":
            os.chmod(service.certificate.key, 0o644)
        case "no key":
            settings["TLS_KEY"] = None
        case "no certificate":
            settings["TLS_CERTIFICATE"] = str(tmp_path / "nowhere.pem")
        case _:
            secret = tmp_path / "password"
            secret.write_text("not-the-password-of-this-key")
            secret.chmod(0o600)
            settings["TLS_KEY_PASSWORD"] = f"file://{secret}"
            settings["TLS_KEY"] = str(service.authority.issue("locked", password=b"right-one").key)
            settings["TLS_CERTIFICATE"] = str(service.secrets / "locked.pem")
    done = service.kiseki("serve", "--command-port", "0", "--query-port", "0", "--management-port", "0", **settings)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("kiseki: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "not-the-password" not in done.stderr + done.stdout
