"""The files of a SQLite read-model database: their names, how they are opened, and what SQLite's errors mean.

catalog.sqlite                    which builds there are, requests of operators
<projection>.v<version>.lock      held by the process that runs the projection version
<projection>.v<version>.<n>.sqlite   one build: the projection's tables, guards, parked streams, position
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import BuildName

__all__ = ["BuildFiles", "connect", "error_name", "is_environment", "unavailable"]

_CAUSES: Final = {
    sqlite3.SQLITE_BUSY: "another process holds it",
    sqlite3.SQLITE_LOCKED: "another connection holds it",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; rebuild the projection",
    sqlite3.SQLITE_NOTADB: "the file is damaged; rebuild the projection",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
    sqlite3.SQLITE_PERM: "access is denied",
    sqlite3.SQLITE_PROTOCOL: "its lock can't be taken",
    sqlite3.SQLITE_INTERRUPT: "it was interrupted",
    sqlite3.SQLITE_INTERNAL: "SQLite failed inside",
}
"""Primary result codes that say something of the machine, not of a statement (sqlite.org/rescode.html)."""


class BuildFiles:
    """Where things are in the directory of a read-model database. Names come only from validated projection names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.catalog = self.directory / "catalog.sqlite"
        self.catalog_lock = self.directory / "catalog.lock"

    def build(self, name: BuildName) -> Path:
        """The file of a build."""
        return self.directory / f"{name}.sqlite"

    def lock(self, projection: str, version: int) -> Path:
        """The file whose lock is the ownership of a projection version."""
        return self.directory / f"{projection}.v{version}.lock"

    def remove(self, name: BuildName) -> None:
        """Deletes a build's files; it is fine when they are not there."""
        path = self.build(name)
        # The database last: a log without its database is nothing, a database without its log would be damaged.
        for suffix in ("-wal", "-shm", ""):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def make_directory(self) -> None:
        """Makes the directory, for this user only: read models hold personal data."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def catalog_locked(self, seconds: float) -> Iterator[None]:
        """One writer of the catalog at a time among all processes, checkpoints included; waits up to `seconds`.

        SQLite before 3.51.3 can, very rarely, lose pages when one process commits while another checkpoints
        (https://www.sqlite.org/wal.html#walresetbug). A build has one writer anyway. Raises Unavailable, OSError.
        """
        descriptor = os.open(self.catalog_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Unavailable("the catalog of read models is held by another process") from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)


def connect(
    path: Path, *, busy_timeout: float, create: bool = False, query_only: bool = False, sync: Literal["NORMAL", "FULL"]
) -> sqlite3.Connection:
    """Opens a database in WAL mode; transactions are begun by hand. Waits up to `busy_timeout` seconds for others.

    A file that is not there is an error unless `create`: nobody must read an empty database by mistake.
    Raises sqlite3.Error, OSError.
    """
    if create:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time uses it; which one may change
    )
    try:
        if not query_only:
            connection.execute("PRAGMA journal_mode = WAL")
        # A build may be NORMAL: rows, guards and position are one transaction, so a loss of power sets it back to an
        # earlier state that is whole, and what is missing is read again from the journal, which is never set back.
        connection.execute("PRAGMA synchronous = FULL" if sync == "FULL" else "PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What an erasure deletes is overwritten, and the log does not keep old pages beyond its ordinary size.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.execute("PRAGMA trusted_schema = OFF")
        # As in standard SQL and on the other databases; otherwise "a" would be like "A", and "ä" not like "Ä".
        connection.execute("PRAGMA case_sensitive_like = ON")
        if query_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def error_name(problem: BaseException) -> str | None:
    """SQLite's name of an error (`SQLITE_FULL`), None when it has none."""
    name = getattr(problem, "sqlite_errorname", None)
    return name if isinstance(name, str) else None


def is_environment(problem: BaseException) -> bool:
    """Whether an error says something of the machine (busy, full, damaged …) and nothing of the statement."""
    code = getattr(problem, "sqlite_errorcode", None)
    return isinstance(problem, sqlite3.Error) and isinstance(code, int) and (code & 0xFF) in _CAUSES


def unavailable(what: str, problem: BaseException) -> Unavailable:
    """The error for callers: `what` can't be used, and why, without a path or a value."""
    code = getattr(problem, "sqlite_errorcode", None)
    if isinstance(code, int):
        cause = _CAUSES.get(code & 0xFF, "SQLite refused")
        return Unavailable(f"{what} can't be used now: {cause} ({error_name(problem)})")
    if isinstance(problem, OSError):
        return Unavailable(f"{what} can't be used now: {problem.strerror or type(problem).__name__}")
    return Unavailable(f"{what} can't be used now ({type(problem).__name__})")
