"""The file of one build of a projection: made, read and written. Blocking; `sqlite_builds` runs it on threads.

A whole page of statements is one call, hence one hop to the thread and back. An asynchronous driver would hop for every
statement.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, create_engine, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kiseki.journal.port import START, Position
from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.projection.port import (
    Batch,
    BuildMissing,
    BuildName,
    Definition,
    GuardMove,
    GuardMoved,
    Inspection,
    ParkedStream,
    StatementFailed,
    StreamProgress,
)
from kiseki.projection.projection import Change, Projection
from kiseki.query.sqlite_catalog import timestamp
from kiseki.query.sqlite_files import connect, error_name, is_environment, unavailable
from kiseki.query.tables import (
    BUILD_FORMAT,
    BUILD_SCHEMA,
    build_metadata,
    builds_own,
    guards,
    parked,
    tables_fingerprint,
)

__all__ = ["BuildFile", "read_progress"]

_IN_AT_MOST: Final = 5_000
"""Streams asked for in one statement; SQLite takes 32,766 parameters."""
_INSPECTED_AT_MOST: Final = 100

_ADD_GUARD: Final = insert(guards)
_MOVE_GUARD: Final = (
    update(guards)
    .where(guards.c.stream == bindparam("of"), guards.c.sequence_number == bindparam("expected"))
    .values(sequence_number=bindparam("to"))
)
_PARK: Final = insert(parked)
_UNPARK: Final = delete(parked).where(parked.c.stream == bindparam("of"))
_MOVE_POSITION: Final = update(builds_own).values(position=bindparam("to"))
_GUARDS: Final = select(guards.c.stream, guards.c.sequence_number).where(
    guards.c.stream.in_(bindparam("streams", expanding=True))
)
_PARKED_OF: Final = select(parked).where(parked.c.stream.in_(bindparam("streams", expanding=True)))
_PARKED_AFTER: Final = select(parked).where(parked.c.stream > bindparam("after")).order_by(parked.c.stream)


class BuildFile:
    """One build, open. One thread at a time uses it.

    Methods raise Unavailable when the file can't be used now, BuildMissing when there is none or it is of another
    format.
    """

    def __init__(self, path: Path, name: BuildName, *, busy_timeout: float, query_only: bool = False) -> None:
        """`busy_timeout` in seconds. With `query_only` it can be read while another process owns it."""
        self._path = path
        self._name = name
        # Rows of this build's schema are in the one file that is open, which has no schema name of its own.
        engine = create_engine(
            "sqlite://",
            creator=lambda: connect(path, busy_timeout=busy_timeout, query_only=query_only, sync="NORMAL"),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",  # transactions are begun by hand, as what they are
            hide_parameters=True,
        )
        self._engine = engine.execution_options(schema_translate_map={name.projection: None, BUILD_SCHEMA: None})
        self._connection: Connection | None = None

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
            **_stored(definition),
        }
        try:
            self._begin(connection)
            build_metadata.create_all(connection, checkfirst=False)
            projection.metadata.create_all(connection, tables=projection.tables, checkfirst=False)
            connection.execute(insert(builds_own), own)
            connection.exec_driver_sql("COMMIT")
        except SQLAlchemyError as problem:
            self._roll_back(connection)
            cause = problem.orig if isinstance(problem, DBAPIError) else None
            if cause is not None and is_environment(cause):
                raise unavailable(f"the read model {self._name}", cause) from problem
            # Statements that make tables hold no data, so what the database says may be shown.
            raise DefinitionError(f"projection {projection.name}: its tables can't be made: {cause or problem}") from problem

    def check(self, projection: Projection, definition: Definition) -> None:
        """Raises DefinitionError when the build was made with other tables, or follows other events."""
        connection = self._connected()
        own = self._own(connection)
        if own.tables != tables_fingerprint(projection, connection.dialect):
            raise DefinitionError(
                f"projection {projection.name}: its tables are not those that {self._name} was built with; raise its "
                f"version to {projection.version + 1}, and it is built beside the old one"
            )
        changed = definition.changed_since(_definition(own))
        if changed:
            raise DefinitionError(
                f"projection {projection.name}: {self._name} was built with another choice of events "
                f"({', '.join(changed)}), which it has passed by or applied; raise its version to "
                f"{projection.version + 1}, and it is built beside the old one"
            )

    def adopt(self, definition: Definition) -> None:
        """Records what the application knows now, after `check`."""
        connection = self._connected()
        before = _definition(self._own(connection))
        after = definition.joined(before)
        if after != before:
            with self._guarded():
                connection.execute(update(builds_own).values(_stored(after)))

    def position(self) -> Position:
        """As ProjectionStore."""
        return Position(self._own(self._connected()).position)

    def progress(self, streams: Collection[str]) -> dict[str, StreamProgress]:
        """As ProjectionStore."""
        connection = self._connected()
        with self._guarded():
            connection.exec_driver_sql("BEGIN")
            found = read_progress(connection, streams)
            connection.exec_driver_sql("COMMIT")
        return found

    def parked(self, after: str, limit: int) -> list[ParkedStream]:
        """As ProjectionStore."""
        connection = self._connected()
        with self._guarded():
            return [_parked(row) for row in connection.execute(_PARKED_AFTER.limit(limit), {"after": after})]

    def inspect(self) -> Inspection:
        """As BuildCatalog."""
        connection = self._connected()
        with self._guarded():
            count = connection.execute(select(func.count()).select_from(parked)).scalar_one()
        return Inspection(position=self.position(), parked_count=count, parked=tuple(self.parked("", _INSPECTED_AT_MOST)))

    def write(self, batch: Batch) -> None:
        """As ProjectionStore."""
        connection = self._connected()
        try:
            self._begin(connection)
            _execute(connection, batch.changes)
            _move_guards(connection, batch.guards, self._name)
            _park(connection, batch.park)
            if batch.unpark:
                connection.execute(_UNPARK, [{"of": stream} for stream in batch.unpark])
            if batch.position is not None:
                connection.execute(_MOVE_POSITION, {"to": batch.position})
            self._commit(connection)
        except BaseException as problem:
            self._roll_back(connection)
            cause = problem.orig if isinstance(problem, DBAPIError) else problem
            if cause is not None and is_environment(cause):
                self._forget_connection(cause)
                raise unavailable(f"the read model {self._name}", cause) from problem
            raise
        if batch.scrub:
            # Pages from before the erasure leave the log too, unless a reader still needs them; then soon after.
            with self._guarded():
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()

    def flush(self) -> None:
        """As ProjectionStore."""
        connection = self._connected()
        with self._guarded():
            connection.exec_driver_sql("PRAGMA wal_checkpoint(FULL)").close()

    def close(self) -> None:
        """Lets go of the file; again is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with self._guarded():
                connection.close()
        self._engine.dispose()

    def _connected(self) -> Connection:
        if self._connection is None:
            try:
                self._connection = self._engine.connect()
            except (sqlite3.Error, DBAPIError, OSError) as problem:
                cause = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
                if not self._path.exists():
                    raise BuildMissing(f"the read model {self._name} is not there any more") from problem
                raise unavailable(f"the read model {self._name}", cause) from problem
        return self._connection

    def _own(self, connection: Connection) -> Row[Any]:
        try:
            row = connection.execute(select(builds_own)).first()
        except DBAPIError as problem:
            if problem.orig is not None and is_environment(problem.orig):
                self._forget_connection(problem.orig)
                raise unavailable(f"the read model {self._name}", problem.orig) from problem
            row = None
        # A file that a loss of power has set back to before it was made has no such row, or no such table.
        if row is None or row.format != BUILD_FORMAT:
            raise BuildMissing(f"the read model {self._name} is incomplete or of another format")
        return row

    def _begin(self, connection: Connection) -> None:
        # At once the writer: what is read in it can't have been changed by another one when it writes.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _commit(self, connection: Connection) -> None:
        try:
            connection.exec_driver_sql("COMMIT")
        except DBAPIError as problem:
            if problem.orig is not None and not is_environment(problem.orig):
                # A deferred constraint of the projection's own tables shows only here.
                raise StatementFailed(f"{_class_of(problem.orig)}, at the end of the transaction") from problem
            raise

    def _roll_back(self, connection: Connection) -> None:
        try:
            # Some errors (a full disk) have ended the transaction already.
            if _in_transaction(connection):
                connection.exec_driver_sql("ROLLBACK")
        except SQLAlchemyError:
            self._drop_connection()

    def _guarded(self) -> _Guarded:
        return _Guarded(self)

    def _forget_connection(self, cause: BaseException) -> None:
        """After an error of the file itself the next call opens it anew; busy and full ones leave it sound."""
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT):
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


