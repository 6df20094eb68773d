"""What a PostgreSQL server itself says about its connections. Used by `kiseki scale show`."""

from __future__ import annotations

from typing import Final

import msgspec

from kiseki.clients.postgres import PostgresAddress, connect
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.operations.errors import OperationFailed

__all__ = ["ServerInForce", "server_in_force"]

_QUESTION: Final = """
    SELECT current_setting('max_connections')::int AS maximum,
        current_setting('superuser_reserved_connections')::int
            + coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::int
            + coalesce(nullif(current_setting('rds.rds_superuser_reserved_connections', true), ''), '0')::int
            AS reserved,
        (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
            AS open
"""


class ServerInForce(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A server's connections."""

    server: str
    """Host and port."""
    max_connections: int
    reserved: int
    """Of those, what an ordinary account can't have."""
    open: int
    """Now, without the one that asks."""


async def server_in_force(server: str, address: PostgresAddress) -> ServerInForce:
    """Asks through one connection. Raises OperationFailed."""
    try:
        connection = await connect(address, application="kiseki scale", statement_timeout=5.0)
        try:
            row = await connection.fetchrow(_QUESTION)
        finally:
            await connection.close(timeout=5.0)
    except Exception as problem:
        if not is_unavailable(problem):
            raise
        raise OperationFailed(f"{address.label} can't be asked: {reason(problem)}") from problem
    assert row is not None  # noqa: S101  # the statement always gives one
    return ServerInForce(server=server, max_connections=row["maximum"], reserved=row["reserved"], open=row["open"])
