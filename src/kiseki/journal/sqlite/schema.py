"""The file of a SQLite journal: its tables, who it is (journal id and epoch), and how it is opened and created."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
import urllib.parse
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.journal.port import CorruptJournal, JournalUnavailable, Position
from kiseki.journal.sqlite.connection import WriteLock, begin, connect, explain

__all__ = [
    "SCHEMA_VERSION",
    "JournalFile",
    "JournalIdentity",
    "begin_life",
    "journal_epoch",
    "open_file",
    "raise_epoch",
    "read_identity",
]

SCHEMA_VERSION: Final = 1

_APPLICATION_ID: Final = (
    0x6B69736B  # "kisk", in the file's header, so that no other program's database is taken for one
)

# The short columns come before the document, so that a row's key and size are read without reading its pages.
_TABLES: Final = (
    """CREATE TABLE commits (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        stream TEXT NOT NULL,
        first_sequence INTEGER NOT NULL,
        count INTEGER NOT NULL,
        commit_id TEXT NOT NULL,
        committed_at TEXT NOT NULL,
        format INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        document TEXT NOT NULL,
        UNIQUE (stream, first_sequence)
    )""",
    """CREATE TABLE claims (
        scope TEXT NOT NULL,
        digest TEXT NOT NULL,
        stream TEXT NOT NULL,
        PRIMARY KEY (scope, digest)
    ) WITHOUT ROWID""",
    """CREATE TABLE idempotency (
        key TEXT NOT NULL PRIMARY KEY,
        command_hash TEXT NOT NULL,
        stream TEXT NOT NULL,
        sequence_number INTEGER NOT NULL,
        expires_at TEXT NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX idempotency_by_expiry ON idempotency (expires_at)",
    """CREATE TABLE snapshots (
        stream TEXT NOT NULL,
        schema TEXT NOT NULL,
        sequence_number INTEGER NOT NULL,
        saved_at TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (stream, schema, sequence_number)
    )""",
    "CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
)


class JournalIdentity(NamedTuple):
    """Which journal this is, and which of its lives: a restore raises the epoch."""

    journal_id: str
    epoch: int

    @property
    def life(self) -> str:
        """Both of them."""
        return f"{self.journal_id}-{self.epoch}"

    def position(self, row: int) -> Position:
        """The position after a row of the commits table."""
        return Position(f"{self.life}-{row}")

    def row(self, position: Position) -> int:
        """The row of a position, 0 for one that this life of the journal did not give."""
        prefix, _, row = position.rpartition("-")
        known = prefix == self.life and row.isascii() and row.isdecimal() and len(row) < 19
        return int(row) if known else 0


