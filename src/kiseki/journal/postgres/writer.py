"""Group commit for the PostgreSQL journal: whatever waits while the connections are busy goes into the next statement.

Used by the PostgreSQL journal only, on its event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresPool
from kiseki.clients.postgres_errors import reason
from kiseki.journal.port import Commit, JournalUnavailable
from kiseki.journal.postgres.append import (
    AppendRequest,
    GroupResult,
    MovedMeanwhile,
    append_decided,
    append_plain,
    purge_expired,
)
from kiseki.journal.postgres.fence import OPEN
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import Clock, Telemetry

__all__ = ["PostgresWriter"]

_log = logging.getLogger(__name__)

_GROUP_COMMITS: Final = 512
_GROUP_BYTES: Final = 4_000_000
"""A group is cut when it holds this much: it bounds memory, and how long the first of a group waits for the last."""

_TRIES: Final = 5
"""Of a group that other transactions got in the way of."""

_PURGE_EVERY: Final = 256
"""After this many new idempotency records, up to four times as many expired ones are removed."""

# Nothing is known of what was under way then, or it is known that nothing was written.
_WORTH_A_NEW_CONNECTION: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
_IN_EACH_OTHERS_WAY: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class PostgresWriter:
    """Takes appends and sends them in groups, as many groups at once as there are connections.

    A group that fails fails its own callers and nobody else. Callers that were cancelled are written all the same.
    """

    def __init__(
        self,
        pool: PostgresPool,
        *,
        label: str,
        groups_at_once: int,
        clock: Clock,
        telemetry: Telemetry,
        committed: Callable[[], None],
    ) -> None:
        """`committed` is called on the loop after a group with new commits."""
        self._pool = pool
        self._label = label
        self._clock = clock
        self._telemetry = telemetry
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        # Apart, because plain ones need one round trip and no locks. Taken in turn.
        self._plain: deque[AppendRequest] = deque()
        self._decided: deque[AppendRequest] = deque()
        self._decided_next = False
        self._groups_at_once = groups_at_once
        self._groups: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._records_since_purge = _PURGE_EVERY
        self._done = asyncio.Event()
        self.permit = OPEN
        """What groups carry from now on."""

    def submit(self, request: AppendRequest) -> None:
        """Takes an append; its future is resolved later."""
        (self._decided if request.decided else self._plain).append(request)
        self._schedule()

    async def finish(self) -> None:
        """Waits until everything that was taken is done."""
        while self._groups or self._plain or self._decided:
            self._done.clear()
            await self._done.wait()

    def _schedule(self) -> None:
        # At the end of this turn of the loop: callers that were woken together, by the group before, form the next
        # group together, instead of a first one alone and the others behind it.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start_groups)

    def _start_groups(self) -> None:
        self._scheduled = False
        while (self._plain or self._decided) and len(self._groups) < self._groups_at_once:
            task = self._loop.create_task(self._group(self._next_group()), name=f"append to {self._label}")
            self._groups.add(task)
            task.add_done_callback(self._ended)

    def _next_group(self) -> list[AppendRequest]:
        decided = bool(self._decided) and (self._decided_next or not self._plain)
        self._decided_next = not decided
        waiting = self._decided if decided else self._plain
        group = [waiting.popleft()]
        size = len(group[0].document)
        while waiting and len(group) < _GROUP_COMMITS and size + len(waiting[0].document) <= _GROUP_BYTES:
            group.append(waiting.popleft())
            size += len(group[-1].document)
        # The same order in every process, so that two groups never wait for each other's rows.
        group.sort(key=lambda request: (request.commit.stream, request.commit.first_sequence_number))
        return group

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        self._done.set()
        if self._plain or self._decided:
            self._schedule()

    async def _group(self, group: Sequence[AppendRequest]) -> None:
        started = self._clock.monotonic()
        try:
            result = await self._landed(group)
        except BaseException as problem:  # whatever it was, every caller is told
            if not isinstance(problem, MovedMeanwhile | KisekiError):
                _log.error("appending to the journal on %s failed", self._label, exc_info=problem)
            for request in group:
                if not request.future.done():
                    request.future.set_exception(self._explain(problem))
            if not isinstance(problem, Exception):
                raise
            return
        seconds = self._clock.monotonic() - started
        for request, outcome in zip(group, result.outcomes, strict=True):
            if request.future.done():
                continue  # its caller was cancelled meanwhile
            if isinstance(outcome, KisekiError):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)
        if result.landed:
            self._tell(result.landed, seconds)
        await self._purge(sum(request.idempotency is not None for request in group))

    async def _landed(self, group: Sequence[AppendRequest]) -> GroupResult:
        in_doubt = False
        for tries_left in reversed(range(_TRIES)):
            try:
                result = await self._append(group)
            except (MovedMeanwhile, Unavailable) as problem:
                if not tries_left or not self._again(problem, in_doubt=in_doubt):
                    raise
                # Of a lost connection the outcome is unknown: what landed is recognized by its commit ids.
                in_doubt = in_doubt or _is_lost(problem)
            else:
                if in_doubt:
                    return result._replace(landed=sum(isinstance(outcome, Commit) for outcome in result.outcomes))
                return result
        raise AssertionError("unreachable")

    async def _append(self, group: Sequence[AppendRequest]) -> GroupResult:
        async with self._pool.connection() as connection:
            if group[0].decided:
                return await append_decided(connection, group, self._clock.now(), self.permit)
            return await append_plain(connection, group, self.permit)

    def _again(self, problem: MovedMeanwhile | Unavailable, *, in_doubt: bool) -> bool:
        if isinstance(problem, MovedMeanwhile) or isinstance(problem.__cause__, _IN_EACH_OTHERS_WAY):
            return True
        return _is_lost(problem) and not in_doubt

    def _tell(self, commits: int, seconds: float) -> None:
        try:
            self._telemetry.group_committed(commits, seconds)
        except Exception:  # noqa: BLE001  # the writer goes on, whatever telemetry does
            _log.exception("a group of %d commits was written, but could not be reported", commits)
        self._committed()

    async def _purge(self, new_records: int) -> None:
        self._records_since_purge += new_records
        if not new_records or self._records_since_purge < _PURGE_EVERY:
            return
        self._records_since_purge = 0
        try:
            async with self._pool.connection() as connection:
                await purge_expired(connection, self._clock.now(), limit=4 * _PURGE_EVERY)
        except (Unavailable, asyncpg.PostgresError) as problem:
            _log.warning(
                "expired idempotency records were not removed this time: %s", reason(problem.__cause__ or problem)
            )

    def _explain(self, problem: BaseException) -> KisekiError:
        """The error of one caller; a new one each time, because each caller raises its own."""
        error: KisekiError
        if isinstance(problem, JournalUnavailable | NotMigrated):
            error = type(problem)(str(problem))
        elif isinstance(problem, MovedMeanwhile):
            error = JournalUnavailable(f"the journal on {self._label} is too busy: streams moved again and again")
        else:
            error = JournalUnavailable(f"the journal on {self._label} can't be used: {reason(problem)}")
        error.__cause__ = problem
        return error


def _is_lost(problem: BaseException) -> bool:
    return isinstance(problem.__cause__, _WORTH_A_NEW_CONNECTION) and not isinstance(
        problem.__cause__, ConnectionRefusedError
    )
