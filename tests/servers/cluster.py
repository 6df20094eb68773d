"""`Replica`: a streaming replica of a `PostgresServer`; `Cut`: a way between two programs that a test can cut."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from tests.servers.postgres import PostgresServer

__all__ = ["Cut", "Replica"]


class Replica(PostgresServer):
    """Follows a primary until it is promoted."""

    def __init__(self, primary: PostgresServer) -> None:
        """Takes a base backup of the primary when it is started."""
        super().__init__()
        self._primary = primary
        self.password = primary.password

    def _make(self) -> None:
        source = f"postgresql://kiseki@/postgres?host={self._primary.directory}&port={self._primary.port}"
        self.run(
            "pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip


class Cut:
    """Passes bytes on between loopback ports, until it is cut: then nothing gets through, and nobody is told."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._ended = True
        self._open.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """From now on bytes are swallowed, those under way too."""
        self._open.clear()

    def mend(self) -> None:
        """New bytes get through again."""
        self._open.set()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        if self._ended:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while part := await source.read(65_536):
                await self._open.wait()
                sink.write(part)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()
