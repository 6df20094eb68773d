"""Sessions of the PostgreSQL drivers: long ones, views of one moment, and errors as one line for an operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.kernel.errors import Unavailable
from kiseki.operations.errors import NoRoom, OperationFailed
from kiseki.operations.postgres.environment import APPLICATION

__all__ = ["Server", "View", "at_once", "explained_server", "server_of", "session", "view"]

_CLOSE_SECONDS: Final = 2.0
_DAY: Final = 86_400.0
_SERVER: Final = """
    SELECT current_setting('server_version_num')::integer / 10000 AS major,
           current_setting('server_version') AS version, pg_is_in_recovery() AS standby
"""
_EXPORT: Final = "SELECT pg_export_snapshot()"
_BEGAN: Final = "SELECT transaction_timestamp()"


class Server(NamedTuple):
    """What a server says of itself."""

    major: int
    version: str
    standby: bool


class View(NamedTuple):
    """All of a database as of one moment, for this session and for a dump."""

    connection: PostgresConnection
    snapshot: str
    as_of: datetime
    """By the clock of the server."""


@contextmanager
def explained_server(address: PostgresAddress, doing: str) -> Iterator[None]:
    """Turns what asyncpg raises into NoRoom, Unavailable or OperationFailed: one line, without a value."""
    try:
        yield
    except (asyncpg.DiskFullError, asyncpg.OutOfMemoryError) as problem:
        raise NoRoom(f"{doing} on {address.label} failed: {reason(problem)}; make room there") from problem
    except asyncpg.InsufficientPrivilegeError as problem:
        raise OperationFailed(
            f"{doing} on {address.label} failed: {str(problem).splitlines()[0]}; use the account that owns the schema"
        ) from problem
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as problem:
        if is_unavailable(problem):
            raise Unavailable(f"{doing} on {address.label} failed: {reason(problem)}") from problem
        raise OperationFailed(f"{doing} on {address.label} failed: {reason(problem)}") from problem


@asynccontextmanager
async def session(address: PostgresAddress, *, lock_timeout: float = 5.0) -> AsyncIterator[PostgresConnection]:
    """A connection for work that may take hours. Raises what asyncpg raises."""
    connection = await connect(
        address,
        application=APPLICATION,
        statement_timeout=_DAY,
        lock_timeout=lock_timeout,
        settings={"idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0"},
    )
    try:
        yield connection
    except Exception:
        await _leave(connection)
        raise
    except BaseException:
        connection.terminate()
        raise
    await _leave(connection)


async def _leave(connection: PostgresConnection) -> None:
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


@asynccontextmanager
async def view(address: PostgresAddress) -> AsyncIterator[View]:
    """A view of one moment, for the time of the block: the server keeps old rows for so long, and locks nothing."""
    async with (
        session(address) as connection,
        # asyncpg's own transaction: its cursors want to know of one.
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        as_of = await connection.fetchval(_BEGAN)
        yield View(connection, await connection.fetchval(_EXPORT), as_of)


async def server_of(address: PostgresAddress) -> Server:
    """What the server of an address says of itself. Raises Unavailable, OperationFailed."""
    with explained_server(address, "connecting"):
        async with session(address) as connection:
            row = await connection.fetchrow(_SERVER)
    assert row is not None  # noqa: S101  # it has no FROM
    return Server(row["major"], row["version"], row["standby"])


async def at_once(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Does all of it at the same time; the first error ends the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
