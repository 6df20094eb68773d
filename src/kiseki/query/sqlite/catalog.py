"""The catalog of a SQLite read-model database: which builds there are, which is live, and what operators asked for.

`SqliteBuilds` in `builds` puts an asynchronous face on it. A few rows, written seldom, by any process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import Build, BuildName, BuildState, Request, RequestKind
from kiseki.query.batch import timestamp
from kiseki.query.sqlite.files import BuildFiles, connect, unavailable

__all__ = ["FIND_SERVED", "SqliteCatalog"]

_FORMAT: Final = 1
_WHAT: Final = "the catalog of read models"

_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS builds (
        projection TEXT NOT NULL,
        version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('building', 'live', 'retired')),
        created_at TEXT NOT NULL,
        promoted_at TEXT,
        retired_at TEXT,
        problem TEXT,
        PRIMARY KEY (projection, version, generation)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS generations (
        projection TEXT NOT NULL,
        version INTEGER NOT NULL,
        last INTEGER NOT NULL,
        PRIMARY KEY (projection, version)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX IF NOT EXISTS one_live_build ON builds (projection) WHERE state = 'live'",
    """
    CREATE TABLE IF NOT EXISTS requests (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        projection TEXT NOT NULL,
        version INTEGER NOT NULL,
        kind TEXT NOT NULL,
        stream TEXT,
        requested_at TEXT NOT NULL,
        finished_at TEXT,
        outcome TEXT
    ) STRICT
    """,
)

FIND_SERVED: Final = """
    SELECT generation FROM main.builds
    WHERE projection = ? AND version = ? AND promoted_at IS NOT NULL ORDER BY generation DESC LIMIT 1
"""
"""The build that answers queries of a projection's version: the newest of its generations that was ever live. It may be
retired, while another version is live: processes of this version go on reading it."""

_BUILDS: Final = """
    SELECT projection, version, generation, state, created_at, promoted_at, retired_at, problem FROM builds
    WHERE ?1 IS NULL OR projection = ?1 ORDER BY projection, version, generation
"""
_NEXT: Final = """
    INSERT INTO generations (projection, version, last) VALUES (?, ?, 1)
    ON CONFLICT (projection, version) DO UPDATE SET last = last + 1 RETURNING last
"""
_ADD: Final = """
    INSERT INTO builds (projection, version, generation, state, created_at) VALUES (?, ?, ?, 'building', ?)
"""
_RETIRE: Final = """
    UPDATE builds SET state = 'retired', retired_at = ?1
    WHERE projection = ?2 AND state = 'live' AND NOT (version = ?3 AND generation = ?4)
"""
_PROMOTE: Final = """
    UPDATE builds SET state = 'live', promoted_at = coalesce(promoted_at, ?1), retired_at = NULL, problem = NULL
    WHERE projection = ?2 AND version = ?3 AND generation = ?4
"""
_DEMOTE: Final = """
    UPDATE builds SET state = 'building', promoted_at = NULL, retired_at = NULL
    WHERE projection = ? AND version = ? AND generation = ?
"""
_FORGET_SERVED: Final = """
    UPDATE builds SET promoted_at = NULL WHERE projection = ? AND version = ? AND generation < ? AND state = 'retired'
"""
_NOTE: Final = "UPDATE builds SET problem = ? WHERE projection = ? AND version = ? AND generation = ?"
_REMOVE: Final = "DELETE FROM builds WHERE projection = ? AND version = ? AND generation = ?"

_REQUEST: Final = "INSERT INTO requests (projection, version, kind, stream, requested_at) VALUES (?, ?, ?, ?, ?)"
_FORGET_OLD: Final = """
    DELETE FROM requests WHERE finished_at IS NOT NULL AND id < (SELECT max(id) - 1000 FROM requests)
"""
_REQUESTS: Final = """
    SELECT id, projection, version, kind, stream, requested_at, finished_at, outcome FROM requests
    WHERE projection = ? AND version = ? AND finished_at IS NULL ORDER BY id
"""
_REQUEST_OF: Final = """
    SELECT id, projection, version, kind, stream, requested_at, finished_at, outcome FROM requests WHERE id = ?
