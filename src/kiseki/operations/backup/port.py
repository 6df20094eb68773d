"""The ports that each store fills so that it can be backed up and restored: one for journals, keys and read models.

Used by `create`, `verify`, `restore` and `prune`; the drivers are in the packages of the stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.manifest import Contents, Made, Manifest
from kiseki.projection.port import BuildCatalog
from kiseki.security.key_store import KeyStore

__all__ = [
    "JournalBackups",
    "KeyBackups",
    "PartBackups",
    "Progress",
    "ReadModelBackups",
    "Staged",
    "StagedJournal",
    "StagedKeys",
    "Switched",
    "nothing",
]

Progress = Callable[[str], None]
"""Told what is done now, in a few words."""


def nothing(_: str) -> None:
    """Shows no progress."""


class Switched(NamedTuple):
    """What a switch has done."""

    kept: str
    """Where the old store is now, for people; empty when there was none."""
    left: tuple[str, ...] = ()
    """What the operator still has to do, one line each."""


class Staged(Protocol):
    """Something restored beside the live store, which is as it was until `switch`."""

    async def switch(self) -> Switched:
        """Puts it in the place of the live one, in one step that a crash does not halve; the old one is kept aside.

        Its feed is in a new epoch. Raises RestoreRefused while somebody uses the live one.
        """
        ...

    async def discard(self) -> None:
        """Removes it; nothing after `switch`. Again is fine."""
        ...


class StagedJournal(Staged, Protocol):
    """A staged journal."""

    @property
    def contents(self) -> Contents | None:
        """What has to be in it; None where what it was made of does not say."""
        ...

    def opened(self) -> AbstractAsyncContextManager[TransferableJournal]:
        """It, to be read."""
        ...


class StagedKeys(Staged, Protocol):
    """A staged key store."""

    def opened(self) -> AbstractAsyncContextManager[KeyStore]:
        """It, to be read."""
        ...


class PartBackups(Protocol):
    """Backups of one part on one store. Every method raises Unavailable, OperationFailed and its kinds."""

    store: str

    async def make(self, folder: Path, progress: Progress) -> Made:
        """Copies the live store into files of an empty folder, as of one moment where the store can do that. The live
        one goes on being written. What is left of it after a failure is only in the folder."""
        ...

    async def forget(self, manifest: Manifest) -> None:
        """Removes what a backup keeps elsewhere (`Made.references`); again is fine."""
        ...


class JournalBackups(PartBackups, Protocol):
    """Backups of a journal with its claims."""

    def opened(self, folder: Path, manifest: Manifest) -> AbstractAsyncContextManager[TransferableJournal]:
        """Restores a backup into a throw-away place, and opens it to be read; gone at the end."""
        ...

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> StagedJournal:
        """Restores a backup beside the live journal."""
        ...


class KeyBackups(PartBackups, Protocol):
    """Backups of a key store with the revocations that are kept beside it."""

    def opened(self, folder: Path, manifest: Manifest) -> AbstractAsyncContextManager[KeyStore]:
        """Restores a backup into a throw-away place, and opens it to be read; gone at the end."""
        ...

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> StagedKeys:
        """Restores a backup beside the live key store."""
        ...


class ReadModelBackups(PartBackups, Protocol):
    """Backups of read models. They can always be built again, so what they save is time."""

    async def check(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """Restores into a throw-away place and says what is wrong with it, a line each; nothing when it is sound."""
        ...

    def opened(self, folder: Path, manifest: Manifest) -> AbstractAsyncContextManager[BuildCatalog]:
        """Restores a backup into a throw-away place, and opens it to be read; gone at the end.

        Raises BackupDamaged when it is not sound.
        """
        ...

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> Staged:
        """Restores a backup beside the live read models."""
        ...
