"""`SqliteReadModelBackups`: the ReadModelBackups of embedded read models: one file for each build, and the catalog."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupRefused, OperationFailed
from kiseki.operations.sqlite.copying import (
    check_sound,
    copy_whole,
    opened_moment,
    packed,
    refuse_in_use,
    sync_directory,
    unpacked,
)

__all__ = ["SqliteReadModelBackups"]

_CATALOG: Final = "catalog.sqlite"
_PACKED: Final = ".gz"


class SqliteReadModelBackups:
    """Online copies of the files of a directory. Each is of a moment of its own: rows and progress of a build are in
    one file, and the catalog is copied last."""

    store = "sqlite"

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. Raises BackupRefused when there are none, OperationFailed, NoRoom."""
        as_of = self._clock.now()
        count = await asyncio.to_thread(self._make, folder, progress)
        return Made(
            store=self.store,
            method="online",
            as_of=as_of,
            versions={"sqlite": sqlite3.sqlite_version},
            counts={"builds": count},
        )

    def _make(self, folder: Path, progress: Progress) -> int:
        files = sorted(path for path in self._directory.glob("*.sqlite") if path.name != _CATALOG)
        catalog = self._directory / _CATALOG
        if not catalog.exists():
            raise BackupRefused(f"there are no read models in {self._directory}; an updater makes them when it starts")
        for path in (*files, catalog):
            progress(f"copying {path.name}")
            plain = folder / path.name
            with explained_room(folder, "make room there"), opened_moment(path) as connection:
                copy_whole(connection, plain)
                packed(plain, folder / f"{path.name}{_PACKED}")
        return len(files)

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    async def check(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """As ReadModelBackups."""

        def look() -> list[str]:
            problems = []
            with tempfile.TemporaryDirectory(prefix="kiseki-verify-") as work:
                _unpack_all(folder, manifest, Path(work))
                for path in sorted(Path(work).iterdir()):
                    try:
                        check_sound(path)
                    except OperationFailed as problem:
                        problems.append(str(problem))
                if not (Path(work) / _CATALOG).exists():
                    problems.append("it has no catalog")
            return problems

        return await asyncio.to_thread(look)

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
        return _StagedFolder(await asyncio.to_thread(make), self._directory, clock=self._clock)


class _StagedFolder:
    """A Staged: a directory beside the live one. It can always be built again, so that a crash between the two renames
    costs time and nothing else."""

    def __init__(self, staged: Path, live: Path, *, clock: Clock) -> None:
        self._staged = staged
        self._live = live
        self._clock = clock

    async def switch(self) -> Switched:
        """As Staged."""
        return await asyncio.to_thread(self._switch)

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
        await asyncio.to_thread(shutil.rmtree, self._staged, ignore_errors=True)


def _unpack_all(folder: Path, manifest: Manifest, target: Path) -> None:
    for file in manifest.files:
        if file.name.endswith(_PACKED):
            unpacked(folder / file.name, target / file.name.removesuffix(_PACKED))
