"""Secrets in AWS Secrets Manager (an emulator) and in Vault (a real server): reading, rotation, outages, databases."""

from __future__ import annotations

import asyncio
import secrets as random
import time
import urllib.error
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from kiseki.clients.aws_json import AwsJsonClient
from kiseki.clients.postgres import PostgresAddress, PostgresPool
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.clients.vault import VaultClient, VaultUnavailable
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.security.secrets.opening import open_secrets, vault_client
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.reading import SecretRefused, SecretUnavailable
from kiseki.security.secrets.reference import SecretReferenceInvalid
from kiseki.security.secrets.source import SecretSource
from kiseki.security.secrets.vault import VaultSecrets
from tests.servers.emulator import REGION
from tests.servers.postgres import PostgresServer
from tests.servers.vault import NoVault, VaultServer
from tests.unit.security.fakes import FakeClock

READ = 'path "secret/data/*" { capabilities = ["read"] }'


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    try:
        server = VaultServer()
        server.__enter__()
    except NoVault as problem:
        pytest.skip(f"Vault tests need a server: {problem}")
    try:
        server.ask("POST", "sys/auth/approle", {"type": "approle"})
        server.ask("PUT", "sys/policies/acl/reader", {"policy": READ})
        server.ask("POST", "auth/approle/role/kiseki", {"token_policies": "reader", "token_ttl": "1h"})
        yield server
    finally:
        server.stop()


@pytest.fixture
async def manager(aws_endpoint: str) -> AsyncIterator[AwsJsonClient]:
    """Secrets Manager, for whoever writes secrets."""
    client = AwsJsonClient(service="secretsmanager", target="secretsmanager", region=REGION, endpoint=aws_endpoint)
    yield client
    await client.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def put(manager: AwsJsonClient, name: str, text: str) -> None:
    await manager.call("CreateSecret", {"Name": name, "SecretString": text, "ClientRequestToken": random.token_hex(16)})


async def rotate(manager: AwsJsonClient, name: str, text: str) -> None:
    await manager.call(
        "PutSecretValue", {"SecretId": name, "SecretString": text, "ClientRequestToken": random.token_hex(16)}
    )


def app_role(vault: VaultServer, path: Path) -> str:
    """The id of the role, whose secret is then in a file."""
    path.write_text(vault.ask("POST", "auth/approle/role/kiseki/secret-id", {})["data"]["secret_id"])
    path.chmod(0o600)
    return str(vault.ask("GET", "auth/approle/role/kiseki/role-id")["data"]["role_id"])


def with_token(vault: VaultServer, path: Path, token: str = "") -> Callable[[], VaultClient] | None:
    path.write_text((token or vault.token_for(READ)) + "\n")
    return vault_client(vault.address, token_file=path, role_id="", secret_id="", ca=None)


async def test_secrets_manager(aws_endpoint: str, manager: AwsJsonClient, clock: FakeClock) -> None:
    name = f"prod/{random.token_hex(4)}"
    await put(manager, name, '{"password": "pa\\"ss", "port": 5432, "on": true, "nested": {"a": 1}, "empty": ""}')
    heard: list[str] = []
    source = open_secrets(clock=clock, aws_region=REGION, on_secret=heard.append)
    where = f"aws-sm://{name}?endpoint={aws_endpoint}"
    assert (await source.get(f"{where}#password")).reveal() == 'pa"ss'
    assert (await source.get(f"{where}#port")).reveal() == "5432"
    assert (await source.get(where)).reveal().startswith('{"password"')
    for field in ("on", "nested", "empty", "absent"):
        with pytest.raises(SecretRefused) as refused:
            await source.get(f"{where}#{field}")
        assert "pa" not in str(refused.value).replace("password", "")
    await put(manager, f"{name}-text", "no json hunter2")
    with pytest.raises(SecretRefused) as broken:
        await source.get(f"aws-sm://{name}-text?endpoint={aws_endpoint}#password")
    assert "hunter2" not in str(broken.value)
    assert broken.value.__cause__ is None
    with pytest.raises(SecretRefused, match="no such secret"):
        await source.get(f"aws-sm://none?endpoint={aws_endpoint}")
    with pytest.raises(SecretRefused, match="no such secret"):
        await source.get(f"{where}&region=us-east-1#password")
    with pytest.raises(SecretRefused, match="region"):
        await open_secrets(clock=clock).get(f"{where}#password")
    assert 'pa"ss' in heard
    await source.close()


