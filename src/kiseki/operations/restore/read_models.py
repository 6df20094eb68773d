"""Puts read models back from a backup, where that is proved to be safe. Used by `restore`, when they are named: without
a copy they are built from the journal, which takes longer and is always right.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import NamedTuple

from kiseki.application.context import Application
from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.operations.backup.files import opened_backup
from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.backup.port import Progress, Staged
from kiseki.operations.backup.read_models import refuse_other_life, refuse_unproved
from kiseki.operations.backup.staged import discarded_on_failure
from kiseki.operations.backups import Backups
from kiseki.operations.catching_up import BuildsInUse, refuse_running
from kiseki.operations.errors import RestoreRefused
from kiseki.operations.restore.sources import read_model_backup
from kiseki.projection.port import BuildCatalog
from kiseki.projection.subscription import Subscription
from kiseki.service.store_urls import store_urls
from kiseki.service.stores import open_read_models

__all__ = ["RestoredReadModels", "restore_read_models"]


class RestoredReadModels(NamedTuple):
    """What was done."""

    source: str
    """Where they came from, for people."""
    builds: int
    kept: str
    """Where the old ones are now; empty when there were none."""
    left: tuple[str, ...]
    """What the operator still has to do, one line each."""


async def restore_read_models(
    backups: Backups, application: Application, identity: str | None, until: datetime | None, progress: Progress
) -> RestoredReadModels:
    """Puts a backup in the place of the live read models; they are then as they were when it was made.

    Raises RestoreRefused when the journal can't be proved to have all that they have applied, or the application has
    other projections; BuildsInUse, BackupMissing, BackupDamaged, NoRoom, Unavailable. Nothing was changed then.
    """
    manifest = await read_model_backup(backups, identity, until)
    await _refuse_running(backups)
    async with backups.live.journal() as journal:
        await refuse_other_life(manifest, journal)  # before anything is fetched
    async with AsyncExitStack() as opened:
        staged = await _staged(backups, application, manifest, progress)
        opened.push_async_exit(discarded_on_failure(staged))
        progress("switching read models")
        switched = await staged.switch()
    count = manifest.made.counts.get("builds", 0)
    return RestoredReadModels(f"the backup {manifest.id}", count, switched.kept, switched.left)


async def _staged(backups: Backups, application: Application, manifest: Manifest, progress: Progress) -> Staged:
    driver = backups.drivers.read_models()
    async with opened_backup(backups.catalog(Part.READ_MODELS), manifest, progress) as folder:
        progress("restoring into a throw-away place")
        async with driver.opened(folder, manifest) as builds:
            await _refuse_other_definitions(manifest, builds, application)
            async with backups.live.journal() as journal:
                await refuse_unproved(manifest, builds, journal, progress)
        return await driver.stage(folder, manifest, progress)


async def _refuse_other_definitions(manifest: Manifest, builds: BuildCatalog, application: Application) -> None:
    for projection in application.projections:
        try:
            await builds.check(projection, Subscription(projection, application.deciders).definition)
        except DefinitionError as problem:
            raise RestoreRefused(
                f"the backup {manifest.id} does not fit the application: {problem}. Nothing was changed"
            ) from problem


async def _refuse_running(backups: Backups) -> None:
    if store_urls(backups.settings).read_model.embedded and not backups.live.read_models_folder.is_dir():
        return  # opening would make it
    try:
        read_models = await open_read_models(backups.settings, backups.secrets)
        try:
            await refuse_running(read_models.builds)
        finally:
            await read_models.close()
    except BuildsInUse:
        raise
    except KisekiError:
        # What is lost or damaged can't say who runs it. The switch asks the files, or the server, who uses them.
        return
