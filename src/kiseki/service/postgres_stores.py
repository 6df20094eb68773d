"""The stores on PostgreSQL. Used by `stores`; needs the extra `kiseki[postgres]`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.query.postgres.read_models import PostgresReadModels
from kiseki.security.identity.postgres_revocations import PostgresRevocations
from kiseki.security.postgres_key_store import PostgresKeyStore
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreUrl

__all__ = ["PostgresStores", "postgres_address"]

_SCHEMAS: Final = {"journal": "kiseki_journal", "keys": "kiseki_keys", "read_model": "kiseki_read_models"}
"""The schemas that the stores have unless the URL says `schema=`: each can be backed up by itself."""


class PostgresStores:
    """The StoreFamily of PostgreSQL."""

    def __init__(self, settings: Settings, secrets: SecretSource) -> None:
        self._settings = settings
        self._secrets = secrets

    async def migrate(self, url: StoreUrl) -> Sequence[str]:
        """As StoreFamily."""
        address = self._address(url)
        if url.setting == "journal":
            return await PostgresJournal.migrate(address)
        if url.setting == "keys":
            return [*await PostgresKeyStore.migrate(address), *await PostgresRevocations.migrate(address)]
        return await PostgresReadModels.migrate(address)

    async def journal(self, url: StoreUrl, *, clock: Clock, telemetry: Telemetry) -> PostgresJournal:
        """As StoreFamily."""
        return await PostgresJournal.open(
            self._address(url),
            clock=clock,
            telemetry=telemetry,
            writers=self._settings.journal_writers,
            readers=self._settings.journal_readers,
        )

    async def keys(self, url: StoreUrl) -> PostgresKeyStore:
        """As StoreFamily."""
        return await PostgresKeyStore.open(self._address(url), connections=self._settings.key_connections)

    async def revocations(self, url: StoreUrl) -> PostgresRevocations:
        """As StoreFamily."""
        return await PostgresRevocations.open(self._address(url))

    async def read_models(self, url: StoreUrl, *, clock: Clock) -> PostgresReadModels:
        """As StoreFamily."""
        return await PostgresReadModels.open(
            self._address(url), clock=clock, pool=self._settings.read_model_connections
        )

    def _address(self, url: StoreUrl) -> PostgresAddress:
        return postgres_address(url, self._secrets)


def postgres_address(url: StoreUrl, secrets: SecretSource) -> PostgresAddress:
    """Where one of the stores is, in the schema that it has unless the URL names another. Raises StoreUrlInvalid."""
    passwords = partial(SecretPassword, secrets)
    return PostgresAddress.parse(url.text, schema=_SCHEMAS[url.setting], passwords=passwords)
