"""`SqliteBuilds`, the BuildCatalog of a SQLite read-model database, and `SqliteStore`, its ProjectionStore.

Ownership is an advisory lock (flock) on a file next to the builds: it ends with the process, whatever ended it. A child
made by fork without exec would share it; kiseki starts its processes by exec.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from kiseki.journal.port import Position
from kiseki.journal.watchers import Watchers
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock
from kiseki.projection.port import (
    Batch,
    Build,
    BuildMissing,
    BuildName,
    Definition,
    Inspection,
    ParkedStream,
    Request,
    RequestKind,
    StreamProgress,
)
from kiseki.projection.projection import Projection
from kiseki.query.sqlite.build import BuildFile
from kiseki.query.sqlite.catalog import SqliteCatalog
from kiseki.query.sqlite.comparison import streams_behind
from kiseki.query.sqlite.files import BuildFiles, unavailable

__all__ = ["SqliteBuilds", "SqliteStore"]

_log = logging.getLogger(__name__)
_SETTLED_NS: Final = 50_000_000
"""Longer than a tick of any file system's clock."""
P = ParamSpec("P")
T = TypeVar("T")


class _Thread:
    """One thread that does one thing after the other. What was begun is finished, also when nobody waits any more."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *args, **kwargs))
        except RuntimeError as problem:
            raise Unavailable("the read-model database is closed") from problem
        return await future

    def end(self) -> None:
        self._executor.shutdown(wait=False)


class SqliteStore:
    """One build, open for its owner, with a thread of its own."""

    def __init__(self, file: BuildFile, name: BuildName) -> None:
        self._file = file
        self._name = name
        self._thread = _Thread(f"kiseki-{name}")
        self._closed = False

    @property
    def name(self) -> BuildName:
        """The build's name."""
        return self._name

    async def open(self, projection: Projection, definition: Definition) -> None:
        """Checks what the build was made with. Raises DefinitionError, BuildMissing, Unavailable."""

        def check() -> None:
            self._file.check(projection, definition)
            self._file.adopt(definition)

        await self._thread.run(check)

    async def position(self) -> Position:
        """As ProjectionStore."""
        return await self._thread.run(self._file.position)

    async def progress(self, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ProjectionStore."""
        return await self._thread.run(self._file.progress, streams)

    async def parked(self, *, after: str = "", limit: int = 500) -> Sequence[ParkedStream]:
        """As ProjectionStore."""
        return await self._thread.run(self._file.parked, after, limit)

    async def write(self, batch: Batch) -> None:
        """As ProjectionStore."""
        await self._thread.run(self._file.write, batch)

    async def flush(self) -> None:
        """As ProjectionStore."""
        await self._thread.run(self._file.flush)

    async def close(self) -> None:
        """As ProjectionStore; again is fine."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._thread.run(self._file.close)
        finally:
            self._thread.end()


class _Flock:
    """The lock of a projection version, held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    async def release(self) -> None:
        """As Ownership."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class SqliteBuilds:
    """The builds in a directory. Used on one event loop; any number of processes share the directory."""

    def __init__(self, files: BuildFiles, *, clock: Clock, busy_timeout: float, notice: float) -> None:
        """`busy_timeout`: seconds that a write waits for other processes. `notice`: seconds between two looks at
        whether another process made a request, while somebody watches."""
        self._files = files
        self._busy_timeout = busy_timeout
        self._notice = notice
        self._catalog = SqliteCatalog(files, now=clock.now, busy_timeout=busy_timeout)
        self._thread = _Thread("kiseki-catalog")
        self._watchers = Watchers("requests")
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[int, int] | None = None
        self._closed = False

    async def prepare(self) -> None:
        """Makes the catalog where there is none. Raises Unavailable."""
        await self._thread.run(self._catalog.prepare)

    async def builds(self, projection: str | None = None) -> Sequence[Build]:
        """As BuildCatalog."""
        return await self._thread.run(self._catalog.builds, projection)

    async def create(self, projection: Projection, definition: Definition) -> Build:
        """As BuildCatalog."""
        return await self._thread.run(self._create, projection, definition)

    def _create(self, projection: Projection, definition: Definition) -> Build:
        name = self._catalog.next_name(projection.name, projection.version)
        try:
            # What is there under this name was never recorded: the rest of a creation that was cut off.
            self._files.remove(name)
        except OSError as problem:
            raise unavailable(f"the read model {name}", problem) from problem
        path = self._files.build(name)
        BuildFile.create(path, name, busy_timeout=self._busy_timeout, projection=projection, definition=definition)
        return self._catalog.add(name)

    async def check(self, projection: Projection, definition: Definition) -> None:
        """As BuildCatalog."""
        for build in await self.builds(projection.name):
            if build.name.version == projection.version:
                try:
                    await self._reading(build.name, lambda file: file.check(projection, definition))
                except BuildMissing:
                    continue  # its owner builds it again

    async def open(self, projection: Projection, name: BuildName, definition: Definition) -> SqliteStore:
        """As BuildCatalog."""
        store = SqliteStore(BuildFile(self._files.build(name), name, busy_timeout=self._busy_timeout), name)
        try:
            await store.open(projection, definition)
        except BaseException:
            await store.close()
            raise
        return store

    async def promote(self, name: BuildName, *, unless_behind: BuildName | None = None) -> Mapping[str, int]:
        """As BuildCatalog."""
        return await self._thread.run(self._promote, name, unless_behind)

    def _promote(self, name: BuildName, unless_behind: BuildName | None) -> Mapping[str, int]:
        if unless_behind is None:
            self._catalog.promote(name)
            return {}
        candidate, replaced = self._files.build(name), self._files.build(unless_behind)
        with streams_behind(candidate, replaced, unless_behind, busy_timeout=self._busy_timeout) as behind:
            if not behind:
                self._catalog.promote(name)
        return behind

    async def demote(self, name: BuildName) -> None:
        """As BuildCatalog."""
        await self._thread.run(self._catalog.demote, name)

    async def note(self, name: BuildName, problem: str | None) -> None:
        """As BuildCatalog."""
        await self._thread.run(self._catalog.note, name, problem)

    async def remove(self, name: BuildName) -> None:
        """As BuildCatalog."""

        def remove() -> None:
            self._catalog.remove(name)
            try:
                self._files.remove(name)
            except OSError as problem:
                raise unavailable(f"the read model {name}", problem) from problem

        await self._thread.run(remove)

    async def inspect(self, name: BuildName) -> Inspection:
        """As BuildCatalog."""
        return await self._reading(name, BuildFile.inspect)

    async def progress(self, name: BuildName, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As BuildCatalog."""
        return await self._reading(name, lambda file: file.progress(streams))

    async def guards(self, name: BuildName, *, after: str = "", limit: int = 500) -> Sequence[tuple[str, int]]:
        """As BuildCatalog."""
        return await self._reading(name, lambda file: file.guards(after, limit))

    async def _reading(self, name: BuildName, look: Callable[[BuildFile], T]) -> T:
        def read() -> T:
            file = BuildFile(self._files.build(name), name, busy_timeout=self._busy_timeout, query_only=True)
            try:
                return look(file)
            finally:
                file.close()

        return await self._thread.run(read)

    async def own(self, projection: str, version: int) -> _Flock | None:
        """As BuildCatalog."""
        try:
            self._files.make_directory()
            descriptor = os.open(self._files.lock(projection, version), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise unavailable(f"the lock of projection {projection}", problem) from problem
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as problem:
            os.close(descriptor)
            raise unavailable(f"the lock of projection {projection}", problem) from problem
        return _Flock(descriptor)

    async def request(self, projection: str, version: int, kind: RequestKind, stream: str | None = None) -> Request:
        """As BuildCatalog."""
        request = await self._thread.run(self._catalog.request, projection, version, kind, stream)
        self._watchers.wake()
        return request

    async def requests(self, projection: str, version: int) -> Sequence[Request]:
        """As BuildCatalog."""
        return await self._thread.run(self._catalog.requests, projection, version)

    async def request_of(self, request_id: int) -> Request | None:
        """As BuildCatalog."""
        return await self._thread.run(self._catalog.request_of, request_id)

    async def finish(self, request_id: int, outcome: str) -> None:
        """As BuildCatalog."""
        await self._thread.run(self._catalog.finish, request_id, outcome)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As BuildCatalog. A request of another process is noticed by the catalog's log, which every commit touches."""
        end = self._watchers.add(wake, nobody_left=self._stop_looking)
        if self._timer is None:
            self._seen = self._touched()
            self._timer = asyncio.get_running_loop().call_later(self._notice, self._look)
        return end

    def _look(self) -> None:
        touched = self._touched()
        if touched is None or touched != self._seen:
            self._seen = touched
            self._watchers.wake()
        self._timer = asyncio.get_running_loop().call_later(self._notice, self._look)

    def _touched(self) -> tuple[int, int] | None:
        try:
            status = os.stat(f"{self._files.catalog}-wal")
        except OSError:
            return 0, 0
        # Two commits within one tick of the file system's clock look alike. What was written a moment ago is therefore
        # looked at once more: it counts as not seen.
        if abs(time.time_ns() - status.st_mtime_ns) < _SETTLED_NS:
            return None
        return status.st_size, status.st_mtime_ns

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Lets go of the catalog; again is fine. Raises Unavailable."""
        self._stop_looking()
        if self._closed:
            return
        self._closed = True
        try:
            await self._thread.run(self._catalog.close)
        finally:
            self._thread.end()
