"""Hints between processes that a PostgreSQL journal grew: LISTEN and NOTIFY on a connection of their own.

Used by the PostgreSQL journal. NOTIFY is sent after the commit and outside of its transaction, because at its commit it
takes a lock that all databases of a server share. A hint may be lost; whoever waits for one also looks now and then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.journal.watchers import Watchers

__all__ = ["PostgresHints"]

_log = logging.getLogger(__name__)

_NOTIFY: Final = "SELECT pg_notify($1, '')"
_STATEMENT_SECONDS: Final = 5.0
_PULSE_SECONDS: Final = 20.0
"""How often a quiet connection is used, to find out that it is dead."""
_SPACING_SECONDS: Final = 0.002
"""Between two NOTIFY: a busy writer sends fewer, and its readers find more at once."""
_FIRST_RETRY_SECONDS: Final = 0.1
_LAST_RETRY_SECONDS: Final = 10.0


class PostgresHints:
    """Calls functions when the journal grew, and tells other processes when this one made it grow."""

    def __init__(self, address: PostgresAddress, *, application: str) -> None:
        """Needs a running event loop from the first watcher or hint on; connects then."""
        self._address = address
        self._application = application
        self._channel = f"{address.schema}_grew"
        self._watchers = Watchers("the journal to grow")
        self._task: asyncio.Task[None] | None = None
        self._something_to_do = asyncio.Event()
        self._to_send = False
        self._own_process_id = 0
        self._closed = False

    def add(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` at every hint until the returned function is called."""
        end = self._watchers.add(wake)
        self._start()
        return end

    def grew(self) -> None:
        """Wakes the watchers of this process now, and those of others soon."""
        self._watchers.wake()
        self._to_send = True
        self._something_to_do.set()
        self._start()

    async def close(self) -> None:
        """Sends nothing more and ends the connection; again is fine."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _start(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"hints of {self._address.label}")

    async def _run(self) -> None:
        retry_after = _FIRST_RETRY_SECONDS
        while True:
            connection: PostgresConnection | None = None
            try:
                connection = await self._connect()
                if retry_after > _FIRST_RETRY_SECONDS:
                    _log.info("hints between processes through %s work again", self._address.label)
                retry_after = _FIRST_RETRY_SECONDS
                self._watchers.wake()  # whatever was said while nobody listened
                await self._serve(connection)
            except Exception as problem:  # noqa: BLE001  # the task goes on: followers would be slower without it for ever
                if not is_unavailable(problem):
                    _log.exception("hints between processes through %s failed", self._address.label)
                elif retry_after == _FIRST_RETRY_SECONDS:
                    _log.warning(
                        "no hints between processes (%s: %s); followers of the journal look now and then",
                        self._address.label,
                        reason(problem),
                    )
            finally:
                if connection is not None:
                    connection.terminate()
            # Spread, so that the processes of a fleet do not come back all at once.
            await asyncio.sleep(retry_after * random.uniform(0.5, 1.0))  # noqa: S311
            retry_after = min(retry_after * 2, _LAST_RETRY_SECONDS)

    async def _connect(self) -> PostgresConnection:
        connection = await connect(
            self._address,
            application=self._application,
            statement_timeout=_STATEMENT_SECONDS,
            # Nothing here has to last, and each NOTIFY would wait for the disk.
            settings={"synchronous_commit": "off"},
        )
        try:
            connection.add_termination_listener(self._ended)
            self._own_process_id = connection.get_server_pid()
            await connection.add_listener(self._channel, self._heard)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _serve(self, connection: PostgresConnection) -> None:
        while True:
            try:
                async with asyncio.timeout(_PULSE_SECONDS):
                    await self._something_to_do.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
                continue
            self._something_to_do.clear()
            if connection.is_closed():
                raise ConnectionResetError
            if self._to_send:
                self._to_send = False
                await connection.execute(_NOTIFY, self._channel)
                await asyncio.sleep(_SPACING_SECONDS)

    def _heard(self, _connection: Any, process_id: int, _channel: str, _payload: object) -> None:
        if process_id != self._own_process_id:
            self._watchers.wake()

    def _ended(self, _connection: Any) -> None:
        self._something_to_do.set()
