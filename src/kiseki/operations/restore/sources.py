"""What a restore starts from: a backup, or what continuous protection has, whichever goes further. For `restore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from kiseki.operations.backup.files import opened_backup
from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.backup.port import Progress, StagedJournal, StagedKeys
from kiseki.operations.backups import Backups
from kiseki.operations.errors import BackupMissing
from kiseki.service.store_urls import StoreKind, store_urls

__all__ = ["Source", "journal_source", "key_source", "read_model_backup"]

T = TypeVar("T")


class Source(NamedTuple, Generic[T]):
    """Where a store comes from."""

    name: str
    """For messages."""
    staged: Callable[[Path, Progress], AbstractAsyncContextManager[T]]
    """Stages it, with an empty folder to work in, for the time of the block. Raises BackupDamaged, Unavailable."""


async def journal_source(backups: Backups, identity: str | None, until: datetime | None) -> Source[StagedJournal]:
    """The backup of an id; else what goes furthest, up to a time (UTC). Raises BackupMissing."""
    catalog = backups.catalog(Part.JOURNAL)
    if identity is not None:
        return _journal_backup(backups, await catalog.find(Part.JOURNAL, identity))
    if until is not None and store_urls(backups.settings).journal.kind is StoreKind.DYNAMODB:
        return await _dynamodb_second(backups, until)
    newest = await _newest(backups, Part.JOURNAL, until)
    # What goes furthest, up to the time: of a protection that is its last step of before.
    # A cluster is recovered as a whole, with the server stopped: not here.
    protection = backups.journal_protection() if backups.is_embedded else None
    through = None if protection is None else await protection.reaches(until)
    if protection is not None and through is not None and (newest is None or through >= newest.made.as_of):

        @asynccontextmanager
        async def recovered(work: Path, progress: Progress) -> AsyncIterator[StagedJournal]:
            yield await protection.recover(work, progress, until=until)

        return Source(f"continuous protection, which goes to {through:%Y-%m-%d %H:%M:%S} UTC", recovered)
    if newest is None:
        raise _missing(Part.JOURNAL, backups, until)
    return _journal_backup(backups, newest)


async def key_source(backups: Backups, identity: str | None) -> Source[StagedKeys]:
    """The backup of an id; else what goes furthest. Raises BackupMissing."""
    if identity is not None:
        return _key_backup(backups, await backups.catalog(Part.KEYS).find(Part.KEYS, identity))
    newest = await _newest(backups, Part.KEYS, None)
    protection = backups.key_protection()
    through = None if protection is None else await protection.through()
    if protection is not None and through is not None and (newest is None or through >= newest.made.as_of):

        @asynccontextmanager
        async def recovered(work: Path, progress: Progress) -> AsyncIterator[StagedKeys]:
            yield await protection.recover(work, progress)

        return Source(f"continuous protection, which goes to {through:%Y-%m-%d %H:%M:%S} UTC", recovered)
    if newest is None:
        raise _missing(Part.KEYS, backups, None)
    return _key_backup(backups, newest)


def _key_backup(backups: Backups, manifest: Manifest) -> Source[StagedKeys]:
    @asynccontextmanager
    async def staged(_work: Path, progress: Progress) -> AsyncIterator[StagedKeys]:
        async with opened_backup(backups.catalog(Part.KEYS), manifest, progress) as folder:
            yield await backups.drivers.keys().stage(folder, manifest, progress)

    return Source(_name(manifest), staged)


async def read_model_backup(backups: Backups, identity: str | None, until: datetime | None) -> Manifest:
    """The backup of an id; else the newest, of before a time (UTC). Raises BackupMissing, BackupDamaged."""
    if identity is not None:
        return await backups.catalog(Part.READ_MODELS).find(Part.READ_MODELS, identity)
    newest = await _newest(backups, Part.READ_MODELS, until)
    if newest is None:
        raise _missing(Part.READ_MODELS, backups, until)
    return newest


async def _dynamodb_second(backups: Backups, until: datetime) -> Source[StagedJournal]:
    """DynamoDB's own continuous backup. Raises BackupMissing when it does not reach that far."""
    from kiseki.operations.dynamodb.moments import point_in_time  # noqa: PLC0415

    manifest = await point_in_time(backups.drivers.dynamodb_address(), until, backups.clock)

    @asynccontextmanager
    async def staged(work: Path, progress: Progress) -> AsyncIterator[StagedJournal]:
        yield await backups.drivers.journal().stage(work, manifest, progress)

    return Source(f"point-in-time recovery, {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", staged)


def _journal_backup(backups: Backups, manifest: Manifest) -> Source[StagedJournal]:
    @asynccontextmanager
    async def staged(_work: Path, progress: Progress) -> AsyncIterator[StagedJournal]:
        async with opened_backup(backups.catalog(Part.JOURNAL), manifest, progress) as folder:
            yield await backups.drivers.journal().stage(folder, manifest, progress)

    return Source(_name(manifest), staged)


async def _newest(backups: Backups, part: Part, until: datetime | None) -> Manifest | None:
    """The newest whole backup, of before a time. A place without any is no fault here."""
    listed = await backups.catalog(part).list(part)
    whole = [one.manifest for one in listed if one.manifest is not None]
    fitting = [one for one in whole if until is None or one.made.as_of <= until]
    return fitting[-1] if fitting else None


def _name(manifest: Manifest) -> str:
    return f"the backup {manifest.id}"


def _missing(part: Part, backups: Backups, until: datetime | None) -> BackupMissing:
    when = "" if until is None else f" of before {until:%Y-%m-%d %H:%M:%S} UTC"
    return BackupMissing(
        f"there is no backup of {part}{when} in {backups.place(part).label}; check the settings `backup`, "
        "`backup_keys` and `backup_read_models`"
    )
