"""`PostgresReadDatabase`: the ReadDatabase on PostgreSQL. A pool of connections, each used by one query at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import CursorResult, Row, Select

from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.postgres.connections import Connections, driver_of
from kiseki.query.postgres.reader import PostgresReader, SeenBuilds
from kiseki.query.query import ReadModel

__all__ = ["PostgresReadDatabase"]

T = TypeVar("T")
_WHAT: Final = "the read models"


class PostgresReadDatabase:
    """Reads live builds; used on one event loop."""

    def __init__(self, address: PostgresAddress, *, pool: int, statement_timeout: float, wait: float) -> None:
        """`pool` queries run at a time, others wait their turn for up to `wait` seconds."""
        self._connections = Connections(
            address,
            application="kiseki queries",
            size=pool,
            statement_timeout=statement_timeout,
            wait=wait,
            settings={"default_transaction_read_only": "on"},
        )
        self._seen = SeenBuilds()

    @asynccontextmanager
    async def open(self, reads: Sequence[Projection]) -> AsyncIterator[ReadModel]:
        """As ReadDatabase. The state is fixed by the first statement."""
        state = _State(self, reads)
        try:
            yield state
        finally:
            await state.end()

    async def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ReadDatabase."""
        seen = self._seen.get(projection)
        if seen is not None and streams:
            # One statement for both: which build answers now, and how far the one is that answered last.
            async with self._connections.use(_WHAT) as connection:
                try:
                    found = await seen.served_progress(driver_of(connection), streams)
                except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                    found = None
            if found is not None:
                return found
            self._seen.forget((projection,))
        reader = await self._reader((projection,))
        try:
            return await reader.progress(projection, streams)
        finally:
            await self._done(reader)

    async def _reader(self, reads: Sequence[Projection]) -> PostgresReader:
        return PostgresReader(await self._connections.take(_WHAT), reads, self._seen)

    async def _done(self, reader: PostgresReader) -> None:
        try:
            await reader.end()
        finally:
            await self._connections.give_back(reader.connection, keep=reader.sound)

    async def close(self) -> None:
        """Lets queries that run end, for a few seconds, and closes the connections."""
        await self._connections.close()


class _State:
    """The ReadModel of one query: takes a connection at its first statement and keeps it to the end."""

    def __init__(self, database: PostgresReadDatabase, reads: Sequence[Projection]) -> None:
        self._database = database
        self._reads = reads
        self._reader: PostgresReader | None = None
        self._ended = False
        # A handler may ask for several things at once; the connection answers one after the other.
        self._turn = asyncio.Lock()

    async def all(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        """As ReadModel."""
        return await self._read(statement, lambda result: result.all())

    async def first(self, statement: Select[Any]) -> Row[Any] | None:
        """As ReadModel."""
        return await self._read(statement, lambda result: result.first())

    async def _read(self, statement: Select[Any], take: Callable[[CursorResult[Any]], T]) -> T:
        async with self._turn:
            try:
                if self._reader is None and not self._ended:
                    self._reader = await self._database._reader(self._reads)
                if self._ended or self._reader is None:
                    raise RuntimeError("the query has ended; its read model can't be used any more")
                if not self._reader.sound:
                    raise Unavailable("the connection that had this query's state was lost; ask again")
                return await self._reader.read(statement, take)
            finally:
                if self._ended:
                    await self._give_back()

    async def end(self) -> None:
        """Gives the connection back, at the latest when the statement that runs is done."""
        self._ended = True
        if not self._turn.locked():
            await self._give_back()

    async def _give_back(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await self._database._done(reader)