async def test_vault_with_a_token_file_that_an_agent_renews(
    vault: VaultServer, clock: FakeClock, tmp_path: Path
) -> None:
    vault.put_secret("prod/db", password="first", user="u")
    token = vault.token_for(READ)
    source = open_secrets(clock=clock, refresh=60, vault=with_token(vault, tmp_path / "token", token))
    assert (await source.get("vault://secret/prod/db#password")).reveal() == "first"
    for reference in ("vault://secret/prod/db#none", "vault://secret/none#password", "vault://other/prod/db#password"):
        with pytest.raises(SecretRefused):
            await source.get(reference)
    vault.ask("POST", "auth/token/revoke", {"token": token})
    vault.put_secret("prod/db", password="second", user="u")
    clock.advance(61)
    assert (await source.get("vault://secret/prod/db#password")).reveal() == "first", "the old one stays in use"
    (tmp_path / "token").write_text(vault.token_for(READ))
    clock.advance(61)
    assert (await source.get("vault://secret/prod/db#password")).reveal() == "second"
    (tmp_path / "token").unlink()
    await source.close()


async def test_vault_with_an_app_role_that_logs_in_again(vault: VaultServer, clock: FakeClock, tmp_path: Path) -> None:
    vault.put_secret("role/db", password="first")
    role = app_role(vault, tmp_path / "secret-id")
    make = vault_client(vault.address, token_file=None, role_id=role, secret_id=f"file://{tmp_path}/secret-id", ca=None)
    source = open_secrets(clock=clock, refresh=60, vault=make)
    assert (await source.get("vault://secret/role/db#password")).reveal() == "first"
    for accessor in vault.ask("LIST", "auth/token/accessors")["data"]["keys"]:
        try:
            if "reader" in vault.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]["policies"]:
                vault.ask("POST", "auth/token/revoke-accessor", {"accessor": accessor})
        except urllib.error.HTTPError:
            continue  # it ended meanwhile
    vault.put_secret("role/db", password="second")
    clock.advance(61)
    assert (await source.get("vault://secret/role/db#password")).reveal() == "second", "with a token of a new login"
    await source.close()


async def test_a_wrong_secret_of_the_role_is_refused_and_not_shown(
    vault: VaultServer, clock: FakeClock, tmp_path: Path
) -> None:
    role = app_role(vault, tmp_path / "secret-id")
    (tmp_path / "secret-id").write_text("hunter2-hunter2")
    make = vault_client(vault.address, token_file=None, role_id=role, secret_id=f"file://{tmp_path}/secret-id", ca=None)
    source = open_secrets(clock=clock, vault=make)
    with pytest.raises(KisekiError) as refused:
        await source.get("vault://secret/role/db#password")
    assert "hunter2" not in str(refused.value)
    assert role not in str(refused.value)
    await source.close()


@pytest.mark.parametrize(
    "address", ["", "vault:8200", "ftp://vault", "http://u:p@vault", "http://vault/v1", "http://v:x"]
)
def test_addresses_of_vault(address: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUrlInvalid):
        VaultClient(address, token_file=tmp_path / "token")
    with pytest.raises(StoreUrlInvalid):
        VaultClient("https://vault")
    with pytest.raises(SecretRefused):
        vault_client("https://v", token_file=None, role_id="r", secret_id="vault://kv/a#b", ca=None)
    with pytest.raises(SecretReferenceInvalid):
        vault_client("https://v", token_file=None, role_id="r", secret_id="valut://kv/a#b", ca=None)