class JournalFile(NamedTuple):
    """An opened journal file: what the writer and the readers work with."""

    path: Path
    connection: sqlite3.Connection
    lock: WriteLock
    identity: JournalIdentity
    device_and_inode: tuple[int, int]

    def refuse_another(self, connection: sqlite3.Connection | None = None) -> None:
        """Raises JournalUnavailable when by now another file, or none, is at the path.

        A file that was moved or replaced would still take commits, and nobody would ever see them again. With a
        connection that was opened since, its identity is compared too.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise self._another() from None
        if (status.st_dev, status.st_ino) != self.device_and_inode:
            raise self._another()
        if connection is not None and read_identity(connection) != self.identity:
            raise self._another()

    def _another(self) -> JournalUnavailable:
        return JournalUnavailable(
            f"the journal {self.path} was replaced or removed while it was open; start this process again"
        )


def open_file(path: Path, *, busy_seconds: float) -> JournalFile:
    """Opens the journal at a path, creating it (mode 0600) where there is none. Blocks on the disk.

    Raises JournalUnavailable (its directory, permissions, a full disk, a newer schema), CorruptJournal.
    """
    path = path.absolute()
    directory = path.parent
    if not directory.is_dir():
        raise JournalUnavailable(f"the journal {path} can't be opened: there is no directory {directory}")
    if path.is_dir():
        raise JournalUnavailable(f"the journal {path} can't be opened: it is a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise JournalUnavailable(f"the journal {path} can't be opened: the directory {directory} is not writable")
    try:
        lock = WriteLock(path.with_name(path.name + ".lock"))
    except OSError as problem:
        raise explain(problem, path) from problem
    try:
        return _open_locked(path, lock, busy_seconds)
    except BaseException as problem:
        lock.close()
        if isinstance(problem, Exception):
            raise explain(problem, path) from problem
        raise


def _open_locked(path: Path, lock: WriteLock, busy_seconds: float) -> JournalFile:
    deadline = time.monotonic() + busy_seconds
    with lock.held(deadline):
        _create_private(path)
        connection = connect(path, write=True, busy_seconds=busy_seconds)
        try:
            begin(connection, deadline)
            _create_or_check(connection, path)
            # A process that was killed may have left commits in the log that were never synced, and opening the
            # file made them readable. This write syncs the log, so what readers see from now on is durable.
            connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'writes_proved'")
            identity = read_identity(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        status = path.stat()
    return JournalFile(path, connection, lock, identity, (status.st_dev, status.st_ino))


def _create_private(path: Path) -> None:
    # Only ever a new file: to open and close one that SQLite holds drops its locks (POSIX locks belong to the process).
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass


def _create_or_check(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if tables == 0:
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID:d}")
        for statement in _TABLES:
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO meta (name, value) VALUES (?, ?)",
            [
                ("schema_version", SCHEMA_VERSION),
                ("journal_id", secrets.token_hex(8)),
                ("epoch", 1),
                ("writes_proved", 0),
            ],
        )
        return
    if application_id != _APPLICATION_ID:
        raise CorruptJournal(f"{path} is a SQLite database, but not a kiseki journal; is it the right file?")
    (version,) = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    if version > SCHEMA_VERSION:
        raise JournalUnavailable(
            f"the journal {path} has schema version {version} and this kiseki knows {SCHEMA_VERSION}; "
            "run the kiseki that wrote it, or a newer one"
        )


def read_identity(connection: sqlite3.Connection) -> JournalIdentity:
    """Who the journal says it is. Raises sqlite3.Error, CorruptJournal."""
    facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    journal_id, epoch = facts.get(b"journal_id"), facts.get(b"epoch")
    if not isinstance(journal_id, bytes) or not isinstance(epoch, int):
        raise CorruptJournal("the journal's own description (table meta) is incomplete")
    return JournalIdentity(journal_id.decode(), epoch)


def journal_epoch(path: Path) -> int:
    """Which life the journal at a path is in; 0 when there is none, or it can't be read. Blocks."""
    try:
        with closing(sqlite3.connect(f"file:{urllib.parse.quote(os.fspath(path))}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            return read_identity(connection).epoch
    except (sqlite3.Error, CorruptJournal):
        return 0


def begin_life(path: Path, *, above: int, at: int, busy_seconds: float = 5.0) -> int:
    """Begins a new life of a journal that is being restored: no position of any earlier one is a position of it.

    Its number is higher than the file's own and `above`, that of the journal it replaces, and at least `at`, the time
    in seconds since 1970: two restores of one old copy, with nothing else left, are two lives. Blocks.
    Raises JournalUnavailable, CorruptJournal.
    """
    return _change_epoch(path, lambda epoch: max(epoch + 1, above + 1, at), busy_seconds)


def raise_epoch(path: Path, *, busy_seconds: float = 5.0) -> int:
    """Begins a new life of a journal that was restored: positions of earlier lives read from the start. Blocks.

    Returns the new epoch. Call it while nobody serves the file. Raises JournalUnavailable, CorruptJournal.
    """
    return _change_epoch(path, lambda epoch: epoch + 1, busy_seconds)


def _change_epoch(path: Path, change: Callable[[int], int], busy_seconds: float) -> int:
    opened = open_file(path, busy_seconds=busy_seconds)
    try:
        with opened.lock.held(time.monotonic() + busy_seconds):
            epoch = change(read_identity(opened.connection).epoch)
            opened.connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
            return epoch
    except Exception as problem:
        raise explain(problem, path) from problem
    finally:
        opened.connection.close()
        opened.lock.close()
