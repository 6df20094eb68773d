"""Connections to PostgreSQL 15 or newer: addresses, settings and a small pool. For errors see `postgres_errors`.

Used by the PostgreSQL journal, key store and read model. Settings travel in the startup message, so a pooler in between
has to pass them on (PgBouncer: `ignore_startup_parameters` must not name them) and has to pool sessions, not
transactions: statements are prepared, and `LISTEN` and advisory locks belong to a session.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, Self, TypeAlias

import asyncpg

from kiseki.clients.postgres_errors import PasswordUnavailable, is_unavailable, reason
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "PasswordSource",
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

_SSL_MODES: Final = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_REFERENCE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://")
"""How a password begins that is not one but says where it is."""


class PasswordSource(Protocol):
    """Says the password of a database for each new connection: it may have been rotated since the last."""

    async def password(self) -> str:
        """The password to use now. Raises Unavailable or another KisekiError."""
        ...

    async def renewed(self) -> str:
        """The password to use now, after the server refused the last one: asked for anew where it comes from."""
        ...


@dataclass(frozen=True, repr=False)
class PostgresAddress:
    """Where a database is, how to get in, and the one schema that is used there. Shown only by its label."""

    dsn: str
    """For asyncpg; holds the password unless there is a source of it."""
    schema: str
    label: str
    """Host, port and database: for messages."""
    passwords: PasswordSource | None = None

    @classmethod
    def parse(cls, url: str, *, schema: str, passwords: Callable[[str], PasswordSource] | None = None) -> Self:
        """The address in a URL like `postgresql://user:password@host:5432/database?sslmode=verify-full&schema=name`.

        Parameters are those of libpq. Ours are `schema`, which goes before the default that the caller gives, and
        `auth=aws-iam` with `region`: tokens of IAM instead of a password, only over `sslmode=verify-full`. A password
        that refers to a secret (`password=file:///run/secrets/database`) is resolved by `passwords`, which makes the
        source from the reference. Raises StoreUrlInvalid.
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
        if parameters.get("sslmode", "prefer") not in _SSL_MODES:
            raise StoreUrlInvalid("the URL of a PostgreSQL database has an sslmode that is none; write verify-full")
        source, netloc = _password_source(parts, parameters, passwords)
        query = urllib.parse.urlencode(parameters, quote_via=urllib.parse.quote)
        return cls(
            dsn=urllib.parse.urlunsplit(("postgresql", netloc, parts.path, query, "")),
            schema=schema,
            label=f"{_with_port(hosts, parameters.get('port', '5432'))}/{database}",
            passwords=source,
        )

    def __repr__(self) -> str:
        return f"PostgresAddress({self.label}, schema {self.schema})"

    __str__ = __repr__


def _password_source(
    parts: urllib.parse.SplitResult, parameters: dict[str, str], passwords: Callable[[str], PasswordSource] | None
) -> tuple[PasswordSource | None, str]:
    """The source of the password, if it is not in the URL, and the network location without it. Takes what is ours out
    of the parameters."""
    user, _, hosts = parts.netloc.rpartition("@")
    name, colon, written = user.partition(":")
    auth, region = parameters.pop("auth", None), parameters.pop("region", None)
    if auth is not None or region is not None:
        if auth != "aws-iam" or not region:
            raise StoreUrlInvalid(
                "IAM authentication is auth=aws-iam&region=<region> in the URL of a PostgreSQL database"
            )
        if colon or "password" in parameters:
            raise StoreUrlInvalid("with auth=aws-iam the URL of a PostgreSQL database has no password")
        if parameters.get("sslmode") != "verify-full":
            raise StoreUrlInvalid("auth=aws-iam needs sslmode=verify-full: a token goes to nobody but the database")
        return _iam_tokens(parts, parameters, region), parts.netloc
    password = urllib.parse.unquote(written) if colon else parameters.get("password", "")
    if not _REFERENCE.match(password):
        return None, parts.netloc
    if passwords is None:
        raise StoreUrlInvalid(
            "the password in the URL of a PostgreSQL database refers to a secret, which can't be read here"
        )
    parameters.pop("password", None)
    return passwords(password), f"{name}@{hosts}" if user else hosts


def _iam_tokens(parts: urllib.parse.SplitResult, parameters: dict[str, str], region: str) -> PasswordSource:
    # Only where it is used: it needs the extra `aws`.
    from kiseki.clients.aws_rds import RdsTokens  # noqa: PLC0415

    try:
        host, port = parts.hostname, parts.port or int(parameters.get("port", "5432"))
    except ValueError:
        host, port = None, 0
    user = urllib.parse.unquote(parts.username or "") or parameters.get("user", "")
    if not host or not user or "," in parts.netloc or "host" in parameters:
        raise StoreUrlInvalid("with auth=aws-iam the URL of a PostgreSQL database names a user and one host")
    return RdsTokens(host=host, port=port, user=user, region=region)


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
    A password that comes from a source is asked for at each call, and once more when the server refuses it.
    Raises what asyncpg raises, and PasswordUnavailable: `is_unavailable` and `reason` of `postgres_errors` explain it.
    """

    async def connected(password: str | None) -> PostgresConnection:
        return await asyncpg.connect(
            address.dsn,
            password=password,
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

    source = address.passwords
    if source is None:
        return await connected(None)
    password = await _had(source.password())
    try:
        return await connected(password)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        renewed = await _had(source.renewed())
        if hmac.compare_digest(renewed.encode(), password.encode()):
            raise
    return await connected(renewed)


async def _had(password: Awaitable[str]) -> str:
    try:
        return await password
    except KisekiError as problem:
        raise PasswordUnavailable(str(problem)) from problem


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
