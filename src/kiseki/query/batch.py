"""What the databases of read models share: how a projection's changes reach a database, and parked streams as rows."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, DefaultClause, Dialect, FetchedValue, Identity, Table, insert

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


_HIDDEN_LINKS: Final = frozenset({"postgresql_inherits", "postgresql_partition_by"})
"""Options by which changing one table changes another."""

_TOKEN: Final = re.compile(
    r"""
      "(?:[^"]|"")*"                # a quoted name
    | '[^\w'"]*'                    # a literal without words; the words of any other are looked at like all others
    | __\[POSTCOMPILE_[^\]]*\]      # the parameters of IN, which SQLAlchemy puts in when it executes
    | [^\W\d]\w* | \$?\d[\w.]* | \S
    """,
    re.VERBOSE,
)
_BEFORE_THE_TABLE: Final = frozenset(["insert", "or", "replace", "ignore", "into", "update", "delete", "from"])
_WORDS: Final = frozenset(
    """
    and as between case cast conflict default distinct do else end escape excluded false ignore ilike in is like not
    nothing null on or returning set symmetric then true update values when where

    abs char_length coalesce concat current_date current_time current_timestamp greatest ifnull least length localtime
    localtimestamp lower ltrim mod now nullif octet_length replace round rtrim substr trim upper

    bigint boolean bytea char date datetime decimal double float integer interval json jsonb numeric precision real
    smallint text time timestamp uuid varchar with without zone
    """.split()  # noqa: SIM905  # as a list it would be one word a line
)
"""Of SQL and its functions: nothing made of these, of names of one table and of parameters reads another table."""


class Changes:
    """Executes the changes of a projection in order. One for each build; knows its statements from page to page.

    What goes to the database together costs much less. Neighbours that are the same statement object, with parameters
    of the same names, do; and changes of different tables change places for it, where nothing can tell: it is certain
    of each that it touches one table alone, and no table refers to another. Triggers, rules and functions that somebody
    else adds to the database can't be seen from here.
    """

    def __init__(
        self, tables: Sequence[Table] | None, *, explain: Explain, describe: Callable[[Exception], str]
    ) -> None:
        """`tables` of the projection; None leaves the order between them as it is. `describe` gives what is safe to
        keep of an error: its class and name, never its message, which may quote a value."""
        linked = any(table.foreign_keys or _HIDDEN_LINKS.intersection(table.kwargs) for table in tables or ())
        self._tables = frozenset(() if linked else tables or ())
        self._explain = explain
        self._describe = describe
        self._words: dict[Table, Collection[str] | None] = {}
        self._targets: weakref.WeakKeyDictionary[Statement, Table | None] = weakref.WeakKeyDictionary()

    def execute(self, connection: Connection, changes: Iterable[Change]) -> None:
        """Raises StatementFailed or a kind of it; what the database raises about itself, as it is."""
        for statement, parameters in self._runs(changes, connection.dialect):
            self._run(connection, statement, parameters)

    def _runs(self, changes: Iterable[Change], dialect: Dialect) -> Iterable[_Run]:
        waiting: dict[Table | None, list[tuple[Statement, list[_Parameters]]]] = {}
        for change in changes:
            if not isinstance(change, tuple):
                # Made for this event alone: looking into it would cost more than it could save.
                yield from _taken(waiting)
                yield change, ()
                continue
            statement, parameters = change
            table = self._target(statement, dialect)
            if (table is None) is not (None in waiting):
                yield from _taken(waiting)
            runs = waiting.setdefault(table, [])
            if runs and runs[-1][0] is statement and runs[-1][1][0].keys() == parameters.keys():
                runs[-1][1].append(parameters)
            else:
                runs.append((statement, [parameters]))
        yield from _taken(waiting)

    def _target(self, statement: Statement, dialect: Dialect) -> Table | None:
        """The only table that a statement touches; None when that is not certain, or when order matters all the same.

        What is asked is what the database is told. A statement has too many places to put another one into, and what
        SQLAlchemy shows of its parts leaves some of them out.
        """
        if not self._tables:
            return None
        if statement not in self._targets:
            table = statement.table
            certain = isinstance(table, Table) and table in self._tables and self._is_alone(statement, table, dialect)
            self._targets[statement] = table if isinstance(table, Table) and certain else None
        return self._targets[statement]

    def _is_alone(self, statement: Statement, table: Table, dialect: Dialect) -> bool:
        try:
            if table not in self._words:
                self._words[table] = _words_of(table, dialect)
            words = self._words[table]
            return words is not None and _touches_alone(str(statement.compile(dialect=dialect)), table, words)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # whatever is wrong with it shows, as its fault, when it is executed
            return False

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


def _words_of(table: Table, dialect: Dialect) -> Collection[str] | None:
    """The words that name a table, its columns and their types; None when its columns alone may touch other tables."""
    quote = dialect.identifier_preparer.quote
    names = [table.name, *([table.schema] if table.schema else []), *(column.name for column in table.columns)]
    words = {word for name in names for word in _tokens(quote(name))}
    for column in table.columns:
        words.update(_tokens(column.type.compile(dialect=dialect)))
    for column in table.columns:
        # Called, or asked of the database, once for each row: perhaps of another table, and in their order.
        if any(made is not None and not made.is_scalar for made in (column.default, column.onupdate)):
            return None
        if not _is_harmless(column.server_default, words, dialect):
            return None
    # What the columns' types add to a parameter.
    return words if _touches_alone(str(insert(table).compile(dialect=dialect)), table, words) else None


def _is_harmless(default: FetchedValue | None, words: Collection[str], dialect: Dialect) -> bool:
    if default is None or isinstance(default, Identity):
        return True
    made = default.arg if isinstance(default, DefaultClause) else getattr(default, "sqltext", None)
    if isinstance(made, str):
        return True
    return made is not None and _are_known(_tokens(str(made.compile(dialect=dialect))), words)


def _touches_alone(statement: str, table: Table, words: Collection[str]) -> bool:
    """Whether a statement is made of a table's own names and harmless words, behind the place that names the table."""
    tokens = _tokens(statement)
    place = 0
    while place < len(tokens) and tokens[place] in _BEFORE_THE_TABLE:
        place += 1
    target = [table.schema.lower(), ".", table.name.lower()] if table.schema else [table.name.lower()]
    if [token.removeprefix('"') for token in tokens[place : place + len(target)]] != target:
        return False
    return _are_known(tokens[place + len(target) :], words)


