"""Reading what a PostgreSQL journal holds beside the feed: streams, idempotency records, claims, snapshots.

Used by the PostgreSQL journal only, each function on a connection of its readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from kiseki.clients.postgres import PostgresConnection, transaction
from kiseki.journal.port import Commit, CorruptJournal, IdempotencyRecord, Snapshot
from kiseki.journal.postgres.feed import PAGE_BYTES, stored
from kiseki.journal.transfer.transferable import HeldClaim

__all__ = [
    "Page",
    "delete_snapshots",
    "read_claims",
    "read_idempotency",
    "read_records",
    "read_snapshot",
    "read_stream",
    "save_snapshot",
]

_STREAM_PAGE: Final = 256
_BEYOND: Final = 2**62
"""No stream gets here."""

# The commit that holds sequence number $2 + 1 may begin before it.
_STREAM: Final = """
    SELECT stream, first_sequence, count, commit_id, format, checksum, document, before + bytes AS size FROM (
        SELECT *, octet_length(document) AS bytes,
               sum(octet_length(document)) OVER (ORDER BY first_sequence) - octet_length(document) AS before
        FROM (
            SELECT * FROM commits
            WHERE stream = $1 AND first_sequence >= coalesce(
                (SELECT begins.first_sequence FROM commits AS begins
                 WHERE begins.stream = $1 AND begins.first_sequence <= $2::bigint + 1
                 ORDER BY begins.first_sequence DESC LIMIT 1), 0)
            ORDER BY first_sequence LIMIT $3) AS next) AS measured
    WHERE before < $4
    ORDER BY first_sequence
"""
_IDEMPOTENCY: Final = """
    SELECT key, command_hash, stream, sequence_number, expires_at FROM idempotency WHERE key = $1 AND expires_at > $2
"""
_RECORDS: Final = """
    SELECT key, command_hash, stream, sequence_number, expires_at FROM idempotency
    WHERE key > $1 AND expires_at > $2 ORDER BY key LIMIT $3
"""
_CLAIMS: Final = """
    SELECT scope, digest, stream FROM claims WHERE (scope, digest) > ($1, $2) ORDER BY scope, digest LIMIT $3
"""
_SNAPSHOT: Final = """
    SELECT stream, schema, sequence_number, saved_at, data FROM snapshots WHERE stream = $1 AND schema = $2
    ORDER BY sequence_number DESC LIMIT 1
"""
_SAVE_SNAPSHOT: Final = """
    INSERT INTO snapshots (stream, schema, sequence_number, saved_at, data) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (stream, schema, sequence_number) DO UPDATE SET saved_at = excluded.saved_at, data = excluded.data
"""
_DROP_OLDER: Final = """
    DELETE FROM snapshots WHERE stream = $1 AND schema = $2 AND sequence_number <=
        (SELECT sequence_number FROM snapshots WHERE stream = $1 AND schema = $2
         ORDER BY sequence_number DESC LIMIT 1 OFFSET $3)
"""
_DROP_ALL: Final = "DELETE FROM snapshots WHERE stream = $1"


class Page(NamedTuple):
    """Commits of a stream in order, and whether there may be more."""

    commits: Sequence[Commit]
    more: bool


async def read_stream(connection: PostgresConnection, *, stream: str, after: int) -> Page:
    """The commits of a stream that hold events after a sequence number, the first of which may begin before it.

    Raises CorruptJournal; what asyncpg raises.
    """
    rows = await connection.fetch(_STREAM, stream, min(after, _BEYOND), _STREAM_PAGE, PAGE_BYTES)
    commits = [stored(row) for row in rows]
    if commits and commits[0].last_sequence_number <= after:
        # The stream ends there. Its document says so: left to the row, a damaged `count` could hide events.
        del commits[0]
    expected = after + 1
    for number, commit in enumerate(commits):
        first = commit.first_sequence_number
        if first > expected or (first < expected and number > 0):
            raise CorruptJournal(f"{stream} has no commit that begins with sequence number {expected}; restore it")
        expected = commit.last_sequence_number + 1
    return Page(commits, bool(rows) and (len(rows) == _STREAM_PAGE or rows[-1]["size"] >= PAGE_BYTES))


async def read_idempotency(connection: PostgresConnection, *, key: str, now: datetime) -> IdempotencyRecord | None:
    """The record of a key, unless it has expired."""
    row = await connection.fetchrow(_IDEMPOTENCY, key, now)
    return None if row is None else IdempotencyRecord(**dict(row))


async def read_records(
    connection: PostgresConnection, *, after: str, limit: int, now: datetime
) -> list[IdempotencyRecord]:
    """The unexpired idempotency records that follow a key, in their order."""
    return [IdempotencyRecord(**dict(row)) for row in await connection.fetch(_RECORDS, after, now, limit)]


async def read_claims(connection: PostgresConnection, *, after: tuple[str, str], limit: int) -> list[HeldClaim]:
    """The claims that follow a scope and digest, in their order."""
    return [HeldClaim(*row) for row in await connection.fetch(_CLAIMS, *after, limit)]


async def read_snapshot(connection: PostgresConnection, *, stream: str, schema: str) -> Snapshot | None:
    """The newest snapshot of a stream and schema."""
    row = await connection.fetchrow(_SNAPSHOT, stream, schema)
    return None if row is None else Snapshot(**dict(row))


async def save_snapshot(connection: PostgresConnection, snapshot: Snapshot, *, keep: int) -> None:
    """Saves a snapshot and keeps the newest `keep`."""
    key = (snapshot.stream, snapshot.schema)
    async with transaction(connection):
        await connection.execute(_SAVE_SNAPSHOT, *key, snapshot.sequence_number, snapshot.saved_at, snapshot.data)
        await connection.execute(_DROP_OLDER, *key, keep)


async def delete_snapshots(connection: PostgresConnection, *, stream: str) -> None:
    """Removes all snapshots of a stream."""
    await connection.execute(_DROP_ALL, stream)
