"""What the tests of backups share: a journal in memory, a driver that copies it by export, a folder as place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kiseki.journal.memory import MemoryJournal
from kiseki.journal.transfer.exporting import export_journal
from kiseki.journal.transfer.importing import import_journal
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.catalog import Catalog
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Contents, Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.places.folder import FolderPlace
from kiseki.testing.journal_conformance import SetClock
from tests.integration.journal.transfer_parts import silent

FILE = "journal.jsonl"


def no_progress(_: str) -> None:
    """Shows nothing."""


def catalog_in(folder: Path) -> Catalog:
    """A catalog of an own folder."""
    folder.mkdir(exist_ok=True)
    return Catalog(FolderPlace(folder, setting="backup"))


class ExportBackups:
    """JournalBackups of a journal in memory."""

    store = "memory"

    def __init__(self, journal: TransferableJournal, clock: SetClock) -> None:
        self.journal = journal
        self._clock = clock
        self.forgotten: list[str] = []
        self.staged: list[StagedMemory] = []

    async def make(self, folder: Path, progress: Progress) -> Made:
        async with surveyed(self.journal, "the journal", progress) as survey:
            contents = survey.contents
        with (folder / FILE).open("wb") as file:
            await export_journal(self.journal, file, clock=self._clock, progress=silent)
        return Made(store=self.store, method="online", as_of=self._clock.now(), contents=contents)

    async def forget(self, manifest: Manifest) -> None:
        self.forgotten.append(manifest.id)

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[TransferableJournal]:
        journal = MemoryJournal(clock=self._clock)
        with (folder / FILE).open("rb") as file:
            await import_journal(journal, file, clock=self._clock, progress=silent)
        yield journal
        await journal.close()

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> StagedMemory:
        async with self.opened(folder, manifest):
            pass
        journal = MemoryJournal(clock=self._clock)
        with (folder / FILE).open("rb") as file:
            await import_journal(journal, file, clock=self._clock, progress=silent)
        staged = StagedMemory(self, journal)
        self.staged.append(staged)
        return staged


class StagedMemory:
    """A StagedJournal."""

    def __init__(self, backups: ExportBackups, journal: MemoryJournal) -> None:
        self._backups = backups
        self._journal = journal
        self.state = "staged"
        self.contents: Contents | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[TransferableJournal]:
        yield self._journal

    async def switch(self) -> Switched:
        self._backups.journal = self._journal
        self.state = "switched"
        return Switched("aside")

    async def discard(self) -> None:
        if self.state == "staged":
            self.state = "discarded"
