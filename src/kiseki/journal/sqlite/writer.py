"""The one thread of a SQLite journal that writes: everything that waits goes into one transaction, one sync for all.

Used by the SQLite journal only. Requests come from the event loop and results go back to it, once for each group.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from kiseki.journal.sqlite.append import AppendRequest, append_group
from kiseki.journal.sqlite.connection import Busy, begin, connect, explain, is_out_of_space
from kiseki.journal.sqlite.schema import JournalFile
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock, Telemetry

__all__ = ["SqliteWriter"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_GROUP_COMMITS: Final = 512
_GROUP_BYTES: Final = 4_000_000
"""A group is cut when it holds this much: it bounds memory, and how long the first of a group waits for the last."""


class _Action(NamedTuple):
    """A write that is no append, in a transaction of its own."""

    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class SqliteWriter:
    """Owns the writing connection and its thread.

    A failed transaction fails its own callers and nobody else: the thread goes on, and opens the file anew when the
    state of its connection is in doubt.
    """

    def __init__(
        self,
        opened: JournalFile,
        *,
        clock: Clock,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        busy_seconds: float,
        committed: Callable[[], None],
        committed_on_loop: Callable[[], None],
    ) -> None:
        """Starts the thread. `committed` is called in it after a group, `committed_on_loop` on the loop."""
        self._file = opened
        self._path = opened.path
        self._connection: sqlite3.Connection | None = opened.connection
        self._lock = opened.lock
        self._clock = clock
        self._telemetry = telemetry
        self._loop = loop
        self._busy_seconds = busy_seconds
        self._committed = committed
        self._committed_on_loop = committed_on_loop
        self._pending: list[AppendRequest] = []
        self._queue: SimpleQueue[list[AppendRequest] | _Action | None] = SimpleQueue()
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._work, name=f"journal writer {opened.path.name}", daemon=True)
        self._thread.start()

    def submit(self, request: AppendRequest) -> None:
        """Takes an append; its future is resolved later. On the event loop."""
        # Handed over at the end of this turn of the loop: callers that were woken together, by the group before, form
        # the next group together, instead of a first one alone and the others behind it.
        if not self._pending:
            self._loop.call_soon(self._hand_over)
        self._pending.append(request)

    async def run(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """The result of a function that writes through the connection, durable. Raises what it raises, explained."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._queue.put(_Action(action, future))
        return await future

    async def close(self) -> None:
        """Finishes what was taken, copies the log into the file, ends the thread. Only once."""
        self._hand_over()
        self._queue.put(None)
        await self._stopped

    def _hand_over(self) -> None:
        if self._pending:
            self._queue.put(self._pending)
            self._pending = []

    # From here on: in the thread.

    def _work(self) -> None:
        going_on = True
        while going_on:
            requests, actions, going_on = self._take()
            for group in _groups(requests):
                self._append(group)
            for action in actions:
                self._act(action)
        self._finish()
        self._on_loop(_resolve, [(self._stopped, None)], None)

    def _take(self) -> tuple[list[AppendRequest], list[_Action], bool]:
        """Everything that waits, at least one thing; False when nothing will come after it."""
        requests: list[AppendRequest] = []
        actions: list[_Action] = []
        item = self._queue.get()
        while item is not None:
            if isinstance(item, _Action):
                actions.append(item)
            else:
                requests.extend(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                return requests, actions, True
        return requests, actions, False

    def _append(self, group: Sequence[AppendRequest]) -> None:
        started = self._clock.monotonic()
        try:
            with self._transaction() as connection:
                result = append_group(connection, group, self._clock.now())
        except Exception as problem:  # noqa: BLE001  # whatever it was, every caller is told, and the thread goes on
            self._on_loop(_resolve, [(request.future, self._explain(problem)) for request in group], None)
            return
        seconds = self._clock.monotonic() - started
        outcomes = [(request.future, outcome) for request, outcome in zip(group, result.outcomes, strict=True)]
        self._on_loop(_resolve, outcomes, self._committed_on_loop if result.landed else None)
        if result.landed:
            self._tell(result.landed, seconds)

    def _tell(self, commits: int, seconds: float) -> None:
        try:
            self._telemetry.group_committed(commits, seconds)
            self._committed()
        except Exception:  # noqa: BLE001  # the thread goes on, whatever telemetry does
            _log.exception("a group of %d commits was written, but could not be reported", commits)

    def _act(self, action: _Action) -> None:
        outcome: Any
        try:
            with self._transaction() as connection:
                outcome = action.run(connection)
        except Exception as problem:  # noqa: BLE001  # as above
            outcome = self._explain(problem)
        self._on_loop(_resolve, [(action.future, outcome)], None)

    def _explain(self, problem: Exception) -> KisekiError:
        if not isinstance(problem, sqlite3.Error | OSError | Busy | KisekiError):
            _log.error("writing to the journal %s failed", self._path, exc_info=problem)
        return explain(problem, self._path)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._busy_seconds
        with self._lock.held(deadline):
            # Looked at before too: SQLite would mix the log that is left with another file of the same name.
            self._file.refuse_another()
            connection = self._connected()
            try:
                begin(connection, deadline)
                yield connection
                self._file.refuse_another()
                connection.execute("COMMIT")
            except BaseException as problem:
                self._roll_back(connection, problem)
                raise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = connect(self._path, write=True, busy_seconds=self._busy_seconds)
            try:
                self._file.refuse_another(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection, problem: BaseException) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as another:
            _log.warning("rolling back failed too: %s", another)
        else:
            if is_out_of_space(problem) or not isinstance(problem, sqlite3.Error):
                return
        self._connection = None
        _close_quietly(connection)

    def _finish(self) -> None:
        """Empties the log into the file, as far as readers of other processes let it; opening does the rest."""
        try:
            if self._connection is not None:
                with self._lock.held(time.monotonic() + self._busy_seconds):
                    try:
                        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    finally:
                        _close_quietly(self._connection)
        except (sqlite3.Error, OSError, Busy) as problem:
            _log.warning("the journal %s was closed without a checkpoint: %s", self._path, problem)
        finally:
            self._lock.close()

    def _on_loop(
        self,
        resolve: Callable[[Sequence[tuple[asyncio.Future[Any], Any]], Callable[[], None] | None], None],
        outcomes: Sequence[tuple[asyncio.Future[Any], Any]],
        then: Callable[[], None] | None,
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(resolve, outcomes, then)
        except RuntimeError:
            # The loop is closed: nobody waits for an answer any more.
            _log.debug("%d results came after the event loop was closed", len(outcomes))


def _groups(requests: Sequence[AppendRequest]) -> Iterator[Sequence[AppendRequest]]:
    start = size = 0
    for number, request in enumerate(requests):
        if number - start >= _GROUP_COMMITS or (number > start and size + len(request.document) > _GROUP_BYTES):
            yield requests[start:number]
            start, size = number, 0
        size += len(request.document)
    if start < len(requests):
        yield requests[start:]


def _resolve(outcomes: Sequence[tuple[asyncio.Future[Any], Any]], then: Callable[[], None] | None) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue  # its caller was cancelled meanwhile
        if isinstance(outcome, KisekiError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    if then is not None:
        then()


def _close_quietly(connection: sqlite3.Connection) -> None:
    try:
        connection.close()
    except sqlite3.Error as problem:
        _log.warning("closing a connection failed: %s", problem)
