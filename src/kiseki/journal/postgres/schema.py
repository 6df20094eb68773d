"""The tables of the PostgreSQL journal, and what is looked at on every new connection before it is used.

A feed position counts transaction ids, which begin anew in another cluster. So every row belongs to an epoch: one
begins with the journal, and another whenever the cluster under it is not the one that the last was begun on (a restore,
a copy, a promoted replica). No procedure has to remember that: the first connection sees it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, transaction
from kiseki.clients.postgres_migrations import Migration, MigrationRefused, require_migrated
from kiseki.journal.port import JournalUnavailable

__all__ = [
    "COMPONENT",
    "MIGRATIONS",
    "Lives",
    "begin_epoch",
    "continue_epochs",
    "prepare",
    "prepare_to_read",
    "read_lives",
]

COMPONENT: Final = "journal"

MIGRATIONS: Final = (
    Migration(
        1,
        (
            # `life` is random: two restores of one backup are two lives. Cluster and timeline say where it began.
            """
            CREATE TABLE epochs (
                epoch integer PRIMARY KEY,
                life text COLLATE "C" NOT NULL UNIQUE,
                system_identifier bigint NOT NULL,
                timeline integer NOT NULL,
                began_at timestamptz NOT NULL DEFAULT clock_timestamp()
            )
            """,
            # `xid` is the transaction that wrote the row: with it a reader knows what may still come before a row.
            """
            CREATE TABLE commits (
                position bigint GENERATED ALWAYS AS IDENTITY,
                xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
                first_sequence bigint NOT NULL,
                committed_at timestamptz NOT NULL,
                epoch integer NOT NULL,
                count integer NOT NULL,
                format smallint NOT NULL,
                stream text COLLATE "C" NOT NULL,
                commit_id text COLLATE "C" NOT NULL,
                checksum text COLLATE "C" NOT NULL,
                document text COLLATE "C" NOT NULL,
                PRIMARY KEY (stream, first_sequence)
            )
            """,
            "CREATE UNIQUE INDEX commits_feed ON commits (epoch, xid, position)",
            """
            CREATE TABLE claims (
                scope text COLLATE "C" NOT NULL,
                digest text COLLATE "C" NOT NULL,
                stream text COLLATE "C" NOT NULL,
                PRIMARY KEY (scope, digest)
            )
            """,
            """
            CREATE TABLE idempotency (
                key text COLLATE "C" PRIMARY KEY,
                command_hash text COLLATE "C" NOT NULL,
                stream text COLLATE "C" NOT NULL,
                sequence_number bigint NOT NULL,
                expires_at timestamptz NOT NULL
            )
            """,
            "CREATE INDEX idempotency_by_expiry ON idempotency (expires_at)",
            """
            CREATE TABLE snapshots (
                stream text COLLATE "C" NOT NULL,
                schema text COLLATE "C" NOT NULL,
                sequence_number bigint NOT NULL,
                saved_at timestamptz NOT NULL,
                data bytea NOT NULL,
                PRIMARY KEY (stream, schema, sequence_number)
            )
            """,
            # One row, written to prove that writing works.
            "CREATE TABLE proofs (one boolean PRIMARY KEY CHECK (one), written bigint NOT NULL)",
            "INSERT INTO proofs VALUES (true, 0)",
        ),
    ),
    Migration(
        2,
        (
            # The term of the site that writes, 0 where nobody keeps a lease. An append carries its own.
            "CREATE TABLE fence (one boolean PRIMARY KEY CHECK (one), term bigint NOT NULL)",
            "INSERT INTO fence VALUES (true, 0)",
        ),
    ),
)

# One round trip: is it durable, is it the primary, which cluster and which timeline is it?
_FACTS: Final = """
    SELECT current_setting('fsync') AS fsync,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('server_encoding') AS encoding,
           current_setting('transaction_read_only') AS read_only,
           current_setting('server_version_num')::integer AS version,
           pg_is_in_recovery() AS standby
"""
_PLACE: Final = """
    SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
           ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer AS timeline
"""
_EPOCHS: Final = "SELECT epoch, life, system_identifier, timeline FROM epochs ORDER BY epoch"
_BEGIN: Final = "INSERT INTO epochs (epoch, life, system_identifier, timeline) VALUES ($1, $2, $3, $4)"
_KNOW: Final = f"{_BEGIN} ON CONFLICT DO NOTHING"
_OLDEST_VERSION: Final = 150_000


Lives: TypeAlias = Mapping[int, str]
"""The random names of the journal's epochs, by number."""


class _Place(NamedTuple):
    system_identifier: int
    timeline: int


