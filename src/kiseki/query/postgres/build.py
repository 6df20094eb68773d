"""The schema of one build of a projection on PostgreSQL: its statements, each on a connection of the caller's.

Used by `store` for the owner, by `builds` and `reader` for whoever looks.
"""

# ruff: noqa: S608  # statements are made of constants and of names that `quoted` has seen; values are never in them

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection, Dialect, insert
from sqlalchemy.exc import SQLAlchemyError

from kiseki.clients.postgres import PostgresConnection, quoted
from kiseki.clients.postgres_errors import is_unavailable
from kiseki.journal.port import START, Position
from kiseki.kernel.errors import DefinitionError
from kiseki.projection.port import (
    BuildMissing,
    BuildName,
    Definition,
    GuardMove,
    Inspection,
    ParkedStream,
    StreamProgress,
)
from kiseki.projection.projection import Projection
from kiseki.query.batch import guard_moved, parked_row, parked_stream, progress_of, timestamp
from kiseki.query.postgres.connections import cause_of
from kiseki.query.tables import (
    BUILD_FORMAT,
    BUILD_SCHEMA,
    build_metadata,
    builds_own,
    check_definition,
    check_tables,
    definition_of,
    parked,
    stored_definition,
    tables_fingerprint,
)

__all__ = ["BuildSchema", "make_build"]

T = TypeVar("T")
_INSPECTED_AT_MOST: Final = 100
_COLUMNS: Final = [quoted(column.name) for column in parked.c]
_ARRAYS: Final = ", ".join(
    f"${number}::{'bigint' if column.name in ('sequence_number', 'attempts') else 'text'}[]"
    for number, column in enumerate(parked.c, 1)
)
_CHANGED: Final = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[1:])
_SERVED: Final = """
    SELECT schema_name FROM read_model_builds
    WHERE projection = $2 AND version = $3 AND promoted_at IS NOT NULL ORDER BY generation DESC LIMIT 1
"""


def make_build(connection: Connection, schema: str, projection: Projection, definition: Definition) -> None:
    """Makes the empty tables of a build in its schema. Raises DefinitionError when they can't be made."""
    connection = connection.execution_options(schema_translate_map={projection.name: schema, BUILD_SCHEMA: schema})
    own = {
        "id": 1,
        "format": BUILD_FORMAT,
        "position": START,
        "tables": tables_fingerprint(projection, connection.dialect),
        **stored_definition(definition),
    }
    try:
        build_metadata.create_all(connection, checkfirst=False)
        projection.metadata.create_all(connection, tables=projection.tables, checkfirst=False)
        connection.execute(insert(builds_own), own)
    except SQLAlchemyError as problem:
        cause = cause_of(problem)
        if is_unavailable(cause):
            raise
        # Statements that make tables hold no data, so what the database says of them may be shown.
        raise DefinitionError(f"projection {projection.name}: its tables can't be made: {cause}") from problem


