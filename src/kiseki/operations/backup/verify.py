"""Proves that backups can be restored: each is restored into a throw-away place, read whole, and compared with the live
store. Used by `kiseki backup verify`, and by `create`, which is not done before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from kiseki.journal.port import CorruptJournal
from kiseki.journal.transfer.transferable import TransferableJournal, TransferFailed
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import Catalog, Verification
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.files import opened_backup
from kiseki.operations.backup.manifest import Contents, Manifest
from kiseki.operations.backup.port import JournalBackups, KeyBackups, Progress, ReadModelBackups
from kiseki.operations.errors import BackupDamaged, OperationFailed
from kiseki.security.key_store import DIGEST_SUBJECT, KeyStore, KeyStoreCorrupt, SubjectKeys, WrappedKey

__all__ = [
    "LiveJournal",
    "LiveKeys",
    "lost_keys",
    "refuse_other_contents",
    "unsound",
    "verified",
    "verify_journal",
    "verify_keys",
    "verify_read_models",
]

LiveJournal = Callable[[], AbstractAsyncContextManager[TransferableJournal | None]]
"""Opens the live journal to be read; None when there is none. Raises what keeps it from being read."""

LiveKeys = Callable[[], AbstractAsyncContextManager[KeyStore | None]]
"""Opens the live key store to be read; None when there is none."""

_PAGE: Final = 500


async def verified(
    manifest: Manifest, catalog: Catalog, check: Callable[[], Awaitable[str]], *, clock: Clock
) -> Verification:
    """Runs a check and keeps what it found beside the backup; a damaged one is noted too, then raised.

    Raises BackupDamaged, and what keeps the check from being made.
    """
    try:
        outcome = Verification(at=clock.now(), sound=True, found=await check())
    except BackupDamaged as damage:
        await catalog.note(manifest, Verification(at=clock.now(), sound=False, found=str(damage)))
        raise
    await catalog.note(manifest, outcome)
    return outcome


async def verify_journal(
    manifest: Manifest, driver: JournalBackups, catalog: Catalog, live: LiveJournal, *, progress: Progress
) -> str:
    """Restores a journal's backup and compares it; a line about what was compared.

    Raises BackupDamaged, Unavailable.
    """
    name = f"the backup {manifest.id}"
    async with (
        opened_backup(catalog, manifest, progress) as folder,
        driver.opened(folder, manifest) as journal,
        surveyed(journal, name, progress) as survey,
    ):
        refuse_other_contents(name, manifest.made.contents, survey.contents)
        there = survey.contents
        found = (
            f"{there.commits:,} commits, {there.events:,} events, {there.streams:,} streams, {there.claims:,} claims"
        )
        try:
            async with live() as journal_now:
                if journal_now is None:
                    return f"{found}; there is no live journal to compare with"
                comparison = await survey.compare(journal_now, progress)
        except (Unavailable, CorruptJournal, TransferFailed) as problem:
            raise _not_compared(name, "journal", problem) from problem
        if comparison.differing:
            raise BackupDamaged(
                f"{name} differs from the live journal in {', '.join(comparison.differing[:3])}: one of the two is "
                "wrong; run `kiseki journal verify`, and do not restore before you know which"
            )
        return f"{found}; every event equals the live journal, which has {comparison.newer_commits:,} newer commits"


async def verify_keys(
    manifest: Manifest, driver: KeyBackups, catalog: Catalog, live: LiveKeys, *, progress: Progress
) -> str:
    """Restores a key store's backup and compares it; a line about what was compared.

    Raises BackupDamaged, Unavailable.
    """
    name = f"the backup {manifest.id}"
    async with opened_backup(catalog, manifest, progress) as folder, driver.opened(folder, manifest) as keys:
        if DIGEST_SUBJECT not in await keys.load([DIGEST_SUBJECT]):
            raise BackupDamaged(f"{name} lacks the root of keyed hashes, so it is no whole key store; use another one")
        erased = (await keys.erasures(None)).mark
        count = 0
        async for page in keys.scan(_PAGE):
            count += len(page)
        wanted = manifest.made.counts.get("keys")
        if wanted is not None and wanted != count:
            raise BackupDamaged(f"{name} holds {count:,} keys and should hold {wanted:,}; use another one")
        found = f"{count:,} keys, {erased:,} erasures"
        try:
            async with live() as keys_now:
                if keys_now is None:
                    return f"{found}; there is no live key store to compare with"
                async for page in keys.scan(_PAGE):
                    _refuse_other_keys(name, page, await keys_now.load({subject for subject, _ in page}))
        except (Unavailable, KeyStoreCorrupt) as problem:
            raise _not_compared(name, "key store", problem) from problem
        return f"{found}; every key equals the live one"


async def verify_read_models(
    manifest: Manifest, driver: ReadModelBackups, catalog: Catalog, *, progress: Progress
) -> str:
    """Restores a backup of read models and looks whether it is sound; one line. Raises BackupDamaged, Unavailable."""
    async with opened_backup(catalog, manifest, progress) as folder:
        problems = await driver.check(folder, manifest)
    if problems:
        raise unsound(manifest, problems)
    counted = ", ".join(f"{count:,} {what}" for what, count in manifest.made.counts.items())
    return f"restored and sound{f': {counted}' if counted else ''}"


def _not_compared(name: str, what: str, problem: Exception) -> OperationFailed:
    """Not proved, and not damaged either."""
    return OperationFailed(
        f"{name} can be restored, and is not proved: the live {what} can't be compared with it now ({problem}); run "
        "`kiseki backup verify` when it can"
    )


def unsound(manifest: Manifest, problems: Sequence[str]) -> BackupDamaged:
    """What to raise of a backup of read models in which something is wrong."""
    return BackupDamaged(f"the backup {manifest.id} is not sound: {problems[0]}; use another one, or build anew")


def refuse_other_contents(name: str, wanted: Contents | None, there: Contents) -> None:
    """Raises BackupDamaged when a journal does not hold what its manifest says."""
    if wanted is None or wanted == there:
        return
    if (wanted.commits, wanted.claims) != (there.commits, there.claims):
        raise BackupDamaged(
            f"{name} holds {there.commits:,} commits and {there.claims:,} claims, and should hold {wanted.commits:,} "
            f"and {wanted.claims:,}; use another one"
        )
    raise BackupDamaged(f"{name} does not hold the events that it should: their digest is another one; use another one")


async def lost_keys(live: KeyStore, other: KeyStore) -> int:
    """How many keys of the live store the other one lacks: another key of the same person opens nothing.

    Raises KeyStoreUnavailable, KeyStoreCorrupt.
    """
    lost = 0
    async for page in live.scan(_PAGE):
        known = await other.load({subject for subject, _ in page})
        lost += sum(not _has(known.get(subject), key) for subject, key in page)
    return lost


def _has(known: SubjectKeys | None, key: WrappedKey) -> bool:
    """Whether a key store has a key, or knows that it was destroyed. The wrapped form is another one after a master key
    was rotated, so ids are compared."""
    if known is None:
        return False
    return known.erased_at is not None or key.key_id in {one.key_id for one in known.keys}


def _refuse_other_keys(name: str, page: Sequence[tuple[str, WrappedKey]], known: Mapping[str, SubjectKeys]) -> None:
    for subject, key in page:
        if not _has(known.get(subject), key):
            raise BackupDamaged(
                f"{name} has a key that the live key store does not know: they do not belong together; check where "
                "`keys` and `backup_keys` lead"
            )
