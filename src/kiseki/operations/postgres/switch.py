"""Putting a staged schema in the place of a live one, in one transaction; the old one is kept aside, fenced.

Used by the PostgreSQL drivers. Renaming keeps what sessions have prepared from leading into the old tables, and a
trigger on each of those refuses whoever gets there all the same.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, quoted, transaction
from kiseki.kernel.ports import Clock
from kiseki.operations.errors import OperationFailed, RestoreRefused
from kiseki.operations.postgres.grants import Grants, apply_grants, read_grants
from kiseki.operations.postgres.session import explained_server, session

__all__ = ["Merge", "StagedSchemas", "Switching", "staged_name"]

_LONGEST: Final = 30
"""Of a schema's name that another one is made of, so that what is behind it has room."""
_PATIENCE_SECONDS: Final = 2.0
"""How long sessions that are just ending are waited for."""
_LOCK_SECONDS: Final = 2.0

_KEEP: Final = "SELECT pg_advisory_lock(hashtextextended($1, 0))"
# What was switched to has lost this name, so it is never among them, and neither is what came with it.
_LEFTOVERS: Final = r"""
    SELECT nspname FROM pg_namespace
    WHERE nspname ~ ('^' || $1 || '_restored_\d{12}_[0-9a-f]{4}$') AND pg_has_role(current_user, nspowner, 'USAGE')
"""
_WITH_IT: Final = r"SELECT nspname FROM pg_namespace WHERE nspname ~ ('^' || $1 || '(_\d+)?$') ORDER BY nspname"
_UNUSED: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
_LET_GO: Final = "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
_ONE_SWITCH: Final = "SELECT pg_advisory_xact_lock(hashtextextended('kiseki restore', 0))"
_IN_USE: Final = """
    SELECT application_name, count(*) AS sessions FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE ANY ($1::text[]) AND pid <> pg_backend_pid()
    GROUP BY application_name ORDER BY application_name
"""
_EXISTS: Final = "SELECT to_regnamespace(quote_ident($1)) IS NOT NULL"
_TABLES: Final = """
    SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relkind IN ('r', 'p')
    ORDER BY relname
"""
_REFUSE: Final = """() RETURNS trigger LANGUAGE plpgsql AS $refuse$
    BEGIN
        RAISE EXCEPTION 'this store was replaced by a restore; restart what still writes to it' USING ERRCODE = '55000';
    END $refuse$
"""


class Switching(NamedTuple):
    """Inside the transaction of a switch: the old one was renamed, the new one has its place."""

    connection: PostgresConnection
    live: str
    """The schema that is live now."""
    replaced: str | None
    """The old one; None when there was none."""


Merge = Callable[[Switching], Awaitable[Sequence[str]]]
"""What else belongs to the switch of a store; gives what is left to do for the operator."""


def staged_name(schema: str, now: datetime, number: int | None = None) -> str:
    """A new name for a schema beside a live one."""
    last = "" if number is None else f"_{number}"
    return f"{schema[:_LONGEST]}_restored_{now.astimezone(UTC):%y%m%d%H%M%S}_{secrets.token_hex(2)}{last}"


