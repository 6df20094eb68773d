"""One query's reading on PostgreSQL: a connection, and on it one read-only transaction with one state.

Used by `database`, which has the connections and the pool they come from.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import CursorResult, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from kiseki.clients.postgres_errors import is_unavailable
from kiseki.kernel.errors import KisekiError
from kiseki.projection.port import BuildMissing, BuildName, StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.database import QueryFailed, QueryTooSlow, ReadModelBuilding
from kiseki.query.postgres.build import BuildSchema
from kiseki.query.postgres.catalog import FIND_SERVED
from kiseki.query.postgres.connections import DRIVER_ERRORS, cause_of, driver_of, leaves_sound, state_of, unavailable
from kiseki.query.reads import ReadsCheck

__all__ = ["PostgresReader", "SeenBuilds"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_WHAT: Final = "the read models"
# The savepoint costs nothing by itself; with it a statement that fails ends neither transaction nor state.
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SAVEPOINT kiseki"
_BACK: Final = "ROLLBACK TO SAVEPOINT kiseki"
_GONE: Final = ("42P01", "3F000")
_CANCELED: Final = "57014"
_READ_ONLY: Final = "25006"


class SeenBuilds:
    """The builds that this process has read last, and whose tables it has checked; and the statements it has seen."""

    def __init__(self) -> None:
        self._builds: weakref.WeakKeyDictionary[Projection, BuildSchema] = weakref.WeakKeyDictionary()
        self.check_reads = ReadsCheck()

    def get(self, projection: Projection) -> BuildSchema | None:
        """The build that answered last."""
        return self._builds.get(projection)

    def put(self, projection: Projection, build: BuildSchema) -> None:
        """After its tables were checked."""
        self._builds[projection] = build

    def forget(self, projections: Sequence[Projection]) -> None:
        """One of them may be gone."""
        for projection in projections:
            self._builds.pop(projection, None)


class PostgresReader:
    """Reads the live builds of some projections in one state. One task at a time uses it."""

    def __init__(self, connection: AsyncConnection, reads: Sequence[Projection], seen: SeenBuilds) -> None:
        self.connection = connection
        self.sound = True
        """Whether the connection can be used again."""
        self._driver = driver_of(connection)
        self._reads = reads
        self._named = frozenset(projection.name for projection in reads)
        self._seen = seen
        self._schemas: dict[str, str] = {}
        self._begun = False
        self._answered = False

    async def read(self, statement: Select[Any], take: Callable[[CursorResult[Any]], T]) -> T:
        """What `take` takes of a statement's result. The first one fixes the state.

        Raises as ReadDatabase.open and ReadModel. The state stays what it was unless the connection is lost.
        """
        async with self._errors():
            if not self._begun:
                await self._begin()
            try:
                return await self._execute(statement, take)
            except DBAPIError as problem:
                if state_of(problem) not in _GONE:
                    raise
                self._seen.check_reads.refuse(statement, self._named)
                if self._answered:
                    raise
            # The build that was read last may have been deleted by hand. Nobody has seen this state yet, so that
            # another one is as good.
            self._seen.forget(self._reads)
            await self._driver.execute("ROLLBACK")
            self._begun = False
            await self._begin()
            return await self._execute(statement, take)

    async def _execute(self, statement: Select[Any], take: Callable[[CursorResult[Any]], T]) -> T:
        options = {"schema_translate_map": self._schemas}
        result = await self.connection.execute(statement, execution_options=options)
        self._seen.check_reads.refuse(statement, self._named, compiled=result.context.compiled)
        taken = take(result)
        self._answered = True
        return taken

    async def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ReadDatabase; `projection` is the only one that is read."""
        async with self._errors():
            await self._begin()
            build = self._seen.get(projection)
            assert build is not None  # noqa: S101  # found by `_begin`
            return await build.progress(self._driver, streams)

    async def _begin(self) -> None:
        await self._driver.execute(_BEGIN)
        try:
            await self._find()
        except BuildMissing:
            # It was deleted between the look into the catalog and the lock that keeps it; the next look finds another.
            await self._driver.execute("ROLLBACK")
            await self._driver.execute(_BEGIN)
            await self._find()
        self._begun = True

    async def _find(self) -> None:
        """Finds the builds to read, and keeps them from being deleted before the end of the transaction.

        Raises ReadModelBuilding, DefinitionError, BuildMissing.
        """
        names = [projection.name for projection in self._reads]
        versions = [projection.version for projection in self._reads]
        found = {row["projection"]: row for row in await self._driver.fetch(FIND_SERVED, names, versions)}
        for projection in self._reads:
            row = found[projection.name]
            if row["schema_name"] is None:
                raise ReadModelBuilding(
                    f"the read model {projection.name} version {projection.version} is being built; ask again later"
                )
            seen = self._seen.get(projection)
            if seen is None or seen.schema != row["schema_name"]:
                name = BuildName(projection.name, projection.version, row["generation"])
                build = BuildSchema(name, row["schema_name"])
                await build.check_tables(self._driver, projection, self.connection.dialect)
                self._seen.put(projection, build)
            self._schemas[projection.name] = row["schema_name"]

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as problem:
            kept = leaves_sound(problem) or state_of(problem) == _READ_ONLY
            self.sound = self.sound and kept and not self._driver.is_closed()
            if self.sound:
                await self._rewind()
            if isinstance(problem, KisekiError) or not isinstance(problem, Exception):
                raise
            raise self._error_of(problem) from problem

    async def _rewind(self) -> None:
        """The same state again, after an error has ended the transaction for the server."""
        try:
            if self._begun:
                await self._driver.execute(_BACK)
                await self._find()
            else:
                await self._driver.execute("ROLLBACK")
        except (*DRIVER_ERRORS, KisekiError) as problem:
            # What is raised is the error that led here.
            _log.debug("a query's transaction can't go on (%s)", type(problem).__name__)
            self.sound = False

    def _error_of(self, problem: Exception) -> KisekiError:
        state = state_of(problem)
        if state == _CANCELED:
            return QueryTooSlow("a statement ran for longer than the limit and was stopped")
        cause = cause_of(problem)
        # Plainly read-only is what a statement meets that is not a query.
        if is_unavailable(cause) and state != _READ_ONLY:
            return unavailable(_WHAT, cause)
        return QueryFailed("the database refused a statement of the query")

    async def end(self) -> None:
        """Ends reading."""
        if self.sound and self._driver.is_in_transaction():
            try:
                await self._driver.execute("ROLLBACK")
            except DRIVER_ERRORS as problem:
                _log.debug("a query's transaction was not ended (%s)", type(problem).__name__)
                self.sound = False
