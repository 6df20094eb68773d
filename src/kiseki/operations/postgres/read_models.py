"""`PostgresReadModelBackups`: the ReadModelBackups of read models in PostgreSQL: their catalog and all builds in it.

A build keeps the name of the schema that it was restored into: the catalog says where each one is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, quoted
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.backup.verify import unsound
from kiseki.operations.errors import BackupRefused, OperationFailed
from kiseki.operations.postgres.dump import Dumps
from kiseki.operations.postgres.grants import Grants, apply_grants, load_grants, read_grants, save_grants
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import Scratch
from kiseki.operations.postgres.session import at_once, explained_server, server_of, session, view
from kiseki.operations.postgres.switch import StagedSchemas, Switching, staged_name
from kiseki.projection.port import BuildCatalog
from kiseki.query.postgres.read_models import PostgresReadModels
from kiseki.query.postgres.schema import COMPONENT, MIGRATIONS

__all__ = ["PostgresReadModelBackups", "PostgresStagedReadModels"]

_SESSIONS: Final = ("kiseki projections%", "kiseki queries%")
_TRIES: Final = 3
"""Of a dump that a build went away from."""
_GONE: Final = re.compile(r"does not exist|no matching schemas|could not obtain lock")
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_BUILDS: Final = "SELECT schema_name FROM read_model_builds ORDER BY schema_name"
_THERE: Final = "SELECT to_regnamespace(quote_ident($1)) IS NOT NULL"
_TABLES: Final = """
    SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relkind = 'r'
    ORDER BY relname
