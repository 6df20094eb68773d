"""Putting claims and idempotency records into a SQLite journal that is being filled from an export.

Used by the SQLite journal only, in its writing thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from kiseki.journal.port import ClaimTaken, IdempotencyRecord, IdempotencyTaken
from kiseki.journal.sqlite.append import timestamp
from kiseki.journal.transfer.transferable import HeldClaim, claims_by_value, records_by_key

__all__ = ["HeldParts", "held_changes_of"]

_HELD_BY_OTHERS: Final = """
    SELECT claims.scope FROM json_each(?1)
    JOIN claims ON claims.scope = json_extract(value, '$[0]') AND claims.digest = json_extract(value, '$[1]')
    WHERE claims.stream <> json_extract(value, '$[2]') LIMIT 1
"""
_ADD_CLAIMS: Final = """
    INSERT INTO claims (scope, digest, stream)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(?1) WHERE true
    ON CONFLICT DO NOTHING
"""
_OTHER_RECORDS: Final = """
    SELECT 1 FROM json_each(?1) JOIN idempotency AS there ON there.key = json_extract(value, '$[0]')
    WHERE there.expires_at > ?2
    AND (there.command_hash, there.stream, there.sequence_number, there.expires_at)
        <> (json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'),
            json_extract(value, '$[4]'))
    LIMIT 1
"""
_ADD_RECORDS: Final = """
    INSERT INTO idempotency (key, command_hash, stream, sequence_number, expires_at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?1) WHERE json_extract(value, '$[4]') > ?2
    ON CONFLICT (key) DO UPDATE SET command_hash = excluded.command_hash, stream = excluded.stream,
        sequence_number = excluded.sequence_number, expires_at = excluded.expires_at
"""
_NOTE_CHANGE: Final = """
    INSERT INTO meta (name, value) VALUES ('held_changes', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
"""
_CHANGES: Final = "SELECT value FROM meta WHERE name = 'held_changes'"


class HeldParts:
    """Claims and records on their way to the writer, each value and key once."""

    def __init__(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """Raises ClaimTaken, IdempotencyTaken when they contradict each other."""
        holders = claims_by_value(claims)
        self._claims = _json([(scope, digest, stream) for (scope, digest), stream in holders.items()])
        self._records = _json(
            [
                (key, record.command_hash, record.stream, record.sequence_number, timestamp(record.expires_at))
                for key, record in records_by_key(records).items()
            ]
        )

    def add(self, connection: sqlite3.Connection, now: datetime) -> ClaimTaken | IdempotencyTaken | None:
        """Adds all of them, or gives what stands against it; in a transaction that the caller has begun."""
        taken = connection.execute(_HELD_BY_OTHERS, (self._claims,)).fetchone()
        if taken is not None:
            return ClaimTaken(taken[0].decode())
        if connection.execute(_OTHER_RECORDS, (self._records, timestamp(now))).fetchone() is not None:
            return IdempotencyTaken("an idempotency record of the same key says something else")
        added = connection.execute(_ADD_CLAIMS, (self._claims,)).rowcount
        added += connection.execute(_ADD_RECORDS, (self._records, timestamp(now))).rowcount
        if added:
            # Whoever copies what is new tells by the commits what has changed, and by this what came without one.
            connection.execute(_NOTE_CHANGE)
        return None


def held_changes_of(connection: sqlite3.Connection) -> int:
    """How often something was added without a commit. Raises sqlite3.Error."""
    found = connection.execute(_CHANGES).fetchone()
    return 0 if found is None else int(found[0])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
