"""Connections to PostgreSQL 15 or newer: addresses, settings and a small pool. For errors see `postgres_errors`.

Used by the PostgreSQL journal, key store and read model. Settings travel in the startup message, so a pooler in between
has to pass them on (PgBouncer: `ignore_startup_parameters` must not name them) and has to pool sessions, not
transactions: statements are prepared, and `LISTEN` and advisory locks belong to a session.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import asyncpg

from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "PostgresAddress",
    "PostgresConnection",
    "PostgresPool",
    "connect",
    "quoted",
    "transaction",
]

PostgresConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,40}")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(:\d{1,5})?")
"""One host of a URL, with its port if there is one."""
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_URL: Final = "postgresql://user:password@host:5432/database?sslmode=verify-full"

_PATIENCE: Final = 2.0
"""Seconds that a client waits for an answer longer than the server works on it: then the server is frozen or gone."""

_CLOSE_SECONDS: Final = 2.0


@dataclass(frozen=True, repr=False)
class PostgresAddress:
    """Where a database is, how to get in, and the one schema that is used there. Shown only by its label."""

    dsn: str
    """For asyncpg; holds the password."""
    schema: str
    label: str
    """Host, port and database: for messages."""

    @classmethod
    def parse(cls, url: str, *, schema: str) -> Self:
        """The address in a URL like `postgresql://user:password@host:5432/database?sslmode=verify-full&schema=name`.

        Parameters are those of libpq; `schema` is ours, and goes before the default that the caller gives.
        Raises StoreUrlInvalid.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as problem:
            raise StoreUrlInvalid(f"the URL of a PostgreSQL database can't be read; write it as {_URL}") from problem
        if parts.scheme not in ("postgresql", "postgres"):
            raise StoreUrlInvalid(f"the URL of a PostgreSQL database begins with postgresql://, as in {_URL}")
        if parts.fragment:
            raise StoreUrlInvalid("the URL of a PostgreSQL database has a `#`; write it as %23")
        parameters = dict(pairs)
        if len(parameters) != len(pairs):
            raise StoreUrlInvalid("the URL of a PostgreSQL database gives a parameter twice")
        schema = parameters.pop("schema", schema)
        if not _SCHEMA.fullmatch(schema):
            raise StoreUrlInvalid(f"the schema {schema[:60]!a} has to match {_SCHEMA.pattern}")
        hosts = parts.netloc.rpartition("@")[2] or parameters.get("host", "")
        database = urllib.parse.unquote(parts.path.removeprefix("/")) or parameters.get("dbname", "")
        if not hosts or not database:
            raise StoreUrlInvalid(f"the URL of a PostgreSQL database names a host and a database, as in {_URL}")
        if not all(_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(",")):
            raise StoreUrlInvalid(f"the URL of a PostgreSQL database has a port that is no number; write it as {_URL}")
        if "@" in parts.netloc.rpartition("@")[0]:
            raise StoreUrlInvalid("the user or password in the URL of a PostgreSQL database has a `@`; write it as %40")
        query = urllib.parse.urlencode(parameters, quote_via=urllib.parse.quote)
        return cls(
            dsn=urllib.parse.urlunsplit(("postgresql", parts.netloc, parts.path, query, "")),
            schema=schema,
            label=f"{_with_port(hosts, parameters.get('port', '5432'))}/{database}",
        )

    def __repr__(self) -> str:
        return f"PostgresAddress({self.label}, schema {self.schema})"

    __str__ = __repr__


def _with_port(hosts: str, port: str) -> str:
    if "," in hosts or hosts.startswith("/") or re.search(r":\d+$", hosts):
        return hosts
    return f"{hosts}:{port}"


