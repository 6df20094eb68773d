"""What a move remembers of the file and of the journal, so that the two can be compared: how far each stream goes.

Kept in a temporary file, so that memory stays bounded for any number of streams. Used by `export` and
`import`. A side is `FILE` or `JOURNAL`.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self

import msgspec

from kiseki.journal.port import IdempotencyRecord
from kiseki.journal.transfer.lines import StoredCommit
from kiseki.journal.transfer.transferable import HeldClaim, TransferFailed

__all__ = ["FILE", "JOURNAL", "NOTHING", "StreamNote", "TransferNotes"]

FILE: Final = "file"
JOURNAL: Final = "journal"

_TABLES: Final = (
    """CREATE TABLE streams (
        side TEXT, name TEXT, last INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (side, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE claims (
        side TEXT, scope TEXT, digest TEXT, stream TEXT NOT NULL, PRIMARY KEY (side, scope, digest)
    ) WITHOUT ROWID""",
    """CREATE TABLE records (
        side TEXT, key TEXT, content TEXT NOT NULL, expires_at TEXT NOT NULL, PRIMARY KEY (side, key)
    ) WITHOUT ROWID""",
)
_STREAMS: Final = """
    SELECT name, last, digest FROM streams WHERE side = ? AND name IN (SELECT value FROM json_each(?))
"""
_KEEP_STREAM: Final = """
    INSERT INTO streams VALUES (?, ?, ?, ?)
    ON CONFLICT (side, name) DO UPDATE SET last = excluded.last, digest = excluded.digest
"""
_COUNT: Final = "SELECT COUNT(*) FROM streams WHERE side = ?"
_NAMES: Final = "SELECT name FROM streams WHERE side = ? AND name > ? ORDER BY name LIMIT ?"
_BEYOND_THE_FILE: Final = """
    SELECT there.name FROM streams AS there LEFT JOIN streams AS file ON file.side = 'file' AND file.name = there.name
    WHERE there.side = 'journal' AND there.last > IFNULL(file.last, 0) ORDER BY there.name LIMIT 1
"""
_DIFFERENT: Final = """
    SELECT file.name FROM streams AS file
    LEFT JOIN streams AS there ON there.side = 'journal' AND there.name = file.name
    WHERE file.side = 'file' AND file.name > ? AND (there.last IS NOT file.last OR there.digest IS NOT file.digest)
    ORDER BY file.name LIMIT ?
"""
_KEEP_CLAIM: Final = "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)"
_KEEP_RECORD: Final = "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)"
_CLAIM_OF_ONE_SIDE: Final = """
    SELECT scope, digest, stream FROM claims AS one WHERE side = ?1 AND NOT EXISTS (
        SELECT 1 FROM claims AS other WHERE other.side = ?2 AND other.scope = one.scope
        AND other.digest = one.digest AND other.stream = one.stream)
    LIMIT 1
"""
_RECORD_OF_THE_FILE_ALONE: Final = """
    SELECT 1 FROM records AS file WHERE side = 'file' AND expires_at > ? AND NOT EXISTS (
        SELECT 1 FROM records AS there WHERE there.side = 'journal' AND there.key = file.key
        AND there.content = file.content)
    LIMIT 1
"""
_FORGET: Final = (
    "DELETE FROM streams WHERE side = ?",
    "DELETE FROM claims WHERE side = ?",
    "DELETE FROM records WHERE side = ?",
)


class StreamNote(NamedTuple):
    """How far a stream goes: its last sequence number, and a digest over the documents of its commits in order."""

    last: int
    digest: bytes

    def followed_by(self, stored: StoredCommit) -> StreamNote:
        """The note after one more commit."""
        digest = hashlib.blake2b(self.digest + stored.document, digest_size=16).digest()
        return StreamNote(stored.commit.last_sequence_number, digest)


NOTHING: Final = StreamNote(0, b"")
"""Of a stream that is not there."""


class TransferNotes:
    """Notes on both sides of a move. Blocks; raises TransferFailed when the temporary file can't be used."""

    def __init__(self) -> None:
        # A thread may still be at work when the task that waits for it is cancelled.
        self._lock = threading.Lock()
        # An empty name is a temporary database that SQLite keeps in memory up to its cache, then in a file.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode=OFF", "PRAGMA cache_size=-32768", *_TABLES):
            self._database.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._database.close()

    def streams(self, side: str, names: Iterable[str]) -> dict[str, StreamNote]:
        """The notes on those streams that have one."""
        wanted = msgspec.json.encode(sorted(names)).decode()
        with self._transaction():
            rows = self._database.execute(_STREAMS, (side, wanted)).fetchall()
        return {name: StreamNote(last, digest) for name, last, digest in rows}

    def keep(self, side: str, notes: Mapping[str, StreamNote]) -> None:
        """Replaces the notes on streams."""
        with self._transaction():
            self._database.executemany(_KEEP_STREAM, [(side, name, *note) for name, note in notes.items()])

    def stream_count(self, side: str) -> int:
        """How many streams have a note."""
        (count,) = self._one(_COUNT, side) or (0,)
        return int(count)

    def keep_claims(self, side: str, claims: Iterable[HeldClaim]) -> int:
        """Adds claims; how many of them are new."""
        return self._keep_new(_KEEP_CLAIM, [(side, claim.scope, claim.digest, claim.stream) for claim in claims])

    def keep_records(self, side: str, records: Iterable[IdempotencyRecord]) -> int:
        """Adds idempotency records; how many of them are new."""
        rows = []
        for record in records:
            expires_at = _timestamp(record.expires_at)
            content = msgspec.json.encode((record.command_hash, record.stream, record.sequence_number, expires_at))
            rows.append((side, record.key, content.decode(), expires_at))
        return self._keep_new(_KEEP_RECORD, rows)

    def forget(self, side: str) -> None:
        """Drops everything about a side."""
        with self._transaction():
            for statement in _FORGET:
                self._database.execute(statement, (side,))

    def names(self, side: str, after: str, limit: int) -> list[str]:
        """At most so many streams that have a note, in the order of their names, after one."""
        with self._transaction():
            return [name for (name,) in self._database.execute(_NAMES, (side, after, limit)).fetchall()]

    def stream_beyond_the_file(self) -> str | None:
        """A stream of the journal that goes further than the file says, if there is one."""
        row = self._one(_BEYOND_THE_FILE)
        return str(row[0]) if row else None

    def different_streams(self, after: str, limit: int) -> list[str]:
        """The first streams, in the order of names, after one that the journal does not hold as the file does."""
        with self._transaction():
            return [name for (name,) in self._database.execute(_DIFFERENT, (after, limit)).fetchall()]

    def is_same(self, stream: str) -> bool:
        """Whether both sides hold the same of a stream."""
        return self.streams(FILE, [stream]) == self.streams(JOURNAL, [stream])

    def claim_of_the_journal_alone(self) -> HeldClaim | None:
        """A claim that the file does not have, if there is one."""
        return self._claim_of_one_side(JOURNAL, FILE)

    def claim_of_one_side(self) -> HeldClaim | None:
        """A claim that only one of the two has, if there is one."""
        return self._claim_of_one_side(JOURNAL, FILE) or self._claim_of_one_side(FILE, JOURNAL)

    def _claim_of_one_side(self, side: str, other: str) -> HeldClaim | None:
        row = self._one(_CLAIM_OF_ONE_SIDE, side, other)
        return HeldClaim(*row) if row else None

    def lacks_a_record(self, now: datetime) -> bool:
        """Whether the journal lacks a record of the file that has not expired."""
        return self._one(_RECORD_OF_THE_FILE_ALONE, _timestamp(now)) is not None

    def _keep_new(self, statement: str, rows: Sequence[tuple[str, ...]]) -> int:
        with self._transaction():
            return self._database.executemany(statement, rows).rowcount if rows else 0

    def _one(self, statement: str, *parameters: str) -> Any:
        with self._transaction():
            return self._database.execute(statement, parameters).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._database.execute("BEGIN")
                yield
                self._database.execute("COMMIT")
            except sqlite3.Error as problem:
                raise TransferFailed(
                    f"notes can't be kept in the temporary folder: {problem}; make room there, or set TMPDIR"
                ) from problem


def _timestamp(moment: datetime) -> str:
    # Of constant width, so that the order of text is that of time.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
