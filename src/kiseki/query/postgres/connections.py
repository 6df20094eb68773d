"""Connections of PostgreSQL read models: an engine of SQLAlchemy for each kind of use, and what errors mean.

Statements of projections and queries go through SQLAlchemy, kiseki's own through asyncpg on the same connection;
transactions are begun and ended by hand, so that both see the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect, transaction
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.postgres_migrations import require_migrated
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.query.postgres.dialect import as_on_sqlite
from kiseki.query.postgres.schema import COMPONENT, MIGRATIONS

__all__ = [
    "DRIVER_ERRORS",
    "Connections",
    "cause_of",
    "driver_of",
    "leaves_sound",
    "prepare",
    "state_of",
    "unavailable",
]

_CLOSE_SECONDS: Final = 5.0
DRIVER_ERRORS: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What may be raised by a connection that is no longer needed."""


class Connections:
    """At most `size` connections of one kind of use, opened when they are needed. Used on one event loop."""

    def __init__(
        self,
        address: PostgresAddress,
        *,
        application: str,
        size: int,
        statement_timeout: float,
        wait: float,
        settings: Mapping[str, str],
    ) -> None:
        """`settings` of each session. Times in seconds: `wait` for a free connection, `statement_timeout` for each
        statement, kept by the server; what the server does not keep, the client does 2 seconds later."""
        self._address = address
        self._application = application
        self._statement_timeout = statement_timeout
        self._settings = settings
        self._size = size
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level="AUTOCOMMIT",  # transactions are begun and ended here
            pool_size=size,
            max_overflow=0,
            pool_timeout=wait,
            pool_use_lifo=True,
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        as_on_sqlite(self.engine.sync_engine.dialect)
        event.listen(self.engine.sync_engine, "checkout", _refuse_closed)
        self._used = 0
        self._unused = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def _connect(self) -> PostgresConnection:
        connection = await connect(
            self._address,
            application=self._application,
            statement_timeout=self._statement_timeout,
            settings=self._settings,
        )
        return await prepare(connection)

    @asynccontextmanager
    async def use(self, what: str) -> AsyncIterator[AsyncConnection]:
        """A connection outside a transaction, which the block has to leave it as. `what` it is for: for messages.

        Raises Unavailable when there is none, and for every error inside the block that speaks of the server or the
        network. Other errors pass as they are.
        """
        connection = await self.take(what)
        keep = False
        try:
            yield connection
            keep = True
        except Exception as problem:
            keep = leaves_sound(problem)
            if not isinstance(problem, KisekiError) and is_unavailable(cause_of(problem)):
                raise unavailable(what, cause_of(problem)) from problem
            raise
        finally:
            await self.give_back(connection, keep=keep)

    @asynccontextmanager
    async def transaction(self, what: str) -> AsyncIterator[AsyncConnection]:
        """A connection inside a transaction (read committed), which ends with the block. Raises as `use`."""
        async with self.use(what) as connection, transaction(driver_of(connection)):
            yield connection

    async def take(self, what: str) -> AsyncConnection:
        """A connection that has to be given back. Raises Unavailable."""
        if self._closed:
            raise Unavailable(f"{what} can't be used any more: it is closed")
        try:
            connection = await self.engine.connect()
        except PoolTimeout as problem:
            raise Unavailable(f"{what} can't be used now: all {self._size} connections are in use") from problem
        except (DBAPIError, *DRIVER_ERRORS) as problem:
            raise unavailable(what, cause_of(problem)) from problem
        self._used += 1
        return connection

    async def give_back(self, connection: AsyncConnection, *, keep: bool) -> None:
        """Lets go of a connection, and drops it when it is not to be kept; waits for nothing."""
        driver = None if connection.invalidated else driver_of(connection)
        if driver is not None and (not keep or driver.is_closed() or driver.is_in_transaction()):
            # It may take a moment: a statement that still runs is cancelled on the server first.
            leaving = asyncio.create_task(self._drop(connection))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            return
        await self._return(connection)

    async def _drop(self, connection: AsyncConnection) -> None:
        try:
            await connection.invalidate()
        finally:
            await self._return(connection)

    async def _return(self, connection: AsyncConnection) -> None:
        try:
            await connection.close()
        finally:
            self._used -= 1
            self._unused.set()

    async def close(self) -> None:
        """Waits a few seconds for connections in use, and ends all of them. Again is fine."""
        self._closed = True
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._used:
                    self._unused.clear()
                    await self._unused.wait()
                await self.engine.dispose()
        except TimeoutError:
            self.engine.sync_engine.dispose(close=False)


async def prepare(connection: PostgresConnection) -> PostgresConnection:
    """Makes sure that a new connection finds its tables. Raises NotMigrated; what asyncpg raises."""
    try:
        await require_migrated(connection, component=COMPONENT, migrations=MIGRATIONS)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _refuse_closed(connection: Any, *_: object) -> None:
    """The pool opens another one in place of a connection that the server has ended since it was last used."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def driver_of(connection: AsyncConnection) -> PostgresConnection:
    """asyncpg's side of a connection."""
    return cast("PostgresConnection", connection.sync_connection.connection.driver_connection)  # type: ignore[union-attr]


def cause_of(problem: BaseException) -> BaseException:
    """What asyncpg or the system said, under what SQLAlchemy made of it."""
    if isinstance(problem, DBAPIError) and problem.orig is not None:
        return problem.orig.__cause__ or problem.orig
    return problem


def state_of(problem: BaseException) -> str:
    """PostgreSQL's code of an error (SQLSTATE), empty when it has none."""
    cause = cause_of(problem)
    return (cause.sqlstate or "") if isinstance(cause, asyncpg.PostgresError) else ""


def leaves_sound(problem: BaseException) -> bool:
    """Whether a session can go on after an error: a statement was refused, or the server itself gave it up in time.

    Any other error of the server leaves it in doubt: it may be about to end the session, or have become a standby.
    """
    cause = cause_of(problem)
    if isinstance(cause, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
        return True
    return isinstance(problem, KisekiError) or (isinstance(problem, Exception) and not is_unavailable(cause))


def unavailable(what: str, problem: BaseException) -> Unavailable:
    """The error for callers: `what` can't be used, and why, without a value or a secret."""
    if isinstance(problem, KisekiError):
        return problem if isinstance(problem, Unavailable) else Unavailable(str(problem))
    return Unavailable(f"{what} can't be used now: {reason(problem)}")
