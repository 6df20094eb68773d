"""`Scrubber`: removes what an erasure deleted from the tables of a build, and statistics for the planner.

PostgreSQL keeps the old version of a row until a vacuum finds that no transaction needs it any more. After personal
data was removed kiseki does not wait for autovacuum. What a vacuum does not reach is for whoever runs the server: the
write-ahead log until it is recycled, standbys and backups that have it, and pages whose free space is not yet written
over. Encrypted disks and short-lived backups are what ends those.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_errors import reason
from kiseki.projection.pause import happens
from kiseki.query.postgres.connections import DRIVER_ERRORS

__all__ = ["Scrubber", "analyze"]

_log = logging.getLogger(__name__)
_LONGEST: Final = 600.0
"""Seconds that one vacuum may take."""
_CLOSE_SECONDS: Final = 5.0
_BREATH: Final = 9.0
"""A pause of so many times what the last vacuum took: large tables are not vacuumed without end."""
_TABLES: Final = """
    SELECT string_agg(format('%I.%I', schemaname, tablename), ', ' ORDER BY tablename)
    FROM pg_tables WHERE schemaname = $1
"""


class Scrubber:
    """Vacuums one build, in the background and on a connection of its own: at once, and then as often as is bearable.

    When it can't be done it is logged, and autovacuum does it some day.
    """

    def __init__(self, address: PostgresAddress, schema: str, *, application: str) -> None:
        self._address = address
        self._schema = schema
        self._application = application
        self._due = False
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def scrub(self) -> None:
        """There is something to remove, and it is committed."""
        self._due = True
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"vacuum of {self._schema}")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._due:
                self._due = False
                started = loop.time()
                try:
                    await self._vacuum()
                except DRIVER_ERRORS as problem:
                    self._not_done(reason(problem))
                await happens(self._closing, _BREATH * (loop.time() - started))
        finally:
            self._task = None

    async def _vacuum(self) -> None:
        connection = await connect(self._address, application=self._application, statement_timeout=_LONGEST)
        try:
            tables = await _tables_of(connection, self._schema)
            if tables:
                # Also the entries of indexes, which a vacuum may otherwise leave when they are few.
                await connection.execute(f"VACUUM (INDEX_CLEANUP ON) {tables}")
            await connection.close(timeout=_CLOSE_SECONDS)
        finally:
            connection.terminate()

    def _not_done(self, why: str) -> None:
        _log.warning("%s is not vacuumed after an erasure (%s); autovacuum will do it", self._schema, why)

    async def close(self) -> None:
        """Waits a few seconds for what is due."""
        self._closing.set()
        task = self._task
        if task is not None:
            await asyncio.wait([task], timeout=_CLOSE_SECONDS)
            if not task.done():
                self._not_done("the process ends")
                task.cancel()
                await asyncio.wait([task])


async def analyze(connection: PostgresConnection, schema: str) -> None:
    """Has the planner know the sizes of a new build's tables before queries use it. Raises what asyncpg raises."""
    tables = await _tables_of(connection, schema)
    if tables:
        await connection.execute(f"ANALYZE {tables}")


async def _tables_of(connection: PostgresConnection, schema: str) -> str:
    """The tables of a schema, quoted by the server."""
    return await connection.fetchval(_TABLES, schema) or ""
