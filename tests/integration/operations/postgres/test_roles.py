"""`kiseki database prepare` on a real server: what the settings name is made, once, and it is enough for `migrate`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kiseki.clients.postgres import PasswordSource, PostgresAddress
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.operations.errors import OperationFailed
from kiseki.operations.postgres.roles import WantedDatabase, prepare_server, wanted_databases
from kiseki.service.settings import Settings
from kiseki.service.stores import migrate
from tests.servers.postgres import PostgresServer


class Unasked:
    """A source of passwords that nobody may ask."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    async def password(self) -> str:
        raise AssertionError(self.reference)

    renewed = password


def passwords(reference: str) -> PasswordSource:
    return Unasked(reference)


class Names(NamedTuple):
    service: str
    audit: str
    database: str
    other: str


@pytest.fixture
def names(postgres_server: PostgresServer) -> Iterator[Names]:
    """Roles are the server's, not a database's: names of this test's own, gone after it."""
    mark = uuid.uuid4().hex[:8]
    made = Names(f"service_{mark}", f"audit_{mark}", f"shop_{mark}", f"log_{mark}")
    yield made
    for database in (made.database, made.other):
        postgres_server.sql(f'DROP DATABASE IF EXISTS "{database}"')
    for role in (made.service, made.audit):
        postgres_server.sql(f'DROP ROLE IF EXISTS "{role}"')


@pytest.fixture
def iam(postgres_server: PostgresServer) -> None:
    """The role by which RDS knows who signs in with a token."""
    if not postgres_server.sql("SELECT 1 FROM pg_roles WHERE rolname = 'rds_iam'"):
        postgres_server.sql("CREATE ROLE rds_iam")


def admin_of(server: PostgresServer) -> tuple[PostgresAddress, str]:
    url = server.create_database()
    return PostgresAddress.parse(url, schema="public"), "127.0.0.1"


def wanted_of(names: Names, *, iam: bool = True, host: str = "127.0.0.1") -> list[WantedDatabase]:
    return [
        WantedDatabase("read_model", host, names.database, names.service, iam),
        WantedDatabase("audit_database", host, names.other, names.audit, iam),
    ]


@pytest.mark.usefixtures("iam")
async def test_all_is_made_once_and_a_second_run_finds_it(postgres_server: PostgresServer, names: Names) -> None:
    admin, host = admin_of(postgres_server)
    lines = await prepare_server(admin, host, wanted_of(names))
    assert lines == [
        f"role {names.service}: made",
        f"role {names.service}: signs in with IAM",
        f"role {names.audit}: made",
        f"role {names.audit}: signs in with IAM",
        f"database {names.database}: made",
        f"database {names.database}: {names.service} may connect and make schemas",
        f"database {names.other}: made",
        f"database {names.other}: {names.audit} may connect and make schemas",
    ]
    assert await prepare_server(admin, host, wanted_of(names)) == []


@pytest.mark.usefixtures("iam")
async def test_the_administrator_is_no_superuser_and_no_member_of_what_it_makes(
    postgres_server: PostgresServer, names: Names
) -> None:
    """As on RDS, where a member of a role with rds_iam could not sign in with its password any more."""
    master = f"master_{names.service}"
    postgres_server.sql(f"CREATE ROLE \"{master}\" LOGIN CREATEROLE CREATEDB PASSWORD 'known'")
    postgres_server.sql(f'GRANT rds_iam TO "{master}" WITH ADMIN OPTION')
    admin = PostgresAddress.parse(
        f"postgresql://{master}:known@127.0.0.1:{postgres_server.port}/postgres", schema="public"
    )
    try:
        assert len(await prepare_server(admin, "127.0.0.1", wanted_of(names))) == 8
        assert await prepare_server(admin, "127.0.0.1", wanted_of(names)) == []
        for role in (names.service, names.audit):
            assert postgres_server.sql(f"SELECT pg_has_role('{master}', '{role}', 'USAGE')") == "f"
    finally:
        for database in (names.database, names.other):
            postgres_server.sql(f'DROP DATABASE IF EXISTS "{database}"')
        for role in (names.service, names.audit):
            postgres_server.sql(f'DROP ROLE IF EXISTS "{role}"')
        postgres_server.sql(f'DROP OWNED BY "{master}"')
        postgres_server.sql(f'DROP ROLE "{master}"')


