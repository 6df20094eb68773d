"""A LeaseStore in a PostgreSQL database of the witness region: one row in a schema of its own.

The database must not lose what it acknowledged: a replica of it that is promoted may have missed that a handing over
began. Let it replicate synchronously, or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import asyncpg
import msgspec

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated
from kiseki.journal.lease.folder import read_record
from kiseki.journal.lease.port import LeaseRecord, LeaseUnavailable

__all__ = ["COMPONENT", "MIGRATIONS", "PostgresLeaseStore"]

COMPONENT: Final = "lease"
MIGRATIONS: Final = (
    Migration(
        1,
        (
            """
            CREATE TABLE leases (
                one boolean PRIMARY KEY CHECK (one), version bigint NOT NULL, record text COLLATE "C" NOT NULL
            )
            """,
        ),
    ),
)
_READ: Final = "SELECT record FROM leases"
_BEGIN: Final = "INSERT INTO leases VALUES (true, $1, $2) ON CONFLICT DO NOTHING RETURNING true"
_SWAP: Final = "UPDATE leases SET version = $1, record = $2 WHERE version = $3 RETURNING true"
_DURABLE: Final = """
    SELECT current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
           AND current_setting('synchronous_commit') <> 'off' AND NOT pg_is_in_recovery()
"""


class PostgresLeaseStore:
    """Keeps the record in PostgreSQL. Belongs to one event loop."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress) -> None:
        """`open` is the way in."""
        self._pool = pool
        self._address = address

    @classmethod
    async def open(cls, address: PostgresAddress, *, timeout: float = 5.0) -> Self:  # noqa: ASYNC109  # of each call
        """The lease in the address's schema; asks nothing yet. Methods raise NotMigrated when there is no table."""

        async def prepare(connection: PostgresConnection) -> None:
            await _prepare(connection, address)

        pool = PostgresPool(
            address,
            size=2,
            application="kiseki lease",
            prepare=prepare,
            unavailable=lambda why: LeaseUnavailable(f"the lease on {address.label} can't be used: {why}"),
            connect_timeout=timeout,
            acquire_timeout=timeout,
            statement_timeout=timeout,
            lock_timeout=timeout,
        )
        return cls(pool, address)

    @staticmethod
    async def migrate(address: PostgresAddress) -> list[str]:
        """Makes the table; what was done, a line each. Raises LeaseUnavailable, MigrationRefused."""
        try:
            connection = await connect(address, application="kiseki-migrate")
            try:
                done = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
            if not is_unavailable(problem):
                raise
            raise LeaseUnavailable(f"the lease on {address.label} can't be migrated: {reason(problem)}") from problem
        return [f"the lease on {address.label}, schema {address.schema}: migration {number} applied" for number in done]

    @property
    def label(self) -> str:
        """As LeaseStore."""
        return self._address.label

    async def read(self) -> LeaseRecord | None:
        """As LeaseStore."""
        async with self._connection() as connection:
            text = await connection.fetchval(_READ)
        return None if text is None else read_record(text, self.label)

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        """As LeaseStore."""
        text = msgspec.json.encode(after).decode()
        async with self._connection() as connection:
            if before is None:
                return bool(await connection.fetchval(_BEGIN, after.version, text))
            return bool(await connection.fetchval(_SWAP, after.version, text, before.version))

    async def close(self) -> None:
        """As LeaseStore."""
        await self._pool.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PostgresConnection]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except asyncpg.PostgresError as problem:
            raise LeaseUnavailable(f"the lease on {self.label} can't be used: {reason(problem)}") from problem


async def _prepare(connection: PostgresConnection, address: PostgresAddress) -> None:
    if not await connection.fetchval(_DURABLE):
        raise LeaseUnavailable(
            f"the lease on {address.label} can't be used: it is a standby, or a crash would lose what it says; set "
            "fsync, full_page_writes and synchronous_commit to on"
        )
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except NotMigrated as problem:
        raise LeaseUnavailable(f"{address.label}, schema {address.schema}: {problem}") from problem
    except MigrationRefused as problem:
        raise LeaseUnavailable(f"the lease on {address.label} can't be used: {problem}") from problem
