"""The SQLite file of the key store: how it is made, opened, checked and scrubbed. Used only by `sqlite_key_store`.

What makes destroyed keys disappear from every byte (https://www.sqlite.org/pragma.html#pragma_secure_delete):

- Rows with keys are only appended, never change their size and are never deleted, so SQLite never moves one. Where it
  splits a page, part of a row can stay in unused space that `secure_delete` does not clear (seen once in some thousand
  random insertions and erasures on a table ordered by subject).
- A key is overwritten in place, then the log is written into the file and cut to nothing, and the cut is synced:
  otherwise a power cut could bring the old log back.
- Temporary pages stay in memory.

It is opened under a lock on `<file>.lock`: a restore replaces it under the same lock, and then nobody has the old file
open, whose log SQLite would mix into the new one.

A file system that copies on write, or a disk that moves its blocks, may keep old ones; keys there are still wrapped.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from kiseki.journal.sqlite.connection import Busy, WriteLock
from kiseki.kernel.errors import KisekiError
from kiseki.security.key_store import KeyStoreCorrupt, KeyStoreUnavailable

__all__ = ["KeyFile", "KeyFileRefused"]

_APPLICATION_ID: Final = 0x6B69736B
_VERSION: Final = 1
_OURS: Final = (_APPLICATION_ID, _VERSION, True)
_EMPTY: Final = (0, 0, False)
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS subject_keys (
    id INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    number INTEGER NOT NULL,
    wrapping INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    wrapped TEXT NOT NULL,
    UNIQUE (subject, number, wrapping)
);
CREATE TABLE IF NOT EXISTS erasures (
    number INTEGER PRIMARY KEY,
    subject TEXT NOT NULL UNIQUE,
    erased_at TEXT NOT NULL
);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_CAUSES: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another process holds its lock",
    sqlite3.SQLITE_IOERR: "the disk does not read or write",
    sqlite3.SQLITE_CANTOPEN: "the file can't be opened",
    sqlite3.SQLITE_PERM: "the file may not be used by this user",
    sqlite3.SQLITE_PROTOCOL: "another process holds its lock",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}


class KeyFileRefused(KisekiError):
    """The file is not a key store that this version of kiseki may use."""

    code = "KEY_STORE_REFUSED"


class KeyFile:
    """Opens connections to one key store file. Methods block; each connection belongs to one thread."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        """`busy_timeout`: how long another process's lock is waited for, in seconds."""
        self.path = path
        self._busy_timeout = busy_timeout
        self._identity: tuple[int, int] | None = None

    def create(self) -> None:
        """Makes the file when it is not there, mode 0600, and its tables. Raises as `connect`."""
        with self.translated(), self._locked():
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                pass
            if self.path.stat().st_mode & 0o077:
                raise KeyFileRefused(f"others may use the key store {self.path}: chmod 600 it")
            # Also when another process made the file. SQLite does so only in the process that makes the log.
            _sync(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            with closing(self._open(new=True)) as connection:
                if _identity(connection) != _OURS:
                    connection.executescript(_SCHEMA)

    def connect(self) -> sqlite3.Connection:
        """A connection, its settings checked, to the file that was there at first.

        Raises KeyFileRefused, KeyStoreUnavailable, KeyStoreCorrupt.
        """
        with self.translated(), self._locked():
            self.check()
            return self._open(new=False)

    def check(self) -> None:
        """That the file is still the one first opened: keys written to a removed file would be lost, and those of a
        replaced one would be others. Raises KeyStoreUnavailable."""
        try:
            about = self.path.stat()
        except OSError:
            raise KeyStoreUnavailable(f"the key store {self.path.name} is not there; put it back") from None
        identity = (about.st_dev, about.st_ino)
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise KeyStoreUnavailable(f"the key store {self.path.name} was replaced while in use; restart")

    def scrub(self, connection: sqlite3.Connection) -> None:
        """Takes everything out of the log, durably, so that what was overwritten is in no file.

        Raises KeyStoreUnavailable when a reader keeps the log in use; the same call again is safe.
        """
        deadline = time.monotonic() + self._busy_timeout
        # SQLite does not wait for another process's checkpoint.
        while (busy := connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)
        if busy:
            raise KeyStoreUnavailable(
                f"the key store {self.path.name}: the log is in use, what was destroyed may still be in it; do it again"
            )
        try:
            # SQLite does not sync after it cuts the log. Closing this file drops no lock of SQLite's: those are on
            # the other two files.
            _sync(Path(f"{self.path}-wal"), os.O_RDWR)
        except FileNotFoundError:
            pass  # no log, nothing in it

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns what SQLite and the system raise into KeyStoreUnavailable or KeyStoreCorrupt, with the cause."""
        try:
            yield
        except Busy as problem:
            raise KeyStoreUnavailable(
                f"the key store {self.path.name} can't be opened: another process holds its lock"
            ) from problem
        except sqlite3.DatabaseError as problem:
            code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise KeyStoreCorrupt(f"the key store {self.path} is damaged: stop, and restore it") from problem
            if code not in _CAUSES:
                raise
            raise KeyStoreUnavailable(f"the key store {self.path.name} can't be used: {_CAUSES[code]}") from problem
        except OSError as problem:
            raise KeyStoreUnavailable(
                f"the key store {self.path.name} can't be used: {problem.strerror or type(problem).__name__}"
            ) from problem

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = WriteLock(self.path.with_name(self.path.name + ".lock"))
        try:
            with lock.held(time.monotonic() + self._busy_timeout):
                yield
        finally:
            lock.close()

    def _open(self, *, new: bool) -> sqlite3.Connection:
        # mode=rw: a file that was removed is not made anew, empty.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=self._busy_timeout
        )
        try:
            # Before anything is changed: it may be somebody's database.
            identity = _identity(connection)
            if identity != _OURS and not (new and identity == _EMPTY):
                raise KeyFileRefused(f"{self.path} is no key store of version {_VERSION} of kiseki's format")
            self._use_log(connection)
            connection.executescript(
                "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;"
            )
            for name, wanted in (("journal_mode", "wal"), ("synchronous", 2), ("secure_delete", 1), ("temp_store", 2)):
                (found,) = _pragma(connection, name)
                if found != wanted:
                    raise KeyFileRefused(f"the key store {self.path}: {name} is {found}, and has to be {wanted}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switches to the log, once in a file's life. SQLite does not wait for others here, so this does."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as problem:
                if problem.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return


def _identity(connection: sqlite3.Connection) -> tuple[Any, ...]:
    connection.execute("BEGIN")  # all of one moment: another process may be making the tables
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    identity = (*_pragma(connection, "application_id"), *_pragma(connection, "user_version"), tables > 0)
    connection.execute("COMMIT")
    return identity


def _pragma(connection: sqlite3.Connection, name: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(f"PRAGMA {name}").fetchone()
    return row


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