"""
_FINISH: Final = "UPDATE requests SET finished_at = ?, outcome = ? WHERE id = ?"


class SqliteCatalog:
    """The catalog, open. One thread at a time uses it. Every method raises Unavailable."""

    def __init__(self, files: BuildFiles, *, now: Callable[[], datetime], busy_timeout: float) -> None:
        self._files = files
        self._now = now
        self._busy_timeout = busy_timeout
        self._open: sqlite3.Connection | None = None

    def prepare(self) -> None:
        """Makes the catalog where there is none."""
        with self._writing():
            pass

    def builds(self, projection: str | None = None) -> list[Build]:
        """As BuildCatalog."""
        with self._reading() as connection:
            return [_build(row) for row in connection.execute(_BUILDS, (projection,))]

    def next_name(self, projection: str, version: int) -> BuildName:
        """The name of the next generation. None is given twice: a reader may still have a deleted build open."""
        with self._writing() as connection:
            ((generation,),) = connection.execute(_NEXT, (projection, version)).fetchall()
        return BuildName(projection, version, generation)

    def add(self, name: BuildName) -> Build:
        """Records a build that was made, building."""
        now = self._now()
        with self._writing() as connection:
            connection.execute(_ADD, (*name, timestamp(now)))
        return Build(
            name=name, state=BuildState.BUILDING, created_at=now, promoted_at=None, retired_at=None, problem=None
        )

    def promote(self, name: BuildName) -> None:
        """As BuildCatalog."""
        now = timestamp(self._now())
        with self._writing() as connection:
            connection.execute(_RETIRE, (now, *name))
            connection.execute(_PROMOTE, (now, *name))

    def demote(self, name: BuildName) -> None:
        """As BuildCatalog."""
        with self._writing() as connection:
            connection.execute(_FORGET_SERVED, name)
            connection.execute(_DEMOTE, name)

    def note(self, name: BuildName, problem: str | None) -> None:
        """As BuildCatalog."""
        with self._writing() as connection:
            connection.execute(_NOTE, (problem, *name))

    def remove(self, name: BuildName) -> None:
        """Forgets a build; its files are deleted afterwards."""
        with self._writing() as connection:
            connection.execute(_REMOVE, name)

    def request(self, projection: str, version: int, kind: RequestKind, stream: str | None) -> Request:
        """As BuildCatalog."""
        now = self._now()
        with self._writing() as connection:
            connection.execute(_FORGET_OLD)
            row = (projection, version, kind.value, stream, timestamp(now))
            request_id = connection.execute(_REQUEST, row).lastrowid
        assert request_id is not None  # noqa: S101  # an insert that succeeded has a row
        return Request(
            id=request_id,
            projection=projection,
            version=version,
            kind=kind,
            stream=stream,
            requested_at=now,
            finished_at=None,
            outcome=None,
        )

    def requests(self, projection: str, version: int) -> list[Request]:
        """As BuildCatalog."""
        with self._reading() as connection:
            return [_request(row) for row in connection.execute(_REQUESTS, (projection, version))]

    def request_of(self, request_id: int) -> Request | None:
        """As BuildCatalog."""
        with self._reading() as connection:
            row = connection.execute(_REQUEST_OF, (request_id,)).fetchone()
        return None if row is None else _request(row)

    def finish(self, request_id: int, outcome: str) -> None:
        """As BuildCatalog."""
        with self._writing() as connection:
            connection.execute(_FINISH, (timestamp(self._now()), outcome, request_id))

    def close(self) -> None:
        """Lets go of the file."""
        if self._open is not None:
            # The last one to close copies the log into the file, so this too is a write.
            with self._files.catalog_locked(self._busy_timeout):
                self._open.close()
            self._open = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._open is None:
                self._make()
            assert self._open is not None  # noqa: S101  # just made
            yield self._open
        except (sqlite3.Error, OSError) as problem:
            raise unavailable(_WHAT, problem) from problem

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection, self._files.catalog_locked(self._busy_timeout):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _make(self) -> None:
        self._files.make_directory()
        with self._files.catalog_locked(self._busy_timeout):
            # FULL: a build's files are deleted because of what is written here, so it must not be set back.
            connection = connect(self._files.catalog, busy_timeout=self._busy_timeout, create=True, sync="FULL")
            try:
                (found,) = connection.execute("PRAGMA user_version").fetchone()
                if found == 0:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute("PRAGMA user_version = 1")
                    connection.execute("COMMIT")
                elif found != _FORMAT:
                    raise Unavailable(
                        f"{_WHAT} is of format {found}, made by a newer release; this one knows {_FORMAT}"
                    )
            except BaseException:
                connection.close()
                raise
        self._open = connection


def _build(row: tuple[str, int, int, str, str, str | None, str | None, str | None]) -> Build:
    projection, version, generation, state, created_at, promoted_at, retired_at, problem = row
    return Build(
        name=BuildName(projection, version, generation),
        state=BuildState(state),
        created_at=datetime.fromisoformat(created_at),
        promoted_at=None if promoted_at is None else datetime.fromisoformat(promoted_at),
        retired_at=None if retired_at is None else datetime.fromisoformat(retired_at),
        problem=problem,
    )


def _request(row: tuple[int, str, int, str, str | None, str, str | None, str | None]) -> Request:
    request_id, projection, version, kind, stream, requested_at, finished_at, outcome = row
    return Request(
        id=request_id,
        projection=projection,
        version=version,
        kind=RequestKind(kind),
        stream=stream,
        requested_at=datetime.fromisoformat(requested_at),
        finished_at=None if finished_at is None else datetime.fromisoformat(finished_at),
        outcome=outcome,
    )
