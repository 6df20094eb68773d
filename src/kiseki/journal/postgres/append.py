"""What one group of appends does on its connection to PostgreSQL: who lands, who does not and why, in few round trips.

Used by the writer of the PostgreSQL journal. Two things hold for every statement here, and the feed rests on them: an
append takes its lock on `commits` before it has a transaction id, and before the snapshot by which it sees the epoch.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from kiseki.clients.postgres import PostgresConnection, transaction
from kiseki.journal.decisions import Decisions, conflict
from kiseki.journal.format import FORMAT, checksum, decode_commit, encode_commit
from kiseki.journal.port import ClaimChange, Commit, CorruptJournal, IdempotencyRecord
from kiseki.journal.postgres.fence import ALLOWED, OPEN, Permit, refuse_when_fenced
from kiseki.kernel.errors import KisekiError

__all__ = [
    "AppendRequest",
    "GroupResult",
    "MovedMeanwhile",
    "append_decided",
    "append_plain",
    "lock_values",
    "new_request",
    "purge_expired",
    "refuse_unstorable",
    "storable_record",
]

_LARGEST: Final = 2**63 - 1
"""Of bigint."""

_LOCKS: Final = 1024
"""How many advisory locks all claims and keys share: the server's table of locks is bounded."""
_LOCK_CLASS: Final = 1_802_728_299

# Of two that want the same place in one statement both pass the test, and the second is stopped by the key. An append
# of another transaction that is not finished yet is waited for.
_INSERT: Final = f"""
    WITH input AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::int[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])
            WITH ORDINALITY AS i(stream, after, count, commit_id, committed_at, checksum, document, n)
    )
    INSERT INTO commits (epoch, stream, first_sequence, count, commit_id, committed_at, format, checksum, document)
    SELECT (SELECT max(epoch) FROM epochs), stream, after + 1, count, commit_id, committed_at, $8, checksum, document
    FROM input
    WHERE after = coalesce((SELECT last.first_sequence + last.count - 1 FROM commits AS last
                            WHERE last.stream = input.stream ORDER BY last.first_sequence DESC LIMIT 1), 0)
      AND {ALLOWED.format(term="$9", until="$10")}
    ORDER BY n
    ON CONFLICT DO NOTHING
"""  # noqa: S608  # of constants
# The document only when it is not the one that was to be written.
_PLACES: Final = f"""
    SELECT coalesce((SELECT last.first_sequence + last.count - 1 FROM commits AS last
                     WHERE last.stream = i.stream ORDER BY last.first_sequence DESC LIMIT 1), 0) AS last,
           there.commit_id, there.checksum,
           CASE WHEN there.commit_id = i.commit_id AND there.checksum <> i.checksum THEN there.document END AS document,
           {ALLOWED.format(term="$5", until="$6")} AS allowed
    FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
        WITH ORDINALITY AS i(stream, after, commit_id, checksum, n)
    LEFT JOIN commits AS there ON there.stream = i.stream AND there.first_sequence = i.after + 1
    ORDER BY i.n
"""  # noqa: S608  # as above

# Of unnest the order is that of the array, so groups of all processes lock in the same order.
_LOCK: Final = "SELECT pg_advisory_xact_lock($1::int, n) FROM unnest($2::int[]) AS n"
_HELD_KEYS: Final = "SELECT key FROM idempotency WHERE key = ANY($1::text[]) AND expires_at > $2"
_HELD_CLAIMS: Final = """
    SELECT scope, digest, stream FROM claims
    WHERE (scope, digest) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_WRITE: Final = f"""
    WITH input AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::int[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])
            WITH ORDINALITY AS i(stream, after, count, commit_id, committed_at, checksum, document, n)
    ), landed AS (
        INSERT INTO commits (epoch, stream, first_sequence, count, commit_id, committed_at, format, checksum, document)
        SELECT (SELECT max(epoch) FROM epochs), stream, after + 1, count, commit_id, committed_at, $8, checksum,
               document
        FROM input WHERE {ALLOWED.format(term="$19", until="$20")} ORDER BY n
        ON CONFLICT DO NOTHING RETURNING 1
    ), taken AS (
        INSERT INTO claims (scope, digest, stream) SELECT * FROM unnest($9::text[], $10::text[], $11::text[])
        ON CONFLICT (scope, digest) DO UPDATE SET stream = excluded.stream
    ), released AS (
        DELETE FROM claims WHERE (scope, digest) IN (SELECT * FROM unnest($12::text[], $13::text[]))
    ), kept AS (
        INSERT INTO idempotency (key, command_hash, stream, sequence_number, expires_at)
        SELECT * FROM unnest($14::text[], $15::text[], $16::text[], $17::bigint[], $18::timestamptz[])
        ON CONFLICT (key) DO UPDATE SET command_hash = excluded.command_hash, stream = excluded.stream,
            sequence_number = excluded.sequence_number, expires_at = excluded.expires_at
    )
    SELECT count(*) FROM landed
