"""Connections to a PostgreSQL server with TLS: who is believed to be it, and passwords that change while pools run."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kiseki.clients.postgres import PostgresAddress, PostgresPool, connect
from kiseki.clients.postgres_errors import PasswordUnavailable
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.security.secrets.opening import open_secrets
from kiseki.security.secrets.passwords import SecretPassword
from tests.servers.postgres import NoPostgres, PostgresServer
from tests.unit.security.fakes import FakeClock


class Authority:
    """A certificate authority of this test's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._signed(name, self._key.public_key(), ca=True)
        self.path = self._write(f"{name}.pem", self._certificate)

    def issue(self, name: str, *sans: x509.GeneralName) -> tuple[Path, Path]:
        """Certificate and key files of a name."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self._write(f"{self.name}-{name}.pem", self._signed(name, key.public_key(), sans=sans))
        key_path = self.directory / f"{self.name}-{name}.key"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        key_path.chmod(0o600)
        return path, key_path

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.directory / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _signed(
        self, name: str, key: ec.EllipticCurvePublicKey, *, ca: bool = False, sans: tuple[x509.GeneralName, ...] = ()
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self._key, hashes.SHA256())


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def tls_server(authority: Authority, *sans: x509.GeneralName) -> PostgresServer:
    """A server with a certificate for these names; not started."""
    server = PostgresServer()
    certificate, key = authority.issue("server", *sans)
    for path, name in ((certificate, "server.crt"), (key, "server.key"), (authority.path, "clients.crt")):
        copy = server.directory / name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        server._own(copy)
    server._settings = {
        "ssl": "on",
        "ssl_cert_file": server.directory / "server.crt",
        "ssl_key_file": server.directory / "server.key",
        "ssl_ca_file": server.directory / "clients.crt",
    }
    return server


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[PostgresServer]:
    """A server whose certificate is for 127.0.0.1."""
    try:
        with tls_server(authority, LOOPBACK) as started:
            yield started
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.create_database()


@asynccontextmanager
async def pool_of(address: PostgresAddress) -> AsyncIterator[PostgresPool]:
    pool = PostgresPool(address, size=2, application="test", unavailable=lambda why: Unavailable(f"no database: {why}"))
    try:
        yield pool
    finally:
        await pool.close()


async def protocol(pool: PostgresPool) -> str | None:
    async with pool.connection() as connection:
        version: str | None = await connection.fetchval("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        return version


def parsed(url: str, query: str) -> PostgresAddress:
    return PostgresAddress.parse(f"{url}?{query}", schema="public")


async def refusal(address: PostgresAddress) -> str:
    async with pool_of(address) as pool:
        with pytest.raises(Unavailable) as refused:
            await protocol(pool)
    return str(refused.value)


async def test_verify_full_speaks_tls_with_the_right_server(url: str, authority: Authority) -> None:
    async with pool_of(parsed(url, f"sslmode=verify-full&sslrootcert={authority.path}")) as pool:
        assert await protocol(pool) == "TLSv1.3"


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
async def test_another_authoritys_server_is_refused(url: str, stranger: Authority, mode: str) -> None:
    assert "certificate was not accepted" in await refusal(parsed(url, f"sslmode={mode}&sslrootcert={stranger.path}"))


async def test_a_right_certificate_for_another_name_is_refused(url: str, authority: Authority) -> None:
    elsewhere = url.replace("127.0.0.1", "localhost")
    assert "certificate was not accepted" in await refusal(
        parsed(elsewhere, f"sslmode=verify-full&sslrootcert={authority.path}")
    )
    async with pool_of(parsed(elsewhere, f"sslmode=verify-ca&sslrootcert={authority.path}")) as pool:
        assert await protocol(pool), "which shows that only the name was wrong"


@pytest.mark.parametrize("root", ["", "&sslrootcert=/nonexistent/ca.pem"])
async def test_verify_full_without_an_authority_connects_to_nobody(
    url: str, root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    assert "no database" in await refusal(parsed(url, f"sslmode=verify-full{root}"))


async def test_an_environment_does_not_weaken_what_the_url_says(
    url: str, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert "certificate was not accepted" in await refusal(
        parsed(url, f"sslmode=verify-full&sslrootcert={stranger.path}")
    )


async def test_a_server_without_tls_is_refused(postgres_server: PostgresServer, authority: Authority) -> None:
    plain = postgres_server.create_database()
    assert "no database" in await refusal(parsed(plain, f"sslmode=verify-full&sslrootcert={authority.path}"))


async def test_nobody_in_between_can_talk_the_client_out_of_tls(
    url: str, server: PostgresServer, authority: Authority
) -> None:
    """Who answers N to the request for TLS gets nothing more: no user, no password."""
    got: list[bytes] = []
    closed = asyncio.Event()

    async def downgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(8))
        writer.write(b"N")
        got.append(await reader.read())
        writer.close()
        closed.set()

    listener = await asyncio.start_server(downgrade, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    between = url.replace(str(server.port), str(port))
    try:
        assert "no database" in await refusal(parsed(between, f"sslmode=verify-full&sslrootcert={authority.path}"))
        async with asyncio.timeout(10):
            await closed.wait()
    finally:
        listener.close()
    assert got == [b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b""], "the request for TLS and nothing after it"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_of_tls_are_not_spoken(authority: Authority) -> None:
    certificate, key = authority.issue("old", LOOPBACK)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    ends: list[str] = []

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(8)
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(context)
            ends.append("spoken")
        except (OSError, asyncio.IncompleteReadError) as problem:
            ends.append(type(problem).__name__)
        finally:
            writer.close()

    listener = await asyncio.start_server(old, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        address = PostgresAddress.parse(
            f"postgresql://u:p@127.0.0.1:{port}/x?sslmode=verify-full&sslrootcert={authority.path}", schema="public"
        )
        assert "no database" in await refusal(address)
        assert ends == ["SSLError"]
    finally:
        listener.close()


async def test_client_certificates_are_presented(
    server: PostgresServer, url: str, authority: Authority, stranger: Authority
) -> None:
    rules = (server.data / "pg_hba.conf").read_text()
    server.sql("CREATE ROLE machine LOGIN")
    (server.data / "pg_hba.conf").write_text("hostssl all machine 127.0.0.1/32 cert\n" + rules)
    server.sql("SELECT pg_reload_conf()")
    address = url.replace(f"kiseki:{server.password}@", "machine@")
    try:
        for issuer, good in ((authority, True), (stranger, False)):
            certificate, key = issuer.issue("machine")
            query = f"sslmode=verify-full&sslrootcert={authority.path}&sslcert={certificate}&sslkey={key}"
            if good:
                async with pool_of(parsed(address, query)) as pool:
                    assert await protocol(pool) == "TLSv1.3"
            else:
                assert "no database" in await refusal(parsed(address, query))
    finally:
        (server.data / "pg_hba.conf").write_text(rules)
        server.sql("SELECT pg_reload_conf()")


async def changing(
    server: PostgresServer, url: str, authority: Authority, password_file: Path, role: str
) -> tuple[PostgresAddress, FakeClock]:
    server.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'first-password'")
    server.sql(f"GRANT ALL ON DATABASE {url.rpartition('/')[2]} TO {role}")
    password_file.write_text("first-password\n")
    password_file.chmod(0o600)
    clock = FakeClock()
    secrets = open_secrets(clock=clock, refresh=3_600)
    named = url.replace(f"kiseki:{server.password}@", f"{role}@")
    address = PostgresAddress.parse(
        f"{named}?sslmode=verify-full&sslrootcert={authority.path}&password=file://{password_file}",
        schema="public",
        passwords=partial(SecretPassword, secrets),
    )
    return address, clock


async def test_a_rotated_password_needs_no_restart(
    server: PostgresServer, url: str, authority: Authority, tmp_path: Path
) -> None:
    """The secret is remembered for an hour here: it is the server's refusal that has it read again."""
    address, clock = await changing(server, url, authority, tmp_path / "password", "rotating")
    async with pool_of(address) as pool:
        assert await protocol(pool) == "TLSv1.3"
        clock.advance(1.0)  # asked again at most once a second
        server.sql("ALTER ROLE rotating PASSWORD 'second-password'")
        (tmp_path / "password").write_text("second-password\n")
        assert await protocol(pool) == "TLSv1.3", "connections that are open stay"
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        with pytest.raises(Unavailable):
            await protocol(pool)
        assert await protocol(pool) == "TLSv1.3", "a new one has the new password"