def _are_known(tokens: Sequence[str], words: Collection[str]) -> bool:
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if token == ";":  # noqa: S105  # a token of SQL
            return False
        if not (token[0] in '"_' or token[0].isalpha()) or token.startswith("__["):
            continue
        calls = after == "("
        if token not in _WORDS and (calls or token not in words):
            return False
        # A function of a schema, or a table after IN, which SQLite takes for its rows.
        if (calls and before == ".") or (token == "in" and not calls):  # noqa: S105
            return False
    return True


def _tokens(sql: str) -> list[str]:
    """The tokens of a statement in lower case; a quoted name without its quotes, behind one."""
    return [
        '"' + token[1:-1].replace('""', '"') if len(token) > 1 and token[0] == '"' else token
        for token in map(str.lower, _TOKEN.findall(sql))
    ]


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
    """Guards and parked places from rows of: stream, guard or None, and a parked stream's other columns or None.

    A place at or before its guard is over, here and wherever parked streams are read or counted.
    """
    found: dict[str, StreamProgress] = {}
    for row in rows:
        stream, guard, parked_at = row[0], row[1], row[2]
        one = None if parked_at is None else parked_stream((stream, *tuple(row)[2:]))
        found[stream] = StreamProgress(guard or 0, None if one is None or one.sequence_number <= (guard or 0) else one)
    return found
