"""Which driver copies which part, by the URLs of the settings. The libraries of a store are imported when it is named.

Used by `Backups`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.audit import AuditBackups, audit_heads
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import JournalBackups, KeyBackups, PartBackups, ReadModelBackups
from kiseki.operations.live import LiveStores
from kiseki.operations.places.port import Place
from kiseki.operations.protect.port import JournalProtection, KeyProtection
from kiseki.operations.sqlite.journal import SqliteJournalBackups
from kiseki.operations.sqlite.key_protection import SqliteKeyProtection
from kiseki.operations.sqlite.keys import SqliteKeyBackups
from kiseki.operations.sqlite.protection import SqliteJournalProtection
from kiseki.operations.sqlite.read_models import SqliteReadModelBackups
from kiseki.security.audit.places import AuditLogNotKept, AuditPlaces
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import audit_keys, audit_places
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, StoreUrl, store_urls

if TYPE_CHECKING:
    from kiseki.clients.dynamodb import DynamoDbAddress
    from kiseki.clients.postgres import PostgresAddress
    from kiseki.operations.postgres.programs import PostgresPrograms

__all__ = ["Drivers"]


class Drivers:
    """Makes the drivers of one service's stores. Raises SettingsError, StoreUrlInvalid."""

    def __init__(
        self,
        settings: Settings,
        secrets: SecretSource,
        *,
        live: LiveStores,
        clock: Clock,
        writers_stopped: bool = False,
    ) -> None:
        """`writers_stopped`: the operator says that no process writes, which DynamoDB can't show."""
        self._settings = settings
        self._secrets = secrets
        self._clock = clock
        self._live = live
        self._writers_stopped = writers_stopped
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

                return DynamoDbJournalBackups(
                    self._dynamodb(url), clock=self._clock, writers_stopped=self._writers_stopped
                )

    def keys(self) -> KeyBackups:
        """What copies the key store."""
        url = self._urls.keys
        match url.kind:
            case StoreKind.SQLITE:
                return SqliteKeyBackups(self._live.key_file, revocations=self._live.revocations_file, clock=self._clock)
            case StoreKind.POSTGRESQL:
                from kiseki.operations.postgres.keys import PostgresKeyBackups  # noqa: PLC0415

                return PostgresKeyBackups(self._postgres(url), self._programs(), clock=self._clock)
            case StoreKind.DYNAMODB:
                from kiseki.operations.dynamodb.keys import DynamoDbKeyBackups  # noqa: PLC0415

                return DynamoDbKeyBackups(self._dynamodb(url), clock=self._clock, writers_stopped=self._writers_stopped)

    def read_models(self) -> ReadModelBackups:
        """What copies the read models."""
        url = self._urls.read_model
        if url.kind is StoreKind.SQLITE:
            return SqliteReadModelBackups(self._live.read_models_folder, clock=self._clock)
        from kiseki.operations.postgres.read_models import PostgresReadModelBackups  # noqa: PLC0415

        return PostgresReadModelBackups(self._postgres(url), self._programs(), clock=self._clock)

    def audit(self) -> AuditBackups:
        """What copies the audit log."""
        return AuditBackups(self._audit_log, clock=self._clock)

    def journal_protection(self, place: Place, *, days: float) -> JournalProtection | None:
        """What protects the journal all the time; None where the store does so by itself (DynamoDB), and for PostgreSQL
        unless base backups are asked for."""
        url = self._urls.journal
        if url.kind is StoreKind.SQLITE:
            return SqliteJournalProtection(
                self._live.journal_file, place, clock=self._clock, days=days, audit_heads=self._audit_heads
            )
        if url.kind is StoreKind.POSTGRESQL and self._settings.backup_base:
            return self._cluster_protection(url, place, days=days)
        return None

    def key_protection(self, place: Place, *, days: float) -> KeyProtection | None:
        """What protects the keys all the time; None where a cluster's protection has them, or the store has its own."""
        if self._urls.keys.kind is not StoreKind.SQLITE:
            return None
        return SqliteKeyProtection(
            self._live.key_file, self._live.revocations_file, place, clock=self._clock, days=days
        )

    def _cluster_protection(self, url: StoreUrl, place: Place, *, days: float) -> JournalProtection:
        from kiseki.operations.postgres.protection import PostgresProtection  # noqa: PLC0415

        private = [
            (other.setting, self._postgres(other))
            for other in (self._urls.keys, self._urls.read_model)
            if other.kind is StoreKind.POSTGRESQL
        ]
        return PostgresProtection(
            self._postgres(url),
            self._programs(),
            place,
            clock=self._clock,
            days=days,
            spool=self._settings.data_dir / "wal-spool",
            ledger=self._ledger(),
            private=private,
        )

    def _ledger(self) -> PostgresAddress | None:
        if not self._settings.erasure_ledger.startswith("postgres"):
            return None
        from kiseki.service.erasures import ledger_address  # noqa: PLC0415

        return ledger_address(self._settings.erasure_ledger, self._secrets)

    @asynccontextmanager
    async def _audit_log(self) -> AsyncIterator[AuditPlaces]:
        keys = await audit_keys(self._settings, self._secrets)
        async with audit_places(self._settings, keys, self._secrets) as places:
            yield places

    async def _audit_heads(self) -> Mapping[str, int]:
        try:
            async with self._audit_log() as places:
                return await audit_heads(places)
        except AuditLogNotKept:
            return {}

    def _postgres(self, url: StoreUrl) -> PostgresAddress:
        from kiseki.service.postgres_stores import postgres_address  # noqa: PLC0415

        return postgres_address(url, self._secrets)

    def _programs(self) -> PostgresPrograms:
        from kiseki.operations.postgres.programs import PostgresPrograms  # noqa: PLC0415

        return PostgresPrograms(self._settings.postgres_programs)

    def dynamodb_address(self) -> DynamoDbAddress:
        """The tables of a journal that is on DynamoDB. Raises StoreUrlInvalid."""
        return self._dynamodb(self._urls.journal)

    def _dynamodb(self, url: StoreUrl) -> DynamoDbAddress:
        from kiseki.clients.dynamodb import DynamoDbAddress  # noqa: PLC0415

        return DynamoDbAddress.parse(url.text)
