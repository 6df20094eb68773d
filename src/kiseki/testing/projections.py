"""Given and then for projections: `following(user_accounts).given(…).then(accounts, {…})`, on SQLite in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlalchemy import Table, create_engine, select
from sqlalchemy.pool import StaticPool

from kiseki.kernel.event import Event, EventMetadata
from kiseki.projection.projection import Projection

__all__ = ["Following", "following"]


def following(projection: Projection) -> Following:
    """Starts a test of one projection, with empty tables. Use it with `with`, or call `close`."""
    return Following(projection)


class Following:
    """A projection's tables, and the events they have followed."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        engine = create_engine("sqlite://", poolclass=StaticPool)
        self._engine = engine.execution_options(schema_translate_map={projection.name: None})
        self._numbers: dict[str, int] = {}
        self._now = datetime(2000, 1, 1, tzinfo=UTC)
        with self._engine.begin() as connection:
            for table in projection.tables:
                table.create(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the tables."""
        self._engine.dispose()

    def given(self, *events: Event, stream: str = "Test-1", at: datetime | None = None) -> Self:
        """These facts of one stream happen, in order, a second apart unless `at` (UTC) says when.

        Events that the projection does not follow are passed by, as in service.
        """
        with self._engine.begin() as connection:
            for event in events:
                number = self._numbers[stream] = self._numbers.get(stream, 0) + 1
                self._now = at or self._now + timedelta(seconds=1)
                if not isinstance(event, self._projection.event_types):
                    continue
                for change in self._projection.apply(event, self._metadata(event, stream, number)):
                    statement, parameters = change if isinstance(change, tuple) else (change, None)
                    connection.execute(statement, parameters)
        return self

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """The rows of a table, in order of its primary key."""
        with self._engine.connect() as connection:
            found = connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
            return [dict(row) for row in found]

    def then(self, table: Table, *expected: dict[str, Any]) -> Self:
        """The table has these rows and no others, in order of its primary key; columns that are not named may hold
        anything. Raises AssertionError."""
        found = self.rows(table)
        shown = [{name: row[name] for name in wanted} for row, wanted in zip(found, expected, strict=False)] + found[
            len(expected) :
        ]
        if shown != list(expected):
            raise AssertionError(f"expected {list(expected)}, got {shown}")
        return self

    def _metadata(self, event: Event, stream: str, number: int) -> EventMetadata:
        return EventMetadata(
            stream=stream,
            sequence_number=number,
            event_id=f"{stream}-{number}",
            type=event.event_type.name,
            version=event.event_type.version,
            occurred_at=self._now,
            commit_id=f"{stream}-{number}",
            correlation_id="test",
            causation_id=None,
            actor="test",
        )