def quoted(identifier: str) -> str:
    """A name of a schema, table or channel for use in a statement. Raises ValueError for one that is not plain."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise ValueError(f"not a plain SQL name: {identifier[:70]!a}")
    return f'"{identifier}"'


async def connect(
    address: PostgresAddress,
    *,
    application: str,
    timeout: float = 5.0,  # noqa: ASYNC109  # of the connection, not only of this call
    statement_timeout: float = 20.0,
    lock_timeout: float = 5.0,
    settings: Mapping[str, str] | None = None,
) -> PostgresConnection:
    """A new connection; times in seconds, `timeout` for connecting, the others kept by the server for each statement.

    The limits are the server's, so that a client that vanished holds nothing for long. A statement that the server
    does not end in time (it is frozen, the network is gone) raises TimeoutError a little later. `settings`: more of the
    server's, for this session.
    Raises what asyncpg raises; `is_unavailable` and `reason` of `postgres_errors` explain it.
    """
    return await asyncpg.connect(
        address.dsn,
        timeout=timeout,
        command_timeout=statement_timeout + _PATIENCE,
        server_settings={
            "application_name": application,
            "search_path": quoted(address.schema),
            "timezone": "UTC",
            "jit": "off",
            "default_transaction_isolation": "read committed",
            "statement_timeout": _milliseconds(statement_timeout),
            "lock_timeout": _milliseconds(lock_timeout),
            "idle_in_transaction_session_timeout": _milliseconds(lock_timeout),
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "20000",
            "client_connection_check_interval": "5000",
            **(settings or {}),
        },
    )


@asynccontextmanager
async def transaction(connection: PostgresConnection) -> AsyncIterator[None]:
    """A transaction for the time of the block, rolled back when the block raises; on a connection of a pool.

    Unlike asyncpg's own it asks nothing of a server that does not answer any more, nor for a caller that was cancelled:
    the pool drops the connection then. Raises what asyncpg raises.
    """
    await connection.execute("BEGIN")
    try:
        yield
    except Exception as problem:
        if not isinstance(problem, OSError | asyncpg.InterfaceError) and not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    if await connection.execute("COMMIT") != "COMMIT":
        raise asyncpg.InFailedSQLTransactionError("a statement of the transaction had failed")


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


class PostgresPool:
    """At most `size` connections, opened when they are needed: a server that is down harms nobody who does not ask.

    Between two uses nothing is sent to the server, so whoever changes a session (SET, LISTEN, locks) puts it back.
    A connection is dropped when it broke, when its user was cancelled, or when it comes back inside a transaction.
    """

    def __init__(
        self,
        address: PostgresAddress,
        *,
        size: int,
        application: str,
        prepare: Callable[[PostgresConnection], Awaitable[None]] | None = None,
        unavailable: Callable[[str], Unavailable],
        connect_timeout: float = 5.0,
        acquire_timeout: float = 5.0,
        statement_timeout: float = 20.0,
        lock_timeout: float = 5.0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`prepare` runs once on every new connection and may refuse it. `unavailable` makes the error of a short
        reason, in the caller's words. Times in seconds."""
        self._address = address
        self._application = application
        self._prepare = prepare
        self._unavailable = unavailable
        self._connect_timeout = connect_timeout
        self._acquire_timeout = acquire_timeout
        self._statement_timeout = statement_timeout
        self._lock_timeout = lock_timeout
        self._settings = settings
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._idle: list[PostgresConnection] = []
        self._used: set[PostgresConnection] = set()
        self._closed = False
        self._returned = asyncio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PostgresConnection]:
        """A connection for the time of the block.

        Raises Unavailable when there is none, and in place of every error inside the block that speaks of the server or
        the network (its `__cause__`). Other errors pass as they are.
        """
        connection = await self._acquire()
        keep = False
        try:
            yield connection
            keep = True
        except Exception as problem:
            if isinstance(problem, KisekiError) or not is_unavailable(problem):
                keep = True
                raise
            # Timeouts that the server itself kept leave the session as it was. Otherwise the others are in doubt too:
            # the server may have gone, or become a standby.
            keep = isinstance(problem, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError)
            if not keep:
                self._drop_idle()
            raise self._unavailable(reason(problem)) from problem
        finally:
            self._release(connection, keep=keep)

    async def close(self, *, seconds: float = 5.0) -> None:
        """Ends all connections; waits up to `seconds` for those in use. Again is fine."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await _close(connection)
        try:
            async with asyncio.timeout(seconds):
                while self._used:
                    self._returned.clear()
                    await self._returned.wait()
        except TimeoutError:
            for connection in self._used:
                connection.terminate()

    async def _acquire(self) -> PostgresConnection:
        self._refuse_when_closed()
        if self._free.locked():
            try:
                async with asyncio.timeout(self._acquire_timeout):
                    await self._free.acquire()
            except TimeoutError as problem:
                raise self._unavailable(f"all {self._size} connections are in use") from problem
        else:
            await self._free.acquire()
        try:
            self._refuse_when_closed()
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    break
            else:
                connection = await self._open()
        except BaseException:
            self._free.release()
            raise
        self._used.add(connection)
        return connection

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise self._unavailable("it is closed")

    async def _open(self) -> PostgresConnection:
        connection: PostgresConnection | None = None
        try:
            connection = await connect(
                self._address,
                application=self._application,
                timeout=self._connect_timeout,
                statement_timeout=self._statement_timeout,
                lock_timeout=self._lock_timeout,
                settings=self._settings,
            )
            if self._prepare is not None:
                await self._prepare(connection)
            self._refuse_when_closed()
        except BaseException as problem:
            if connection is not None:
                connection.terminate()
            if isinstance(problem, Exception) and is_unavailable(problem):
                raise self._unavailable(reason(problem)) from problem
            raise
        return connection

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    def _release(self, connection: PostgresConnection, *, keep: bool) -> None:
        self._used.discard(connection)
        if not connection.is_closed():
            if keep and not self._closed and not connection.is_in_transaction():
                self._idle.append(connection)
            else:
                # Not a polite goodbye: that would wait for a statement that is still running.
                connection.terminate()
        self._free.release()
        self._returned.set()


async def _close(connection: PostgresConnection) -> None:
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
