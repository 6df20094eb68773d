"""`scratch_database`: an empty database that is gone at the end, to restore a backup into and look at it.

Used by the PostgreSQL drivers. The first that can be had: a database on the server that was named for it; a server of
our own, when its programs are here; a database on the live server. So the live server has the work last: a restore
reads and writes as much as the journal is large, and fills the same disk.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, quoted
from kiseki.operations.errors import OperationFailed
from kiseki.operations.postgres.child import server_account
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.session import explained_server, session
from kiseki.operations.postgres.throwaway import throwaway_server

__all__ = ["Scratch", "database_name", "database_of", "scratch_database"]

_NAME: Final = re.compile(r"kiseki_verify_\d{12}_[0-9a-f]{8}")
_NEW_NAME: Final = (
    "SELECT 'kiseki_verify_' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYMMDDHH24MISS') || '_' || $1"
)
# Of runs that were killed: of our own role, nobody in it, and old enough to be in use by now if it were.
_LEFTOVERS: Final = r"""
    SELECT datname FROM pg_database AS there
    WHERE datname ~ '^kiseki_verify_\d{12}_[0-9a-f]{8}$' AND datdba = to_regrole(quote_ident(current_user))
      AND substr(datname, 15, 12)
          < to_char(clock_timestamp() AT TIME ZONE 'UTC' - interval '1 minute', 'YYMMDDHH24MISS')
      AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE datid = there.oid)
"""
_MAY_CREATE: Final = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"


class Scratch(NamedTuple):
    """Where throw-away copies may be made."""

    server: PostgresAddress | None = None
    """A database of another server; its role may create databases there."""
    folder: Path | None = None
    """For a server of our own; the system's folder of temporary files unless set."""


@asynccontextmanager
async def scratch_database(
    live: PostgresAddress, programs: PostgresPrograms, scratch: Scratch, *, major: int
) -> AsyncIterator[PostgresAddress]:
    """An empty database for the time of the block; `major` is the live server's.

    Raises OperationFailed when there is no place for one, NoRoom, Unavailable.
    """
    if scratch.server is not None:
        async with _database(scratch.server) as address:
            yield address
    elif await programs.has("initdb", "postgres", at_least=major, account=server_account()):
        async with throwaway_server(programs, base=scratch.folder, major=major) as address:
            yield address
    else:
        async with _database(live) as address:
            yield address


@asynccontextmanager
async def _database(beside: PostgresAddress) -> AsyncIterator[PostgresAddress]:
    with explained_server(beside, "making a throw-away database"):
        async with session(beside) as connection:
            if not await connection.fetchval(_MAY_CREATE):
                raise OperationFailed(
                    f"there is no place for a throw-away copy: the role of {beside.label} may not create databases; "
                    "grant it CREATEDB, or install PostgreSQL's server programs here"
                )
            await _drop_leftovers(connection)
            name: str = await connection.fetchval(_NEW_NAME, secrets.token_hex(4))
            await connection.execute(
                f"CREATE DATABASE {quoted(name)} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
            )
    try:
        address = _in_database(beside, name)
        with explained_server(address, "opening a throw-away database"):
            # Whoever looks for leftovers sees by this session that it is in use.
            keeper = session(address)
            await keeper.__aenter__()
        try:
            yield address
        finally:
            await keeper.__aexit__(None, None, None)
    finally:
        with explained_server(beside, "removing a throw-away database"):
            async with session(beside) as connection:
                await connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


async def _drop_leftovers(connection: PostgresConnection) -> None:
    for row in await connection.fetch(_LEFTOVERS):
        name: str = row["datname"]
        if _NAME.fullmatch(name):
            try:
                await connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)}")
            except asyncpg.ObjectInUseError:
                pass  # somebody uses it after all


def _in_database(address: PostgresAddress, name: str) -> PostgresAddress:
    parts = urllib.parse.urlsplit(address.dsn)
    query = [pair for pair in urllib.parse.parse_qsl(parts.query) if pair[0] not in ("dbname", "database")]
    dsn = parts._replace(path=f"/{name}", query=urllib.parse.urlencode(query, quote_via=urllib.parse.quote)).geturl()
    return dataclasses.replace(address, dsn=dsn, label=f"{address.label.rpartition('/')[0]}/{name}")


def database_name(address: PostgresAddress) -> str:
    """The database of an address."""
    parts = urllib.parse.urlsplit(address.dsn)
    return urllib.parse.unquote(parts.path.removeprefix("/")) or dict(urllib.parse.parse_qsl(parts.query))["dbname"]


def database_of(address: PostgresAddress) -> str:
    """How pg_restore is told the database of an address: it takes the rest from its environment."""
    escaped = database_name(address).replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"
