"""Reading a SQLite journal: a few connections on threads of their own, so that the event loop never waits for a disk.

A page of commits comes back as one row of JSON, for the reason given in `append`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar

import msgspec

from kiseki.journal.format import FORMAT, decode_commit
from kiseki.journal.port import Commit, CorruptJournal, IdempotencyRecord, Lag, Snapshot
from kiseki.journal.sqlite.append import timestamp
from kiseki.journal.sqlite.connection import connect, explain
from kiseki.journal.sqlite.schema import JournalFile
from kiseki.journal.transfer.transferable import HeldClaim

__all__ = [
    "Page",
    "SqliteReaders",
    "integrity_problems",
    "read_claims",
    "read_feed",
    "read_head",
    "read_idempotency",
    "read_lag",
    "read_records",
    "read_snapshot",
    "read_stream",
]

_T = TypeVar("_T")

_PAGE_BYTES: Final = 2_000_000
_COUNTED_AT_MOST: Final = 10_000

# A page ends after ?3 commits or with the commit that reaches ?1 bytes, whichever comes first; it has at least one.
_FEED: Final = """
    SELECT json_group_array(
        json_array(position, stream, first_sequence, count, commit_id, format, checksum, bytes, document))
    FROM (
        SELECT * FROM commits WHERE position IN (
            SELECT position FROM (
                SELECT position, SUM(bytes) OVER (ORDER BY position) - bytes AS bytes_before FROM (
                    SELECT position, bytes FROM commits WHERE position > ?2 ORDER BY position LIMIT ?3))
            WHERE bytes_before < ?1)
        ORDER BY position)
"""
# The commit that holds sequence number ?2 + 1 may begin before it.
_STREAM: Final = """
    SELECT json_group_array(
        json_array(position, stream, first_sequence, count, commit_id, format, checksum, bytes, document))
    FROM (
        SELECT * FROM commits WHERE position IN (
            SELECT position FROM (
                SELECT position, SUM(bytes) OVER (ORDER BY position) - bytes AS bytes_before FROM (
                    SELECT position, bytes FROM commits
                    WHERE stream = ?4 AND first_sequence >= IFNULL(
                        (SELECT MAX(first_sequence) FROM commits WHERE stream = ?4 AND first_sequence <= ?2 + 1), 0)
                    ORDER BY first_sequence LIMIT ?3))
            WHERE bytes_before < ?1)
        ORDER BY position)
"""

_HEAD: Final = "SELECT IFNULL(MAX(position), 0) FROM commits"
_COUNT: Final = "SELECT COUNT(*) FROM (SELECT 1 FROM commits WHERE position > ?1 LIMIT ?2)"
_OLDEST: Final = "SELECT committed_at FROM commits WHERE position > ? ORDER BY position LIMIT 1"
_IDEMPOTENCY: Final = """
    SELECT command_hash, stream, sequence_number, expires_at FROM idempotency WHERE key = ? AND expires_at > ?
"""
_CLAIMS: Final = """
    SELECT scope, digest, stream FROM claims WHERE (scope, digest) > (?, ?) ORDER BY scope, digest LIMIT ?
"""
_RECORDS: Final = """
    SELECT key, command_hash, stream, sequence_number, expires_at FROM idempotency
    WHERE key > ? AND expires_at > ? ORDER BY key LIMIT ?
"""
_SNAPSHOT: Final = """
    SELECT sequence_number, data, saved_at FROM snapshots WHERE stream = ? AND schema = ?
    ORDER BY sequence_number DESC LIMIT 1
