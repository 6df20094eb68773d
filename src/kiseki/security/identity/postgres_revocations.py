"""A RevocationStore in a PostgreSQL schema, for the processes of many machines. Made by the composition root.

The schema may be the key store's: the tables do not meet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect, transaction
from kiseki.clients.postgres_errors import reason
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated
from kiseki.security.identity.revocations import MAX_REVOCATIONS, RevocationsUnavailable, Revoked, too_many

__all__ = ["COMPONENT", "MIGRATIONS", "PostgresRevocations"]

COMPONENT: Final = "revocations"
MIGRATIONS: Final = (
    Migration(
        1,
        (
            """
            CREATE TABLE token_revocations (
                issuer text COLLATE "C" NOT NULL,
                subject text COLLATE "C" NOT NULL,
                until double precision NOT NULL,
                PRIMARY KEY (issuer, subject)
            )
            """,
        ),
    ),
)
_FORGET: Final = "DELETE FROM token_revocations WHERE until <= $1"
_REVOKE: Final = """
INSERT INTO token_revocations (issuer, subject, until) VALUES ($1, $2, $3)
ON CONFLICT (issuer, subject) DO UPDATE SET until = greatest(token_revocations.until, excluded.until)
"""
_COUNT: Final = "SELECT count(*) FROM token_revocations"
_LOAD: Final = "SELECT issuer, subject, until FROM token_revocations WHERE until > $1"


class PostgresRevocations:
    """Keeps revocations in PostgreSQL. Belongs to one event loop."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress) -> None:
        """`open` is the way in. The store closes the pool."""
        self._pool = pool
        self._address = address

    @classmethod
    async def open(cls, address: PostgresAddress, *, connections: int = 1, statement_timeout: float = 5.0) -> Self:
        """A store in the address's schema; `statement_timeout` in seconds. Asks nothing, so it does not fail while the
        server is down; methods raise NotMigrated when there is no table."""

        async def prepare(connection: PostgresConnection) -> None:
            try:
                await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
            except NotMigrated as problem:
                raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
            except MigrationRefused as problem:
                raise RevocationsUnavailable(
                    f"the revocations on {address.label} can't be used: {problem}"
                ) from problem

        pool = PostgresPool(
            address,
            size=connections,
            application="kiseki-revocations",
            prepare=prepare,
            unavailable=lambda why: RevocationsUnavailable(f"the revocations on {address.label} can't be used: {why}"),
            statement_timeout=statement_timeout,
        )
        return cls(pool, address)

    @staticmethod
    async def migrate(address: PostgresAddress) -> list[str]:
        """Makes the table; what was done, a line each. Raises RevocationsUnavailable, MigrationRefused."""
        try:
            connection = await connect(address, application="kiseki-migrate")
            try:
                done = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                await connection.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
            raise RevocationsUnavailable(
                f"the revocations on {address.label} can't be migrated: {reason(problem)}"
            ) from problem
        where = f"the revocations on {address.label}, schema {address.schema}"
        return [f"{where}: migration {number} applied" for number in done]

    async def revoke(self, issuer: str, subject: str, *, at: float, forget_before: float) -> None:
        """As RevocationStore."""
        async with self._connection() as connection, transaction(connection):
            await connection.execute(_FORGET, forget_before)
            await connection.execute(_REVOKE, issuer, subject, at)
            if await connection.fetchval(_COUNT) > MAX_REVOCATIONS:
                raise too_many()

    async def load(self, after: float) -> Revoked:
        """As RevocationStore."""
        async with self._connection() as connection:
            rows = await connection.fetch(_LOAD, after)
        return {(row["issuer"], row["subject"]): row["until"] for row in rows}

    async def close(self) -> None:
        """As RevocationStore."""
        await self._pool.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PostgresConnection]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except asyncpg.PostgresError as problem:
            raise RevocationsUnavailable(
                f"the revocations on {self._address.label} can't be used: {reason(problem)}"
            ) from problem
