"""The live stores as operations see them: opened to be read, or known not to be there. Used to compare backups with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.clients.errors import NotMigrated
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.key_store import KeyStore
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings
from kiseki.service.sqlite_stores import DataDirectory, embedded_path
from kiseki.service.store_urls import store_urls
from kiseki.service.stores import open_journal, open_key_store

__all__ = ["LiveStores"]


class LiveStores:
    """What the settings name, for the time of an operation."""

    def __init__(self, settings: Settings, secrets: SecretSource) -> None:
        self._settings = settings
        self._secrets = secrets
        self._directory = DataDirectory(settings.data_dir)
        self._urls = store_urls(settings)

    @property
    def journal_file(self) -> Path:
        """Where an embedded journal is."""
        return embedded_path(self._urls.journal, self._directory.journal)

    @property
    def key_file(self) -> Path:
        """Where an embedded key store is."""
        return embedded_path(self._urls.keys, self._directory.key_store)

    @property
    def revocations_file(self) -> Path:
        """Where embedded revocations are: beside the keys."""
        return self.key_file.with_name("revocations.db")

    @property
    def read_models_folder(self) -> Path:
        """Where embedded read models are."""
        return embedded_path(self._urls.read_model, self._directory.read_models)

    @asynccontextmanager
    async def journal(self) -> AsyncIterator[TransferableJournal | None]:
        """The journal, None when there is none. Raises CorruptJournal, Unavailable."""
        if self._urls.journal.embedded and not await asyncio.to_thread(self.journal_file.is_file):
            yield None
            return
        try:
            opening = open_journal(self._settings, clock=SystemClock(), telemetry=NoTelemetry())
            journal = await opening.__aenter__()
        except NotMigrated:
            yield None
            return
        try:
            yield journal
        finally:
            await opening.__aexit__(None, None, None)

    @asynccontextmanager
    async def keys(self) -> AsyncIterator[KeyStore | None]:
        """The key store, None when there is none. Raises KeyStoreCorrupt, Unavailable."""
        if self._urls.keys.embedded and not await asyncio.to_thread(self.key_file.is_file):
            yield None
            return
        store = await open_key_store(self._settings, self._secrets)
        try:
            try:
                await store.erasures(None)
            except NotMigrated:
                yield None
            else:
                yield store
        finally:
            await store.close()
