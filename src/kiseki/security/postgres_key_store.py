"""A KeyStore in a PostgreSQL schema of its own, apart from journal and read models. Concurrent calls share statements.

One row for each subject holds either its keys or its tombstone, so that its primary key decides between an insertion
and an erasure that meet. Erasures are numbered by a counter whose row stays locked until the erasure is committed:
they become visible in the order of their numbers, and a mark never skips one that was slower.

What becomes of destroyed keys: the row is overwritten, and a VACUUM takes its old version out of the table as soon as
no transaction can see it. Bytes of it can stay in the unused part of its page (of 2 in 150 keys in a trial; `VACUUM
FULL` clears those), in the write-ahead log until that is recycled, and in archives and backups of this database until
they go. All of those are keys wrapped by the master key, which PostgreSQL never has. Keep the backups of this schema no
longer than an erasure may take, and after a restore erase again what was erased since. Rotating the master key,
re-wrapping, and destroying the old one makes every older copy worthless at once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Final, Self

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect
from kiseki.clients.postgres_errors import reason
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, migrate, require_migrated
from kiseki.security.batched import BatchedCalls
from kiseki.security.key_store import (
    Erasures,
    KeyStoreCorrupt,
    KeyStoreUnavailable,
    Rewrapped,
    SubjectKeys,
    WrappedKey,
)

__all__ = ["COMPONENT", "MIGRATIONS", "PostgresKeyStore"]

COMPONENT: Final = "key store"
MIGRATIONS: Final = (
    Migration(
        1,
        (
            """
            CREATE TABLE subjects (
                subject text COLLATE "C" PRIMARY KEY,
                key_ids text[] NOT NULL,
                wrapped bytea[] NOT NULL,
                erased_at timestamptz,
                erasure bigint UNIQUE,
                CHECK (cardinality(key_ids) = cardinality(wrapped)),
                CHECK ((erased_at IS NULL) = (erasure IS NULL)),
                CHECK ((erased_at IS NULL) = (cardinality(wrapped) > 0))
            )
            """,
            "CREATE TABLE erasures (one boolean PRIMARY KEY CHECK (one), last bigint NOT NULL)",
            "INSERT INTO erasures VALUES (true, 0)",
        ),
    ),
)

# In the order of subjects, as everything that locks several rows: two such statements can't wait for each other.
_INSERT: Final = """
INSERT INTO subjects (subject, key_ids, wrapped)
SELECT subject, ARRAY[key_id], ARRAY[wrapped]
FROM unnest($1::text[], $2::text[], $3::bytea[]) AS new (subject, key_id, wrapped) ORDER BY subject COLLATE "C"
ON CONFLICT (subject) DO NOTHING RETURNING subject
"""
_LOAD: Final = "SELECT subject, key_ids, wrapped, erased_at FROM subjects WHERE subject = ANY($1::text[])"
_ERASE: Final = """
WITH next AS (
    UPDATE erasures SET last = last + 1
    WHERE NOT EXISTS (SELECT FROM subjects WHERE subject = $1 AND erased_at IS NOT NULL) RETURNING last
)
INSERT INTO subjects (subject, key_ids, wrapped, erased_at, erasure) SELECT $1, '{}', '{}', $2, last FROM next
ON CONFLICT (subject) DO UPDATE
SET key_ids = '{}', wrapped = '{}', erased_at = excluded.erased_at, erasure = excluded.erasure
WHERE subjects.erased_at IS NULL RETURNING true
"""
_IS_ERASED: Final = "SELECT erased_at IS NOT NULL FROM subjects WHERE subject = $1"
_MARK: Final = "SELECT last, '{}'::text[] AS subjects FROM erasures"
_ERASURES: Final = """
SELECT last, ARRAY(SELECT subject FROM subjects WHERE erasure > $1 ORDER BY erasure) AS subjects FROM erasures
"""
_SCAN: Final = """
SELECT subject, key_ids, wrapped, erased_at FROM subjects WHERE subject > $1 AND erased_at IS NULL
ORDER BY subject LIMIT $2
"""
_LOCK: Final = (
    "SELECT subject, key_ids, wrapped, erased_at FROM subjects WHERE subject = ANY($1::text[]) "
    "ORDER BY subject FOR UPDATE"
)
_REPLACE: Final = "UPDATE subjects SET wrapped = $2 WHERE subject = $1"
# Cutting the file would lock everybody out for a moment.
_VACUUM: Final = "VACUUM (TRUNCATE false) subjects"
_DURABLE: Final = """
SELECT current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
AND current_setting('synchronous_commit') <> 'off'
"""

_log = logging.getLogger(__name__)


class PostgresKeyStore:
    """Keeps keys in PostgreSQL. Belongs to one event loop."""

    def __init__(self, pool: PostgresPool, address: PostgresAddress) -> None:
        """`open` is the way in. The store closes the pool."""
        self._pool = pool
        self._address = address
        self._loads: BatchedCalls[str, dict[str, SubjectKeys]] = BatchedCalls(self._load, at_once=2, group=1_000)
        self._inserts: BatchedCalls[tuple[str, WrappedKey], dict[str, SubjectKeys]] = BatchedCalls(
            self._insert, at_once=2, group=1_000
        )
        self._vacuums: BatchedCalls[None, None] = BatchedCalls(self._vacuum, at_once=1, group=1_000_000)

    @classmethod
    async def open(cls, address: PostgresAddress, *, connections: int = 4, statement_timeout: float = 10.0) -> Self:
        """A store in the address's schema, with at most `connections`; `statement_timeout` in seconds.

        Asks nothing, so it does not fail while the server is down; methods raise NotMigrated when there are no tables.
        """

        async def prepare(connection: PostgresConnection) -> None:
            await _prepare(connection, address)

        pool = PostgresPool(
            address,
            size=connections,
            application="kiseki-keys",
            prepare=prepare,
            unavailable=lambda why: KeyStoreUnavailable(f"the key store on {address.label} can't be used: {why}"),
            statement_timeout=statement_timeout,
        )
        return cls(pool, address)

    @staticmethod
    async def migrate(address: PostgresAddress) -> list[str]:
        """Makes and renews the tables; what was done, a line each. Raises KeyStoreUnavailable, MigrationRefused."""
        try:
            connection = await connect(address, application="kiseki-migrate")
            try:
                done = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                await connection.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
            raise KeyStoreUnavailable(
                f"the key store on {address.label} can't be migrated: {reason(problem)}"
            ) from problem
        where = f"the key store on {address.label}, schema {address.schema}"
        return [f"{where}: migration {number} applied" for number in done]

    async def load(self, subjects: Collection[str]) -> dict[str, SubjectKeys]:
        """As KeyStore; concurrent calls share one read."""
        if not subjects:
            return {}
        known = await self._loads.ask(list(subjects))
        return {subject: known[subject] for subject in subjects if subject in known}

    async def insert(self, keys: Mapping[str, WrappedKey]) -> dict[str, SubjectKeys]:
        """As KeyStore; concurrent calls share one durable write."""
        if not keys:
            return {}
        known = await self._inserts.ask(list(keys.items()))
        return {subject: known[subject] for subject in keys}

    async def erase(self, subject: str, at: datetime) -> None:
        """As KeyStore, as far as PostgreSQL can (see the module): when the table can't be vacuumed now, that is logged
        and left to the server's own vacuum."""
        async with self._connection() as connection:
            erased = await connection.fetchval(_ERASE, subject, at.astimezone(UTC))
            if not erased and not await connection.fetchval(_IS_ERASED, subject):
                raise self._uncounted()
        if erased:
            await self._vacuums.ask([None])

    async def erasures(self, after: int | None) -> Erasures:
        """As KeyStore. Costs one short statement."""
        async with self._connection() as connection:
            row = await (connection.fetchrow(_MARK) if after is None else connection.fetchrow(_ERASURES, after))
        if row is None:
            raise self._uncounted()
        return Erasures(tuple(row["subjects"]), row["last"])

    async def scan(self, page: int) -> AsyncIterator[Sequence[tuple[str, WrappedKey]]]:
        """As KeyStore."""
        after = ""
        rows: list[tuple[str, WrappedKey]] = []
        while True:
            async with self._connection() as connection:
                found = await connection.fetch(_SCAN, after, page)
            rows += [(row["subject"], key) for row in found for key in _known(row).keys]
            while len(rows) >= page or (rows and len(found) < page):
                yield rows[:page]
                rows = rows[page:]
            if len(found) < page:
                return
            after = found[-1]["subject"]

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        """As KeyStore, with the same limits as `erase`."""
        wanted: dict[str, list[Rewrapped]] = {}
        for change in changes:
            wanted.setdefault(change.subject, []).append(change)
        replaced = 0
        async with self._connection() as connection, connection.transaction():
            updates = []
            for row in await connection.fetch(_LOCK, list(wanted)):
                new = {change.old: change.wrapped for change in wanted[row["subject"]]}
                keys = _known(row).keys
                there = sum(key in new for key in keys)
                if there:
                    replaced += there
                    updates.append((row["subject"], [new.get(key, key.wrapped) for key in keys]))
            await connection.executemany(_REPLACE, updates)
        if replaced:
            await self._vacuums.ask([None])
        return replaced

    async def tidy(self) -> None:
        """As KeyStore: a transaction that was open during an erasure may have ended since."""
        await self._vacuum([None])

    async def close(self) -> None:
        """As KeyStore."""
        await self._pool.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PostgresConnection]:
        with self._translated():
            async with self._pool.connection() as connection:
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What the pool lets pass: the errors of a statement."""
        try:
            yield
        except (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError) as problem:
            raise KeyStoreCorrupt(
                f"the key store on {self._address.label} is damaged: stop, and restore it"
            ) from problem
        except asyncpg.PostgresError as problem:
            raise KeyStoreUnavailable(
                f"the key store on {self._address.label} can't be used: {reason(problem)}"
            ) from problem

    def _uncounted(self) -> KeyStoreCorrupt:
        return KeyStoreCorrupt(f"the key store on {self._address.label} lost its count of erasures: restore it")

    async def _load(self, subjects: list[str]) -> dict[str, SubjectKeys]:
        async with self._connection() as connection:
            return await _read(connection, subjects)

    async def _insert(self, items: list[tuple[str, WrappedKey]]) -> dict[str, SubjectKeys]:
        first: dict[str, WrappedKey] = {}
        for subject, key in items:
            first.setdefault(subject, key)
        keys = first.values()
        async with self._connection() as connection:
            # A transaction of its own, so durable when it returns.
            rows = await connection.fetch(
                _INSERT, list(first), [key.key_id for key in keys], [key.wrapped for key in keys]
            )
            known = {row["subject"]: SubjectKeys((first[row["subject"]],)) for row in rows}
            there = [subject for subject in first if subject not in known]
            if there:
                known.update(await _read(connection, there))
        return known

    async def _vacuum(self, _: list[None]) -> None:
        try:
            async with self._connection() as connection:
                await connection.execute(_VACUUM)
        except KeyStoreUnavailable as problem:
            _log.warning("destroyed keys stay in the table until the server vacuums it: %s", problem)


async def _read(connection: PostgresConnection, subjects: Sequence[str]) -> dict[str, SubjectKeys]:
    return {row["subject"]: _known(row) for row in await connection.fetch(_LOAD, subjects)}


def _known(row: asyncpg.Record) -> SubjectKeys:
    keys = (WrappedKey(key_id, wrapped) for key_id, wrapped in zip(row["key_ids"], row["wrapped"], strict=True))
    return SubjectKeys(tuple(keys), row["erased_at"])


async def _prepare(connection: PostgresConnection, address: PostgresAddress) -> None:
    if not await connection.fetchval(_DURABLE):
        raise KeyStoreUnavailable(
            f"the key store on {address.label} can't be used: a crash would lose keys; set fsync, full_page_writes and "
            "synchronous_commit to on"
        )
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except NotMigrated as problem:
        raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
    except MigrationRefused as problem:
        raise KeyStoreUnavailable(f"the key store on {address.label} can't be used: {problem}") from problem
