"""One reading connection: the catalog, and the builds that queries read, attached under their projections' names.

Blocking; `database` runs it on threads and has a few of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from sqlalchemy import Connection, CursorResult, Engine, Row, Select, create_engine, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kiseki.projection.port import BuildMissing, BuildName, StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.database import QueryFailed, ReadModelBuilding
from kiseki.query.reads import ReadsCheck
from kiseki.query.sqlite.batch import read_progress
from kiseki.query.sqlite.catalog import FIND_SERVED
from kiseki.query.sqlite.files import BuildFiles, connect, is_environment, unavailable
from kiseki.query.tables import BUILD_FORMAT, BUILD_SCHEMA, builds_own, check_tables

__all__ = ["SqliteReader", "reading_engine"]

_TOUCH: Final = select(builds_own.c.id)
_ATTACHED_AT_MOST: Final = 10
"""SQLite's own limit unless it was compiled otherwise (sqlite.org/limits.html)."""


def reading_engine(files: BuildFiles, *, busy_timeout: float) -> Engine:
    """What the readers of a process share: how a connection is made, and the cache of compiled statements."""
    return create_engine(
        "sqlite://",
        creator=lambda: connect(files.catalog, busy_timeout=busy_timeout, query_only=True, sync="FULL"),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",  # transactions are begun and ended here
        hide_parameters=True,
    )


class SqliteReader:
    """Reads one consistent state at a time. One thread at a time uses it; `interrupt` may come from any other one."""

    def __init__(self, engine: Engine, files: BuildFiles) -> None:
        self._engine = engine
        self._files = files
        self._connection: Connection | None = None
        self._raw: sqlite3.Connection | None = None
        # The builds that are attached, the one that was used longest ago first.
        self._attached: dict[str, BuildName] = {}
        self._reads: frozenset[str] = frozenset()
        self._check_reads = ReadsCheck()

    def begin(self, reads: Sequence[Projection]) -> None:
        """Begins to read the live builds of these projections, in the state that they have now.

        Raises ReadModelBuilding, DefinitionError, Unavailable.
        """
        with self._errors():
            raw = self._attach(reads)
            raw.execute("BEGIN")
            if len(reads) > 1:
                # SQLite fixes the state of an attached database when it is first read; here all are, at once.
                for projection in reads:
                    self._connected().execute(_TOUCH, execution_options=_schema(projection)).all()

    def _attach(self, reads: Sequence[Projection]) -> sqlite3.Connection:
        """Has the live builds of these projections attached, and says so where a statement is checked."""
        connection = self._connected()
        # What the engine's creator makes; SQLAlchemy types it by what it needs of it.
        raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
        self._raw = raw
        self._reads = frozenset(projection.name for projection in reads)
        for projection in reads:
            found = raw.execute(FIND_SERVED, (projection.name, projection.version)).fetchone()
            if found is None:
                raise ReadModelBuilding(
                    f"the read model {projection.name} version {projection.version} is being built; ask again later"
                )
            name = BuildName(projection.name, projection.version, found[0])
            before = self._attached.pop(projection.name, None)
            if before != name:
                self._exchange(raw, before, name)
                try:
                    self._check(connection, projection, name)
                except BaseException:
                    raw.execute("DETACH ?", (projection.name,))
                    raise
            self._attached[projection.name] = name
        return raw

    def _exchange(self, raw: sqlite3.Connection, before: BuildName | None, name: BuildName) -> None:
        if before is not None:
            raw.execute("DETACH ?", (before.projection,))
        elif len(self._attached) >= _ATTACHED_AT_MOST:
            unused = next(one for one in self._attached if one not in self._reads)
            raw.execute("DETACH ?", (unused,))
            del self._attached[unused]
        # mode=rw: a file that is not there must not become an empty one.
        raw.execute("ATTACH ? AS ?", (f"{self._files.build(name).as_uri()}?mode=rw", name.projection))

    def _check(self, connection: Connection, projection: Projection, name: BuildName) -> None:
        own = connection.execute(
            select(builds_own.c.format, builds_own.c.tables), execution_options=_schema(projection)
        ).first()
        if own is None or own.format != BUILD_FORMAT:
            raise BuildMissing(f"the read model {name} is incomplete or of another format")
        check_tables(projection, name, stored=own.tables, dialect=connection.dialect)

    def all(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        """As ReadModel. Raises QueryFailed also for tables of projections that were not named."""
        with self._errors():
            return self._execute(statement).all()

    def first(self, statement: Select[Any]) -> Row[Any] | None:
        """As ReadModel. Raises QueryFailed also for tables of projections that were not named."""
        with self._errors():
            return self._execute(statement).first()

    def _execute(self, statement: Select[Any]) -> CursorResult[Any]:
        result: CursorResult[Any] = self._connected().execute(statement)
        try:
            # It may well be attached, for another query.
            self._check_reads.refuse(statement, self._reads, compiled=result.context.compiled)
        except QueryFailed:
            result.close()
            raise
        return result

    def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ReadDatabase."""
        with self._errors():
            self._attach((projection,))
            return read_progress(self._connected(), streams, _schema(projection))

    def end(self) -> None:
        """Ends reading a state; again is fine. It touches no file, so it may run on the event loop."""
        if self._raw is not None and self._raw.in_transaction:
            try:
                self._raw.rollback()
            except sqlite3.Error:
                self._drop_connection()

    def interrupt(self) -> None:
        """Stops the statement that runs now, if any; for other threads."""
        raw = self._raw
        if raw is not None:
            raw.interrupt()

    def close(self) -> None:
        """Lets go of the files."""
        self._drop_connection()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._attached = {}
            self._connection = self._engine.connect()
        return self._connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError) as problem:
            cause = problem.orig if isinstance(problem, DBAPIError) and problem.orig else problem
            code = getattr(cause, "sqlite_errorcode", 0)
            # Plainly read-only is what a statement meets that is not a query.
            if isinstance(cause, OSError) or (is_environment(cause) and code != sqlite3.SQLITE_READONLY):
                if code & 0xFF != sqlite3.SQLITE_INTERRUPT:
                    self._drop_connection()
                raise unavailable("the read models", cause) from problem
            raise QueryFailed("the database refused a statement of the query") from problem

    def _drop_connection(self) -> None:
        connection, self._connection, self._raw = self._connection, None, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def _schema(projection: Projection) -> dict[str, Any]:
    return {"schema_translate_map": {BUILD_SCHEMA: projection.name}}