class StagedSchemas:
    """Restored schemas beside the live one, kept from being cleared away while this session lasts."""

    def __init__(self, address: PostgresAddress, *, clock: Clock, sessions: Sequence[str]) -> None:
        """`sessions`: patterns (LIKE) of the application names that use the live store."""
        self._address = address
        self._clock = clock
        self._sessions = list(sessions)
        self._keeper = session(address)
        self._keeping: PostgresConnection | None = None
        self._stage: str | None = None

    async def keep(self, stage: str) -> None:
        """Before a schema is staged: says that it is in use, and clears away what killed runs left. Schemas that come
        with it are called like it, with a number. Raises as `switch`."""
        with explained_server(self._address, "staging a restore"):
            connection = await self._keeper.__aenter__()
            self._keeping = connection
            await connection.execute(_KEEP, stage)
            for row in await connection.fetch(_LEFTOVERS, self._address.schema[:_LONGEST]):
                if await connection.fetchval(_UNUSED, row["nspname"]):
                    await _drop(connection, row["nspname"])
                    await connection.execute(_LET_GO, row["nspname"])
        self._stage = stage

    async def switch(self, merge: Merge, kept: Grants | None) -> tuple[str, list[str]]:
        """Makes the staged schema the live one: the name of the old one (empty when there was none), and what is left.

        `merge` runs inside the transaction. Rights are those of the live one, or `kept` when it is not there any more.
        Raises RestoreRefused, Unavailable, OperationFailed, NoRoom; nothing was changed then.
        """
        stage = self._stage
        if stage is None:
            raise OperationFailed("what was restored is live already, or was removed")
        with explained_server(self._address, "switching to what was restored"):
            async with session(self._address, lock_timeout=_LOCK_SECONDS) as connection:
                try:
                    replaced, left = await self._switched(connection, stage, merge, kept)
                except asyncpg.LockNotAvailableError as problem:
                    raise self._busy("somebody holds a lock on it") from problem
        self._stage = None
        await self._let_go()
        return replaced or "", left

    async def discard(self) -> None:
        """Removes what was staged; nothing after `switch`. Again is fine."""
        stage, self._stage = self._stage, None
        if stage is not None:
            with explained_server(self._address, "removing what was staged"):
                async with session(self._address) as connection, transaction(connection):
                    await _drop(connection, stage)
        await self._let_go()

    async def _let_go(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            await self._keeper.__aexit__(None, None, None)

    async def _switched(
        self, connection: PostgresConnection, stage: str, merge: Merge, kept: Grants | None
    ) -> tuple[str | None, list[str]]:
        live = self._address.schema
        await self._wait_unused(connection)
        replaced = None
        async with transaction(connection):
            await connection.execute(_ONE_SWITCH)
            grants = kept
            if await connection.fetchval(_EXISTS, live):
                # A damaged store lacks tables, so whatever is there is taken.
                tables = [row["relname"] for row in await connection.fetch(_TABLES, live)]
                for table in tables:
                    await connection.execute(f"LOCK TABLE {quoted(live)}.{quoted(table)} IN ACCESS EXCLUSIVE MODE")
                await self._refuse_in_use(connection)
                grants = await read_grants(connection, live) or kept
                replaced = _replaced_name(live, self._clock.now())
                await connection.execute(f"ALTER SCHEMA {quoted(live)} RENAME TO {quoted(replaced)}")
                await _fence(connection, replaced, tables)
            await connection.execute(f"ALTER SCHEMA {quoted(stage)} RENAME TO {quoted(live)}")
            left = [*await merge(Switching(connection, live, replaced))]
            if grants is not None:
                left += await apply_grants(connection, live, grants)
        return replaced, left

    async def _wait_unused(self, connection: PostgresConnection) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while await connection.fetch(_IN_USE, self._sessions):  # noqa: ASYNC110  # of the server, not of ours
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self._refuse_in_use(connection)

    async def _refuse_in_use(self, connection: PostgresConnection) -> None:
        used = await connection.fetch(_IN_USE, self._sessions)
        if used:
            raise self._busy(", ".join(f"{row['sessions']} × {row['application_name']}" for row in used))

    def _busy(self, who: str) -> RestoreRefused:
        return RestoreRefused(
            f"the schema {self._address.schema} on {self._address.label} is in use ({who}); stop all processes of the "
            "service on all machines, and run the same again; nothing was changed"
        )


def _replaced_name(schema: str, now: datetime) -> str:
    return f"{schema[:_LONGEST]}_replaced_{now.astimezone(UTC):%Y%m%dt%H%M%Sz}_{secrets.token_hex(2)}"


async def _drop(connection: PostgresConnection, stage: str) -> None:
    for row in await connection.fetch(_WITH_IT, stage):
        await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(row['nspname'])} CASCADE")


async def _fence(connection: PostgresConnection, schema: str, tables: Sequence[str]) -> None:
    function = f"{quoted(schema)}.refuse_replaced"
    await connection.execute(f"CREATE FUNCTION {function}{_REFUSE}")
    for table in tables:
        await connection.execute(
            f"CREATE TRIGGER refuse_replaced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE "
            f"ON {quoted(schema)}.{quoted(table)} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )
