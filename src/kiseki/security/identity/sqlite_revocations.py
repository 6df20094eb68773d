"""A RevocationStore in a SQLite file, for the processes of one machine. Made by the composition root.

Every call opens the file anew: a revocation is rare, a read happens every few seconds, and nothing is held meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Self, TypeVar

from kiseki.security.identity.revocations import (
    MAX_REVOCATIONS,
    RevocationRefused,
    RevocationsUnavailable,
    Revoked,
    too_many,
)

__all__ = ["SqliteRevocations"]

Result = TypeVar("Result")

_APPLICATION_ID: Final = 0x6B69_7276
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS revocations (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (issuer, subject)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
COMMIT;
"""
_REVOKE: Final = """
INSERT INTO revocations (issuer, subject, until) VALUES (?, ?, ?)
ON CONFLICT (issuer, subject) DO UPDATE SET until = max(until, excluded.until)
"""


class SqliteRevocations:
    """Made by `open`."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout

    @classmethod
    async def open(cls, path: Path, *, busy_timeout: float = 5.0) -> Self:
        """Makes the file when it is not there, mode 0600. `busy_timeout`: how long a lock is waited for, seconds.

        Raises RevocationRefused for a file that others may use or that is something else, RevocationsUnavailable.
        """
        store = cls(path, busy_timeout=busy_timeout)
        await asyncio.to_thread(store._create)
        return store

    async def revoke(self, issuer: str, subject: str, *, at: float, forget_before: float) -> None:
        """As RevocationStore."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM revocations WHERE until <= ?", (forget_before,))
            connection.execute(_REVOKE, (issuer, subject, at))
            (rows,) = connection.execute("SELECT count(*) FROM revocations").fetchone()
            if rows > MAX_REVOCATIONS:
                raise too_many()
            connection.execute("COMMIT")

        await asyncio.to_thread(self._run, work)

    async def load(self, after: float) -> Revoked:
        """As RevocationStore."""

        def work(connection: sqlite3.Connection) -> Revoked:
            rows = connection.execute("SELECT issuer, subject, until FROM revocations WHERE until > ?", (after,))
            return {(issuer, subject): until for issuer, subject, until in rows}

        return await asyncio.to_thread(self._run, work)

    async def close(self) -> None:
        """As RevocationStore."""

    def _create(self) -> None:
        with self._translated():
            try:
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                pass
            if self._path.stat().st_mode & 0o077:
                raise RevocationRefused(f"others may use the revocations {self._path}: chmod 600 it")
            with closing(self._connect()) as connection:
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if tables == 0:
                    connection.executescript(_SCHEMA)
        self._run(lambda _: None)

    def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        with self._translated(), closing(self._connect()) as connection:
            (found,) = connection.execute("PRAGMA application_id").fetchone()
            if found != _APPLICATION_ID:
                raise RevocationRefused(f"{self._path} does not hold revocations")
            return work(connection)  # closing rolls back what was not committed

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that was removed is not made anew, empty, as if nobody had been revoked.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=self._busy_timeout
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as problem:
            raise RevocationsUnavailable(
                f"the revocations {self._path.name} can't be used: {problem.sqlite_errorname}"
                if isinstance(getattr(problem, "sqlite_errorname", None), str)
                else f"the revocations {self._path.name} can't be used"
            ) from problem
        except OSError as problem:
            raise RevocationsUnavailable(
                f"the revocations {self._path.name} can't be used: {problem.strerror}"
            ) from problem
