"""S7, the way to the databases: a production that would talk to PostgreSQL, Redis or AWS without encryption, without
checking who answers, or with a static key, is found by `kiseki check --deploy` and does not start; and verify-full is
what it says, seen with real servers."""

# ruff: noqa: E501  # a URL is one line

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kiseki.cli.main import run
from tests.servers.certificates import Authority
from tests.servers.postgres import NoPostgres, PostgresServer
from tests.servers.processes import clean_environment
from tests.servers.production import Production

DB: Final = "postgresql://kiseki@db.example/kiseki"
CHECKED: Final = "sslmode=verify-full&sslrootcert=/etc/ssl/rds.pem"
AWS: Final = "dynamodb://kiseki?region=eu-west-1"
STATIC: Final = "AKIAABCDEFGHIJKLMNOP"


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Production:
    """A production whose settings are safe. That its audit key is not there is seen only by a start, which so ends."""
    service = Production(tmp_path_factory.mktemp("safe"))
    (service.secrets / "audit").unlink()
    return service


def found(
    safe: Production, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: dict[str, str]
) -> set[str]:
    """The names of what `check --deploy` finds, once `serve` was seen to refuse just that; and no secret is shown."""
    for name in clean_environment({}):
        if name.startswith("KISEKI_"):
            monkeypatch.delenv(name)
    for name, value in {**safe.environment, **changed}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False) if "AWS_ACCESS_KEY_ID" not in changed else None
    data = ("--data-dir", str(safe.data))
    code = run(["check", "--deploy", "--json", *data])
    printed = capsys.readouterr()
    names = {finding["name"] for finding in json.loads(printed.out)}
    assert code == (1 if names else 0)
    if names:
        assert run(["serve", *data]) != 0
        refused = capsys.readouterr()
        assert "the production profile refuses to start" in refused.err
        assert all(f"- {name}: " in refused.err for name in names)
        printed = printed._replace(out=printed.out + refused.out, err=printed.err + refused.err)
    assert "hunter2" not in printed.out + printed.err
    assert not safe.data.exists()
    return names


def test_a_safe_one_has_nothing_to_be_found(
    safe: Production, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(safe, monkeypatch, capsys, {}) == set()
    assert found(safe, monkeypatch, capsys, {"KISEKI_JOURNAL": f"{DB}?{CHECKED}"}) == set()
    assert found(safe, monkeypatch, capsys, {"KISEKI_JOURNAL": AWS, "KISEKI_READ_MODEL": "sqlite:"}) == set()


WEAK_POSTGRES: Final = (
    ("", {"postgres.sslmode", "postgres.sslrootcert"}),
    *((f"sslmode={mode}&sslrootcert=/ca.pem", {"postgres.sslmode"}) for mode in ("disable", "allow", "prefer", "require", "verify-ca", "", "VERIFY-FULL", "verify-full ")),
    ("sslmode=verify-full&sslmode=disable&sslrootcert=/ca.pem", {"postgres.sslmode"}),
    ("sslmode=verify-full", {"postgres.sslrootcert"}),
    ("sslmode=verify-full&sslrootcert=", {"postgres.sslrootcert"}),
    (f"{CHECKED}&password=hunter2", {"postgres.password"}),
    (f"{CHECKED}&ssl_min_protocol_version=TLSv1", {"postgres.tls"}),
    (f"{CHECKED}&ssl_min_protocol_version=TLSv1.1", {"postgres.tls"}),
)  # fmt: skip


@pytest.mark.parametrize(("query", "names"), WEAK_POSTGRES, ids=[query or "nothing" for query, _ in WEAK_POSTGRES])
def test_weak_urls_of_postgresql_are_no_start(
    safe: Production, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], query: str, names: set[str]
) -> None:
    assert found(safe, monkeypatch, capsys, {"KISEKI_JOURNAL": f"{DB}?{query}"}) == names