async def prepare(connection: PostgresConnection, address: PostgresAddress) -> Lives:
    """Looks at a new connection: refuses what is not durable or not migrated, begins an epoch where one has to begin.

    Raises JournalUnavailable, NotMigrated; what asyncpg raises.
    """
    facts = await connection.fetchrow(_FACTS)
    assert facts is not None  # noqa: S101  # a SELECT without FROM gives one row
    refusal = _refusal(facts)
    if refusal is not None:
        raise JournalUnavailable(f"the journal on {address.label} can't be used: {refusal}")
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except NotMigrated as problem:
        raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
    except MigrationRefused as problem:
        raise JournalUnavailable(f"the journal on {address.label} can't be used: {problem}") from problem
    here = await _place(connection, address)
    epochs = await connection.fetch(_EPOCHS)
    if not epochs or _began(epochs[-1]) != here:
        return await _begin(connection, here, only_elsewhere=True)
    return _lives(epochs)


def _refusal(facts: asyncpg.Record) -> str | None:
    if facts["version"] < _OLDEST_VERSION:
        return "the server is older than PostgreSQL 15"
    if facts["fsync"] != "on":
        return "fsync is off, so that a crash of the machine loses commits; set it to on"
    if facts["full_page_writes"] != "on":
        return "full_page_writes is off, so that a crash of the machine may damage it; set it to on"
    if facts["synchronous_commit"] == "off":
        return "synchronous_commit is off, so that a crash loses commits; set it to on for its database and role"
    if facts["encoding"] != "UTF8":
        return f"the database is encoded in {facts['encoding']}; make one with UTF8"
    if facts["standby"]:
        return "the server is a standby; the URL has to lead to the primary"
    if facts["read_only"] != "off":
        return "the database is read-only (default_transaction_read_only)"
    return None


async def _place(connection: PostgresConnection, address: PostgresAddress) -> _Place:
    try:
        row = await connection.fetchrow(_PLACE)
    except asyncpg.InsufficientPrivilegeError as problem:
        raise JournalUnavailable(
            f"the journal on {address.label} can't be used: its role may not ask which cluster it is on; "
            "as a superuser run GRANT EXECUTE ON FUNCTION pg_control_system() TO its role"
        ) from problem
    assert row is not None  # noqa: S101  # as above
    return _Place(row["system_identifier"], row["timeline"])


async def prepare_to_read(connection: PostgresConnection, address: PostgresAddress) -> Lives:
    """As `prepare`, for whoever only reads: a standby will do, and no epoch begins. Raises as that."""
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except NotMigrated as problem:
        raise NotMigrated(f"{address.label}, schema {address.schema}: {problem}") from problem
    except MigrationRefused as problem:
        raise JournalUnavailable(f"the journal on {address.label} can't be used: {problem}") from problem
    return await read_lives(connection)


async def begin_epoch(connection: PostgresConnection, address: PostgresAddress) -> Lives:
    """Begins an epoch in any case: for a copy that its cluster and timeline do not give away (a disk put back).

    Raises JournalUnavailable; what asyncpg raises.
    """
    return await _begin(connection, await _place(connection, address), only_elsewhere=False)


async def _begin(connection: PostgresConnection, here: _Place, *, only_elsewhere: bool) -> Lives:
    async with transaction(connection):
        # Waits for every append under way and holds new ones back, which then see the new epoch: an append takes its
        # lock on the table before its snapshot. Without it a row of the old epoch could land behind a reader.
        await connection.execute("LOCK TABLE commits IN EXCLUSIVE MODE")
        epochs = await connection.fetch(_EPOCHS)
        if only_elsewhere and epochs and _began(epochs[-1]) == here:
            return _lives(epochs)  # another connection was faster
        return await _next(connection, epochs, here)


async def continue_epochs(connection: PostgresConnection, address: PostgresAddress, known: Lives) -> Lives:
    """Begins an epoch after those that a copy of the journal had reached, inside a transaction that keeps appends out.

    `known` are the copy's. A position of its later epochs is then one of this journal's, of commits that it lacks, and
    its reader is told. Raises JournalUnavailable; what asyncpg raises.
    """
    here = await _place(connection, address)
    for number, life in known.items():
        await connection.execute(_KNOW, number, life, *here)
    return await _next(connection, await connection.fetch(_EPOCHS), here)


async def _next(connection: PostgresConnection, epochs: list[asyncpg.Record], here: _Place) -> Lives:
    number, life = (epochs[-1]["epoch"] if epochs else 0) + 1, secrets.token_hex(8)
    await connection.execute(_BEGIN, number, life, *here)
    return {**_lives(epochs), number: life}


async def read_lives(connection: PostgresConnection) -> Lives:
    """The epochs there are now."""
    return _lives(await connection.fetch(_EPOCHS))


def _began(epoch: asyncpg.Record) -> _Place:
    return _Place(epoch["system_identifier"], epoch["timeline"])


def _lives(epochs: list[asyncpg.Record]) -> Lives:
    return {row["epoch"]: row["life"] for row in epochs}