@pytest.mark.usefixtures("iam")
async def test_its_rights_are_enough_to_migrate_and_no_more_than_that(
    postgres_server: PostgresServer, names: Names
) -> None:
    admin, host = admin_of(postgres_server)
    await prepare_server(admin, host, wanted_of(names))
    # The role signs in with a password, in place of a token that only RDS could look at.
    postgres_server.sql(f"ALTER ROLE \"{names.service}\" PASSWORD 'known'")
    postgres_server.sql(f"ALTER ROLE \"{names.audit}\" PASSWORD 'known'")
    url = f"postgresql://{names.service}:known@127.0.0.1:{postgres_server.port}/{names.database}"
    log = f"postgresql://{names.audit}:known@127.0.0.1:{postgres_server.port}/{names.other}"
    await migrate(Settings(journal=url, audit_sinks=("database",), audit_database=log))

    elsewhere = url.replace(names.database, names.other)
    refused = PostgresAddress.parse(elsewhere, schema="public")
    with pytest.raises(OperationFailed, match="the user lacks a permission"):
        await prepare_server(refused, host, [])
    with pytest.raises(OperationFailed, match="this user may not make roles and databases; name the administrator"):
        await prepare_server(
            PostgresAddress.parse(url, schema="public"), host, [wanted_of(names)[0]._replace(role="other")]
        )


async def test_without_iam_on_the_server_nothing_is_left_in_doubt(
    postgres_server: PostgresServer, names: Names
) -> None:
    postgres_server.sql("DROP ROLE IF EXISTS rds_iam")
    admin, host = admin_of(postgres_server)
    with pytest.raises(OperationFailed, match=r"read_model has auth=aws-iam, but the server has no role rds_iam"):
        await prepare_server(admin, host, wanted_of(names))


async def test_a_role_with_a_password_is_made_by_whoever_makes_the_password(
    postgres_server: PostgresServer, names: Names
) -> None:
    admin, host = admin_of(postgres_server)
    with pytest.raises(OperationFailed, match=f"the role {names.service} signs in with a password and is not there"):
        await prepare_server(admin, host, wanted_of(names, iam=False))
    for role in (names.service, names.audit):
        postgres_server.sql(f'CREATE ROLE "{role}" LOGIN')
    lines = await prepare_server(admin, host, wanted_of(names, iam=False))
    assert lines[0] == f"database {names.database}: made"
    assert not any("IAM" in line for line in lines)


async def test_a_database_in_another_encoding_is_refused(postgres_server: PostgresServer, names: Names) -> None:
    admin, host = admin_of(postgres_server)
    postgres_server.sql(f"CREATE DATABASE \"{names.database}\" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    postgres_server.sql(f'CREATE ROLE "{names.service}" LOGIN')
    with pytest.raises(OperationFailed, match=f"the database {names.database} is encoded in LATIN1, not in UTF8"):
        await prepare_server(admin, host, wanted_of(names, iam=False)[:1])


async def test_what_is_on_another_server_is_said(postgres_server: PostgresServer, names: Names) -> None:
    admin, host = admin_of(postgres_server)
    lines = await prepare_server(admin, host, wanted_of(names, host="db.example.com"))
    assert lines[0] == "read_model is on another server, db.example.com: run this for that one too"


async def test_a_server_that_is_not_there_is_one_line() -> None:
    admin = PostgresAddress.parse("postgresql://postgres@127.0.0.1:1/postgres", schema="public")
    with pytest.raises(OperationFailed, match=r"127.0.0.1:1/postgres can't be prepared: .*"):
        await prepare_server(admin, "127.0.0.1", [])


IAM = "?sslmode=verify-full&auth=aws-iam&region=eu-west-1"


def test_settings_say_what_is_wanted() -> None:
    found = wanted_databases(
        {
            "journal": "dynamodb://shop?region=eu-west-1",
            "read_model": f"postgresql://kiseki@db.example.com:5432/shop{IAM}",
            "audit_database": "postgresql://audit:file%3A%2F%2F%2Frun%2Fp@db.example.com/log",
            "audit_anchors": f"postgresql://kiseki@db.example.com:5432/shop{IAM}",
        },
        passwords,
    )
    assert found == [
        WantedDatabase("read_model", "db.example.com", "shop", "kiseki", iam=True),
        WantedDatabase("audit_database", "db.example.com", "log", "audit", iam=False),
    ]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://db.example.com/shop", "read_model names no user"),
        ("postgresql://kiseki@db.example.com/my-shop", "read_model: not a plain SQL name: 'my-shop'"),
        ("postgresql://kiseki%22@db.example.com/shop", "read_model: not a plain SQL name"),
        ("postgresql://kiseki@/shop", "names a host and a database"),
    ],
)
def test_a_setting_that_names_nothing_usable_is_refused(url: str, problem: str) -> None:
    with pytest.raises(StoreUrlInvalid, match=problem):
        wanted_databases({"read_model": url}, passwords)
