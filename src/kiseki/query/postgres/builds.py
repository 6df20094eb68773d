"""`PostgresBuilds`: the BuildCatalog of PostgreSQL read models. Any number of processes use the same ones."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection
from kiseki.journal.watchers import Watchers
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock
from kiseki.projection.port import (
    Build,
    BuildMissing,
    BuildName,
    Definition,
    Inspection,
    Request,
    RequestKind,
    StreamProgress,
)
from kiseki.projection.projection import Projection
from kiseki.query.postgres.build import BuildSchema, make_build
from kiseki.query.postgres.catalog import PostgresCatalog
from kiseki.query.postgres.comparison import streams_behind
from kiseki.query.postgres.connections import Connections, driver_of
from kiseki.query.postgres.ownership import Ownerships, PostgresOwnership
from kiseki.query.postgres.store import PostgresStore
from kiseki.query.postgres.vacuum import Scrubber, analyze

__all__ = ["PostgresBuilds"]

_log = logging.getLogger(__name__)
_APPLICATION: Final = "kiseki projections"
_WHAT: Final = "the catalog of read models"
_SETTINGS: Final = {
    "synchronous_commit": "on",
    # Writes find their rows by keys. A plan that is kept from when a table was empty must not read all of it later.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class PostgresBuilds:
    """The builds in a database. Used on one event loop."""

    def __init__(self, address: PostgresAddress, *, clock: Clock, writers: int, statement_timeout: float) -> None:
        """`writers` builds are written at a time, others wait their turn; `statement_timeout` in seconds."""
        self._address = address
        self._clock = clock
        self._catalog = PostgresCatalog(address.schema)
        self._connections = Connections(
            address,
            application=_APPLICATION,
            size=writers,
            statement_timeout=statement_timeout,
            wait=statement_timeout,
            settings=_SETTINGS,
        )
        self._watchers = Watchers("requests")
        self._ownerships = Ownerships(
            address, application=_APPLICATION, statement_timeout=statement_timeout, wake=self._watchers.wake
        )
        self._schemas: dict[BuildName, str] = {}

    async def builds(self, projection: str | None = None) -> Sequence[Build]:
        """As BuildCatalog."""
        async with self._connections.use(_WHAT) as connection:
            return await self._catalog.builds(driver_of(connection), projection)

    async def create(self, projection: Projection, definition: Definition) -> Build:
        """As BuildCatalog. Raises OwnershipLost too, as all that change builds."""
        async with self._connections.transaction(_WHAT) as connection:
            driver = driver_of(connection)
            await self._hold(driver, projection.name, projection.version)
            try:
                build, schema = await self._catalog.create(
                    driver, projection.name, projection.version, self._clock.now()
                )
            except asyncpg.InsufficientPrivilegeError as problem:
                raise Unavailable(
                    f"the schema of a new build of {projection.name} can't be made: the user needs "
                    "GRANT CREATE ON DATABASE"
                ) from problem
            await connection.run_sync(make_build, schema, projection, definition)
        return build

    async def check(self, projection: Projection, definition: Definition) -> None:
        """As BuildCatalog."""
        for build in await self.builds(projection.name):
            if build.name.version == projection.version:
                try:
                    async with self._looking(build.name) as (driver, schema):
                        await schema.check(driver, projection, definition, self._connections.engine.dialect)
                except BuildMissing:
                    continue  # its owner builds it again

    async def open(self, projection: Projection, name: BuildName, definition: Definition) -> PostgresStore:
        """As BuildCatalog. What it writes is refused once another process owns the version."""
        ownership = self._ownerships.of(projection.name, projection.version)
        schema = BuildSchema(name, await self._schema_of(name))
        scrubber = Scrubber(self._address, schema.schema, application=_APPLICATION)
        store = PostgresStore(schema, projection, self._connections, ownership=ownership, scrubber=scrubber)
        await store.open(definition)
        return store

    async def promote(self, name: BuildName, *, unless_behind: BuildName | None = None) -> Mapping[str, int]:
        """As BuildCatalog."""
        await self._analyze(name)
        candidate, replaced = await self._found(name), unless_behind and await self._found(unless_behind)
        async with self._changing(name) as driver:
            if candidate is not None and replaced is not None:
                behind = await streams_behind(driver, candidate, replaced)
                if behind:
                    return behind
            await self._catalog.promote(driver, name, self._clock.now())
        return {}

    async def _found(self, name: BuildName) -> BuildSchema | None:
        try:
            return BuildSchema(name, await self._schema_of(name))
        except BuildMissing:
            return None

    async def _analyze(self, name: BuildName) -> None:
        try:
            schema = await self._schema_of(name)
            async with self._connections.use(_WHAT) as connection:
                await analyze(driver_of(connection), schema)
        except (Unavailable, asyncpg.PostgresError) as problem:
            # It answers all the same, if slower until autovacuum has seen it.
            _log.warning("%s has no statistics yet (%s)", name, type(problem).__name__)

    async def demote(self, name: BuildName) -> None:
        """As BuildCatalog."""
        async with self._changing(name) as driver:
            await self._catalog.demote(driver, name)

    async def note(self, name: BuildName, problem: str | None) -> None:
        """As BuildCatalog."""
        async with self._changing(name) as driver:
            await self._catalog.note(driver, name, problem)

    async def remove(self, name: BuildName) -> None:
        """As BuildCatalog. Waits a few seconds for queries that still read it; raises Unavailable when they go on."""
        async with self._changing(name) as driver:
            await self._catalog.remove(driver, name)
        self._schemas.pop(name, None)

    @asynccontextmanager
    async def _changing(self, name: BuildName) -> AsyncIterator[PostgresConnection]:
        async with self._connections.transaction(_WHAT) as connection:
            driver = driver_of(connection)
            await self._hold(driver, name.projection, name.version)
            yield driver

    async def _hold(self, driver: PostgresConnection, projection: str, version: int) -> None:
        ownership = self._ownerships.of(projection, version)
        if ownership is not None:
            await ownership.hold(driver)

    async def inspect(self, name: BuildName) -> Inspection:
        """As BuildCatalog."""
        async with self._looking(name) as (driver, schema):
            return await schema.inspect(driver)

    async def progress(self, name: BuildName, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As BuildCatalog."""
        async with self._looking(name) as (driver, schema):
            return await schema.progress(driver, streams)

    async def guards(self, name: BuildName, *, after: str = "", limit: int = 500) -> Sequence[tuple[str, int]]:
        """As BuildCatalog."""
        async with self._looking(name) as (driver, schema):
            return await schema.guards(driver, after, limit)

    @asynccontextmanager
    async def _looking(self, name: BuildName) -> AsyncIterator[tuple[PostgresConnection, BuildSchema]]:
        schema = BuildSchema(name, await self._schema_of(name))
        async with self._connections.use(f"the read model {name}") as connection:
            yield driver_of(connection), schema

    async def _schema_of(self, name: BuildName) -> str:
        # No name is given twice, so what was once read stays true, or the build is gone.
        found = self._schemas.get(name)
        if found is None:
            async with self._connections.use(_WHAT) as connection:
                found = await self._catalog.schema_of(driver_of(connection), name)
            if found is None:
                raise BuildMissing(f"the read model {name} is not there any more")
            self._schemas[name] = found
        return found

    async def own(self, projection: str, version: int) -> PostgresOwnership | None:
        """As BuildCatalog."""
        return await self._ownerships.own(projection, version)

    async def request(self, projection: str, version: int, kind: RequestKind, stream: str | None = None) -> Request:
        """As BuildCatalog."""
        async with self._connections.transaction(_WHAT) as connection:
            request = await self._catalog.request(
                driver_of(connection), projection, version, kind=kind, stream=stream, now=self._clock.now()
            )
        self._watchers.wake()
        return request

    async def requests(self, projection: str, version: int) -> Sequence[Request]:
        """As BuildCatalog."""
        async with self._connections.use(_WHAT) as connection:
            return await self._catalog.requests(driver_of(connection), projection, version)

    async def request_of(self, request_id: int) -> Request | None:
        """As BuildCatalog."""
        async with self._connections.use(_WHAT) as connection:
            return await self._catalog.request_of(driver_of(connection), request_id)

    async def finish(self, request_id: int, outcome: str) -> None:
        """As BuildCatalog."""
        async with self._connections.use(_WHAT) as connection:
            await self._catalog.finish(driver_of(connection), request_id, outcome, self._clock.now())

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As BuildCatalog. Requests of other processes are heard of by whoever owns, or has tried to own, a version."""
        return self._watchers.add(wake)

    async def close(self) -> None:
        """Lets go of ownerships and connections; again is fine."""
        await self._ownerships.close()
        await self._connections.close()
