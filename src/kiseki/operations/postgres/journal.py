"""`PostgresJournalBackups`: the JournalBackups of a journal in PostgreSQL. Made by the composition of operations."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresAddress, quoted
from kiseki.journal.postgres.feed import position_of, read_head
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.postgres.schema import COMPONENT, MIGRATIONS, Lives, continue_epochs, read_lives
from kiseki.kernel.ports import Clock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.contents import ContentsDigest
from kiseki.operations.backup.manifest import Contents, Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.errors import BackupRefused, OperationFailed
from kiseki.operations.postgres.dump import Dumps
from kiseki.operations.postgres.grants import Grants, load_grants, read_grants, save_grants
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import Scratch
from kiseki.operations.postgres.session import View, at_once, explained_server, server_of, view
from kiseki.operations.postgres.switch import StagedSchemas, Switching, staged_name

__all__ = ["PostgresJournalBackups", "PostgresStagedJournal", "opened_journal"]

_SESSIONS: Final = ("kiseki journal%",)
_PAGE: Final = 1_000
_EVERY: Final = 100_000
_STATEMENT_SECONDS: Final = 300.0
"""A restored journal has no statistics yet."""
_COMMITS: Final = "SELECT stream, first_sequence, count, document, committed_at FROM commits"
_CLAIMS: Final = "SELECT count(*) FROM claims"
_THERE: Final = "SELECT to_regclass($1) IS NOT NULL"
_SNAPSHOTS: Final = "snapshots"
"""Left out: they are made again."""


class PostgresJournalBackups:
    """Backups by pg_dump of the journal's schema."""

    store = "postgresql"

    def __init__(
        self,
        address: PostgresAddress,
        programs: PostgresPrograms,
        *,
        clock: Clock,
        scratch: Scratch | None = None,
        into: PostgresAddress | None = None,
    ) -> None:
        """`scratch`: where throw-away copies are made. `into`: another database to restore into, for those who then
        change the URL; the journal's own unless set."""
        self._address = address
        self._into = into or address
        self._clock = clock
        self._dumps = Dumps(address, programs, scratch or Scratch())

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups: a dump as of one moment, and by the same view what has to be in it.

        Raises BackupRefused for a schema that holds more than a journal, ToolMissing, NoRoom, OperationFailed.
        """
        server = await server_of(self._address)
        with explained_server(self._address, "the backup of the journal"):
            async with view(self._address) as moment:
                try:
                    await self._dumps.refuse_foreign(moment, (COMPONENT,))
                except asyncpg.UndefinedTableError as problem:
                    raise BackupRefused(
                        f"there is no journal in the schema {self._address.schema} on {self._address.label}, or its "
                        "role may not use it; check the setting `journal`"
                    ) from problem
                lives = await read_lives(moment.connection)
                position = position_of(await read_head(moment.connection), lives)
                grants = await read_grants(moment.connection, self._address.schema)
                progress("dumping")
                versions, contents = await at_once(
                    self._dumps.dump(
                        folder,
                        moment,
                        major=server.major,
                        schemas=[self._address.schema],
                        without_data=[f"{quoted(self._address.schema)}.{_SNAPSHOTS}"],
                    ),
                    _contents(moment, progress),
                )
        if grants is not None:
            await asyncio.to_thread(save_grants, folder, [(self._address.schema, grants)])
        await self._look(folder)
        return Made(
            store=self.store,
            method="dump",
            as_of=moment.as_of,
            versions={"postgresql": server.version, "journal": str(MIGRATIONS[-1].number), **versions},
            position=position,
            contents=contents,
            references={"schema": self._address.schema},
        )

    async def _look(self, folder: Path) -> None:
        there = await self._dumps.tables(folder)
        missing = [
            name for name in ("commits", "claims", "epochs", "idempotency") if f"{self._schema}.{name}" not in there
        ]
        if missing:
            raise OperationFailed(f"pg_dump left {missing[0]} out of the dump; look at the rights of its role")

    @property
    def _schema(self) -> str:
        return self._address.schema

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[PostgresJournal]:
        """As JournalBackups. Raises ToolMissing, NoRoom, OperationFailed when there is no place for a copy."""
        async with self._dumps.restored(folder, manifest) as scratch:
            address = dataclasses.replace(scratch, schema=_schema_of(manifest))
            await PostgresJournal.migrate(address)
            async with opened_journal(address, self._clock) as journal:
                yield journal

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> PostgresStagedJournal:
        """As JournalBackups: in a schema of its own, in the same database."""
        kept = (await asyncio.to_thread(load_grants, folder)).get(_schema_of(manifest))
        name = staged_name(self._into.schema, self._clock.now())
        staged = StagedSchemas(self._into, clock=self._clock, sessions=_SESSIONS)
        try:
            await staged.keep(name)
            progress("restoring into a throw-away database")
            async with self._dumps.restored(folder, manifest) as scratch:
                progress("restoring beside the live journal")
                await self._dumps.stage(scratch, self._into, {_schema_of(manifest): name})
            await PostgresJournal.migrate(dataclasses.replace(self._into, schema=name))
        except BaseException:
            await staged.discard()
            raise
        return PostgresStagedJournal(self._into, name, staged, kept, contents=manifest.made.contents, clock=self._clock)


class PostgresStagedJournal:
    """A journal restored beside the live one."""

    def __init__(
        self,
        address: PostgresAddress,
        schema: str,
        staged: StagedSchemas,
        kept: Grants | None,
        *,
        contents: Contents | None,
        clock: Clock,
    ) -> None:
        self.contents = contents
        self._address = address
        self._schema = schema
        self._staged = staged
        self._kept = kept
        self._clock = clock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresJournal]:
        """As StagedJournal."""
        async with opened_journal(dataclasses.replace(self._address, schema=self._schema), self._clock) as journal:
            yield journal

    async def switch(self) -> Switched:
        """As Staged. The feed goes on in an epoch after all that either journal had reached."""
        replaced, left = await self._staged.switch(self._merge, self._kept)
        if not replaced:
            return Switched("", tuple(left))
        return Switched(
            f"schema {replaced} on {self._address.label}",
            (*left, f"when nobody needs the old journal any more: DROP SCHEMA {replaced} CASCADE"),
        )

    async def discard(self) -> None:
        """As Staged."""
        await self._staged.discard()

    async def _merge(self, switching: Switching) -> Sequence[str]:
        known: Lives = {}
        if switching.replaced is not None:
            known = await _lives_in(switching, switching.replaced)
        # The search path was resolved before the schema was renamed.
        await switching.connection.execute(f"SET LOCAL search_path TO {quoted(switching.live)}")
        if switching.replaced is not None:
            await _keep_fence(switching, switching.replaced)
        await continue_epochs(switching.connection, self._address, known)
        return ()


async def _lives_in(switching: Switching, schema: str) -> Lives:
    await switching.connection.execute(f"SET LOCAL search_path TO {quoted(schema)}")
    await switching.connection.execute("SAVEPOINT looking")
    try:
        return await read_lives(switching.connection)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        await switching.connection.execute("ROLLBACK TO looking")
        return {}  # damaged; a new epoch's name is random, so none of its positions fits by chance


async def _keep_fence(switching: Switching, old: str) -> None:
    """Whom the live journal kept out stays out: the backup is from before that."""
    connection, fence = switching.connection, f"{quoted(old)}.fence"
    if await connection.fetchval(_THERE, fence):
        await connection.execute(f"UPDATE fence SET term = there.term FROM {fence} AS there")  # noqa: S608  # quoted


@asynccontextmanager
async def opened_journal(address: PostgresAddress, clock: Clock) -> AsyncIterator[PostgresJournal]:
    """A restored journal, to be read."""
    journal = await PostgresJournal.open(
        address, clock=clock, telemetry=NoTelemetry(), writers=1, readers=1, statement_timeout=_STATEMENT_SECONDS
    )
    try:
        yield journal
    finally:
        await journal.close()


def _schema_of(manifest: Manifest) -> str:
    return manifest.made.references.get("schema", "kiseki_journal")


async def _contents(moment: View, progress: Progress) -> Contents:
    digest = ContentsDigest()
    seen = 0
    async for row in moment.connection.cursor(_COMMITS, prefetch=_PAGE):
        digest.add(row["stream"], row["first_sequence"], row["count"], row["document"].encode(), row["committed_at"])
        seen += 1
        if seen % _EVERY == 0:
            progress(f"dumping, {seen:,} commits")
    return digest.contents(claims=await moment.connection.fetchval(_CLAIMS))
