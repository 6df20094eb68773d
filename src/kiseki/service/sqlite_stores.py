"""The embedded stores, and where they are in a data directory. Used by `stores`, and by commands that look for files.

<data_dir>/journal.db        facts, snapshots, claims (SQLite)
<data_dir>/keys/keys.db      wrapped keys of subjects; a backup of it must not be kept longer than 7 days
<data_dir>/keys/master.key   the local master key; belongs in no backup of the above
<data_dir>/keys/revocations.db  whose tokens are not believed any more
<data_dir>/read-models/      one database for each build of a projection; can always be built again
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.security.identity.sqlite_revocations import SqliteRevocations
from kiseki.security.sqlite_key_store import SqliteKeyStore
from kiseki.service.store_urls import StoreUrl

__all__ = ["DataDirectory", "DataDirectoryUnusable", "SqliteStores", "embedded_path"]


class DataDirectoryUnusable(KisekiError):
    """The data directory can't be made, written or found. The message says what to do."""

    code = "DATA_DIRECTORY"


class DataDirectory:
    """Where things are in a data directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.journal = self.path / "journal.db"
        self.keys = self.path / "keys"
        self.key_store = self.keys / "keys.db"
        self.master_key = self.keys / "master.key"
        self.read_models = self.path / "read-models"

    def prepare(self) -> None:
        """Makes the directories, for their owner only. Raises DataDirectoryUnusable."""
        try:
            for directory in (self.path, self.keys, self.read_models):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise DataDirectoryUnusable(
                f"the data directory {self.path} can't be made: {problem.strerror}; change `data_dir`"
            ) from problem
        for directory in (self.path, self.keys, self.read_models):
            if not os.access(directory, os.W_OK | os.X_OK):
                raise DataDirectoryUnusable(
                    f"the data directory {directory} can't be written; change its permissions or `data_dir`"
                )

    def require_journal(self) -> None:
        """Raises DataDirectoryUnusable when there is no journal, for commands that only look at one."""
        if not self.journal.is_file():
            raise DataDirectoryUnusable(f"there is no journal in {self.path}; check --data-dir")


class SqliteStores:
    """The StoreFamily of files on this machine. They are made by opening them."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory

    async def migrate(self, url: StoreUrl) -> Sequence[str]:
        """As StoreFamily: nothing to do before they are opened."""
        return ()

    async def journal(self, url: StoreUrl, *, clock: Clock, telemetry: Telemetry) -> SqliteJournal:
        """As StoreFamily. Raises JournalUnavailable, CorruptJournal."""
        return await SqliteJournal.open(embedded_path(url, self._directory.journal), clock=clock, telemetry=telemetry)

    async def keys(self, url: StoreUrl) -> SqliteKeyStore:
        """As StoreFamily."""
        return await SqliteKeyStore.open(embedded_path(url, self._directory.key_store))

    async def revocations(self, url: StoreUrl) -> SqliteRevocations:
        """As StoreFamily."""
        return await SqliteRevocations.open(embedded_path(url, self._directory.key_store).with_name("revocations.db"))

    async def read_models(self, url: StoreUrl, *, clock: Clock) -> SqliteReadModels:
        """As StoreFamily."""
        return await SqliteReadModels.open(embedded_path(url, self._directory.read_models), clock=clock)


def embedded_path(url: StoreUrl, default: Path) -> Path:
    """Where an embedded store is: where its URL says, or at its place in the data directory."""
    named = url.text.partition(":")[2].removeprefix("//")
    return Path(named).absolute() if named else default
