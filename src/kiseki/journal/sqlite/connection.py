"""Connections to a SQLite journal: opened in one way, their durability read back, their errors explained in one line.

Used by the writer and the readers of the SQLite store.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kiseki.journal.port import CorruptJournal, JournalUnavailable

__all__ = ["Busy", "WriteLock", "begin", "connect", "explain", "is_out_of_space"]

# SQLite names a thing only by its number where a pragma is read back (https://www.sqlite.org/pragma.html).
_SYNCHRONOUS_FULL: Final = 2

_CAUSES: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CANTOPEN: "the file can't be opened",
    sqlite3.SQLITE_BUSY: "another process holds it locked",
    sqlite3.SQLITE_LOCKED: "it is locked",
    sqlite3.SQLITE_PERM: "permission denied",
    sqlite3.SQLITE_AUTH: "permission denied",
    sqlite3.SQLITE_NOMEM: "out of memory",
}


class Busy(Exception):
    """Another process held the write lock for the whole time one is willing to wait."""


def connect(path: Path, *, write: bool, busy_seconds: float) -> sqlite3.Connection:
    """A connection to an existing file, in WAL mode with synchronous=FULL, both verified; text comes as bytes.

    WAL with the usual NORMAL loses acknowledged commits when the power fails; FULL does not.
    Raises sqlite3.Error, and JournalUnavailable when a pragma reads back otherwise than set.
    """
    # mode=rw never creates: a journal whose file vanished must not silently become an empty one.
    address = f"file:{urllib.parse.quote(os.fspath(path))}?mode=rw"
    connection = sqlite3.connect(
        address, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.text_factory = bytes
        _verify(connection, path, "journal_mode", "PRAGMA journal_mode=WAL", "wal")
        connection.execute("PRAGMA synchronous=FULL")
        _verify(connection, path, "synchronous", "PRAGMA synchronous", _SYNCHRONOUS_FULL)
        # On macOS a plain fsync leaves data in the drive's cache; elsewhere these two change nothing.
        connection.execute("PRAGMA fullfsync=ON")
        connection.execute("PRAGMA checkpoint_fullfsync=ON")
        # Deleted snapshots and idempotency records are overwritten, not only unlinked.
        _verify(connection, path, "secure_delete", "PRAGMA secure_delete=ON", 1)
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cache_size=-16384")
        # A log that grew behind a long read is cut back to 64 MiB when it starts again.
        connection.execute("PRAGMA journal_size_limit=67108864")
        if not write:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _verify(connection: sqlite3.Connection, path: Path, name: str, pragma: str, expected: str | int) -> None:
    (value,) = connection.execute(pragma).fetchone()
    found = value.decode() if isinstance(value, bytes) else value
    if found != expected:
        raise JournalUnavailable(
            f"the journal {path} can't be used: SQLite's {name} is {found}, not {expected}, so commits would not be "
            "durable; keep it on a local disk"
        )


def begin(connection: sqlite3.Connection, deadline: float) -> None:
    """Starts a writing transaction. Raises Busy when `deadline` (of time.monotonic) passes, sqlite3.Error.

    Only writers that don't know `WriteLock` (another program) can hold it up.
    """
    for _ in _tries(deadline):
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        else:
            return
    raise Busy


class WriteLock:
    """One writer at a time among all processes on a file, checkpoints included; an advisory lock on `<file>.lock`.

    SQLite's own lock keeps commits apart, but lets one process checkpoint while another commits. Before SQLite 3.51.3
    that can, very rarely, lose committed pages (https://www.sqlite.org/wal.html#walresetbug). Commits and the
    checkpoints they start run under this lock, so that it can't happen with any version.
    """

    def __init__(self, path: Path) -> None:
        """Opens the lock file. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def held(self, deadline: float) -> Iterator[None]:
        """Holds the lock. Raises Busy when `deadline` (of time.monotonic) passes, OSError."""
        for _ in _tries(deadline):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            break
        else:
            raise Busy
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of the lock file."""
        os.close(self._descriptor)


def _tries(deadline: float) -> Iterator[None]:
    """One try at once, then more with short growing pauses until the deadline."""
    pause = 0.0002
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)
        yield


def is_out_of_space(problem: BaseException) -> bool:
    """Whether SQLite said that the disk is full; it leaves the connection sound."""
    return isinstance(problem, sqlite3.Error) and _code(problem) & 0xFF == sqlite3.SQLITE_FULL


def explain(problem: Exception, path: Path) -> JournalUnavailable | CorruptJournal:
    """The error for callers, one line with the cause; a new one each time, because each caller raises its own."""
    error: JournalUnavailable | CorruptJournal
    if isinstance(problem, JournalUnavailable | CorruptJournal):
        error = type(problem)(str(problem))
    elif isinstance(problem, Busy):
        error = JournalUnavailable(f"the journal {path} can't be written: another process holds its write lock")
    elif isinstance(problem, sqlite3.Error):
        error = _explain_sqlite(problem, path)
    elif isinstance(problem, OSError):
        error = JournalUnavailable(f"the journal {path} can't be used: {(problem.strerror or str(problem)).lower()}")
    else:
        error = JournalUnavailable(f"the journal {path} can't be used: {type(problem).__name__}")
    error.__cause__ = problem
    return error


def _explain_sqlite(problem: sqlite3.Error, path: Path) -> JournalUnavailable | CorruptJournal:
    code = _code(problem)
    if code & 0xFF == sqlite3.SQLITE_NOTADB:
        return CorruptJournal(f"{path} is not a SQLite database; is it the right file?")
    if code & 0xFF == sqlite3.SQLITE_CORRUPT:
        return CorruptJournal(f"the journal {path} is damaged; stop writing and run `kiseki journal verify`")
    cause = _CAUSES.get(code & 0xFF)
    if cause is None:
        return JournalUnavailable(f"the journal {path} can't be used: {problem}")
    name = getattr(problem, "sqlite_errorname", "")
    return JournalUnavailable(f"the journal {path} can't be used: {cause} ({name})")


def _code(problem: sqlite3.Error) -> int:
    # Errors of the Python module itself (a closed connection, say) carry no code.
    return getattr(problem, "sqlite_errorcode", 0) or 0