async def test_a_password_that_is_simply_wrong_is_tried_once(
    server: PostgresServer, url: str, authority: Authority, tmp_path: Path
) -> None:
    address, _ = await changing(server, url, authority, tmp_path / "password", "wrong")
    (tmp_path / "password").write_text("not-the-password\n")
    before = server.log_tail().count('authentication failed for user "wrong"')
    said = await refusal(address)
    assert "did not accept the user or password" in said
    assert "not-the-password" not in said
    assert server.log_tail().count('authentication failed for user "wrong"') == before + 1


async def test_a_password_that_can_not_be_had_is_an_outage_of_the_database(
    server: PostgresServer, url: str, authority: Authority, tmp_path: Path
) -> None:
    address, _ = await changing(server, url, authority, tmp_path / "password", "absent")
    (tmp_path / "password").unlink()
    assert "can't be read" in await refusal(address)
    with pytest.raises(PasswordUnavailable):
        await connect(address, application="test")


class Tokens:
    """Passwords that are good for one login, as tokens of IAM are for a while."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.made = 0

    async def password(self) -> str:
        self.made += 1
        self.server.sql(f"ALTER ROLE iam PASSWORD 'token-{self.made}'")
        return f"token-{self.made}"

    async def renewed(self) -> str:
        raise KisekiError("nothing was refused")


async def test_each_new_connection_asks_for_a_password_of_its_own(
    server: PostgresServer, url: str, authority: Authority
) -> None:
    server.sql("CREATE ROLE iam LOGIN")
    named = url.replace(f"kiseki:{server.password}@", "iam@")
    plain = parsed(named, f"sslmode=verify-full&sslrootcert={authority.path}")
    tokens = Tokens(server)
    address = PostgresAddress(plain.dsn, plain.schema, plain.label, tokens)
    async with pool_of(address) as pool:
        async with pool.connection(), pool.connection():
            pass
        await protocol(pool)
        assert tokens.made == 2, "one for each connection, none for one that is open"
