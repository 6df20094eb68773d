"""Proves that a journal has all that the read models of a backup have applied; used by `create` and `restore`.

A guard says how far a build is in a stream. One that is ahead of the journal passes over the events that come next
under the same numbers, and nobody notices. Numbers alone do not show it: a journal that went back, and on, has other
events of the same numbers. So two things are looked at, and what they do not prove is refused:

- The life of the journal, which a backup of read models keeps. A restore begins another life, and no build outlives
  one: they are forgotten then. In one life a journal only grows, so as long as it is the same, the journal has all that
  it had when the builds were copied, and so all that they had applied. That is exact, and one look.
- Every guard, against a walk through the live journal: whoever puts a disk back by hand begins no new life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from kiseki.journal.port import CorruptJournal
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.compare import Survey, surveyed
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import PartBackups, Progress
from kiseki.operations.backup.verify import LiveJournal
from kiseki.operations.errors import BackupDamaged, BackupRefused, RestoreRefused
from kiseki.projection.port import BuildCatalog, BuildMissing, BuildName

__all__ = ["ReadModelsOfOneLife", "refuse_other_life", "refuse_unproved"]

_PAGE: Final = 500
_ANEW: Final = (
    "nothing was changed. Build read models anew: an updater does when it starts, or `kiseki projection rebuild`"
)


class ReadModelsOfOneLife:
    """A PartBackups of read models that keeps which life of the journal they were copied in."""

    def __init__(self, driver: PartBackups, live: LiveJournal) -> None:
        self.store = driver.store
        self._driver = driver
        self._live = live

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. Raises BackupRefused when there is no journal, or when it was restored meanwhile."""
        life = await self._life()
        made = await self._driver.make(folder, progress)
        if await self._life() != life:
            raise BackupRefused("the journal was restored while its read models were copied; run the same again")
        return msgspec.structs.replace(made, journal_life=life)

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups."""
        await self._driver.forget(manifest)

    async def _life(self) -> str:
        async with self._live() as journal:
            if journal is None:
                raise BackupRefused(
                    "there is no journal that these read models could be of; check the setting `journal`"
                )
            return await journal.life()


async def refuse_other_life(manifest: Manifest, journal: TransferableJournal | None) -> None:
    """Raises RestoreRefused unless a backup of read models is of the life that a journal is in; JournalUnavailable."""
    if journal is None:
        raise RestoreRefused("there is no journal that the read models could follow; restore it: kiseki backup restore")
    name = f"the backup {manifest.id}"
    if not manifest.made.journal_life:
        raise RestoreRefused(f"{name} does not say which life of the journal its read models are of; {_ANEW}")
    if manifest.made.journal_life != await journal.life():
        raise RestoreRefused(
            f"the journal was restored since {name} was made, or is another one, and may lack what its read models "
            f"have applied; {_ANEW}"
        )


async def refuse_unproved(
    manifest: Manifest, builds: BuildCatalog, journal: TransferableJournal | None, progress: Progress
) -> None:
    """Raises RestoreRefused unless a journal, which may be written meanwhile, has all that the builds of a backup have
    applied. Raises Unavailable.
    """
    await refuse_other_life(manifest, journal)
    assert journal is not None  # noqa: S101  # refused
    try:
        async with surveyed(journal, "the live journal", progress) as survey:
            for build in await builds.builds():
                progress(f"comparing {build.name} with the journal")
                await _refuse_ahead(manifest, builds, build.name, survey)
    except (BackupDamaged, CorruptJournal) as problem:
        raise RestoreRefused(
            "the live journal is not sound; nothing was changed. Run `kiseki journal verify`"
        ) from problem


async def _refuse_ahead(manifest: Manifest, builds: BuildCatalog, name: BuildName, survey: Survey) -> None:
    after = ""
    while guards := await _guards(builds, name, after):
        last = await asyncio.to_thread(survey.last, [stream for stream, _ in guards])
        for stream, number in guards:
            if number > last.get(stream, 0):
                raise RestoreRefused(
                    f"{name} in the backup {manifest.id} has applied {stream} up to {number:,}, and the journal has it "
                    f"up to {last.get(stream, 0):,}: what comes next would be passed over; {_ANEW}"
                )
        after = guards[-1][0]


async def _guards(builds: BuildCatalog, name: BuildName, after: str) -> Sequence[tuple[str, int]]:
    try:
        return await builds.guards(name, after=after, limit=_PAGE)
    except BuildMissing:
        return ()  # its updater makes another one
