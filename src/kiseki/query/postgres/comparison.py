"""Compares the guards of two builds of a projection version, before one of them takes over from the other.

Used by `builds`, inside the transaction of a promotion.
"""

# ruff: noqa: S608  # statements are made of constants and of names that `quoted` has seen

from __future__ import annotations

from typing import Final

from kiseki.clients.postgres import PostgresConnection, quoted
from kiseki.query.postgres.build import BuildSchema
from kiseki.query.tables import COMPARED_AT_MOST, guards

__all__ = ["streams_behind"]

_LONGEST: Final = "300s"
"""For the comparison: about a second for a million streams."""
_PLANNED: Final = """
    SELECT set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'on', true),
           set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true)
"""
"""All of both tables is read, which the settings of a writer's session are against."""


async def streams_behind(
    connection: PostgresConnection, candidate: BuildSchema, replaced: BuildSchema
) -> dict[str, int]:
    """The first streams, by name, of which `replaced` has applied more than `candidate`, and how far it is.

    Nobody writes to `replaced` from here to the end of the transaction. Nothing when it is not there: then it answers
    no query either. Raises BuildMissing when the candidate is not there, and what asyncpg raises.
    """
    await candidate.position(connection)
    if await connection.fetchval("SELECT to_regclass($1)", _guards(replaced)) is None:
        return {}
    await connection.execute(f"LOCK TABLE {_guards(replaced)} IN SHARE MODE")
    await connection.execute(_PLANNED, _LONGEST)
    found = await connection.fetch(
        f"""
        SELECT replaced.stream, replaced.sequence_number
        FROM {_guards(replaced)} AS replaced LEFT JOIN {_guards(candidate)} AS candidate USING (stream)
        WHERE replaced.sequence_number > coalesce(candidate.sequence_number, 0)
        ORDER BY replaced.stream LIMIT $1
        """,
        COMPARED_AT_MOST,
    )
    return {row[0]: row[1] for row in found}


def _guards(build: BuildSchema) -> str:
    return f"{quoted(build.schema)}.{quoted(guards.name)}"
