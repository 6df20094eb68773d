"""`PostgresStore`: the ProjectionStore of one build on PostgreSQL. Made by `PostgresBuilds`, used by the projector.

A page is one transaction, hence one durable commit (synchronous_commit is on), and a handful of statements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import asyncpg

from kiseki.clients.postgres_errors import is_unavailable
from kiseki.journal.port import Position
from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import (
    Batch,
    BuildName,
    Definition,
    ParkedStream,
    StatementFailed,
    StreamProgress,
    TransientFailure,
)
from kiseki.projection.projection import Projection
from kiseki.query.batch import Changes, guards_needed
from kiseki.query.postgres.build import BuildSchema
from kiseki.query.postgres.connections import Connections, cause_of, driver_of, state_of
from kiseki.query.postgres.ownership import PostgresOwnership
from kiseki.query.postgres.vacuum import Scrubber
from kiseki.query.tables import BUILD_SCHEMA

__all__ = ["PostgresStore"]

_LOST_AGAINST_ANOTHER = ("40P01", "40001")


class PostgresStore:
    """One build, open for its owner.

    Without an ownership anybody may write: each stream is then kept by its guard alone, as for events that are pushed
    to many processes at once.
    """

    def __init__(
        self,
        build: BuildSchema,
        projection: Projection,
        connections: Connections,
        *,
        ownership: PostgresOwnership | None,
        scrubber: Scrubber,
    ) -> None:
        self._build = build
        self._projection = projection
        self._connections = connections
        self._ownership = ownership
        self._scrubber = scrubber
        self._what = f"the read model {build.name}"
        self._changes = Changes(projection.tables, explain=_explain, describe=_describe)
        self._translated = {"schema_translate_map": {projection.name: build.schema, BUILD_SCHEMA: build.schema}}
        self._closed = False

    @property
    def name(self) -> BuildName:
        """The build's name."""
        return self._build.name

    async def open(self, definition: Definition) -> None:
        """Checks what the build was made with. Raises DefinitionError, BuildMissing, Unavailable."""
        async with self._connections.use(self._what) as connection:
            driver = driver_of(connection)
            await self._build.check(driver, self._projection, definition, self._connections.engine.dialect)
            await self._build.adopt(driver, definition)

    async def position(self) -> Position:
        """As ProjectionStore."""
        async with self._connections.use(self._what) as connection:
            return await self._build.position(driver_of(connection))

    async def progress(self, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ProjectionStore."""
        async with self._connections.use(self._what) as connection:
            return await self._build.progress(driver_of(connection), streams)

    async def parked(self, *, after: str = "", limit: int = 500) -> Sequence[ParkedStream]:
        """As ProjectionStore."""
        async with self._connections.use(self._what) as connection:
            return await self._build.parked(driver_of(connection), after, limit)

    async def write(self, batch: Batch) -> None:
        """As ProjectionStore. Raises OwnershipLost too.

        When the reply to the commit is lost, Unavailable is raised for something that may be written; the guards tell.
        """
        if self._closed:
            raise Unavailable(f"{self._what} can't be written any more: it is closed")
        if self._ownership is not None:
            self._ownership.check()
        committing = False
        try:
            async with self._connections.transaction(self._what) as connection:
                driver = driver_of(connection)
                if self._ownership is not None:
                    await self._ownership.hold(driver)
                # First: a build that is not there is known by it, before the projection's own statements are blamed.
                if batch.position is not None:
                    await self._build.move_position(driver, batch.position)
                # Before the changes: what another writer has applied already must not look like a fault of a statement.
                if batch.guards or batch.park:
                    await self._build.move_guards(driver, guards_needed(batch, self.name))
                if batch.changes:
                    await connection.execution_options(**self._translated)
                    await connection.run_sync(self._changes.execute, batch.changes)
                if batch.park:
                    await self._build.park(driver, batch.park)
                if batch.unpark:
                    await self._build.unpark(driver, batch.unpark)
                committing = True
        except asyncpg.IntegrityConstraintViolationError as problem:
            # A deferred constraint of the projection's own tables shows only at the commit.
            raise StatementFailed(f"{_describe(problem)} at the end of the transaction") from problem
        finally:
            # Also when the reply was lost: nobody may come back to what is written.
            if batch.scrub and committing:
                self._scrubber.scrub()

    async def flush(self) -> None:
        """As ProjectionStore: every commit is durable when `write` returns."""

    async def close(self) -> None:
        """As ProjectionStore; again is fine."""
        if not self._closed:
            self._closed = True
            await self._scrubber.close()


def _explain(problem: Exception) -> type[StatementFailed] | None:
    if state_of(problem) in _LOST_AGAINST_ANOTHER:
        return TransientFailure
    return None if is_unavailable(cause_of(problem)) else StatementFailed


def _describe(problem: Exception) -> str:
    """An error's class and PostgreSQL's code for it: `UniqueViolationError (23505)`."""
    state = state_of(problem)
    return type(cause_of(problem)).__qualname__ + (f" ({state})" if state else "")
