"""Who may write the builds of a projection version on PostgreSQL: an advisory lock, and a number that keeps others off.

The lock belongs to a session and ends with it, whatever ended it; one session holds all locks of a process. But a
session can end without its process, and what the process sent meanwhile still arrives. So every new owner also takes
the next number, and what an owner writes is committed only while its number is the newest: the transaction reads it
with a row lock, for which the next owner waits. Used by `builds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_errors import is_unavailable
from kiseki.kernel.errors import KisekiError
from kiseki.projection.port import OwnershipLost
from kiseki.query.postgres.connections import DRIVER_ERRORS, leaves_sound, prepare, unavailable
from kiseki.query.postgres.schema import request_channel

__all__ = ["Ownerships", "PostgresOwnership"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_CLOSE_SECONDS: Final = 2.0

_SETTINGS: Final = {
    # A machine that died lets go after some 6 seconds, as a process that died does at once.
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "6000",
    "idle_session_timeout": "0",
}

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
_NEXT_NUMBER: Final = """
    INSERT INTO read_model_owners AS owners (projection, version, number) VALUES ($1, $2, 1)
    ON CONFLICT (projection, version) DO UPDATE SET number = owners.number + 1 RETURNING number
"""
_HOLD: Final = """
    SELECT number FROM read_model_owners WHERE projection = $1 AND version = $2 AND number = $3 FOR SHARE
"""


class PostgresOwnership:
    """The ownership of a projection version."""

    def __init__(self, ownerships: Ownerships, projection: str, version: int, number: int) -> None:
        self.projection = projection
        self.version = version
        self.number = number
        self.held = True
        self._ownerships = ownerships

    def check(self) -> None:
        """Raises OwnershipLost when this process knows that it is lost."""
        if not self.held:
            raise self.lost()

    def lost(self) -> OwnershipLost:
        """The error that says so."""
        return OwnershipLost(
            f"this process no longer owns projection {self.projection} version {self.version}: its session ended"
        )

    async def hold(self, connection: PostgresConnection) -> None:
        """Keeps others from owning it until the end of the transaction. Raises OwnershipLost; what asyncpg raises."""
        self.check()
        if await connection.fetchval(_HOLD, self.projection, self.version, self.number) is None:
            raise self.lost()

    async def release(self) -> None:
        """As Ownership."""
        await self._ownerships._release(self)


class Ownerships:
    """The ownerships that this process holds, and the session that holds them, on which it also hears of requests."""

    def __init__(
        self, address: PostgresAddress, *, application: str, statement_timeout: float, wake: Callable[[], None]
    ) -> None:
        """`wake` is called when some process has made a request; `statement_timeout` in seconds."""
        self._address = address
        self._application = application
        self._statement_timeout = statement_timeout
        self._wake = wake
        self._session: PostgresConnection | None = None
        self._turn = asyncio.Lock()
        self._mine: dict[tuple[str, int], PostgresOwnership] = {}
        self._finishing: set[asyncio.Task[Any]] = set()

    def of(self, projection: str, version: int) -> PostgresOwnership | None:
        """The one that this process has, lost or not; None when it never asked, or let go of it."""
        return self._mine.get((projection, version))

    async def own(self, projection: str, version: int) -> PostgresOwnership | None:
        """As BuildCatalog."""
        owning = asyncio.ensure_future(self._own(projection, version))
        try:
            return await asyncio.shield(owning)
        except asyncio.CancelledError:
            # What nobody waits for any more must not stay locked.
            self._finish(self._give_up(owning))
            raise

    async def _own(self, projection: str, version: int) -> PostgresOwnership | None:
        async with self._turn:
            key = (projection, version)
            if key in self._mine:
                return None
            return await self._asking(f"the lock of projection {projection}", lambda: self._lock(key))

    async def _lock(self, key: tuple[str, int]) -> PostgresOwnership | None:
        session = await self._connected()
        if not await session.fetchval(_LOCK, self._name(key)):
            return None
        try:
            number = await session.fetchval(_NEXT_NUMBER, *key)
        except BaseException:
            self._end_session()  # it has the lock, without a number
            raise
        ownership = self._mine[key] = PostgresOwnership(self, *key, number)
        return ownership

    async def _give_up(self, owning: asyncio.Future[PostgresOwnership | None]) -> None:
        with contextlib.suppress(KisekiError):
            ownership = await owning
            if ownership is not None:
                await ownership.release()

    async def _release(self, ownership: PostgresOwnership) -> None:
        releasing = self._finish(self._unlock(ownership))
        await asyncio.shield(releasing)

    async def _unlock(self, ownership: PostgresOwnership) -> None:
        async with self._turn:
            key = (ownership.projection, ownership.version)
            if self._mine.get(key) is not ownership:
                return
            session = self._session
            try:
                if ownership.held and session is not None:
                    await self._asking("the lock", lambda: session.execute(_UNLOCK, self._name(key)))
            except KisekiError as problem:
                _log.warning("%s; the session that holds it is ended", problem)
                self._end_session()
            finally:
                ownership.held = False
                self._mine.pop(key, None)

    async def _asking(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return await ask()
        except Exception as problem:
            if not leaves_sound(problem) or (self._session is not None and self._session.is_closed()):
                self._end_session()
            if isinstance(problem, KisekiError) or not is_unavailable(problem):
                raise
            raise unavailable(what, problem) from problem

    async def _connected(self) -> PostgresConnection:
        if self._session is None:
            opened = await connect(
                self._address,
                application=self._application,
                statement_timeout=self._statement_timeout,
                settings=_SETTINGS,
            )
            session = await prepare(opened)
            try:
                await session.add_listener(request_channel(self._address.schema), self._heard)
            except BaseException:
                session.terminate()
                raise
            session.add_termination_listener(self._ended)
            self._session = session
            self._wake()  # what was asked for meanwhile was not heard
        return self._session

    def _heard(self, *_: object) -> None:
        self._wake()

    def _ended(self, session: object) -> None:
        if self._session is session:
            self._end_session()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        for ownership in self._mine.values():
            if ownership.held:
                ownership.held = False
                _log.warning("%s", ownership.lost())
        if session is not None:
            session.terminate()

    def _name(self, key: tuple[str, int]) -> str:
        return f"kiseki: {self._address.schema}.{key[0]}.v{key[1]}"

    def _finish(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def close(self) -> None:
        """Gives up what is left. Again is fine."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        async with self._turn:
            session, self._session = self._session, None
            self._mine.clear()
            if session is not None:
                try:
                    await session.close(timeout=_CLOSE_SECONDS)
                except DRIVER_ERRORS:
                    session.terminate()
