"""Which driver copies which part, by the URLs of the settings. The libraries of a store are imported when it is named.

Used by `Backups`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.audit import AuditBackups
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import JournalBackups, KeyBackups, PartBackups, ReadModelBackups
from kiseki.operations.live import LiveStores
from kiseki.operations.places.port import Place
from kiseki.operations.protect.port import JournalProtection, KeyProtection
from kiseki.operations.sqlite.journal import SqliteJournalBackups
from kiseki.operations.sqlite.keys import SqliteKeyBackups
from kiseki.operations.sqlite.protection import SqliteJournalProtection, SqliteKeyProtection
from kiseki.operations.sqlite.read_models import SqliteReadModelBackups
from kiseki.security.audit.places import AuditPlaces
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import audit_keys, audit_places
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, StoreUrl, store_urls

if TYPE_CHECKING:
    from kiseki.clients.dynamodb import DynamoDbAddress
    from kiseki.clients.postgres import PostgresAddress

__all__ = ["Drivers"]


class Drivers:
    """Makes the drivers of one service's stores. Raises SettingsError, StoreUrlInvalid."""

    def __init__(self, settings: Settings, secrets: SecretSource, *, live: LiveStores, clock: Clock) -> None:
        self._settings = settings
        self._secrets = secrets
        self._clock = clock
        self._live = live
        self._urls = store_urls(settings)

    def of(self, part: Part) -> PartBackups:
        """The driver of a part."""
        match part:
            case Part.JOURNAL:
                return self.journal()
            case Part.KEYS:
                return self.keys()
            case Part.READ_MODELS:
                return self.read_models()
            case Part.AUDIT:
                return self.audit()

    def journal(self) -> JournalBackups:
        """What copies the journal."""
        url = self._urls.journal
        match url.kind:
            case StoreKind.SQLITE:
                return SqliteJournalBackups(self._live.journal_file, clock=self._clock)
            case StoreKind.POSTGRESQL:
                from kiseki.operations.postgres.journal import PostgresJournalBackups  # noqa: PLC0415

                return PostgresJournalBackups(self._postgres(url), self._programs(), clock=self._clock)
            case StoreKind.DYNAMODB:
                from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups  # noqa: PLC0415

                return DynamoDbJournalBackups(self._dynamodb(url), clock=self._clock)

    def keys(self) -> KeyBackups:
        """What copies the key store."""
        url = self._urls.keys
        match url.kind:
            case StoreKind.SQLITE:
                return SqliteKeyBackups(
                    self._live.key_file, revocations=self._live.revocations_file, clock=self._clock
                )
            case StoreKind.POSTGRESQL:
                from kiseki.operations.postgres.keys import PostgresKeyBackups  # noqa: PLC0415

                return PostgresKeyBackups(self._postgres(url), self._programs(), clock=self._clock)
            case StoreKind.DYNAMODB:
                from kiseki.operations.dynamodb.keys import DynamoDbKeyBackups  # noqa: PLC0415

                return DynamoDbKeyBackups(self._dynamodb(url), clock=self._clock)

    def read_models(self) -> ReadModelBackups:
        """What copies the read models."""
        url = self._urls.read_model
        if url.kind is StoreKind.SQLITE:
            return SqliteReadModelBackups(self._live.read_models_folder, clock=self._clock)
        from kiseki.operations.postgres.read_models import PostgresReadModelBackups  # noqa: PLC0415

        return PostgresReadModelBackups(self._postgres(url), self._programs(), clock=self._clock)

    def audit(self) -> AuditBackups:
        """What copies the audit log."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[AuditPlaces]:
            keys = await audit_keys(self._settings, self._secrets)
            async with audit_places(self._settings, keys, self._secrets) as places:
                yield places

        return AuditBackups(opened, clock=self._clock)

    def journal_protection(self, place: Place) -> JournalProtection | None:
        """What protects the journal all the time; None where the store does so itself (DynamoDB)."""
        raise NotImplementedError

    def _postgres(self, url: StoreUrl) -> PostgresAddress:
        from kiseki.service.postgres_stores import postgres_address  # noqa: PLC0415

        return postgres_address(url, self._secrets)
