"""The catalog of PostgreSQL read models: its statements, each on a connection and in a transaction of the caller's.

`PostgresBuilds` in `builds` has the connections. A few rows, written seldom, by any process.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresConnection, quoted
from kiseki.projection.port import Build, BuildName, BuildState, Request, RequestKind
from kiseki.query.postgres.schema import request_channel, schema_names

__all__ = ["FIND_SERVED", "PostgresCatalog"]

FIND_SERVED: Final = """
    SELECT asked.projection, served.generation, served.schema_name,
           CASE WHEN served.schema_name IS NULL THEN NULL
           ELSE pg_advisory_xact_lock_shared(hashtextextended(served.schema_name, 0)) IS NULL END AS kept
    FROM unnest($1::text[], $2::bigint[]) AS asked (projection, version)
    LEFT JOIN LATERAL (
        SELECT generation, schema_name FROM read_model_builds AS builds
        WHERE builds.projection = asked.projection AND builds.version = asked.version AND promoted_at IS NOT NULL
        ORDER BY generation DESC LIMIT 1
    ) AS served ON true
"""
"""The builds that answer queries of projections' versions: of each the newest generation that was ever live. It may be
retired, while another version is live: processes of this version go on reading it. None is deleted before the end of
the transaction."""

_DELETING: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_ONE_WRITER: Final = "LOCK TABLE read_model_builds IN SHARE ROW EXCLUSIVE MODE"
_BUILDS: Final = """
    SELECT projection, version, generation, state, created_at, promoted_at, retired_at, problem
    FROM read_model_builds WHERE $1::text IS NULL OR projection = $1 ORDER BY projection, version, generation
"""
_NEXT: Final = """
    INSERT INTO read_model_generations AS generations (projection, version, last) VALUES ($1, $2, 1)
    ON CONFLICT (projection, version) DO UPDATE SET last = generations.last + 1 RETURNING last
"""
_SCHEMA_TAKEN: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
_ADD: Final = """
    INSERT INTO read_model_builds (projection, version, generation, schema_name, state, created_at)
    VALUES ($1, $2, $3, $4, 'building', $5)
"""
_SCHEMA_OF: Final = """
    SELECT schema_name FROM read_model_builds WHERE projection = $1 AND version = $2 AND generation = $3
"""
_RETIRE: Final = """
    UPDATE read_model_builds SET state = 'retired', retired_at = $1
    WHERE projection = $2 AND state = 'live' AND NOT (version = $3 AND generation = $4)
"""
_PROMOTE: Final = """
    UPDATE read_model_builds
    SET state = 'live', promoted_at = coalesce(promoted_at, $1), retired_at = NULL, problem = NULL
    WHERE projection = $2 AND version = $3 AND generation = $4
"""
_DEMOTE: Final = """
    UPDATE read_model_builds SET state = 'building', promoted_at = NULL, retired_at = NULL
    WHERE projection = $1 AND version = $2 AND generation = $3
"""
_FORGET_SERVED: Final = """
    UPDATE read_model_builds SET promoted_at = NULL
    WHERE projection = $1 AND version = $2 AND generation < $3 AND state = 'retired'
"""
_NOTE: Final = """
    UPDATE read_model_builds SET problem = $1 WHERE projection = $2 AND version = $3 AND generation = $4
"""
_REMOVE: Final = """
    DELETE FROM read_model_builds WHERE projection = $1 AND version = $2 AND generation = $3 AND state <> 'live'
    RETURNING schema_name
"""
_REQUEST: Final = """
    INSERT INTO read_model_requests (projection, version, kind, stream, requested_at) VALUES ($1, $2, $3, $4, $5)
    RETURNING id
"""
_ANNOUNCE: Final = "SELECT pg_notify($1, '')"
_FORGET_OLD: Final = """
    DELETE FROM read_model_requests
    WHERE finished_at IS NOT NULL AND id < (SELECT max(id) - 1000 FROM read_model_requests)
"""
_COLUMNS: Final = "id, projection, version, kind, stream, requested_at, finished_at, outcome"
_REQUESTS: Final = f"""
    SELECT {_COLUMNS} FROM read_model_requests
    WHERE projection = $1 AND version = $2 AND finished_at IS NULL ORDER BY id
