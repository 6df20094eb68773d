"""Audit records and anchors in tables of PostgreSQL that refuse to be changed: `PostgresSink`, `PostgresAnchors`, and
their LineSources. Imported only where they are used.

Triggers refuse UPDATE, DELETE and TRUNCATE to everybody. The owner of a table can drop its triggers, so let another
account own and migrate it, and give the service's account no more than

    GRANT USAGE ON SCHEMA kiseki_audit TO service;
    GRANT SELECT, INSERT ON kiseki_audit.audit_records TO service;
    GRANT SELECT ON kiseki_audit.kiseki_migrations TO service;

What those who may drop triggers do shows in the chain, up to the last anchor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect
from kiseki.clients.postgres_errors import reason
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated
from kiseki.kernel.errors import Unavailable
from kiseki.security.audit.record import SealedRecord
from kiseki.security.audit.sink import SinkFailed, SourceLine

__all__ = ["PostgresAnchors", "PostgresLines", "PostgresSink", "migrate_anchors", "migrate_records"]

Result = TypeVar("Result")

_PAGE: Final = 500
_AT_ONCE: Final = 500


def _append_only(table: str, function: str) -> tuple[str, ...]:
    """The statements that make a table of lines; the names are constants of this module."""
    return (
        f"""
        CREATE TABLE {table} (
            writer text COLLATE "C" NOT NULL,
            number bigint NOT NULL CHECK (number > 0),
            at timestamptz NOT NULL,
            line text COLLATE "C" NOT NULL CHECK (octet_length(line) < 8192),
            PRIMARY KEY (writer, number)
        )
        """,
        f"CREATE INDEX ON {table} (at)",
        f"""
        CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'insufficient_privilege';
        END
        $$
        """,
        f"CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
        f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER refuse_change",
    )


class _Table:
    """The statements for one of the two tables."""

    def __init__(self, component: str, table: str) -> None:
        self.component = component
        self.migrations = (Migration(1, _append_only(table, f"{table}_refuse_change")),)
        # Whoever may insert could put a record where this writer's next one belongs: what stands there is compared.
        self.insert = f"""
            WITH new AS (SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::text[]) AS n (number, at, line)),
            added AS (
                INSERT INTO {table} (writer, number, at, line)
                SELECT $4, number, at, line FROM new ORDER BY number
                ON CONFLICT (writer, number) DO NOTHING RETURNING number
            )
            SELECT number, line FROM new WHERE number NOT IN (SELECT number FROM added)
        """  # noqa: S608  # the table is a constant
        self.there = f"SELECT number, line FROM {table} WHERE writer = $1 AND number = ANY($2::bigint[])"  # noqa: S608
        self.latest = f"SELECT line FROM {table} WHERE writer <> $1 ORDER BY at DESC, number DESC LIMIT 1"  # noqa: S608
        # One step through the index for each writer instead of one for each record.
        self.writers = f"""
            WITH RECURSIVE found AS (
                (SELECT writer FROM {table} ORDER BY writer LIMIT 1)
                UNION ALL
                SELECT (SELECT writer FROM {table} WHERE writer > found.writer ORDER BY writer LIMIT 1) FROM found
                WHERE found.writer IS NOT NULL
            )
            SELECT writer FROM found WHERE writer IS NOT NULL
        """  # noqa: S608
        self.recent = f"""
            SELECT writer FROM (SELECT writer, at FROM {table} ORDER BY at DESC LIMIT 1000) AS last
            GROUP BY writer ORDER BY max(at) DESC LIMIT $1
        """  # noqa: S608
        self.page = f"SELECT number, line FROM {table} WHERE writer = $1 AND number > $2 ORDER BY number LIMIT $3"  # noqa: S608
        self.newest = f"SELECT number, line FROM {table} WHERE writer = $1 ORDER BY number DESC LIMIT $2"  # noqa: S608


_RECORDS: Final = _Table("audit log", "audit_records")
_ANCHORS: Final = _Table("audit anchors", "audit_anchors")

_DURABLE: Final = """
SELECT current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
AND current_setting('synchronous_commit') <> 'off'
"""


async def migrate_records(address: PostgresAddress) -> list[str]:
    """Makes and renews the table of records; what was done, a line each. Raises SinkFailed, MigrationRefused."""
    return await _migrate(address, _RECORDS)


async def migrate_anchors(address: PostgresAddress) -> list[str]:
    """Makes and renews the table of anchors; what was done, a line each. Raises SinkFailed, MigrationRefused."""
    return await _migrate(address, _ANCHORS)


async def _migrate(address: PostgresAddress, table: _Table) -> list[str]:
    where = f"the {table.component} on {address.label}"
    try:
        connection = await connect(address, application="kiseki-migrate")
        try:
            done = await migrate(
                connection, schema=address.schema, component=table.component, migrations=table.migrations
            )
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
        raise SinkFailed(f"{where} can't be migrated: {reason(problem)}") from problem
    return [f"{where}, schema {address.schema}: migration {number} applied" for number in done]


class PostgresLines:
    """Reads one of the tables (a LineSource), and is the base of what writes it. Belongs to one event loop."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress, table: _Table) -> None:
        """`records` and `anchors` are the ways in."""
        self._pool = pool
        self._table = table
        self.name = f"the {table.component} on {address.label}"

    @classmethod
    def records(cls, address: PostgresAddress) -> Self:
        """Reads records. Asks nothing yet."""
        return cls(_pool(address, _RECORDS), address, _RECORDS)

    async def writers(self) -> Sequence[str]:
        """As LineSource. Raises SinkFailed."""
        return [row["writer"] for row in await self._fetch(self._table.writers)]

    async def lines(self, writer: str, after: int = 0) -> AsyncIterator[Sequence[SourceLine]]:
        """As LineSource. Raises SinkFailed."""
        while True:
            rows = await self._fetch(self._table.page, writer, after, _PAGE)
            if rows:
                yield [_line(row, writer) for row in rows]
                after = rows[-1]["number"]
            if len(rows) < _PAGE:
                return

    async def first(self, writer: str) -> SourceLine | None:
        """As LineSource. Raises SinkFailed."""
        rows = await self._fetch(self._table.page, writer, 0, 1)
        return _line(rows[0], writer) if rows else None

    async def newest(self, writer: str, most: int) -> Sequence[SourceLine]:
        """As LineSource. Raises SinkFailed."""
        return [_line(row, writer) for row in reversed(await self._fetch(self._table.newest, writer, most))]

    async def recent(self, most: int) -> Sequence[str]:
        """As AnchorStore."""
        return [row["writer"] for row in await self._fetch(self._table.recent, most)]

    async def close(self) -> None:
        """Ends its connections."""
        await self._pool.close()

    async def _fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        async def work(connection: PostgresConnection) -> list[asyncpg.Record]:
            return await connection.fetch(statement, *arguments)

        return await self._with(work)

    async def _with(self, work: Callable[[PostgresConnection], Coroutine[Any, Any, Result]]) -> Result:
        try:
            async with self._pool.connection() as connection:
                return await work(connection)
        except asyncpg.PostgresError as problem:
            raise SinkFailed(f"{self.name} can't be used: {reason(problem)}") from problem
        except Unavailable as problem:
            if isinstance(problem, SinkFailed):
                raise
            raise SinkFailed(f"{self.name} can't be used: {problem}") from problem

    async def put_back(self, writer: str, rows: Sequence[tuple[int, datetime, bytes]]) -> None:
        """Adds lines of a backup (number, time, line) that are not there; durable when this returns, again is fine.

        Raises SinkFailed, also when another line has one of the numbers.
        """
        for start in range(0, len(rows), _AT_ONCE):
            await self._insert(writer, rows[start : start + _AT_ONCE])

    async def _insert(self, writer: str, rows: Sequence[tuple[int, datetime, bytes]]) -> None:
        """Each call is a transaction of its own, so durable when it returns; again with the same rows is fine."""

        async def work(connection: PostgresConnection) -> None:
            refused = await connection.fetch(
                self._table.insert,
                [number for number, _, _ in rows],
                [at.astimezone(UTC) for _, at, _ in rows],
                [line.decode("ascii") for _, _, line in rows],
                writer,
            )
            if refused:
                wanted = {row["number"]: row["line"] for row in refused}
                there = await connection.fetch(self._table.there, writer, list(wanted))
                if any(wanted[row["number"]] != row["line"] for row in there) or len(there) != len(wanted):
                    raise SinkFailed(
                        f"{self.name} has lines of this writer that it did not write: somebody else may insert there"
                    )

        await self._with(work)


