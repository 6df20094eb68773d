"""What one group of appends does inside its transaction: who lands, who does not and why, in few statements.

Python's sqlite3 gives up the GIL around every step of a statement and has to win it back from the event loop, which
costs more than the step. So a whole group goes into a statement as one JSON parameter, and comes back as one row.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.journal.decisions import Decisions, conflict
from kiseki.journal.format import FORMAT, decode_commit
from kiseki.journal.port import ClaimChange, Commit, IdempotencyRecord
from kiseki.kernel.errors import KisekiError

__all__ = ["AppendRequest", "GroupResult", "append_group", "timestamp"]

_PURGE_AT_LEAST: Final = 64
"""Expired idempotency records that one group removes at most, unless it adds more than half as many."""

# Where the documents lie in ?2 is said by offset and length: they are copied as bytes, never parsed.
_INSERT: Final = """
    INSERT INTO commits (stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, document)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') + 1, json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), json_extract(value, '$[4]'), ?3, json_extract(value, '$[5]'),
           json_extract(value, '$[7]'),
           CAST(substr(?2, json_extract(value, '$[6]'), json_extract(value, '$[7]')) AS TEXT)
    FROM json_each(?1)
"""
# As _INSERT, for those whose stream is where they think it is. All are looked at before the first is written, so of two
# that want the same place both pass, and the second is stopped by the unique key.
_INSERT_IN_PLACE: Final = """
    INSERT INTO commits (stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, document)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') + 1, json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), json_extract(value, '$[4]'), ?3, json_extract(value, '$[5]'),
           json_extract(value, '$[7]'),
           CAST(substr(?2, json_extract(value, '$[6]'), json_extract(value, '$[7]')) AS TEXT)
    FROM json_each(?1)
    WHERE json_extract(value, '$[1]') = IFNULL(
        (SELECT last.first_sequence + last.count - 1 FROM commits AS last
         WHERE last.stream = json_extract(value, '$[0]') ORDER BY last.first_sequence DESC LIMIT 1), 0)
    ON CONFLICT DO NOTHING
"""
_PLACES: Final = """
    SELECT json_group_array(json_array(
        key,
        IFNULL((SELECT last.first_sequence + last.count - 1 FROM commits AS last
                WHERE last.stream = json_extract(value, '$[0]') ORDER BY last.first_sequence DESC LIMIT 1), 0),
        there.commit_id,
        there.checksum))
    FROM json_each(?1)
    LEFT JOIN commits AS there
        ON there.stream = json_extract(value, '$[0]') AND there.first_sequence = json_extract(value, '$[1]') + 1
"""
_STORED: Final = "SELECT document, checksum FROM commits WHERE stream = ? AND first_sequence = ?"

_HELD_KEYS: Final = """
    SELECT json_group_array(key) FROM idempotency
    WHERE key IN (SELECT value FROM json_each(?1)) AND expires_at > ?2
"""
_KEEP_KEYS: Final = """
    INSERT INTO idempotency (key, command_hash, stream, sequence_number, expires_at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?1) WHERE true
    ON CONFLICT (key) DO UPDATE SET command_hash = excluded.command_hash, stream = excluded.stream,
        sequence_number = excluded.sequence_number, expires_at = excluded.expires_at
"""
_PURGE_KEYS: Final = """
    DELETE FROM idempotency
    WHERE key IN (SELECT key FROM idempotency WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)
"""

_HELD_CLAIMS: Final = """
    SELECT json_group_array(json_array(claims.scope, claims.digest, claims.stream)) FROM json_each(?1)
    JOIN claims ON claims.scope = json_extract(value, '$[0]') AND claims.digest = json_extract(value, '$[1]')
"""
_TAKE_CLAIMS: Final = """
    INSERT INTO claims (scope, digest, stream)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(?1) WHERE true
    ON CONFLICT (scope, digest) DO UPDATE SET stream = excluded.stream
"""
_RELEASE_CLAIMS: Final = """
    DELETE FROM claims WHERE (scope, digest) IN
        (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?1))
"""

_decode_places: Final = msgspec.json.Decoder(list[tuple[int, int, str | None, str | None]]).decode
_decode_keys: Final = msgspec.json.Decoder(list[str]).decode
_decode_claims: Final = msgspec.json.Decoder(list[tuple[str, str, str]]).decode


class AppendRequest(NamedTuple):
    """One caller's append on its way to the writer; everything in it has been checked and encoded."""

    commit: Commit
    document: bytes
    checksum: str
    claims: tuple[ClaimChange, ...]
    idempotency: IdempotencyRecord | None
    future: asyncio.Future[Commit]


class GroupResult(NamedTuple):
    """What became of a group: for every request its commit or its error, and how many commits are new."""

    outcomes: list[Commit | KisekiError]
    landed: int


