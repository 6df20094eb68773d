"""What a batch does to a build, statement by statement, within a transaction that `build` has begun."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, not_, or_, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from kiseki.projection.port import Batch, BuildName, GuardMove, ParkedStream, StatementFailed, StreamProgress
from kiseki.query.batch import Changes, guard_moved, guards_needed, parked_row, progress_of, timestamp
from kiseki.query.sqlite.files import error_name, is_environment
from kiseki.query.tables import builds_own, guards, parked

__all__ = ["NOT_OVER", "describe", "execute_batch", "explain", "read_progress"]

_ADD_GUARD: Final = insert(guards)
_MOVE_GUARD: Final = (
    update(guards)
    .where(guards.c.stream == bindparam("of"), guards.c.sequence_number == bindparam("expected"))
    .values(sequence_number=bindparam("to"))
)
_NO_GUARD: Final = delete(guards).where(guards.c.stream == bindparam("of"), guards.c.sequence_number == 0)
_adding: Final = sqlite_insert(parked)
_PARK: Final = _adding.on_conflict_do_update(
    index_elements=[parked.c.stream],
    set_={column.name: _adding.excluded[column.name] for column in parked.c.values()[1:]},
)
_guard = select(guards.c.sequence_number).where(guards.c.stream == parked.c.stream).scalar_subquery()
NOT_OVER: Final = parked.c.sequence_number > func.coalesce(_guard, 0)
"""Of a parked stream: see `progress_of`."""
_UNPARK: Final = delete(parked).where(
    parked.c.stream == bindparam("of"),
    or_(
        not_(NOT_OVER),
        and_(
            parked.c.sequence_number == bindparam("number"),
            parked.c.attempts == bindparam("tried"),
            parked.c.parked_at == bindparam("at"),
        ),
    ),
)
_MOVE_POSITION: Final = update(builds_own).values(position=bindparam("to"))
_asked = func.json_each(bindparam("streams")).table_valued("value", name="asked")
_PROGRESS: Final = select(_asked.c.value, guards.c.sequence_number, *parked.c.values()[1:]).select_from(
    _asked.outerjoin(guards, guards.c.stream == _asked.c.value).outerjoin(parked, parked.c.stream == _asked.c.value)
)
"""One statement, hence one state, whether or not a transaction is open."""
_PARKED_AT: Final = select(parked.c.stream, parked.c.sequence_number).join(_asked, _asked.c.value == parked.c.stream)


def execute_batch(connection: Connection, batch: Batch, name: BuildName, changes: Changes) -> None:
    """Does all of a batch. Raises StatementFailed, GuardMoved, and what the database raises about itself."""
    # Before the changes: what another writer has applied already must not look like a fault of a statement.
    _move_guards(connection, guards_needed(batch, name), name)
    changes.execute(connection, batch.changes)
    if batch.park:
        connection.execute(_PARK, [parked_row(one) for one in batch.park])
    if batch.unpark:
        _unpark(connection, batch.unpark, name)
    if batch.position is not None:
        connection.execute(_MOVE_POSITION, {"to": batch.position})


def explain(problem: Exception) -> type[StatementFailed] | None:
    """Whose fault an error of a projection's statement is: the statement's, or the machine's (None)."""
    return None if is_environment(_cause(problem)) else StatementFailed


def describe(problem: Exception) -> str:
    """An error's class and SQLite's name for it: `IntegrityError (SQLITE_CONSTRAINT_UNIQUE)`."""
    cause = _cause(problem)
    name = error_name(cause)
    return type(cause).__qualname__ + (f" ({name})" if name else "")


def _cause(problem: Exception) -> BaseException:
    return problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem


def _move_guards(connection: Connection, moves: Sequence[GuardMove], name: BuildName) -> None:
    """Moves guards that are still where they were read: another writer changes nothing twice. Raises GuardMoved."""
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
    unparked = {move.stream: move.expected for move in moves if move.to != move.expected and not move.retry}
    if moved and unparked:
        places = connection.execute(_PARKED_AT, {"streams": _json(unparked)})
        moved = not any(number > unparked[stream] for stream, number in places)
    if not moved:
        raise guard_moved(name)
    stayed = [{"of": move.stream} for move in moves if move.to == 0]
    if stayed:
        connection.execute(_NO_GUARD, stayed)


def _unpark(connection: Connection, seen: Sequence[ParkedStream], name: BuildName) -> None:
    """Lets streams go whose place is over, or still the one that was seen. Raises GuardMoved."""
    rows = [
        {"of": one.stream, "number": one.sequence_number, "tried": one.attempts, "at": timestamp(one.parked_at)}
        for one in seen
    ]
    connection.execute(_UNPARK, rows)
    if connection.execute(_PARKED_AT, {"streams": _json([one.stream for one in seen])}).first() is not None:
        raise guard_moved(name)


def read_progress(
    connection: Connection, streams: Collection[str], options: Mapping[str, Any] | None = None
) -> dict[str, StreamProgress]:
    """Guards and parked places of streams, in one state; every stream asked for is in it.

    `options` are execution options, for a connection that has not translated the build's schema.
    """
    return progress_of(connection.execute(_PROGRESS, {"streams": _json(streams)}, execution_options=options))


def _json(streams: Collection[str]) -> str:
    return msgspec.json.encode(list(streams)).decode()