class PostgresSink(PostgresLines):
    """Writes records (an AuditSink)."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress, *, writer: str) -> None:
        """`open` is the way in."""
        super().__init__(pool, address, _RECORDS)
        self.name = "database"
        self._writer = writer

    @classmethod
    async def open(cls, address: PostgresAddress, *, writer: str, statement_timeout: float = 5.0) -> PostgresSink:
        """A sink in the address's schema. Asks nothing, so it does not fail while the server is down."""
        return cls(_pool(address, _RECORDS, statement_timeout=statement_timeout), address, writer=writer)

    async def latest(self) -> bytes | None:
        """As AuditSink: the newest record of any machine."""
        rows = await self._fetch(self._table.latest, self._writer)
        return str(rows[0]["line"]).encode() if rows else None

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        """As AuditSink; always durable."""
        for start in range(0, len(records), _AT_ONCE):
            part = records[start : start + _AT_ONCE]
            try:
                await self._insert(self._writer, [(record.number, record.at, record.line) for record in part])
            except SinkFailed as problem:
                raise SinkFailed(str(problem), written=start) from problem


class PostgresAnchors(PostgresLines):
    """Keeps anchors (an AnchorStore): in another database than the records, with another account."""

    @classmethod
    def open(cls, address: PostgresAddress, *, statement_timeout: float = 5.0) -> PostgresAnchors:
        """Anchors in the address's schema. Asks nothing yet."""
        return cls(_pool(address, _ANCHORS, statement_timeout=statement_timeout), address, _ANCHORS)

    async def add(self, line: bytes, *, writer: str, index: int, at: datetime) -> None:
        """As AnchorStore."""
        await self._insert(writer, [(index, at, line)])


