"""A LedgerStore in a PostgreSQL schema of its own. Its database is to be another one than those of the stores, with
backups of its own: what is restored together with them forgets what it is to remember.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import asyncpg
import msgspec

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect
from kiseki.clients.postgres_errors import reason
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated
from kiseki.security.erasure.lines import LedgerBroken, Line, Mark
from kiseki.security.erasure.store import LedgerUnavailable

__all__ = ["COMPONENT", "MIGRATIONS", "PostgresLedgerStore"]

COMPONENT: Final = "erasure ledger"
MIGRATIONS: Final = (
    Migration(
        1,
        (
            'CREATE TABLE lines (number bigint PRIMARY KEY, line text COLLATE "C" NOT NULL)',
            'CREATE TABLE marks (one boolean PRIMARY KEY CHECK (one), mark text COLLATE "C" NOT NULL)',
            # Append-only, also for whoever made a mistake with psql; the chain finds what goes around it.
            """
            CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the ledger of erasures is append-only'; END $$
            """,
            """
            CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON lines
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
            """,
        ),
    ),
)

_LAST: Final = "SELECT line FROM lines ORDER BY number DESC LIMIT 1"
_ADD: Final = """
INSERT INTO lines (number, line)
SELECT $1::bigint, $2::text WHERE (SELECT coalesce(max(number), 0) FROM lines) = $1::bigint - 1
ON CONFLICT DO NOTHING RETURNING true
"""
_LINES: Final = "SELECT line FROM lines WHERE number > $1 ORDER BY number LIMIT $2"
_MARK: Final = "SELECT mark FROM marks"
_SET_MARK: Final = "INSERT INTO marks VALUES (true, $1) ON CONFLICT (one) DO UPDATE SET mark = excluded.mark"
_DURABLE: Final = """
SELECT current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
AND current_setting('synchronous_commit') <> 'off'
"""
_line_of: Final = msgspec.json.Decoder(Line).decode
_mark_of: Final = msgspec.json.Decoder(Mark).decode


class PostgresLedgerStore:
    """Keeps the ledger in PostgreSQL. Belongs to one event loop."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress) -> None:
        """`open` is the way in."""
        self._pool = pool
        self._address = address

    @classmethod
    async def open(cls, address: PostgresAddress, *, connections: int = 2, statement_timeout: float = 10.0) -> Self:
        """The ledger in the address's schema. Asks nothing, so it does not fail while the server is down; methods raise
        NotMigrated when there are no tables."""

        async def prepare(connection: PostgresConnection) -> None:
            await _prepare(connection, address)

        pool = PostgresPool(
            address,
            size=connections,
            application="kiseki-erasures",
            prepare=prepare,
            unavailable=lambda why: LedgerUnavailable(
                f"the ledger of erasures on {address.label} can't be used: {why}"
            ),
            statement_timeout=statement_timeout,
        )
        return cls(pool, address)

    @staticmethod
    async def migrate(address: PostgresAddress) -> list[str]:
        """Makes and renews the tables; what was done, a line each. Raises LedgerUnavailable, MigrationRefused."""
        try:
            connection = await connect(address, application="kiseki-migrate")
            try:
                done = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                await connection.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
            raise LedgerUnavailable(
                f"the ledger of erasures on {address.label} can't be migrated: {reason(problem)}"
            ) from problem
        where = f"the ledger of erasures on {address.label}, schema {address.schema}"
        return [f"{where}: migration {number} applied" for number in done]

    async def last(self) -> Line | None:
        """As LedgerStore."""
        async with self._connection() as connection:
            text = await connection.fetchval(_LAST)
        return None if text is None else _read(text)

    async def add(self, line: Line) -> bool:
        """As LedgerStore. Two that add one number at once: the second waits for the first, and then adds nothing."""
        async with self._connection() as connection:
            return bool(await connection.fetchval(_ADD, line.number, msgspec.json.encode(line).decode()))

    async def lines(self, after: int, limit: int) -> Sequence[Line]:
        """As LedgerStore."""
        async with self._connection() as connection:
            return [_read(row["line"]) for row in await connection.fetch(_LINES, after, limit)]

    async def mark(self) -> Mark | None:
        """As LedgerStore."""
        async with self._connection() as connection:
            text = await connection.fetchval(_MARK)
        try:
            return None if text is None else _mark_of(text)
        except msgspec.DecodeError:
            return None

    async def set_mark(self, mark: Mark) -> None:
        """As LedgerStore."""
        async with self._connection() as connection:
            await connection.execute(_SET_MARK, msgspec.json.encode(mark).decode())

    async def close(self) -> None:
        """As LedgerStore."""
        await self._pool.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PostgresConnection]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except asyncpg.PostgresError as problem:
            raise LedgerUnavailable(
                f"the ledger of erasures on {self._address.label} can't be used: {reason(problem)}"
            ) from problem


def _read(text: str) -> Line:
    try:
        return _line_of(text)
    except msgspec.DecodeError:
        raise LedgerBroken("the ledger of erasures holds what is no line: restore it from its own copy") from None


async def _prepare(connection: PostgresConnection, address: PostgresAddress) -> None:
    where = f"the ledger of erasures on {address.label}"
    if not await connection.fetchval(_DURABLE):
        raise LedgerUnavailable(
            f"{where} can't be used: a crash would lose lines; set fsync, full_page_writes and synchronous_commit to on"
        )
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except NotMigrated as problem:
        raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
    except MigrationRefused as problem:
        raise LedgerUnavailable(f"{where} can't be used: {problem}") from problem