"""  # noqa: S608  # of constants
_REQUEST_OF: Final = f"SELECT {_COLUMNS} FROM read_model_requests WHERE id = $1"  # noqa: S608  # of constants
_FINISH: Final = "UPDATE read_model_requests SET finished_at = $1, outcome = $2 WHERE id = $3"


class PostgresCatalog:
    """The statements. Every method raises what asyncpg raises; those that change builds are run in a transaction."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    async def builds(self, connection: PostgresConnection, projection: str | None) -> list[Build]:
        """As BuildCatalog."""
        return [_build(row) for row in await connection.fetch(_BUILDS, projection)]

    async def schema_of(self, connection: PostgresConnection, name: BuildName) -> str | None:
        """The schema of a build, None when there is no such build."""
        schema: str | None = await connection.fetchval(_SCHEMA_OF, *name)
        return schema

    async def create(
        self, connection: PostgresConnection, projection: str, version: int, now: datetime
    ) -> tuple[Build, str]:
        """Records the next generation, building, and makes its schema, which is empty; both, and the schema's name."""
        name = BuildName(projection, version, await connection.fetchval(_NEXT, projection, version))
        schema, other = schema_names(self._schema, name)
        if await connection.fetchval(_SCHEMA_TAKEN, schema):
            schema = other
        await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
        await connection.execute(_ADD, *name, schema, now)
        build = Build(
            name=name, state=BuildState.BUILDING, created_at=now, promoted_at=None, retired_at=None, problem=None
        )
        return build, schema

    async def promote(self, connection: PostgresConnection, name: BuildName, now: datetime) -> None:
        """As BuildCatalog."""
        await connection.execute(_ONE_WRITER)
        await connection.execute(_RETIRE, now, *name)
        await connection.execute(_PROMOTE, now, *name)

    async def demote(self, connection: PostgresConnection, name: BuildName) -> None:
        """As BuildCatalog."""
        await connection.execute(_ONE_WRITER)
        await connection.execute(_FORGET_SERVED, *name)
        await connection.execute(_DEMOTE, *name)

    async def note(self, connection: PostgresConnection, name: BuildName, problem: str | None) -> None:
        """As BuildCatalog."""
        await connection.execute(_NOTE, problem, *name)

    async def remove(self, connection: PostgresConnection, name: BuildName) -> None:
        """Forgets a build and deletes its schema, once no query reads it any more."""
        schema = await self.schema_of(connection, name)
        if schema is None:
            return
        await connection.execute(_DELETING, schema)
        await connection.execute(_ONE_WRITER)
        if await connection.fetchval(_REMOVE, *name) is not None:
            await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE")

    async def request(
        self,
        connection: PostgresConnection,
        projection: str,
        version: int,
        *,
        kind: RequestKind,
        stream: str | None,
        now: datetime,
    ) -> Request:
        """As BuildCatalog."""
        await connection.execute(_FORGET_OLD)
        request_id = await connection.fetchval(_REQUEST, projection, version, kind.value, stream, now)
        await connection.execute(_ANNOUNCE, request_channel(self._schema))
        return Request(
            id=request_id,
            projection=projection,
            version=version,
            kind=kind,
            stream=stream,
            requested_at=now,
            finished_at=None,
            outcome=None,
        )

    async def requests(self, connection: PostgresConnection, projection: str, version: int) -> list[Request]:
        """As BuildCatalog."""
        return [_request(row) for row in await connection.fetch(_REQUESTS, projection, version)]

    async def request_of(self, connection: PostgresConnection, request_id: int) -> Request | None:
        """As BuildCatalog."""
        row = await connection.fetchrow(_REQUEST_OF, request_id)
        return None if row is None else _request(row)

    async def finish(self, connection: PostgresConnection, request_id: int, outcome: str, now: datetime) -> None:
        """As BuildCatalog."""
        await connection.execute(_FINISH, now, outcome, request_id)


def _build(row: asyncpg.Record) -> Build:
    return Build(
        name=BuildName(row["projection"], row["version"], row["generation"]),
        state=BuildState(row["state"]),
        created_at=row["created_at"],
        promoted_at=row["promoted_at"],
        retired_at=row["retired_at"],
        problem=row["problem"],
    )


def _request(row: asyncpg.Record) -> Request:
    values = dict(row)
    return Request(**{**values, "kind": RequestKind(values["kind"])})
