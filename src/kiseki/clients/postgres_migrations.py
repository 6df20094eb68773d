"""Numbered changes to the tables of a PostgreSQL store, each applied once: `migrate` and `require_migrated`.

Used by `kiseki migrate` through the stores, and by every store when it opens a connection. Migrations only expand:
what they add, the release before can live with, so that old and new processes run side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresConnection, quoted, transaction
from kiseki.kernel.errors import KisekiError

__all__ = ["Migration", "MigrationRefused", "NotMigrated", "migrate", "require_migrated"]

_LOCK: Final = 7_402_061_991_358
"""Of pg_advisory_xact_lock: one migration at a time in a database."""

_LONG_SECONDS: Final = 3600.0
"""How long one migration may take, and how long another one waits for it."""

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS kiseki_migrations (
        component text COLLATE "C" NOT NULL,
        number integer NOT NULL,
        checksum text COLLATE "C" NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (component, number)
    )
"""
_APPLIED: Final = "SELECT number, checksum FROM kiseki_migrations WHERE component = $1"
_NOTE: Final = "INSERT INTO kiseki_migrations (component, number, checksum) VALUES ($1, $2, $3)"
_SCHEMA_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
_SCHEMA_CREATE: Final = "CREATE SCHEMA IF NOT EXISTS "


class MigrationRefused(KisekiError):
    """The database holds migrations that this release does not know, or knows otherwise; nothing was changed."""

    code = "MIGRATION_REFUSED"


class Migration(NamedTuple):
    """One change. Its statements name no schema; once released it is never edited."""

    number: int
    statements: tuple[str, ...]

    @property
    def checksum(self) -> str:
        """Of the statements (16 hex digits), kept in the database."""
        return hashlib.sha256("\0".join(self.statements).encode()).hexdigest()[:16]


async def migrate(
    connection: PostgresConnection, *, schema: str, component: str, migrations: Sequence[Migration]
) -> list[int]:
    """Applies what is missing, in order, each in one transaction; the numbers of those applied now.

    `connection` has `schema` as its search path (see `clients.postgres.connect`); it is created when it is not there.
    Several at once wait for one another. Raises MigrationRefused; what asyncpg raises.
    """
    applied: list[int] = []
    while True:
        async with transaction(connection):
            await _lock(connection)
            if not await connection.fetchval(_SCHEMA_EXISTS, schema):
                await connection.execute(_SCHEMA_CREATE + quoted(schema))
            await connection.execute(_TABLE)
            there = await _applied(connection, component)
            _refuse_unknown(there, component, migrations)
            missing = next((migration for migration in migrations if migration.number not in there), None)
            if missing is None:
                return applied
            for statement in missing.statements:
                await connection.execute(statement, timeout=_LONG_SECONDS)
            await connection.execute(_NOTE, component, missing.number, missing.checksum)
        applied.append(missing.number)


async def require_migrated(connection: PostgresConnection, *, component: str, migrations: Sequence[Migration]) -> None:
    """Looks whether everything this release needs was applied; a newer database is fine, since migrations only expand.

    Raises NotMigrated; MigrationRefused; what asyncpg raises.
    """
    try:
        there = await _applied(connection, component)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as problem:
        raise NotMigrated(f"the database has no tables of the {component} yet; run `kiseki migrate`") from problem
    missing = [migration.number for migration in migrations if migration.number not in there]
    if missing:
        raise NotMigrated(
            f"the tables of the {component} are of an earlier release ({len(missing)} migrations are missing, the "
            f"first is {missing[0]}); run `kiseki migrate`"
        )
    _refuse_changed(there, component, migrations)


async def _lock(connection: PostgresConnection) -> None:
    # Another migration may take long, so for it alone the limits of the session do not hold; for locks on tables they
    # do again, so that a migration never stands in front of a busy table for longer than that.
    await connection.execute("SET LOCAL statement_timeout = 0")
    lock_timeout = await connection.fetchval("SELECT current_setting('lock_timeout')")
    await connection.execute("SET LOCAL lock_timeout = 0")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_LONG_SECONDS)
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_timeout)


async def _applied(connection: PostgresConnection, component: str) -> Mapping[int, str]:
    return {row["number"]: row["checksum"] for row in await connection.fetch(_APPLIED, component)}


def _refuse_unknown(there: Mapping[int, str], component: str, migrations: Sequence[Migration]) -> None:
    unknown = sorted(set(there) - {migration.number for migration in migrations})
    if unknown:
        raise MigrationRefused(
            f"the {component} in the database was migrated by a newer release (migration {unknown[-1]}); "
            "migrate with that release"
        )
    _refuse_changed(there, component, migrations)


def _refuse_changed(there: Mapping[int, str], component: str, migrations: Sequence[Migration]) -> None:
    for migration in migrations:
        if there.get(migration.number, migration.checksum) != migration.checksum:
            raise MigrationRefused(
                f"migration {migration.number} of the {component} in the database is not the one of this release; "
                "is it another program's schema?"
            )
