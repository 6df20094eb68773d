"""`Backups`: all about the backups of one service, from its settings: where they are, what makes them, what is live.

Used by the command line and by the drill. The work itself is in `backup/`, the drivers in the packages of the stores.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self

from kiseki.application.system import SystemClock
from kiseki.operations.audit_target import audit_target
from kiseki.operations.backup.catalog import Catalog, Verification
from kiseki.operations.backup.create import create_backup
from kiseki.operations.backup.files import opened_backup
from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.backup.port import Progress
from kiseki.operations.backup.prune import PRIVATE, Pruned, prune
from kiseki.operations.backup.read_models import ReadModelsOfOneLife
from kiseki.operations.backup.verify import verified, verify_journal, verify_keys, verify_read_models
from kiseki.operations.drivers import Drivers
from kiseki.operations.errors import BackupRefused
from kiseki.operations.live import LiveStores
from kiseki.operations.places.opening import open_place
from kiseki.operations.places.port import Place
from kiseki.operations.protect.port import JournalProtection, KeyProtection, Protection
from kiseki.security.secrets.source import SecretSource
from kiseki.service.backup_places import mixed_places
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, store_urls

__all__ = ["Backups"]

_SETTINGS: Final = {
    Part.JOURNAL: "backup",
    Part.AUDIT: "backup",
    Part.KEYS: "backup_keys",
    Part.READ_MODELS: "backup_read_models",
}
"""The setting that says where a part's backups are."""


class Backups:
    """The backups of one service. `opened` is the way in; belongs to one event loop."""

    def __init__(
        self, settings: Settings, secrets: SecretSource, opened: AsyncExitStack, *, writers_stopped: bool = False
    ) -> None:
        self.settings = settings
        self.secrets = secrets
        self.live = LiveStores(settings, secrets)
        self.clock = SystemClock()
        self.drivers = Drivers(settings, secrets, live=self.live, clock=self.clock, writers_stopped=writers_stopped)
        self._opened = opened
        self._places: dict[str, Place] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, *, writers_stopped: bool = False) -> AsyncIterator[Self]:
        """For the time of a piece of work. `writers_stopped`: the operator says that no process of the service writes.
        Raises BackupRefused when places and stores would not be apart."""
        for mixed in mixed_places(settings):
            raise BackupRefused(f"{mixed.problem}; {mixed.remedy}")
        async with opened_secrets(settings) as secrets, AsyncExitStack() as opened:
            yield cls(settings, secrets, opened, writers_stopped=writers_stopped)

    @property
    def is_embedded(self) -> bool:
        """Whether the journal is a file of this machine."""
        return store_urls(self.settings).journal.embedded

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that have a place."""
        return [part for part in Part if self._where(part)]

    def catalog(self, part: Part) -> Catalog:
        """The backups of a part. Raises BackupRefused when no place is named."""
        return Catalog(self.place(part))

    def place(self, part: Part) -> Place:
        """Where the backups of a part are. Raises BackupRefused, SettingsError."""
        setting = _SETTINGS[part]
        text = self._where(part)
        if not text:
            raise BackupRefused(
                f"{setting} is not set, so there is no place for backups of {part}; set it to a folder or to "
                "s3://bucket/prefix?region=eu-west-1"
            )
        if setting not in self._places:
            place = self._places[setting] = open_place(text, setting=setting)
            self._opened.push_async_callback(place.close)
        return self._places[setting]

    def _where(self, part: Part) -> str:
        match part:
            case Part.KEYS:
                return self.settings.backup_keys
            case Part.READ_MODELS:
                return self.settings.backup_read_models
            case _:
                return self.settings.backup

    def days(self, part: Part) -> float:
        """How long backups of a part are kept."""
        if part in PRIVATE:
            return self.settings.backup_private_days
        if self.settings.backup_days is not None:
            return self.settings.backup_days
        return 30.0 if store_urls(self.settings).journal.kind is StoreKind.DYNAMODB else 7.0

    async def create(self, part: Part, progress: Progress) -> tuple[Manifest, Verification]:
        """Makes a backup of a part, and proves it. Raises as `create_backup` and `verify`."""
        driver = self.drivers.of(part)
        if part is Part.READ_MODELS:
            driver = ReadModelsOfOneLife(driver, self.live.journal)
        manifest = await create_backup(part, driver, self.catalog(part), clock=self.clock, progress=progress)
        return manifest, await self.verify(manifest, progress)

    async def verify(self, manifest: Manifest, progress: Progress) -> Verification:
        """Restores a backup into a throw-away place and compares it. Raises BackupDamaged, Unavailable."""
        catalog = self.catalog(manifest.part)

        async def check() -> str:
            match manifest.part:
                case Part.JOURNAL:
                    return await verify_journal(
                        manifest, self.drivers.journal(), catalog, self.live.journal, progress=progress
                    )
                case Part.KEYS:
                    return await verify_keys(manifest, self.drivers.keys(), catalog, self.live.keys, progress=progress)
                case Part.READ_MODELS:
                    return await verify_read_models(manifest, self.drivers.read_models(), catalog, progress=progress)
                case Part.AUDIT:
                    async with opened_backup(catalog, manifest, progress) as folder:
                        return await self.drivers.audit().check(folder, manifest)

        return await verified(manifest, catalog, check, clock=self.clock)

    async def prune(self, part: Part, progress: Progress) -> Pruned:
        """Removes old backups of a part. Raises as `prune`."""
        return await prune(
            part, self.drivers.of(part), self.catalog(part), days=self.days(part), clock=self.clock, progress=progress
        )

    async def put_back_audit(self, progress: Progress) -> int:
        """Adds to the audit log what its newest backup has and the log lacks; how many records were looked at.

        Raises BackupMissing, BackupDamaged, RestoreRefused, Unavailable.
        """
        catalog = self.catalog(Part.AUDIT)
        manifest = await catalog.find(Part.AUDIT, None)
        async with (
            opened_backup(catalog, manifest, progress) as folder,
            audit_target(self.settings, self.secrets) as put,
        ):
            return await self.drivers.audit().put_back(folder, manifest, put)

    def journal_protection(self) -> JournalProtection | None:
        """What protects the journal all the time; None without a place, and where the store does so by itself."""
        if not self.settings.backup:
            return None
        return self.drivers.journal_protection(self.place(Part.JOURNAL), days=self.days(Part.JOURNAL))

    def key_protection(self) -> KeyProtection | None:
        """What protects the keys all the time; None as for the journal."""
        if not self.settings.backup_keys:
            return None
        return self.drivers.key_protection(self.place(Part.KEYS), days=self.days(Part.KEYS))

    def protections(self) -> Sequence[Protection]:
        """What protects journal and keys all the time, where there are places for them."""
        found = (self.journal_protection(), self.key_protection())
        return [each for each in found if each is not None]
