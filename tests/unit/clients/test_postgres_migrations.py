"""Migrations are applied once, in order, all or none, and never by a release that does not know them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated

FIRST = Migration(1, ("CREATE TABLE one (x integer)", "INSERT INTO one VALUES (1)"))
SECOND = Migration(2, ("ALTER TABLE one ADD COLUMN y integer",))


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect(PostgresAddress.parse(postgres_url, schema="store"), application="test")
    yield connection
    await connection.close()


async def run(connection: PostgresConnection, *migrations: Migration, component: str = "thing") -> list[int]:
    return await migrate(connection, schema="store", component=component, migrations=migrations)


async def look(connection: PostgresConnection, *migrations: Migration) -> None:
    await require_migrated(connection, component="thing", migrations=migrations)


async def test_what_is_missing_is_applied(connection: PostgresConnection) -> None:
    with pytest.raises(NotMigrated, match=r"has no tables of the thing yet; run `kiseki migrate`"):
        await look(connection, FIRST)
    assert await run(connection, FIRST) == [1]
    await look(connection, FIRST)
    assert await run(connection, FIRST) == []
    with pytest.raises(NotMigrated, match=r"1 migrations are missing, the first is 2\); run `kiseki migrate`"):
        await look(connection, FIRST, SECOND)
    assert await run(connection, FIRST, SECOND) == [2]
    assert [tuple(row) for row in await connection.fetch("SELECT x, y FROM store.one")] == [(1, None)]
    await look(connection, FIRST, SECOND)


async def test_components_are_apart(connection: PostgresConnection) -> None:
    await run(connection, FIRST)
    other = Migration(1, ("CREATE TABLE other (x integer)",))
    assert await run(connection, other, component="other") == [1]
    assert await run(connection, FIRST) == []


async def test_a_newer_database_is_fine_to_use_and_not_to_migrate(connection: PostgresConnection) -> None:
    await run(connection, FIRST, SECOND)
    await look(connection, FIRST)
    with pytest.raises(MigrationRefused, match=r"newer release \(migration 2\)"):
        await run(connection, FIRST)


async def test_a_migration_that_was_changed_is_refused(connection: PostgresConnection) -> None:
    await run(connection, FIRST)
    changed = Migration(1, ("CREATE TABLE one (x bigint)",))
    with pytest.raises(MigrationRefused, match="migration 1 of the thing in the database is not the one"):
        await run(connection, changed, SECOND)
    with pytest.raises(MigrationRefused):
        await look(connection, changed)
    await look(connection, FIRST)


async def test_a_migration_that_fails_leaves_nothing(connection: PostgresConnection) -> None:
    broken = Migration(2, ("CREATE TABLE two (x integer)", "SELECT 1 / 0"))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await run(connection, FIRST, broken)
    assert await connection.fetchval("SELECT to_regclass('two') IS NULL AND to_regclass('one') IS NOT NULL")
    assert await run(connection, FIRST, Migration(2, broken.statements[:1])) == [2]


async def test_several_at_once_apply_each_one_once(postgres_url: str) -> None:
    address = PostgresAddress.parse(postgres_url, schema="store")
    connections = [await connect(address, application="test") for _ in range(4)]
    applied = await asyncio.gather(*(run(connection, FIRST, SECOND) for connection in connections))
    assert sorted(number for numbers in applied for number in numbers) == [1, 2]
    for connection in connections:
        await connection.close()


async def test_limits_hold_again_after_it(connection: PostgresConnection) -> None:
    slow = Migration(1, ("CREATE TABLE one (x integer)", "SELECT pg_sleep(0.3)"))
    await connection.execute("SET statement_timeout = '100ms'; SET lock_timeout = '50ms'")
    assert await run(connection, slow) == [1]
    assert await connection.fetchval("SHOW statement_timeout") == "100ms"
    assert await connection.fetchval("SHOW lock_timeout") == "50ms"


async def test_a_busy_table_is_not_waited_for_longer_than_others(postgres_url: str) -> None:
    address = PostgresAddress.parse(postgres_url, schema="store")
    connection = await connect(address, application="test", lock_timeout=0.1)
    busy = await connect(address, application="test")
    await run(connection, FIRST)
    async with busy.transaction():
        await busy.execute("LOCK TABLE one IN ACCESS SHARE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await run(connection, FIRST, SECOND)
    assert await run(connection, FIRST, SECOND) == [2]
    await connection.close()
    await busy.close()
