"""The file of one build of a projection: made, checked, read and written. Blocking; `builds` runs it on threads.

A whole page of statements is one call, hence one hop to the thread and back. An asynchronous driver would hop for every
statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, create_engine, func, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kiseki.journal.port import START, Position
from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.projection.port import (
    Batch,
    BuildMissing,
    BuildName,
    Definition,
    Inspection,
    ParkedStream,
    StatementFailed,
    StreamProgress,
)
from kiseki.projection.projection import Projection
from kiseki.query.batch import Changes, parked_stream
from kiseki.query.sqlite.batch import NOT_OVER, describe, execute_batch, explain, read_progress
from kiseki.query.sqlite.files import connect, is_environment, unavailable
from kiseki.query.tables import (
    BUILD_FORMAT,
    BUILD_SCHEMA,
    build_metadata,
    builds_own,
    check_definition,
    check_tables,
    definition_of,
    guards,
    parked,
    stored_definition,
    tables_fingerprint,
)

__all__ = ["BuildFile"]

_INSPECTED_AT_MOST: Final = 100
_PARKED_AFTER: Final = select(parked).where(parked.c.stream > bindparam("after"), NOT_OVER).order_by(parked.c.stream)
_GUARDS_AFTER: Final = (
    select(guards.c.stream, guards.c.sequence_number)
    .where(guards.c.stream > bindparam("after"), guards.c.sequence_number > 0)
    .order_by(guards.c.stream)
)
_PARKED_COUNT: Final = select(func.count()).select_from(parked).where(NOT_OVER)


class BuildFile:
    """One build, open. One thread at a time uses it.

    Methods raise Unavailable when the file can't be used now, BuildMissing when there is none, or not a whole one, or
    one of another format.
    """

    def __init__(self, path: Path, name: BuildName, *, busy_timeout: float, query_only: bool = False) -> None:
        """`busy_timeout` in seconds. With `query_only` it can be read while another process owns it."""
        self._path = path
        self._name = name
        self._what = f"the read model {name}"
        engine = create_engine(
            "sqlite://",
            creator=lambda: connect(path, busy_timeout=busy_timeout, query_only=query_only, sync="NORMAL"),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",  # transactions are begun and ended here, as what they are
            hide_parameters=True,
        )
        # The one file that is open has no schema name of its own.
        self._engine = engine.execution_options(schema_translate_map={name.projection: None, BUILD_SCHEMA: None})
        self._connection: Connection | None = None
        self._changes = Changes(None, explain=explain, describe=describe)

    @classmethod
    def create(
        cls, path: Path, name: BuildName, *, busy_timeout: float, projection: Projection, definition: Definition
    ) -> None:
        """Makes the file with empty tables. Raises DefinitionError when the tables can't be made, Unavailable."""
        try:
            connect(path, busy_timeout=busy_timeout, create=True, sync="NORMAL").close()
        except (sqlite3.Error, OSError) as problem:
            raise unavailable(f"the read model {name}", problem) from problem
        build = cls(path, name, busy_timeout=busy_timeout)
        try:
            build._make(projection, definition)
        finally:
            build.close()

    def _make(self, projection: Projection, definition: Definition) -> None:
        connection = self._connected()
        own = {
            "id": 1,
            "format": BUILD_FORMAT,
            "position": START,
            "tables": tables_fingerprint(projection, connection.dialect),
            **stored_definition(definition),
        }
        try:
            with self._transaction("BEGIN IMMEDIATE"):
                build_metadata.create_all(connection, checkfirst=False)
                projection.metadata.create_all(connection, tables=projection.tables, checkfirst=False)
                connection.execute(insert(builds_own), own)
        except SQLAlchemyError as problem:
            # Statements that make tables hold no data, so what the database says of them may be shown.
            cause = problem.orig if isinstance(problem, DBAPIError) else problem
            raise DefinitionError(f"projection {projection.name}: its tables can't be made: {cause}") from problem

    def check(self, projection: Projection, definition: Definition) -> None:
        """Raises DefinitionError when the build was made with other tables, or follows other events."""
        connection = self._connected()
        own = self._own()
        check_tables(projection, self._name, stored=own.tables, dialect=connection.dialect)
        check_definition(projection, self._name, definition, earlier=definition_of(own.known, own.followed))
        self._changes = Changes(projection.tables, explain=explain, describe=describe)

    def adopt(self, definition: Definition) -> None:
        """Records what the application knows now, after `check`."""
        own = self._own()
        before = definition_of(own.known, own.followed)
        after = definition.joined(before)
        if after != before:
            with self._transaction("BEGIN IMMEDIATE") as connection:
                connection.execute(update(builds_own).values(stored_definition(after)))

    def position(self) -> Position:
        """As ProjectionStore."""
        return Position(self._own().position)

    def progress(self, streams: Collection[str]) -> dict[str, StreamProgress]:
        """As ProjectionStore."""
        with self._transaction(None) as connection:
            return read_progress(connection, streams)

    def parked(self, after: str, limit: int) -> list[ParkedStream]:
        """As ProjectionStore."""
        with self._transaction(None) as connection:
            return [parked_stream(row) for row in connection.execute(_PARKED_AFTER.limit(limit), {"after": after})]

    def guards(self, after: str, limit: int) -> list[tuple[str, int]]:
        """As BuildCatalog."""
        self._own()
        with self._transaction(None) as connection:
            rows = connection.execute(_GUARDS_AFTER.limit(limit), {"after": after})
            return [(stream, number) for stream, number in rows]

    def inspect(self) -> Inspection:
        """As BuildCatalog."""
        position = self.position()
        with self._transaction(None) as connection:
            count = connection.execute(_PARKED_COUNT).scalar_one()
        return Inspection(
            position=position, parked_count=count, parked=tuple(self.parked("", _INSPECTED_AT_MOST)) if count else ()
        )

    def write(self, batch: Batch) -> None:
        """As ProjectionStore."""
        # At once the writer: what it relies on can't be changed by another one before it writes.
        with self._transaction("BEGIN IMMEDIATE") as connection:
            execute_batch(connection, batch, self._name, self._changes)
        if batch.scrub:
            # Pages from before the erasure leave the log now; if a reader still needs them, soon after. The batch is
            # written whatever comes of it.
            with suppress(Unavailable):
                self._pragma("PRAGMA wal_checkpoint(TRUNCATE)")

    def flush(self) -> None:
        """As ProjectionStore."""
        self._pragma("PRAGMA wal_checkpoint(FULL)")

    def close(self) -> None:
        """Lets go of the file; again is fine."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
            self._engine.dispose()
        except DBAPIError as problem:
            raise unavailable(self._what, problem.orig or problem) from problem

    def _connected(self) -> Connection:
        if self._connection is None:
            try:
                self._connection = self._engine.connect()
            except (sqlite3.Error, DBAPIError, OSError) as problem:
                if not self._path.exists():
                    raise BuildMissing(f"{self._what} is not there any more") from problem
                cause = problem.orig if isinstance(problem, DBAPIError) else problem
                raise unavailable(self._what, cause or problem) from problem
        return self._connection

    def _own(self) -> Row[Any]:
        try:
            with self._transaction(None) as connection:
                row = connection.execute(select(builds_own)).first()
        except DBAPIError:
            row = None
        # A file that a loss of power set back to before it was made has no such row, or no such table.
        if row is None or row.format != BUILD_FORMAT:
            raise BuildMissing(f"{self._what} is incomplete or of another format")
        return row

    def _pragma(self, statement: str) -> None:
        connection = self._connected()
        try:
            connection.exec_driver_sql(statement).close()
        except DBAPIError as problem:
            raise unavailable(self._what, problem.orig or problem) from problem

    @contextmanager
    def _transaction(self, begin: str | None) -> Iterator[Connection]:
        """A transaction that ends with the context; None leaves each statement to itself.

        Errors of the machine become Unavailable, others go through.
        """
        connection = self._connected()
        try:
            if begin is not None:
                connection.exec_driver_sql(begin)
            yield connection
            if begin is not None:
                self._commit(connection)
        except BaseException as problem:
            self._roll_back(connection)
            cause = problem.orig if isinstance(problem, DBAPIError) and problem.orig else problem
            if is_environment(cause):
                self._reopen_after(cause)
                raise unavailable(self._what, cause) from problem
            raise

    def _commit(self, connection: Connection) -> None:
        try:
            connection.exec_driver_sql("COMMIT")
        except DBAPIError as problem:
            if problem.orig is not None and not is_environment(problem.orig):
                # A deferred constraint of the projection's own tables shows only here.
                raise StatementFailed(f"{describe(problem)} at the end of the transaction") from problem
            raise

    def _roll_back(self, connection: Connection) -> None:
        try:
            # Some errors, a full disk among them, have ended the transaction already.
            if getattr(connection.connection.dbapi_connection, "in_transaction", False):
                connection.exec_driver_sql("ROLLBACK")
        except SQLAlchemyError:
            self._drop_connection()

    def _reopen_after(self, cause: BaseException) -> None:
        """After an error of the file itself the next call opens it anew. Being busy or full leaves it sound."""
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM):
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