"""  # noqa: S608  # as above
_PURGE: Final = """
    DELETE FROM idempotency WHERE key IN (
        SELECT key FROM idempotency WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


class AppendRequest(NamedTuple):
    """One caller's append on its way to the writer; everything in it can be stored."""

    commit: Commit
    committed_at: datetime
    document: str
    checksum: str
    claims: tuple[ClaimChange, ...]
    idempotency: IdempotencyRecord | None
    future: asyncio.Future[Commit]

    @property
    def decided(self) -> bool:
        """Whether claims or a key ride along, so that it has to be decided under locks."""
        return bool(self.claims) or self.idempotency is not None


class GroupResult(NamedTuple):
    """What became of a group: for every request its commit or its error, and how many commits are new."""

    outcomes: list[Commit | KisekiError]
    landed: int


class MovedMeanwhile(Exception):
    """A stream moved between looking and writing; nothing was written, and the group has to be decided again."""


def new_request(
    commit: Commit,
    *,
    claims: Sequence[ClaimChange],
    idempotency: IdempotencyRecord | None,
    future: asyncio.Future[Commit],
) -> AppendRequest:
    """Checks and encodes everything that depends on one caller's values, so that it can't fail for its whole group.

    Raises ValueError or OverflowError for what can't be stored; Conflict for a number that no stream has reached.
    """
    stream, metadata, first = commit.stream, commit.metadata, commit.first_sequence_number
    if not -_LARGEST < first <= _LARGEST - len(commit.events):
        raise conflict(commit)
    if metadata.committed_at.tzinfo is None:
        raise ValueError("the time of a commit has no time zone")
    document = encode_commit(metadata, commit.events)
    text = document.decode()
    refuse_unstorable(metadata.commit_id, text)
    for claim in claims:
        refuse_unstorable(claim.scope, claim.digest)
    if idempotency is not None:
        idempotency = storable_record(idempotency)
    at = metadata.committed_at.astimezone(UTC)
    return AppendRequest(commit, at, text, checksum(stream, first, document), tuple(claims), idempotency, future)


def storable_record(record: IdempotencyRecord) -> IdempotencyRecord:
    """The record, its time in UTC. Raises ValueError or OverflowError when it can't be stored."""
    refuse_unstorable(record.key, record.command_hash, record.stream)
    if not 0 <= record.sequence_number <= _LARGEST:
        raise ValueError(f"not a sequence number: {record.sequence_number}")
    if record.expires_at.tzinfo is None:
        raise ValueError("the expiry of an idempotency record has no time zone")
    return msgspec.structs.replace(record, expires_at=record.expires_at.astimezone(UTC))


def refuse_unstorable(*texts: str) -> None:
    """Raises ValueError for text that PostgreSQL can't hold: with a NUL, or a surrogate without its other half."""
    for text in texts:
        if "\0" in text:
            raise ValueError("PostgreSQL stores no text with a NUL")
        text.encode()


async def append_plain(
    connection: PostgresConnection, requests: Sequence[AppendRequest], permit: Permit = OPEN
) -> GroupResult:
    """Lands what can land, without claims and keys, in one statement that is a transaction by itself.

    Raises NotTheWriter when the fence refuses the permit; what asyncpg raises.
    """
    columns = _columns(requests)
    status = await connection.execute(_INSERT, *columns, FORMAT, *permit)
    landed = int(status.rpartition(" ")[2])
    if landed == len(requests):
        return GroupResult([request.commit for request in requests], landed)
    places = await _places(connection, requests, permit)
    if not landed and not places[0]["allowed"]:
        await refuse_when_fenced(connection, permit)
    return GroupResult(
        [
            _own(place, request)
            if place["commit_id"] == request.commit.metadata.commit_id
            else conflict(request.commit)
            for request, place in zip(requests, places, strict=True)
        ],
        landed,
    )


async def append_decided(
    connection: PostgresConnection, requests: Sequence[AppendRequest], now: datetime, permit: Permit = OPEN
) -> GroupResult:
    """With claims or keys: locks their values, reads all that matters, decides one by one, writes all that landed.

    Raises MovedMeanwhile, NotTheWriter; what asyncpg raises. Nothing was written then, or nobody knows.
    """
    keys = [request.idempotency.key for request in requests if request.idempotency]
    claims = [(claim.scope, claim.digest) for request in requests for claim in request.claims]
    async with transaction(connection):
        await lock_values(connection, keys=keys, claims=claims)
        # Statements of their own: each sees what was committed before the locks were had.
        places = await _places(connection, requests, permit)
        decisions = Decisions[AppendRequest](
            keys=await _held_keys(connection, keys, now), claims=await _held_claims(connection, claims)
        )
        outcomes = [
            decisions.judge(request, last=place["last"], there=place["commit_id"], own=partial(_own, place))
            for request, place in zip(requests, places, strict=True)
        ]
        accepted = decisions.accepted
        if accepted:
            taken, released, records = decisions.taken(), decisions.released(), decisions.records()
            landed = await connection.fetchval(
                _WRITE,
                *_columns(accepted),
                FORMAT,
                *_transposed(taken, 3),
                *_transposed(released, 2),
                *_transposed([(r.key, r.command_hash, r.stream, r.sequence_number, r.expires_at) for r in records], 5),
                *permit,
            )
            if landed != len(accepted):
                await refuse_when_fenced(connection, permit)
                raise MovedMeanwhile
    return GroupResult(outcomes, len(accepted))


async def lock_values(
    connection: PostgresConnection, *, keys: Sequence[str], claims: Sequence[tuple[str, str]]
) -> None:
    """Locks values against all other journals on this database until the transaction ends; it gets no id by that."""
    buckets = {zlib.crc32(f"k|{key}".encode()) % _LOCKS for key in keys}
    buckets |= {zlib.crc32(f"c|{scope}|{digest}".encode()) % _LOCKS for scope, digest in claims}
    await connection.execute(_LOCK, _LOCK_CLASS, sorted(buckets))


async def purge_expired(connection: PostgresConnection, now: datetime, *, limit: int) -> None:
    """Removes up to `limit` expired idempotency records, those of others that are at it left alone."""
    await connection.execute(_PURGE, now, limit)


async def _places(
    connection: PostgresConnection, requests: Sequence[AppendRequest], permit: Permit
) -> list[asyncpg.Record]:
    """For each request: its stream's last sequence number, the commit at its place, and whether the fence is open."""
    return await connection.fetch(
        _PLACES,
        [request.commit.stream for request in requests],
        [request.commit.first_sequence_number - 1 for request in requests],
        [request.commit.metadata.commit_id for request in requests],
        [request.checksum for request in requests],
        *permit,
    )


async def _held_keys(connection: PostgresConnection, keys: Sequence[str], now: datetime) -> list[str]:
    if not keys:
        return []
    return [row["key"] for row in await connection.fetch(_HELD_KEYS, keys, now)]


async def _held_claims(
    connection: PostgresConnection, claims: Sequence[tuple[str, str]]
) -> Mapping[tuple[str, str], str]:
    if not claims:
        return {}
    rows = await connection.fetch(_HELD_CLAIMS, *_transposed(claims, 2))
    return {(row["scope"], row["digest"]): row["stream"] for row in rows}


def _own(place: asyncpg.Record, request: AppendRequest) -> Commit | CorruptJournal:
    """The caller's own commit, which is there from an earlier try (or from this one). Damage is told to it alone."""
    if place["checksum"] == request.checksum:
        return request.commit
    commit = request.commit
    document: str = place["document"]
    try:
        return decode_commit(commit.stream, commit.first_sequence_number, document.encode(), place["checksum"])
    except CorruptJournal as problem:
        return problem


def _columns(requests: Sequence[AppendRequest]) -> tuple[list[Any], ...]:
    return (
        [request.commit.stream for request in requests],
        [request.commit.first_sequence_number - 1 for request in requests],
        [len(request.commit.events) for request in requests],
        [request.commit.metadata.commit_id for request in requests],
        [request.committed_at for request in requests],
        [request.checksum for request in requests],
        [request.document for request in requests],
    )


def _transposed(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]
