"""Copies of embedded read models: every build that the catalog names, and nothing else."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.errors import BackupDamaged, BackupRefused, RestoreRefused
from kiseki.operations.sqlite.read_models import SqliteReadModelBackups
from kiseki.projection.port import BuildName
from kiseki.query.sqlite.files import BuildFiles, connect
from kiseki.query.sqlite.read_models import SqliteReadModels
from tests.integration.operations.sqlite.sqlite_parts import manifest_of, no_progress
from tests.support import ManualClock

_NAMES = [BuildName("accounts", 1, 1), BuildName("accounts", 1, 2), BuildName("orders", 3, 1)]


def backups_of(directory: Path) -> SqliteReadModelBackups:
    return SqliteReadModelBackups(directory, clock=ManualClock())


async def made(directory: Path, folder: Path) -> Manifest:
    folder.mkdir()
    return manifest_of(folder, await backups_of(directory).make(folder, no_progress), Part.READ_MODELS)


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """Three builds, as far as copies look at them."""
    path = tmp_path / "read-models"
    models = await SqliteReadModels.open(path, clock=ManualClock())
    await models.close()
    with closing(sqlite3.connect(path / "catalog.sqlite")) as catalog, catalog:
        for name in _NAMES:
            catalog.execute(
                "INSERT INTO builds VALUES (?, ?, ?, 'building', '2026-01-01T00:00:00+00:00', NULL, NULL, NULL)", name
            )
    for name in _NAMES:
        with closing(connect(BuildFiles(path).build(name), busy_timeout=1, create=True, sync="NORMAL")) as build, build:
            build.execute("CREATE TABLE rows (name TEXT)")
            build.execute("INSERT INTO rows VALUES (?)", (str(name),))
    return path


def rows_of(directory: Path, name: BuildName) -> list[tuple[str]]:
    with closing(sqlite3.connect(BuildFiles(directory).build(name))) as build:
        return build.execute("SELECT name FROM rows").fetchall()


async def test_a_copy_is_sound_and_comes_back(directory: Path, tmp_path: Path) -> None:
    manifest = await made(directory, tmp_path / "copy")
    assert manifest.made.counts == {"builds": 3}
    assert await backups_of(directory).check(tmp_path / "copy", manifest) == []
    staged = await backups_of(directory).stage(tmp_path / "copy", manifest, no_progress)
    with closing(connect(BuildFiles(directory).build(_NAMES[0]), busy_timeout=1, sync="NORMAL")) as build:
        build.execute("SELECT * FROM rows").fetchall()
        with pytest.raises(RestoreRefused, match="stop kiseki"):
            await staged.switch()
    switched = await staged.switch()
    assert "personal data" in switched.left[0]
    assert Path(switched.kept).is_dir()
    assert [rows_of(directory, name) for name in _NAMES] == [[(str(name),)] for name in _NAMES]
    assert directory.stat().st_mode & 0o077 == 0


async def test_a_build_that_is_removed_meanwhile_leaves_the_copy_too(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()

    def remove(text: str) -> None:
        if text.endswith("accounts.v1.1"):
            BuildFiles(directory).remove(_NAMES[1])

    manifest = manifest_of(
        tmp_path / "copy", await backups_of(directory).make(tmp_path / "copy", remove), Part.READ_MODELS
    )
    assert manifest.made.counts == {"builds": 2}
    assert await backups_of(directory).check(tmp_path / "copy", manifest) == []


@pytest.mark.parametrize("lost", ["catalog.sqlite.gz", "orders.v3.1.sqlite.gz"])
async def test_a_copy_that_lacks_something_is_not_sound(directory: Path, tmp_path: Path, lost: str) -> None:
    manifest = await made(directory, tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    manifest = manifest_of(tmp_path / "copy", manifest.made, Part.READ_MODELS)
    assert len(await backups_of(directory).check(tmp_path / "copy", manifest)) == 1
    with pytest.raises(BackupDamaged, match="is not sound"):
        async with backups_of(directory).opened(tmp_path / "copy", manifest):
            pass


async def test_a_copy_is_opened_in_a_throw_away_place(directory: Path, tmp_path: Path) -> None:
    manifest = await made(directory, tmp_path / "copy")
    shutil.rmtree(directory)
    async with backups_of(directory).opened(tmp_path / "copy", manifest) as builds:
        assert [build.name for build in await builds.builds()] == _NAMES
    assert not directory.exists()


async def test_no_read_models_are_no_copy(directory: Path, tmp_path: Path) -> None:
    shutil.rmtree(directory)
    with pytest.raises(BackupRefused):
        await made(directory, tmp_path / "copy")