def _pool(address: PostgresAddress, table: _Table, *, statement_timeout: float = 20.0) -> PostgresPool:
    where = f"the {table.component} on {address.label}"

    async def prepare(connection: PostgresConnection) -> None:
        if not await connection.fetchval(_DURABLE):
            raise SinkFailed(
                f"{where} can't be used: a crash would lose records; set fsync, full_page_writes and "
                "synchronous_commit to on"
            )
        try:
            await require_migrated(connection, component=table.component, migrations=table.migrations)
        except NotMigrated as problem:
            raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
        except MigrationRefused as problem:
            raise SinkFailed(f"{where} can't be used: {problem}") from problem

    return PostgresPool(
        address,
        size=2,
        application="kiseki-audit",
        prepare=prepare,
        unavailable=lambda why: SinkFailed(f"{where} can't be used: {why}"),
        connect_timeout=min(5.0, statement_timeout),
        acquire_timeout=min(5.0, statement_timeout),
        statement_timeout=statement_timeout,
        lock_timeout=min(5.0, statement_timeout),
    )


def _line(row: asyncpg.Record, writer: str) -> SourceLine:
    line = str(row["line"]).encode()
    where = f"writer {writer}, row {row['number']}"
    # Both stand at a fixed place in the line; whether that is authentic is for the reader to say.
    if f'"writer":"{writer}"'.encode() not in line[:80]:
        return SourceLine(line, where, problem="its writer is not the one in its row")
    return SourceLine(line, where)