def timestamp(moment: datetime) -> str:
    """A point in time as stored: UTC, microseconds, of constant width, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def append_group(connection: sqlite3.Connection, requests: Sequence[AppendRequest], now: datetime) -> GroupResult:
    """Inserts what can land, within the transaction that the caller has begun (BEGIN IMMEDIATE) and will commit.

    Raises sqlite3.Error, CorruptJournal; the group then has to be rolled back as a whole.
    """
    if any(request.claims or request.idempotency for request in requests):
        return _append_decided(connection, requests, now)
    landed = connection.execute(_INSERT_IN_PLACE, _parameters(requests)).rowcount
    if landed == len(requests):
        return GroupResult([request.commit for request in requests], landed)
    places = _places(connection, requests)
    return GroupResult(
        [
            _own(connection, checksum, request)
            if commit_id == request.commit.metadata.commit_id
            else conflict(request.commit)
            for request, (_, _, commit_id, checksum) in zip(requests, places, strict=True)
        ],
        landed,
    )


def _append_decided(connection: sqlite3.Connection, requests: Sequence[AppendRequest], now: datetime) -> GroupResult:
    """With claims or keys among them: reads all that matters, decides one by one, writes all that landed.

    The write lock is held, so that what was read stays true until the group is written.
    """
    keys = [request.idempotency.key for request in requests if request.idempotency]
    claims = [(claim.scope, claim.digest) for request in requests for claim in request.claims]
    held_keys = _decode_keys(_one(connection, _HELD_KEYS, _json(keys), timestamp(now))) if keys else []
    held_claims = _decode_claims(_one(connection, _HELD_CLAIMS, _json(claims))) if claims else []
    decisions = Decisions[AppendRequest](
        keys=held_keys, claims={(scope, digest): stream for scope, digest, stream in held_claims}
    )
    outcomes = [
        decisions.judge(request, last=last, there=there, own=partial(_own, connection, checksum))
        for request, (_, last, there, checksum) in zip(requests, _places(connection, requests), strict=True)
    ]
    _write(connection, decisions, now)
    return GroupResult(outcomes, len(decisions.accepted))


def _write(connection: sqlite3.Connection, decisions: Decisions[AppendRequest], now: datetime) -> None:
    if not decisions.accepted:
        return
    connection.execute(_INSERT, _parameters(decisions.accepted))
    if taken := decisions.taken():
        connection.execute(_TAKE_CLAIMS, (_json(taken),))
    if released := decisions.released():
        connection.execute(_RELEASE_CLAIMS, (_json(released),))
    if records := decisions.records():
        rows = [(r.key, r.command_hash, r.stream, r.sequence_number, timestamp(r.expires_at)) for r in records]
        connection.execute(_KEEP_KEYS, (_json(rows),))
        # Faster than records are added, so that a backlog shrinks; bounded, so that no group waits for long.
        limit = max(_PURGE_AT_LEAST, 2 * len(records))
        connection.execute(_PURGE_KEYS, (timestamp(now), limit))


def _own(connection: sqlite3.Connection, checksum: str | None, request: AppendRequest) -> Commit:
    """The caller's own commit, which is there from an earlier try (or from this one)."""
    commit = request.commit
    if checksum == request.checksum:
        return commit
    document, stored_checksum = connection.execute(_STORED, (commit.stream, commit.first_sequence_number)).fetchone()
    return decode_commit(commit.stream, commit.first_sequence_number, document, stored_checksum.decode())


def _places(
    connection: sqlite3.Connection, requests: Sequence[AppendRequest]
) -> list[tuple[int, int, str | None, str | None]]:
    """For each request: its number, its stream's last sequence number, and the commit that is at its place."""
    wanted = [(request.commit.stream, request.commit.first_sequence_number - 1) for request in requests]
    return sorted(_decode_places(_one(connection, _PLACES, _json(wanted))))


def _parameters(requests: Sequence[AppendRequest]) -> tuple[str, bytes, int]:
    ends = [1]
    for request in requests:
        ends.append(ends[-1] + len(request.document))
    rows = [
        (
            request.commit.stream,
            request.commit.first_sequence_number - 1,
            len(request.commit.events),
            request.commit.metadata.commit_id,
            timestamp(request.commit.metadata.committed_at),
            request.checksum,
            start,
            end - start,
        )
        for request, (start, end) in zip(requests, pairwise(ends), strict=True)
    ]
    return _json(rows), b"".join([request.document for request in requests]), FORMAT


def _one(connection: sqlite3.Connection, statement: str, *parameters: str) -> bytes:
    (value,) = connection.execute(statement, parameters).fetchone()
    return bytes(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
