"""What the databases of read models share: how a projection's changes reach a database, and parked streams as rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Table
from sqlalchemy.sql import visitors

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

__all__ = [
    "Changes",
    "Explain",
    "guard_moved",
    "guards_needed",
    "parked_row",
    "parked_stream",
    "progress_of",
    "timestamp",
]

Explain: TypeAlias = Callable[[Exception], type[StatementFailed] | None]
"""Whose fault an error of a statement is: the error to raise for one of the statement, None for one of the machine."""

_Parameters: TypeAlias = Mapping[str, object]
_Run: TypeAlias = tuple[Statement, Sequence[_Parameters]]


class Changes:
    """Executes the changes of a projection in order. One for each build; knows its statements from page to page.

    What goes to the database together costs much less. Neighbours that are the same statement object, with parameters
    of the same names, do; and changes of different tables change places for it, where nothing can tell: each statement
    then touches one table, and no table refers to another.
    """

    def __init__(
        self, tables: Sequence[Table] | None, *, explain: Explain, describe: Callable[[Exception], str]
    ) -> None:
        """`tables` of the projection; None leaves the order between them as it is. `describe` gives what is safe to
        keep of an error: its class and name, never its message, which may quote a value."""
        self._independent = tables is not None and not any(table.foreign_keys for table in tables)
        self._explain = explain
        self._describe = describe
        self._targets: weakref.WeakKeyDictionary[Statement, Table | None] = weakref.WeakKeyDictionary()

    def execute(self, connection: Connection, changes: Iterable[Change]) -> None:
        """Raises StatementFailed or a kind of it; what the database raises about itself, as it is."""
        for statement, parameters in self._runs(changes):
            self._run(connection, statement, parameters)

    def _runs(self, changes: Iterable[Change]) -> Iterable[_Run]:
        waiting: dict[Table | None, list[tuple[Statement, list[_Parameters]]]] = {}
        for change in changes:
            if not isinstance(change, tuple):
                # Made for this event alone: looking into it would cost more than it could save.
                yield from _taken(waiting)
                yield change, ()
                continue
            statement, parameters = change
            table = self._target(statement)
            if (table is None) is not (None in waiting):
                yield from _taken(waiting)
            runs = waiting.setdefault(table, [])
            if runs and runs[-1][0] is statement and runs[-1][1][0].keys() == parameters.keys():
                runs[-1][1].append(parameters)
            else:
                runs.append((statement, [parameters]))
        yield from _taken(waiting)

    def _target(self, statement: Statement) -> Table | None:
        """The only table that a statement touches; None when there are more, or when order matters all the same."""
        if not self._independent:
            return None
        if statement not in self._targets:
            tables = {part for part in visitors.iterate(statement) if isinstance(part, Table)}
            self._targets[statement] = tables.pop() if len(tables) == 1 else None
        return self._targets[statement]

    def _run(self, connection: Connection, statement: Statement, parameters: Sequence[_Parameters]) -> None:
        try:
            if parameters:
                connection.execute(statement, parameters if len(parameters) > 1 else parameters[0]).close()
            else:
                connection.execute(statement).close()
        except MemoryError:
            raise
        except Exception as problem:
            failed = self._explain(problem)
            if failed is None:
                raise
            table = getattr(getattr(statement, "table", None), "name", "?")
            raise failed(f"{self._describe(problem)} in {type(statement).__name__.lower()} {table}") from problem


def _taken(waiting: dict[Table | None, list[tuple[Statement, list[_Parameters]]]]) -> list[_Run]:
    taken: list[_Run] = [run for runs in waiting.values() for run in runs]
    waiting.clear()
    return taken


def guards_needed(batch: Batch, name: BuildName) -> list[GuardMove]:
    """The guards that a batch relies on: those it moves, and for each other stream it parks one that stays in place.

    Raises GuardMoved when a parked event does not follow what the batch applies of its stream.
    """
    reached = {move.stream: move.to for move in batch.guards}
    before = {one.stream: one.sequence_number - 1 for one in batch.park}
    if any(reached.get(stream, number) != number for stream, number in before.items()):
        raise guard_moved(name)
    held = (GuardMove(stream, number, number) for stream, number in before.items() if stream not in reached)
    return [*batch.guards, *held]


def guard_moved(name: BuildName) -> GuardMoved:
    """The error that says so."""
    return GuardMoved(f"another process wrote to {name}; its guards are read again")


def timestamp(time: datetime) -> str:
    """A point in time as a build stores it: UTC, ISO 8601."""
    return time.astimezone(UTC).isoformat()


_PARKED: Final = ("stream", "sequence_number", "event_type", "code", "detail", "occurred_at", "parked_at", "attempts")


def parked_row(one: ParkedStream) -> dict[str, Any]:
    """The values of a parked stream by column, in the order of the table's columns."""
    row = {name: getattr(one, name) for name in _PARKED}
    return row | {"occurred_at": timestamp(one.occurred_at), "parked_at": timestamp(one.parked_at)}


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


def progress_of(rows: Iterable[Sequence[Any]]) -> dict[str, StreamProgress]:
    """Guards and parked places from rows of: stream, guard or None, and a parked stream's other columns or None."""
    found: dict[str, StreamProgress] = {}
    for row in rows:
        stream, guard, parked_at = row[0], row[1], row[2]
        one = None if parked_at is None else parked_stream((stream, *tuple(row)[2:]))
        found[stream] = StreamProgress(guard or 0, one)
    return found