class _Guarded:
    """Turns SQLite's errors into Unavailable around kiseki's own statements, and leaves no transaction behind."""

    def __init__(self, build: BuildFile) -> None:
        self._build = build

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, problem: BaseException | None, _: object) -> None:
        if problem is None:
            return
        build = self._build
        if build._connection is not None:
            build._roll_back(build._connection)
        cause = problem.orig if isinstance(problem, DBAPIError) else problem
        if isinstance(cause, sqlite3.Error):
            build._forget_connection(cause)
            raise unavailable(f"the read model {build._name}", cause) from problem


def read_progress(connection: Connection, streams: Collection[str]) -> dict[str, StreamProgress]:
    """Guards and parked places of streams, within the transaction at hand; every stream asked for is in it."""
    numbers: dict[str, int] = {}
    parked_at: dict[str, ParkedStream] = {}
    asked = list(streams)
    for start in range(0, len(asked), _IN_AT_MOST):
        some = {"streams": asked[start : start + _IN_AT_MOST]}
        for stream, number in connection.execute(_GUARDS, some):
            numbers[stream] = number
        for row in connection.execute(_PARKED_OF, some):
            parked_at[row.stream] = _parked(row)
    return {stream: StreamProgress(numbers.get(stream, 0), parked_at.get(stream)) for stream in asked}


def _execute(connection: Connection, changes: Iterable[Change]) -> None:
    """Runs a projection's statements in order; equal ones in a row, with parameters, go to the database together."""
    for (statement, _), group in itertools.groupby(changes, key=_shape):
        try:
            parameters = [dict(change[1]) for change in group if isinstance(change, tuple)]
            if parameters:
                connection.execute(statement, parameters if len(parameters) > 1 else parameters[0]).close()
            else:
                connection.execute(statement).close()
        except MemoryError:
            raise
        except Exception as problem:
            cause = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
            if is_environment(cause):
                raise
            table = getattr(getattr(statement, "table", None), "name", "?")
            # The message may quote a value, so only what can't is kept.
            raise StatementFailed(f"{_class_of(cause)}, {type(statement).__name__.lower()} {table}") from problem


def _shape(change: Change) -> tuple[Any, object]:
    """Equal for neighbours that one `executemany` can run: the same statement object and the same parameters' names.

    A statement without parameters is alone: it is compared by a key that nothing else has.
    """
    if isinstance(change, tuple):
        return _Same(change[0]), frozenset(change[1])
    return _Same(change), object()
