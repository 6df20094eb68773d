"""How many commits of the journal a step of the protection has copied. Used by it alone, for what it tells."""

from __future__ import annotations

from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresConnection
from kiseki.journal.postgres.feed import Place, read_head
from kiseki.operations.postgres.wal import Head

__all__ = ["commits_between", "feed_head"]

_START: Final = Place(0, 0, 0)
_BETWEEN: Final = """
    SELECT count(*) FROM commits
    WHERE (epoch, xid, position) > ($1, $2, $3) AND (epoch, xid, position) <= ($4, $5, $6)
"""


async def feed_head(connection: PostgresConnection) -> Place:
    """Where the journal's feed is; its start when no journal can be read there, because the rest of a cluster is
    worth protecting all the same. Raises what asyncpg raises."""
    try:
        return await read_head(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        return _START


async def commits_between(connection: PostgresConnection, before: Head | None, newest: Place) -> int:
    """How many commits came after the head of the last step. Raises what asyncpg raises."""
    if newest == _START:
        return 0
    known = Place(*map(int, before.feed.split("."))) if before is not None else _START
    counted: int = await connection.fetchval(_BETWEEN, *known, *newest)
    return counted