@pytest.mark.parametrize(
    "setting", ["JOURNAL", "KEYS", "READ_MODEL", "AUDIT_DATABASE", "AUDIT_ANCHORS", "ERASURE_LEDGER"]
)
def test_every_store_is_looked_at(
    safe: Production, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    weak = {f"KISEKI_{setting}": f"{DB}?sslmode=require&sslrootcert=/ca.pem"}
    assert found(safe, monkeypatch, capsys, weak) == {"postgres.sslmode"}
    assert found(safe, monkeypatch, capsys, {f"KISEKI_{setting}": f"{DB}?{CHECKED}"}) == set()
    inline = {f"KISEKI_{setting}": f"postgresql://kiseki:hunter2@db.example/kiseki?{CHECKED}"}
    assert found(safe, monkeypatch, capsys, inline) == {"postgres.password"}


WEAK_OTHERS: Final = (
    ({"KISEKI_RATE_STORE": "redis://cache.example:6379/0"}, {"redis.tls"}),
    ({"KISEKI_RATE_STORE": "rediss://:hunter2@cache.example:6379/0"}, {"redis.password"}),
    ({"KISEKI_RATE_STORE": "redis://:hunter2@cache.example:6379/0"}, {"redis.tls", "redis.password"}),
    ({"KISEKI_JOURNAL": f"{AWS}&endpoint=http://dynamodb.example", "KISEKI_READ_MODEL": "sqlite:"}, {"aws.endpoint"}),
    ({"KISEKI_MASTER_KEY": "aws-kms://alias/kiseki?region=eu-west-1&endpoint=http://kms.example"}, {"aws.endpoint"}),
    ({"KISEKI_AUDIT_KEY": "aws-sm://audit?region=eu-west-1&endpoint=http://sm.example"}, {"aws.endpoint"}),
    ({"AWS_ACCESS_KEY_ID": STATIC, "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}, {"aws.static_keys"}),
    ({"AWS_ENDPOINT_URL": "http://aws.example"}, {"aws.endpoint"}),
    ({"AWS_ENDPOINT_URL_DYNAMODB": "http://aws.example"}, {"aws.endpoint"}),
    ({"SSLKEYLOGFILE": "/tmp/keys"}, {"tls.key_log"}),
    ({"KISEKI_VAULT_ADDRESS": "http://vault.example:8200"}, {"vault.address"}),
    ({"KISEKI_JWKS_URL": "http://issuer.example/jwks"}, {"authentication"}),
)  # fmt: skip


@pytest.mark.parametrize(("changed", "names"), WEAK_OTHERS, ids=[", ".join(changed) for changed, _ in WEAK_OTHERS])
def test_other_weak_connections_are_no_start(
    safe: Production,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    names: set[str],
) -> None:
    assert found(safe, monkeypatch, capsys, changed) == names


# With real servers


def tls_server(authority: Authority, name: str) -> PostgresServer:
    """A server with a certificate for this name; not started."""
    server = PostgresServer()
    pair = authority.issue(f"postgres-{name}", names=[name])
    for path, copied in ((pair.certificate, "server.crt"), (pair.key, "server.key")):
        copy = server.directory / copied
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        server._own(copy)
    server._settings = {
        "ssl": "on",
        "ssl_cert_file": server.directory / "server.crt",
        "ssl_key_file": server.directory / "server.key",
    }
    return server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("database-ca"), "Database Authority")


@pytest.fixture(scope="module")
def postgres(authority: Authority) -> Iterator[PostgresServer]:
    try:
        with tls_server(authority, "127.0.0.1") as server:
            yield server
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")


def on_postgres(folder: Path, server: PostgresServer, trust: Path, *, host: str = "127.0.0.1") -> Production:
    """A production with everything in this server's database."""
    folder.mkdir()
    password = folder / "database-password"
    password.write_text(server.password)
    password.chmod(0o600)
    database = server.create_database().rpartition("/")[2]
    url = f"postgresql://kiseki@{host}:{server.port}/{database}?sslmode=verify-full&sslrootcert={trust}&password=file://{password}"
    return Production(folder / "p", JOURNAL=url, READ_MODEL=url, AUDIT_ANCHORS=url, ERASURE_LEDGER=url)


def migrated(service: Production) -> subprocess.CompletedProcess[str]:
    return service.kiseki("migrate")


async def test_a_production_on_postgresql_speaks_tls_and_nothing_else(
    tmp_path: Path, postgres: PostgresServer, authority: Authority
) -> None:
    service = on_postgres(tmp_path / "w", postgres, authority.trust)
    assert service.kiseki("check", "--deploy").returncode == 0
    done = migrated(service)
    assert done.returncode == 0, done.stderr
    service.service.start()
    try:
        await service.service.ready()
        document = 'mutation { createUserAccount(input: {firstName: "A", lastName: "B", emailAddress: "a@example.com"}) { id } }'
        reply = await service.graphql("command", document, token=service.tokens.user())
        assert reply.status == 200
        assert "errors" not in reply.json()
        versions = postgres.sql(
            "SELECT DISTINCT coalesce(s.version, 'plain') FROM pg_stat_activity a LEFT JOIN pg_stat_ssl s USING (pid) "
            "WHERE a.client_addr IS NOT NULL"
        )
        assert versions == "TLSv1.3"
        assert int(postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL")) > 3
        assert postgres.password not in service.log()
    finally:
        service.kill()


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_nobody_poses_as_the_database(
    tmp_path: Path, postgres: PostgresServer, authority: Authority, wrong: str
) -> None:
    """With another authority, or another name, not even the password is sent; and a service waits, and serves nothing."""
    stranger = Authority(tmp_path, "Stranger")
    trust, host = (stranger.trust, "127.0.0.1") if wrong == "authority" else (authority.trust, "localhost")
    service = on_postgres(tmp_path / "w", postgres, trust, host=host)
    done = migrated(service)
    assert done.returncode != 0
    assert "certificate" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert postgres.password not in done.stderr + done.stdout
    logins = "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL"
    service.service.start()
    try:
        async with asyncio.timeout(20):
            process = service.service.process
            assert process is not None
            while process.poll() is None:
                try:
                    assert (await service.manage("/ready")).status == 503
                    if "certificate" in service.log().lower():
                        break
                except Exception as problem:
                    if isinstance(problem, AssertionError):
                        raise
                await asyncio.sleep(0.05)
        assert "certificate" in service.log().lower()
        assert postgres.sql(logins) == "0"
        assert postgres.password not in service.log()
    finally:
        service.kill()