"""

_Row = tuple[int, str, int, int, str, int, str, int, str]
_decode_rows: Final = msgspec.json.Decoder(list[_Row]).decode


class Page(NamedTuple):
    """Commits in order, the row of the last one (or where reading went on from), and whether there may be more."""

    commits: tuple[Commit, ...]
    row: int
    more: bool


class SqliteReaders:
    """A bounded pool of reading threads, each call with a connection of its own."""

    def __init__(self, file: JournalFile, *, threads: int, busy_seconds: float) -> None:
        self._file = file
        self._busy_seconds = busy_seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"journal reader {file.path.name}")
        self._idle: list[sqlite3.Connection] = []

    async def run(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """The result of a function that reads. Raises CorruptJournal, JournalUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = None
        try:
            connection = self._connection()
            result = query(connection)
        except Exception as problem:
            if connection is not None:
                connection.close()
            raise explain(problem, self._file.path) from problem
        self._idle.append(connection)
        return result

    def _connection(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            self._file.refuse_another()
            connection = connect(self._file.path, write=False, busy_seconds=self._busy_seconds)
        try:
            self._file.refuse_another(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Waits for what is being read, then lets go of the connections."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while self._idle:
            self._idle.pop().close()


def read_feed(connection: sqlite3.Connection, *, after: int, limit: int) -> Page:
    """The commits after a row. A row beyond the end is of a file that was since put back: reading starts over."""
    page = _read_page(connection, _FEED, (_PAGE_BYTES, after, limit))
    if not page.commits and after > read_head(connection):
        return _read_page(connection, _FEED, (_PAGE_BYTES, 0, limit))
    return page


def read_stream(connection: sqlite3.Connection, *, stream: str, after: int, limit: int) -> Page:
    """The commits of a stream that hold events after a sequence number, the first of which may begin before it."""
    page = _read_page(connection, _STREAM, (_PAGE_BYTES, after, limit, stream))
    if page.commits and page.commits[0].last_sequence_number <= after:
        # The stream ends there. Its document says so: left to the row, a damaged `count` could hide events.
        page = page._replace(commits=page.commits[1:])
    expected = after + 1
    for number, commit in enumerate(page.commits):
        first = commit.first_sequence_number
        if first > expected or (first < expected and number > 0):
            raise CorruptJournal(f"{stream} has no commit that begins with sequence number {expected}; restore it")
        expected = commit.last_sequence_number + 1
    return page


def _read_page(connection: sqlite3.Connection, statement: str, parameters: tuple[int | str, ...]) -> Page:
    (text,) = connection.execute(statement, parameters).fetchone()
    try:
        rows = _decode_rows(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        rows = _decode_damaged(text)
    rows.sort(key=itemgetter(0))  # SQLite keeps the order in practice, but promises it only since 3.44
    commits = tuple([_commit(row) for row in rows])
    size = sum(row[-2] for row in rows)
    after, limit = parameters[1:3]
    return Page(commits, rows[-1][0] if rows else int(after), len(commits) == limit or size >= _PAGE_BYTES)


def _decode_damaged(text: bytes) -> list[_Row]:
    """The rows of a page that is not UTF-8; the checksum will say which of them it is."""
    try:
        return _decode_rows(text.decode(errors="replace"))
    except msgspec.DecodeError as problem:
        raise CorruptJournal("a commit is damaged; stop writing and run `kiseki journal verify`") from problem


def _commit(row: _Row) -> Commit:
    _, stream, first, count, commit_id, stored_format, checksum, size, text = row
    document = text.encode()
    if stored_format != FORMAT:
        raise CorruptJournal(
            f"the commit of {stream} at sequence number {first} has format {stored_format}; this kiseki reads {FORMAT}"
        )
    commit = decode_commit(stream, first, document, checksum)
    if (len(commit.events), commit.metadata.commit_id, len(document)) != (count, commit_id, size):
        raise CorruptJournal(f"the row of {stream} at sequence number {first} does not belong to its document")
    return commit


def read_head(connection: sqlite3.Connection) -> int:
    """The row of the newest commit, 0 when there is none."""
    (row,) = connection.execute(_HEAD).fetchone()
    return int(row)


def read_lag(connection: sqlite3.Connection, *, after: int) -> Lag:
    """How far a row is behind. Large numbers are estimated by the difference of rows, which conflicts may leave out."""
    head = read_head(connection)
    if after > head:
        after = 0
    oldest = connection.execute(_OLDEST, (after,)).fetchone()
    if oldest is None:
        return Lag(0, None)
    (count,) = connection.execute(_COUNT, (after, _COUNTED_AT_MOST)).fetchone()
    return Lag(count if count < _COUNTED_AT_MOST else head - after, datetime.fromisoformat(oldest[0].decode()))


def read_idempotency(connection: sqlite3.Connection, *, key: str, now: datetime) -> IdempotencyRecord | None:
    """The record of a key, unless it has expired."""
    row = connection.execute(_IDEMPOTENCY, (key, timestamp(now))).fetchone()
    if row is None:
        return None
    return _record((key.encode(), *row))


def read_claims(connection: sqlite3.Connection, *, after: tuple[str, str], limit: int) -> list[HeldClaim]:
    """The claims that follow a scope and digest, in their order."""
    rows = connection.execute(_CLAIMS, (*after, limit)).fetchall()
    return [HeldClaim(scope.decode(), digest.decode(), stream.decode()) for scope, digest, stream in rows]


def read_records(connection: sqlite3.Connection, *, after: str, limit: int, now: datetime) -> list[IdempotencyRecord]:
    """The unexpired idempotency records that follow a key, in their order."""
    return [_record(row) for row in connection.execute(_RECORDS, (after, timestamp(now), limit)).fetchall()]


def _record(row: tuple[bytes, bytes, bytes, int, bytes]) -> IdempotencyRecord:
    key, command_hash, stream, sequence_number, expires_at = row
    return IdempotencyRecord(
        key=key.decode(),
        command_hash=command_hash.decode(),
        stream=stream.decode(),
        sequence_number=sequence_number,
        expires_at=datetime.fromisoformat(expires_at.decode()),
    )


def read_snapshot(connection: sqlite3.Connection, *, stream: str, schema: str) -> Snapshot | None:
    """The newest snapshot of a stream and schema."""
    row = connection.execute(_SNAPSHOT, (stream, schema)).fetchone()
    if row is None:
        return None
    sequence_number, data, saved_at = row
    return Snapshot(
        stream=stream,
        sequence_number=sequence_number,
        schema=schema,
        data=data,
        saved_at=datetime.fromisoformat(saved_at.decode()),
    )


def integrity_problems(connection: sqlite3.Connection) -> tuple[str, ...]:
    """What SQLite finds wrong with the file itself (tables and indexes against each other), the first of it."""
    rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
    return tuple(line for (text,) in rows for line in text.decode(errors="replace").splitlines() if line != "ok")