"""
_BOTH: Final = "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL"


class PostgresReadModelBackups:
    """Backups by pg_dump of the catalog's schema and the schemas of its builds."""

    store = "postgresql"

    def __init__(
        self, address: PostgresAddress, programs: PostgresPrograms, *, clock: Clock, scratch: Scratch | None = None
    ) -> None:
        """`scratch`: where throw-away copies are made."""
        self._address = address
        self._clock = clock
        self._dumps = Dumps(address, programs, scratch or Scratch())

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. The digest is over the number of rows of each table."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._make(folder, progress)
            except OperationFailed as problem:
                if not tries_left or not _GONE.search(str(problem)):
                    raise
                progress("a build was removed meanwhile; once more")
        raise AssertionError("unreachable")

    async def _make(self, folder: Path, progress: Progress) -> Made:
        server = await server_of(self._address)
        catalog = self._address.schema
        with explained_server(self._address, "the backup of the read models"):
            async with view(self._address) as moment:
                try:
                    await self._dumps.refuse_foreign(moment, (COMPONENT,))
                except asyncpg.UndefinedTableError as problem:
                    raise BackupRefused(
                        f"there are no read models in the schema {catalog} on {self._address.label}, or its role may "
                        "not use it; check the setting `read_model`"
                    ) from problem
                schemas = [catalog, *await _builds(moment.connection)]
                grants = [(name, found) for name in schemas if (found := await read_grants(moment.connection, name))]
                progress(f"dumping {len(schemas) - 1} builds")
                versions, rows = await at_once(
                    self._dumps.dump(folder, moment, major=server.major, schemas=schemas),
                    _rows(moment.connection, schemas),
                )
        await asyncio.to_thread(save_grants, folder, grants)
        return Made(
            store=self.store,
            method="dump",
            as_of=moment.as_of,
            versions={"postgresql": server.version, "read models": str(MIGRATIONS[-1].number), **versions},
            counts={"builds": len(schemas) - 1, "tables": len(rows), "rows": sum(rows.values())},
            digest=_digest(rows),
            references={"schema": catalog},
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    async def check(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """As ReadModelBackups: every table has to hold as many rows as it had."""
        async with self._dumps.restored(folder, manifest) as scratch:
            return await _problems(dataclasses.replace(scratch, schema=_schema_of(manifest)), manifest)

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[BuildCatalog]:
        """As ReadModelBackups."""
        async with self._dumps.restored(folder, manifest) as scratch:
            address = dataclasses.replace(scratch, schema=_schema_of(manifest))
            problems = await _problems(address, manifest)
            if problems:
                raise unsound(manifest, problems)
            await PostgresReadModels.migrate(address)
            models = await PostgresReadModels.open(address, clock=self._clock, pool=1, writers=1)
            try:
                yield models.builds
            finally:
                await models.close()

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> PostgresStagedReadModels:
        """As ReadModelBackups: each build in a schema of its own, in the same database."""
        kept = await asyncio.to_thread(load_grants, folder)
        catalog = _schema_of(manifest)
        name = staged_name(self._address.schema, self._clock.now())
        staged = StagedSchemas(self._address, clock=self._clock, sessions=_SESSIONS)
        try:
            await staged.keep(name)
            progress("restoring into a throw-away database")
            async with self._dumps.restored(folder, manifest) as scratch:
                names = await _renamed(dataclasses.replace(scratch, schema=catalog), name)
                progress("restoring beside the live read models")
                await self._dumps.stage(scratch, self._address, {catalog: name, **names})
            beside = dataclasses.replace(self._address, schema=name)
            await PostgresReadModels.migrate(beside)
        except BaseException:
            await staged.discard()
            raise
        grants = {new: kept[old] for old, new in names.items() if old in kept}
        return PostgresStagedReadModels(self._address, staged, kept.get(catalog), grants)


class PostgresStagedReadModels:
    """Read models restored beside the live ones."""

    def __init__(
        self, address: PostgresAddress, staged: StagedSchemas, kept: Grants | None, builds: Mapping[str, Grants]
    ) -> None:
        self._address = address
        self._staged = staged
        self._kept = kept
        self._builds = builds

    async def switch(self) -> Switched:
        """As Staged. Numbers of builds and owners go on after those of the old catalog."""
        replaced, left = await self._staged.switch(self._merge, self._kept)
        return Switched(f"schema {replaced} on {self._address.label}" if replaced else "", tuple(left))

    async def discard(self) -> None:
        """As Staged."""
        await self._staged.discard()

    async def _merge(self, switching: Switching) -> Sequence[str]:
        connection, left = switching.connection, []
        for name, grants in self._builds.items():
            left += await apply_grants(connection, name, grants)
        if switching.replaced is None:
            return left
        old, new = quoted(switching.replaced), quoted(switching.live)
        drop = [switching.replaced]
        if await connection.fetchval(_BOTH, f"{old}.read_model_builds", f"{new}.read_model_builds"):
            drop += [
                row["schema_name"]
                for row in await connection.fetch(f"SELECT schema_name FROM {old}.read_model_builds")  # noqa: S608  # quoted
            ]
        if await connection.fetchval(_BOTH, f"{old}.read_model_generations", f"{old}.read_model_owners"):
            await connection.execute(
                f"""
                    INSERT INTO {new}.read_model_generations AS there (projection, version, last)
                    SELECT projection, version, last FROM {old}.read_model_generations
                    ON CONFLICT (projection, version) DO UPDATE SET last = greatest(there.last, excluded.last)
                """  # noqa: S608  # quoted names
            )
            await connection.execute(
                f"""
                    INSERT INTO {new}.read_model_owners AS there (projection, version, number)
                    SELECT projection, version, number FROM {old}.read_model_owners
                    ON CONFLICT (projection, version) DO UPDATE SET number = greatest(there.number, excluded.number)
                """  # noqa: S608  # quoted names
            )
            await connection.execute(f"UPDATE {new}.read_model_owners SET number = number + 1")  # noqa: S608  # quoted
        return [*left, f"within seven days, because they hold data of people: DROP SCHEMA {', '.join(drop)} CASCADE"]


async def _builds(connection: PostgresConnection) -> list[str]:
    names = [row["schema_name"] for row in await connection.fetch(_BUILDS)]
    # One that was lost stays in the catalog; its updater makes another.
    return [name for name in names if await connection.fetchval(_THERE, name)]


async def _renamed(scratch: PostgresAddress, name: str) -> dict[str, str]:
    """Gives each restored build the name of its schema beside the live ones; new names by old ones."""
    names: dict[str, str] = {}
    with explained_server(scratch, "renaming"):
        async with session(scratch) as connection:
            for number, old in enumerate(await _builds(connection), 1):
                names[old] = f"{name}_{number}"
                await connection.execute(
                    "UPDATE read_model_builds SET schema_name = $1 WHERE schema_name = $2", names[old], old
                )
    return names


async def _problems(scratch: PostgresAddress, manifest: Manifest) -> list[str]:
    with explained_server(scratch, "reading the restored read models"):
        async with session(scratch) as connection:
            rows = await _rows(connection, [scratch.schema, *await _builds(connection)])
    counts = manifest.made.counts
    if _digest(rows) == manifest.made.digest:
        return []
    if sum(rows.values()) != counts.get("rows"):
        return [f"it holds {sum(rows.values()):,} rows and should hold {counts.get('rows', 0):,}"]
    return ["its tables do not hold as many rows each as its manifest says"]


async def _rows(connection: PostgresConnection, schemas: Sequence[str]) -> dict[str, int]:
    rows = {}
    for number, schema in enumerate(schemas):
        for row in await connection.fetch(_TABLES, schema):
            table: str = row["relname"]
            if _PLAIN.fullmatch(table):
                count = await connection.fetchval(f"SELECT count(*) FROM {quoted(schema)}.{quoted(table)}")  # noqa: S608  # quoted
                rows[f"{number}.{table}"] = count
    return rows


def _digest(rows: Mapping[str, int]) -> str:
    return hashlib.sha256("\n".join(f"{name} {count}" for name, count in sorted(rows.items())).encode()).hexdigest()


def _schema_of(manifest: Manifest) -> str:
    return manifest.made.references.get("schema", "kiseki_read_models")