async def test_vault_that_hangs_and_is_gone(clock: FakeClock, tmp_path: Path) -> None:
    try:
        server = VaultServer()
        server.__enter__()
    except NoVault as problem:
        pytest.skip(f"Vault tests need a server: {problem}")
    try:
        server.put_secret("db", password="first")
        (tmp_path / "token").write_text(server.token)
        quick = VaultClient(server.address, token_file=tmp_path / "token", attempt_timeout=0.3, deadline=1.0)
        source = SecretSource(clock=clock, readers={"vault": VaultSecrets(quick)}, refresh=60)
        assert (await source.get("vault://secret/db#password")).reveal() == "first"
        server.freeze()
        clock.advance(61)
        began = time.monotonic()
        assert (await source.get("vault://secret/db#password")).reveal() == "first"
        assert (await source.get("vault://secret/db#password")).reveal() == "first"
        assert time.monotonic() - began < 5
        with pytest.raises(SecretUnavailable):
            await source.get("vault://secret/db#other")
        server.halt()
        clock.advance(61)
        assert (await source.get("vault://secret/db#password")).reveal() == "first"
        await source.close()
        client = VaultClient(server.address, token_file=tmp_path / "none")
        with pytest.raises(VaultUnavailable):
            await client.read("secret/data/db")
        await client.close()
    finally:
        server.stop()


async def rotating(
    postgres_server: PostgresServer, source: SecretSource, reference: str, role: str, clock: FakeClock
) -> Callable[[], PostgresPool]:
    """Pools of a role of the database whose password is this secret."""
    postgres_server.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'first-password'")
    url = postgres_server.create_database().replace(f"kiseki:{postgres_server.password}@", f"{role}@")
    address = PostgresAddress.parse(
        f"{url}?sslmode=disable&password={quote(reference)}", schema="public", passwords=partial(SecretPassword, source)
    )
    assert "password" not in address.dsn
    return lambda: PostgresPool(
        address, size=4, application="test", unavailable=lambda why: Unavailable(f"no database: {why}")
    )


async def who(pool: PostgresPool) -> str:
    async with pool.connection() as connection:
        return str(await connection.fetchval("SELECT current_user"))


@pytest.mark.parametrize("kind", ["aws", "vault"])
async def test_pools_outlive_the_rotation_of_a_password(
    kind: str,
    postgres_server: PostgresServer,
    aws_endpoint: str,
    manager: AwsJsonClient,
    vault: VaultServer,
    clock: FakeClock,
    tmp_path: Path,
) -> None:
    """ALTER ROLE, then the secret: what is open goes on, what is new logs in with the new one, without a restart."""
    role, name = f"rotating_{kind}", f"db-{random.token_hex(4)}"
    if kind == "aws":
        await put(manager, name, '{"password": "first-password"}')
        reference = f"aws-sm://{name}?region={REGION}&endpoint={aws_endpoint}#password"
    else:
        vault.put_secret(name, password="first-password")
        reference = f"vault://secret/{name}#password"
    source = open_secrets(clock=clock, refresh=3_600, vault=with_token(vault, tmp_path / "token"))
    make = await rotating(postgres_server, source, reference, role, clock)
    pool = make()
    assert await who(pool) == role
    clock.advance(2)
    postgres_server.sql(f"ALTER ROLE {role} PASSWORD 'second-password'")
    another = make()
    with pytest.raises(Unavailable, match="user or password") as between:
        await who(another)  # the database was changed first, and the secret not yet
    assert "password'" not in str(between.value)
    assert await who(pool) == role, "the connection that is open"
    if kind == "aws":
        await rotate(manager, name, '{"password": "second-password"}')
    else:
        vault.put_secret(name, password="second-password")
    clock.advance(2)
    assert await who(another) == role
    assert await asyncio.gather(*(who(pool) for _ in range(8))) == [role] * 8
    await pool.close()
    await another.close()
    await source.close()
