"""`SqliteReadModelBackups`: the ReadModelBackups of embedded read models: one file for each build, and the catalog."""

from __future__ import annotations

import shutil
import sqlite3
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.backup.verify import unsound
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupRefused, OperationFailed
from kiseki.operations.places.scratch import Scratch
from kiseki.operations.places.threads import in_thread
from kiseki.operations.sqlite.copying import (
    check_sound,
    copy_pages,
    opened_copy,
    opened_moment,
    packed,
    sync_directory,
    unpacked,
)
from kiseki.operations.sqlite.switching import refuse_in_use
from kiseki.projection.port import BuildCatalog, BuildName
from kiseki.query.sqlite.files import BuildFiles
from kiseki.query.sqlite.read_models import SqliteReadModels

__all__ = ["SqliteReadModelBackups"]

_CATALOG: Final = "catalog.sqlite"
_PACKED: Final = ".gz"
_BUILDS: Final = "SELECT projection, version, generation FROM builds ORDER BY projection, version, generation"
_FORGET: Final = "DELETE FROM builds WHERE projection = ? AND version = ? AND generation = ?"


class SqliteReadModelBackups:
    """Online copies of the files of a directory. Each is of a moment of its own: rows and progress of a build are in
    one file. The catalog is copied first; a build that it names, and that is removed meanwhile, leaves its copy too."""

    store = "sqlite"

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. Raises BackupRefused when there are none, OperationFailed, NoRoom."""
        as_of = self._clock.now()
        count = await in_thread(lambda: self._make(folder, progress))
        return Made(
            store=self.store,
            method="online",
            as_of=as_of,
            versions={"sqlite": sqlite3.sqlite_version},
            counts={"builds": count},
        )

    def _make(self, folder: Path, progress: Progress) -> int:
        catalog = self._directory / _CATALOG
        if not catalog.exists():
            raise BackupRefused(f"there are no read models in {self._directory}; an updater makes them when it starts")
        with explained_room(folder, "make room there"):
            copy = folder / _CATALOG
            with opened_moment(catalog) as connection:
                copy_pages(connection, copy)
            with opened_copy(copy) as connection:
                names = _builds(connection)
            for name in names:
                self._copy_build(name, folder, progress)
            with opened_copy(copy) as connection:
                for name in names:
                    if not (folder / f"{name}.sqlite{_PACKED}").exists():
                        connection.execute(_FORGET, name)
                count = len(_builds(connection))
            check_sound(copy)
            packed(copy, folder / f"{_CATALOG}{_PACKED}")
        return count

    def _copy_build(self, name: BuildName, folder: Path, progress: Progress) -> None:
        live = BuildFiles(self._directory).build(name)
        progress(f"copying {name}")
        plain = folder / live.name
        try:
            with opened_moment(live) as connection:
                copy_pages(connection, plain)
        except OperationFailed:
            if live.exists():
                raise
            plain.unlink(missing_ok=True)  # it was removed meanwhile
            return
        with opened_copy(plain):
            pass
        check_sound(plain)
        packed(plain, folder / f"{live.name}{_PACKED}")

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    async def check(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """As ReadModelBackups."""
        async with Scratch().folder("verify-read-models") as work:
            await in_thread(lambda: _unpack_all(folder, manifest, work))
            return await in_thread(lambda: _problems(work))

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[BuildCatalog]:
        """As ReadModelBackups."""
        async with Scratch().folder("restore-read-models") as work:
            await in_thread(lambda: _unpack_all(folder, manifest, work))
            problems = await in_thread(lambda: _problems(work))
            if problems:
                raise unsound(manifest, problems)
            models = await SqliteReadModels.open(work, clock=self._clock)
            try:
                yield models.builds
            finally:
                await models.close()

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> _StagedFolder:
        """As ReadModelBackups."""

        def make() -> Path:
            staged = self._directory.with_name(f"{self._directory.name}.restored-{manifest.id}")
            with explained_room(self._directory.parent, "make room there"):
                for left in self._directory.parent.glob(f"{self._directory.name}.restored-*"):
                    shutil.rmtree(left)
                staged.mkdir(mode=0o700, parents=True)
                try:
                    _unpack_all(folder, manifest, staged)
                except BaseException:
                    shutil.rmtree(staged, ignore_errors=True)
                    raise
            return staged

        progress("unpacking")
        return _StagedFolder(await in_thread(make), self._directory, clock=self._clock)


class _StagedFolder:
    """A Staged: a directory beside the live one. It can always be built again, so that a crash between the two renames
    costs time and nothing else."""

    def __init__(self, staged: Path, live: Path, *, clock: Clock) -> None:
        self._staged = staged
        self._live = live
        self._clock = clock

    async def switch(self) -> Switched:
        """As Staged."""
        return await in_thread(self._switch)

    def _switch(self) -> Switched:
        kept = self._live.with_name(f"{self._live.name}.replaced-{self._clock.now():%Y%m%dT%H%M%SZ}")
        with explained_room(self._live.parent, "make room there"):
            for path in sorted(self._live.glob("*.sqlite")):
                refuse_in_use(path, what="a read model")
            there = self._live.exists()
            if there:
                self._live.rename(kept)
            self._staged.rename(self._live)
            sync_directory(self._live.parent)
        left = (f"remove {kept} within 7 days: it holds personal data",) if there else ()
        return Switched(str(kept) if there else "", left)

    async def discard(self) -> None:
        """As Staged."""
        await in_thread(lambda: shutil.rmtree(self._staged, ignore_errors=True))


def _unpack_all(folder: Path, manifest: Manifest, target: Path) -> None:
    for file in manifest.files:
        if file.name.endswith(_PACKED):
            unpacked(folder / file.name, target / file.name.removesuffix(_PACKED))


def _builds(connection: sqlite3.Connection) -> list[BuildName]:
    return [
        BuildName(projection.decode(), version, generation)
        for projection, version, generation in connection.execute(_BUILDS)
    ]


def _problems(folder: Path) -> list[str]:
    """What is wrong with read models in a folder: each file by itself, and what the catalog says of them."""
    if not (folder / _CATALOG).exists():
        return ["it has no catalog"]
    files = sorted(folder.glob("*.sqlite"))
    problems = []
    for path in files:
        try:
            check_sound(path)
        except OperationFailed as problem:
            problems.append(str(problem))
    if problems:
        return problems
    address = f"file:{urllib.parse.quote(str(folder / _CATALOG))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        connection.text_factory = bytes
        named = {BuildFiles(folder).build(name).name for name in _builds(connection)}
    there = {path.name for path in files} - {_CATALOG}
    problems += [f"it lacks {name}, which its catalog names" for name in sorted(named - there)]
    return problems + [f"its catalog does not name {name}" for name in sorted(there - named)]
