"""The embedded stores of a data directory: journal, key store and master key, each where it always is.

Used by the composition root and by commands that look into a data directory.

    <data_dir>/journal.db        facts, snapshots, claims (SQLite)
    <data_dir>/keys/keys.db      wrapped keys of subjects; a backup of it must not be kept longer than 7 days
    <data_dir>/keys/master.key   the local master key; belongs in no backup of the above
    <data_dir>/read-models/      one database for each build of a projection; can always be built again
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from kiseki.journal.sqlite import SqliteJournal
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.projection.projection import Projection
from kiseki.query.sqlite import SqliteReadModels
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore

__all__ = ["DataDirectory", "DataDirectoryUnusable", "Stores"]


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


class Stores:
    """The journal, the protector and the read models of one process, open."""

    def __init__(
        self, journal: SqliteJournal, protector: KeyProtector, read_models: SqliteReadModels, key_store: SqliteKeyStore
    ) -> None:
        self.journal = journal
        self.protector = protector
        self.read_models = read_models
        self._key_store = key_store

    @classmethod
    async def open(cls, directory: DataDirectory, *, clock: Clock, telemetry: Telemetry) -> Self:
        """Opens, and makes on first use, what a prepared directory holds.

        Raises JournalUnavailable, CorruptJournal, and what key store and master key refuse.
        """
        async with AsyncExitStack() as opened:
            journal = await SqliteJournal.open(directory.journal, clock=clock, telemetry=telemetry)
            opened.push_async_callback(journal.close)
            key_store = await SqliteKeyStore.open(directory.key_store)
            opened.push_async_callback(key_store.close)
            master_key = await asyncio.to_thread(LocalMasterKey.load_or_create, directory.master_key)
            protector = await KeyProtector.open(store=key_store, wrapper=master_key, clock=clock)
            read_models = await SqliteReadModels.open(directory.read_models, clock=clock)
            opened.pop_all()
            return cls(journal, protector, read_models, key_store)

    async def check_journal(self) -> None:
        """Proves that the journal can be written now, for readiness. Raises Unavailable."""
        await self.journal.check()

    async def check_read_model(self, projection: Projection) -> None:
        """Proves that a build of a projection answers queries, for readiness. Raises Unavailable."""
        await self.read_models.database.progress(projection, ())

    async def check_keys(self) -> None:
        """Proves that the key store can be asked, for readiness. Raises Unavailable."""
        await self.protector.hear()

    async def close(self) -> None:
        """Closes all of them; what was accepted is finished first."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._key_store.close)
            closing.push_async_callback(self.journal.close)
            closing.push_async_callback(self.read_models.close)
