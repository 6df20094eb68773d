"""Dumping schemas, restoring them into a throw-away database, and staging one beside the live one under another name.

Used by the drivers of journals, key stores and read models on PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress, quoted
from kiseki.operations.backup.manifest import Manifest
from kiseki.operations.errors import BackupDamaged, BackupRefused, NoRoom, OperationFailed
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import Scratch, database_of, scratch_database
from kiseki.operations.postgres.session import View, explained_server, server_of, session

__all__ = ["DUMP", "Dumps"]

DUMP: Final = "store.dump"
"""The file of a backup that pg_dump wrote."""

_PLAIN: Final = ["--no-owner", "--no-privileges"]
_WHOLE: Final = ["--exit-on-error", "--single-transaction", *_PLAIN]
_ZSTD_FROM: Final = 16
_NO_ZSTD: Final = re.compile(r"zstd", re.IGNORECASE)
_COMPONENTS: Final = "SELECT DISTINCT component FROM kiseki_migrations ORDER BY component"


class Dumps:
    """Dumps of one database."""

    def __init__(self, address: PostgresAddress, programs: PostgresPrograms, scratch: Scratch) -> None:
        self._address = address
        self._programs = programs
        self._scratch = scratch

    async def refuse_foreign(self, view: View, components: Sequence[str]) -> None:
        """Refuses a schema that also holds something else, which would have another retention. Raises BackupRefused."""
        there = [row["component"] for row in await view.connection.fetch(_COMPONENTS)]
        foreign = [component for component in there if component not in components]
        if foreign:
            raise BackupRefused(
                f"the schema {self._address.schema} on {self._address.label} also holds the {foreign[0]}, which is not "
                "to be kept as long; give it a schema of its own"
            )

    async def dump(
        self, folder: Path, view: View, *, major: int, schemas: Sequence[str], without_data: Sequence[str] = ()
    ) -> Mapping[str, str]:
        """Writes schemas, as of a view, to a file of a folder; the version of the program. `without_data`: tables whose
        rows are left out. Raises ToolMissing, NoRoom, OperationFailed, Unavailable."""
        program = await self._programs.find("pg_dump", at_least=major)
        version = await self._programs.major(program)
        file = _file_in(folder)
        arguments = [
            "--format=custom",
            f"--snapshot={view.snapshot}",
            "--lock-wait-timeout=30000",
            f"--file={file}",
            *(f"--schema={quoted(schema)}" for schema in schemas),
            *(f"--exclude-table-data={table}" for table in without_data),
            *_PLAIN,
        ]
        try:
            await self._compressed(program, arguments, zstd=version >= _ZSTD_FROM)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return {"pg_dump": str(version)}

    async def _compressed(self, program: Path, arguments: Sequence[str], *, zstd: bool) -> None:
        if zstd:
            try:
                await self._programs.run(program, [*arguments, "--compress=zstd:3"], address=self._address)
            except OperationFailed as problem:
                if not _NO_ZSTD.search(str(problem)):
                    raise
            else:
                return
        await self._programs.run(program, [*arguments, "--compress=3"], address=self._address)

    async def tables(self, folder: Path) -> frozenset[str]:
        """The tables whose rows are in a dump, as `schema.table`. Raises BackupDamaged, ToolMissing."""
        file = _file_in(folder)
        program = await self._programs.find("pg_restore")
        try:
            listed = await self._programs.run(program, ["--list", str(file)])
        except OperationFailed as problem:
            raise _damaged(problem) from problem
        words = [line.split() for line in listed.splitlines() if " TABLE DATA " in line]
        return frozenset(f"{row[row.index('DATA') + 1]}.{row[row.index('DATA') + 2]}" for row in words)

    @asynccontextmanager
    async def restored(self, folder: Path, manifest: Manifest) -> AsyncIterator[PostgresAddress]:
        """A throw-away database that holds what is in a dump. Raises BackupDamaged, and as `scratch_database`."""
        majors = [manifest.made.versions.get(name, "").partition(".")[0] for name in ("postgresql", "pg_dump")]
        major = max((int(text) for text in majors if text.isdigit()), default=0)
        async with scratch_database(self._address, self._programs, self._scratch, major=major) as address:
            await self._restore(folder, address, major)
            yield address

    async def _restore(self, folder: Path, address: PostgresAddress, major: int) -> None:
        program = await self._programs.find("pg_restore", at_least=major)
        arguments = [*_WHOLE, f"--dbname={database_of(address)}", str(_file_in(folder))]
        try:
            await self._programs.run(program, arguments, address=address)
        except NoRoom:
            raise
        except OperationFailed as problem:
            raise _damaged(problem) from problem

    async def stage(self, scratch: PostgresAddress, target: PostgresAddress, names: Mapping[str, str]) -> None:
        """Moves schemas of a throw-away database into another database, under other names, whole or not at all.

        Renamed in the throw-away database and dumped again, so that no SQL is rewritten and nothing of that name in the
        other database is touched. Raises as `dump`.
        """
        major = (await server_of(target)).major
        with explained_server(scratch, "renaming"):
            async with session(scratch) as connection:
                for old, new in names.items():
                    await connection.execute(f"ALTER SCHEMA {quoted(old)} RENAME TO {quoted(new)}")
        dump = await self._programs.find("pg_dump", at_least=major)
        restore = await self._programs.find("pg_restore", at_least=major)
        schemas = [f"--schema={quoted(new)}" for new in names.values()]
        await self._programs.pipe(
            (dump, ["--format=custom", "--compress=0", *schemas, *_PLAIN], scratch),
            (restore, [*_WHOLE, f"--dbname={database_of(target)}"], target),
        )


def _damaged(problem: OperationFailed) -> BackupDamaged:
    return BackupDamaged(f"the dump can't be restored ({problem}); use another backup")


def _file_in(folder: Path) -> Path:
    return folder.absolute() / DUMP