class BuildSchema:
    """The statements of one build. Every method raises BuildMissing when it is not there, and what asyncpg raises."""

    def __init__(self, name: BuildName, schema: str) -> None:
        self.name = name
        self.schema = schema
        place = quoted(schema)
        guards, parked, own = (f"{place}.{table}" for table in ("kiseki_guards", "kiseki_parked", "kiseki_build"))
        self._own = f"SELECT * FROM {own}"
        self._adopt = f"UPDATE {own} SET known = $1, followed = $2"
        self._move_position = f"UPDATE {own} SET position = $1"
        # A guard is looked up for each stream whatever the planner thinks of a table that was empty a moment ago.
        asked = f"""
            asked.stream,
            (SELECT sequence_number FROM {guards} AS guards WHERE guards.stream = asked.stream),
            {", ".join(f"parked.{column}" for column in _COLUMNS[1:])}
        """
        found = f"unnest($1::text[]) AS asked (stream) LEFT JOIN {parked} AS parked ON parked.stream = asked.stream"
        self._progress = f"SELECT {asked} FROM {found}"
        self._served_progress = f"SELECT ({_SERVED}), {asked} FROM {found}"
        # See `progress_of`.
        guard = f"coalesce((SELECT sequence_number FROM {guards} AS guards WHERE guards.stream = parked.stream), 0)"
        waiting = f"{parked} AS parked WHERE parked.sequence_number > {guard}"
        self._parked = f"SELECT {', '.join(_COLUMNS)} FROM {waiting} AND stream > $1 ORDER BY stream LIMIT $2"
        self._guards = f"""
            SELECT stream, sequence_number FROM {guards}
            WHERE stream > $1 AND sequence_number > 0 ORDER BY stream LIMIT $2
        """
        self._parked_count = f"SELECT count(*) FROM {waiting}"
        # How many rows each of the two changed says whether all guards were where they were read.
        self._add_guards = f"""
            INSERT INTO {guards} (stream, sequence_number) SELECT * FROM unnest($1::text[], $2::bigint[])
            ON CONFLICT (stream) DO NOTHING
        """
        self._move_guards = f"""
            UPDATE {guards} AS guards SET sequence_number = moves.reached
            FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS moves (stream, expected, reached)
            WHERE guards.stream = moves.stream AND guards.sequence_number = moves.expected
        """
        self._no_guards = f"DELETE FROM {guards} WHERE stream = ANY($1::text[]) AND sequence_number = 0"
        self._parked_at = f"SELECT stream, sequence_number FROM {parked} WHERE stream = ANY($1::text[])"
        self._park = f"""
            INSERT INTO {parked} ({", ".join(_COLUMNS)}) SELECT * FROM unnest({_ARRAYS})
            ON CONFLICT (stream) DO UPDATE SET {_CHANGED}
        """
        self._unpark = f"""
            DELETE FROM {parked} AS parked
            USING unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS seen (stream, number, tried, at)
            WHERE parked.stream = seen.stream AND (
                parked.sequence_number <= {guard}
                OR (parked.sequence_number, parked.attempts, parked.parked_at) = (seen.number, seen.tried, seen.at)
            )
        """

    async def check_tables(self, connection: PostgresConnection, projection: Projection, dialect: Dialect) -> Any:
        """Raises DefinitionError when the build was made with other tables; gives its own row."""
        own = await self._read_own(connection)
        check_tables(projection, self.name, stored=own["tables"], dialect=dialect)
        return own

    async def check(
        self, connection: PostgresConnection, projection: Projection, definition: Definition, dialect: Dialect
    ) -> None:
        """Raises DefinitionError when the build was made with other tables, or follows other events."""
        own = await self.check_tables(connection, projection, dialect)
        check_definition(projection, self.name, definition, earlier=definition_of(own["known"], own["followed"]))

    async def adopt(self, connection: PostgresConnection, definition: Definition) -> None:
        """Records what the application knows now, after `check`."""
        own = await self._read_own(connection)
        before = definition_of(own["known"], own["followed"])
        after = definition.joined(before)
        if after != before:
            stored = stored_definition(after)
            await connection.execute(self._adopt, stored["known"], stored["followed"])

    async def position(self, connection: PostgresConnection) -> Position:
        """As ProjectionStore."""
        return Position((await self._read_own(connection))["position"])

    async def _read_own(self, connection: PostgresConnection) -> Any:
        own = await self._there(connection.fetchrow(self._own))
        if own is None or own["format"] != BUILD_FORMAT:
            raise BuildMissing(f"the read model {self.name} is incomplete or of another format")
        return own

    async def progress(self, connection: PostgresConnection, streams: Collection[str]) -> dict[str, StreamProgress]:
        """As ProjectionStore."""
        found = await self._there(connection.fetch(self._progress, list(streams)))
        return progress_of(tuple(row) for row in found)

    async def served_progress(
        self, connection: PostgresConnection, streams: Collection[str]
    ) -> dict[str, StreamProgress] | None:
        """As `progress`; None when this is not the build that answers queries of its version, or nothing was asked."""
        found = await connection.fetch(self._served_progress, list(streams), self.name.projection, self.name.version)
        if not found or found[0][0] != self.schema:
            return None
        return progress_of(tuple(row)[1:] for row in found)

    async def parked(self, connection: PostgresConnection, after: str, limit: int) -> list[ParkedStream]:
        """As ProjectionStore."""
        rows = await self._there(connection.fetch(self._parked, after, limit))
        return [parked_stream(tuple(row)) for row in rows]

    async def guards(self, connection: PostgresConnection, after: str, limit: int) -> list[tuple[str, int]]:
        """As BuildCatalog."""
        await self._read_own(connection)
        rows = await self._there(connection.fetch(self._guards, after, limit))
        return [(row["stream"], row["sequence_number"]) for row in rows]

    async def inspect(self, connection: PostgresConnection) -> Inspection:
        """As BuildCatalog."""
        position = await self.position(connection)
        count = await self._there(connection.fetchval(self._parked_count))
        streams = await self.parked(connection, "", _INSPECTED_AT_MOST) if count else ()
        return Inspection(position=position, parked_count=count, parked=tuple(streams))

    async def move_position(self, connection: PostgresConnection, position: Position) -> None:
        """Inside the transaction of a batch."""
        await self._there(connection.execute(self._move_position, position))

    async def move_guards(self, connection: PostgresConnection, moves: Sequence[GuardMove]) -> None:
        """Moves guards that are still where they were read: another writer changes nothing twice. Raises GuardMoved.

        A guard that stays in place is moved there all the same, and one that is not there is made and deleted: until
        the end of the transaction other writers wait for it.
        """
        # In the same order everywhere, so that writers of the same streams wait for one another and not crosswise.
        moves = sorted(moves, key=lambda move: move.stream)
        first = [move for move in moves if move.expected == 0]
        later = [move for move in moves if move.expected]
        moved = 0
        if first:
            streams, reached = [move.stream for move in first], [move.to for move in first]
            moved += _rows(await self._there(connection.execute(self._add_guards, streams, reached)))
        if later:
            streams, reached = [move.stream for move in later], [move.to for move in later]
            expected = [move.expected for move in later]
            moved += _rows(await self._there(connection.execute(self._move_guards, streams, expected, reached)))
        if moved != len(moves):
            raise guard_moved(self.name)
        stayed = [move.stream for move in first if move.to == 0]
        if stayed:
            await self._there(connection.execute(self._no_guards, stayed))
        # A statement of its own, which sees what those have committed for whom the ones above have waited.
        unparked = {move.stream: move.expected for move in moves if move.to != move.expected and not move.retry}
        if unparked:
            places = await self._there(connection.fetch(self._parked_at, list(unparked)))
            if any(number > unparked[stream] for stream, number in places):
                raise guard_moved(self.name)

    async def park(self, connection: PostgresConnection, streams: Sequence[ParkedStream]) -> None:
        """Records parked streams, in place of what was recorded of them before."""
        rows = {one.stream: tuple(parked_row(one).values()) for one in streams}  # the last of each stream
        await self._there(connection.execute(self._park, *map(list, zip(*rows.values(), strict=True))))

    async def unpark(self, connection: PostgresConnection, seen: Sequence[ParkedStream]) -> None:
        """Lets streams go whose place is over, or still the one that was seen. Raises GuardMoved."""
        rows = [(one.stream, one.sequence_number, one.attempts, timestamp(one.parked_at)) for one in seen]
        streams, *places = map(list, zip(*rows, strict=True))
        await self._there(connection.execute(self._unpark, streams, *places))
        # A statement of its own, which sees what those have committed for whom the one above has waited.
        if await self._there(connection.fetch(self._parked_at, streams)):
            raise guard_moved(self.name)

    async def _there(self, statement: Awaitable[T]) -> T:
        try:
            return await statement
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as problem:
            raise BuildMissing(f"the read model {self.name} is not there any more") from problem


def _rows(status: str) -> int:
    """How many rows a statement changed, from what PostgreSQL says at its end: `UPDATE 5`."""
    return int(status.rpartition(" ")[2])
