"""What a batch does to a build, statement by statement, within a transaction that `sqlite_build` has begun."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from kiseki.projection.port import (
    Batch,
    BuildName,
    GuardMove,
    GuardMoved,
    ParkedStream,
    StatementFailed,
    StreamProgress,
)
from kiseki.projection.projection import Change, Statement
from kiseki.query.sqlite_catalog import timestamp
from kiseki.query.sqlite_files import error_name, is_environment
from kiseki.query.tables import builds_own, guards, parked

__all__ = ["error_class", "execute_batch", "parked_stream", "read_progress"]

_ADD_GUARD: Final = insert(guards)
_MOVE_GUARD: Final = (
    update(guards)
    .where(guards.c.stream == bindparam("of"), guards.c.sequence_number == bindparam("expected"))
    .values(sequence_number=bindparam("to"))
)
_UNPARK: Final = delete(parked).where(parked.c.stream == bindparam("of"))
_MOVE_POSITION: Final = update(builds_own).values(position=bindparam("to"))
_asked = func.json_each(bindparam("streams")).table_valued("value", name="asked")
_PROGRESS: Final = select(_asked.c.value, guards.c.sequence_number, *parked.c.values()[1:]).select_from(
    _asked.outerjoin(guards, guards.c.stream == _asked.c.value).outerjoin(parked, parked.c.stream == _asked.c.value)
)
"""One statement, hence one state, whether or not a transaction is open."""


def execute_batch(connection: Connection, batch: Batch, name: BuildName) -> None:
    """Does all of a batch. Raises StatementFailed, GuardMoved, and what the database raises about itself."""
    _execute(connection, batch.changes)
    _move_guards(connection, batch.guards, name)
    if batch.park:
        _park(connection, batch.park)
    if batch.unpark:
        connection.execute(_UNPARK, [{"of": stream} for stream in batch.unpark])
    if batch.position is not None:
        connection.execute(_MOVE_POSITION, {"to": batch.position})


def _execute(connection: Connection, changes: Iterable[Change]) -> None:
    """Runs a projection's statements in order.

    Neighbours that are the same statement object, with parameters of the same names, go to the database together.
    """
    statement: Statement | None = None
    names: Collection[str] = ()
    waiting: list[Mapping[str, object]] = []
    for change in changes:
        if isinstance(change, tuple):
            if change[0] is not statement or change[1].keys() != names:
                _run(connection, statement, waiting)
                statement, waiting = change[0], []
                names = change[1].keys()
            waiting.append(change[1])
        else:
            _run(connection, statement, waiting)
            _run(connection, change, ())
            statement, waiting = None, []
    _run(connection, statement, waiting)


def _run(connection: Connection, statement: Statement | None, parameters: Sequence[Mapping[str, object]]) -> None:
    if statement is None:
        return
    try:
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
        # A message may quote a value; only what can't is kept.
        table = getattr(getattr(statement, "table", None), "name", "?")
        raise StatementFailed(f"{error_class(cause)} in {type(statement).__name__.lower()} {table}") from problem


def error_class(problem: BaseException) -> str:
    """An error's class and SQLite's name for it: `IntegrityError (SQLITE_CONSTRAINT_UNIQUE)`."""
    name = error_name(problem)
    return type(problem).__qualname__ + (f" ({name})" if name else "")


def _move_guards(connection: Connection, moves: Sequence[GuardMove], name: BuildName) -> None:
    """Moves guards that are still where they were read: another owner, who should not be, changes nothing twice."""
    first = [{"stream": move.stream, "sequence_number": move.to} for move in moves if move.expected == 0]
    later = [{"of": move.stream, "expected": move.expected, "to": move.to} for move in moves if move.expected]
    moved = True
    if first:
        try:
            connection.execute(_ADD_GUARD, first)
        except IntegrityError:
            moved = False
    if later and moved:
        moved = connection.execute(_MOVE_GUARD, later).rowcount == len(later)
    if not moved:
        raise GuardMoved(f"another process wrote to {name}; its guards are read again")


def _park(connection: Connection, streams: Sequence[ParkedStream]) -> None:
    rows = [
        {
            "stream": one.stream,
            "sequence_number": one.sequence_number,
            "event_type": one.event_type,
            "code": one.code,
            "detail": one.detail,
            "occurred_at": timestamp(one.occurred_at),
            "parked_at": timestamp(one.parked_at),
            "attempts": one.attempts,
        }
        for one in streams
    ]
    adding = sqlite_insert(parked)
    changed = {column.name: adding.excluded[column.name] for column in parked.c if column.name != "stream"}
    connection.execute(adding.on_conflict_do_update(index_elements=[parked.c.stream], set_=changed), rows)


def parked_stream(row: Sequence[Any]) -> ParkedStream:
    """A parked stream from its values, in the order of the table's columns."""
    stream, sequence_number, event_type, code, detail, occurred_at, parked_at, attempts = tuple(row)
    return ParkedStream(
        stream=stream,
        sequence_number=sequence_number,
        event_type=event_type,
        code=code,
        detail=detail,
        occurred_at=datetime.fromisoformat(occurred_at),
        parked_at=datetime.fromisoformat(parked_at),
        attempts=attempts,
    )


def read_progress(
    connection: Connection, streams: Collection[str], options: Mapping[str, Any] | None = None
) -> dict[str, StreamProgress]:
    """Guards and parked places of streams, in one state; every stream asked for is in it.

    `options` are execution options, for a connection that has not translated the build's schema.
    """
    asked = {"streams": msgspec.json.encode(list(streams)).decode()}
    found: dict[str, StreamProgress] = {}
    for row in connection.execute(_PROGRESS, asked, execution_options=options):
        stream, guard, parked_at = row[0], row[1], row[2]
        one = None if parked_at is None else parked_stream((stream, *row[2:]))
        found[stream] = StreamProgress(guard or 0, one)
    return found
