"""`SqliteReadDatabase`: the ReadDatabase on SQLite. A few reading connections, each used by one query at a time.

Reading runs on a bounded pool of threads, so that a slow query holds up a thread and not the event loop. A query that
runs too long, or that nobody waits for any more, is interrupted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Row, Select

from kiseki.kernel.errors import Unavailable
from kiseki.projection.port import StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.database import QueryTooSlow
from kiseki.query.query import ReadModel
from kiseki.query.sqlite.files import BuildFiles
from kiseki.query.sqlite.reader import SqliteReader, reading_engine

__all__ = ["SqliteReadDatabase"]

_INTERRUPT_EVERY: Final = 0.01
"""Seconds. An interrupt that comes between two steps of a statement is lost, so it is repeated until it worked."""

T = TypeVar("T")


class SqliteReadDatabase:
    """Reads live builds; used on one event loop."""

    def __init__(self, files: BuildFiles, *, readers: int, busy_timeout: float, statement_timeout: float) -> None:
        """`readers` queries run at a time, others wait their turn. Times in seconds."""
        self._executor = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="kiseki-query")
        self._engine = reading_engine(files, busy_timeout=busy_timeout)
        self._free = asyncio.LifoQueue[SqliteReader]()
        self._readers = [SqliteReader(self._engine, files) for _ in range(readers)]
        for reader in self._readers:
            self._free.put_nowait(reader)
        self._statement_timeout = statement_timeout
        self._closed = False

    @asynccontextmanager
    async def open(self, reads: Sequence[Projection]) -> AsyncIterator[ReadModel]:
        """As ReadDatabase. The state is fixed by the first statement."""
        state = _State(self, reads)
        try:
            yield state
        finally:
            state.end()

    async def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ReadDatabase."""
        reader = await self._take()
        running = self._submit(partial(reader.progress, projection, streams))
        try:
            return await self._result(reader, running)
        finally:
            self._give_back(reader, running)

    async def _take(self) -> SqliteReader:
        if self._closed:
            raise Unavailable("the read-model database is closed")
        return await self._free.get()

    def _submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _result(self, reader: SqliteReader, running: asyncio.Future[T]) -> T:
        """What a piece of work gives. It is interrupted when it takes too long, or when the caller is cancelled."""
        try:
            async with asyncio.timeout(self._statement_timeout):
                return await asyncio.shield(running)
        except TimeoutError as problem:
            _interrupt(reader, running)
            raise QueryTooSlow(
                f"a statement ran for more than {self._statement_timeout:g} s and was stopped"
            ) from problem
        except asyncio.CancelledError:
            _interrupt(reader, running)
            raise

    def _give_back(self, reader: SqliteReader, running: asyncio.Future[Any]) -> None:
        """Ends what the reader reads once its last work is done, and lets the next query have it; waits for nothing."""
        if running.done():
            self._end(reader, running)
        else:
            running.add_done_callback(partial(self._end, reader))

    def _end(self, reader: SqliteReader, running: asyncio.Future[Any]) -> None:
        if not running.cancelled():
            running.exception()  # seen, by the caller or by nobody who waits
        reader.end()
        self._free.put_nowait(reader)

    async def close(self) -> None:
        """Lets queries that run end, and closes the files."""
        if self._closed:
            return
        self._closed = True
        for _ in self._readers:
            await self._free.get()
        await asyncio.gather(*(self._submit(reader.close) for reader in self._readers))
        self._executor.shutdown(wait=False)
        self._engine.dispose()


class _State:
    """The ReadModel of one query: takes a reader at its first statement and keeps it to the end."""

    def __init__(self, database: SqliteReadDatabase, reads: Sequence[Projection]) -> None:
        self._database = database
        self._reads = reads
        self._reader: SqliteReader | None = None
        self._running: asyncio.Future[Any] | None = None
        self._begun = False
        self._ended = False
        # A handler may ask for several things at once; the connection answers one after the other.
        self._turn = asyncio.Lock()

    async def all(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        """As ReadModel."""
        return await self._run(lambda reader: reader.all(statement))

    async def first(self, statement: Select[Any]) -> Row[Any] | None:
        """As ReadModel."""
        return await self._run(lambda reader: reader.first(statement))

    async def _run(self, work: Callable[[SqliteReader], T]) -> T:
        async with self._turn:
            if self._reader is None:
                self._reader = await self._database._take()
                if self._ended:
                    self._database._free.put_nowait(self._reader)
            if self._ended:
                raise RuntimeError("the query has ended; its read model can't be used any more")
            if self._running is not None and not self._running.done():
                await asyncio.wait([self._running])  # one that was interrupted, and is not back yet
            reader = self._reader
            running = self._database._submit(partial(self._begin_and, work, reader))
            self._running = running
            return await self._database._result(reader, running)

    def _begin_and(self, work: Callable[[SqliteReader], T], reader: SqliteReader) -> T:
        # One hop for both: most queries have one statement.
        if not self._begun:
            reader.begin(self._reads)
            self._begun = True
        return work(reader)

    def end(self) -> None:
        """Gives the reader back."""
        self._ended = True
        if self._reader is not None and self._running is not None:
            self._database._give_back(self._reader, self._running)


def _interrupt(reader: SqliteReader, running: asyncio.Future[Any]) -> None:
    if not running.done():
        reader.interrupt()
        asyncio.get_running_loop().call_later(_INTERRUPT_EVERY, _interrupt, reader, running)
