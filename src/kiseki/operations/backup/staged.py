"""What is looked at of something that was staged, before it takes the place of what is live.

Used by `kiseki backup restore` and by the drill. What it refuses leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import msgspec

from kiseki.journal.port import CorruptJournal
from kiseki.journal.transfer.transferable import TransferableJournal, TransferFailed
from kiseki.kernel.codec import SEALED_MARK
from kiseki.kernel.errors import Unavailable
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress, Staged, StagedJournal, StagedKeys
from kiseki.operations.backup.verify import LiveJournal, LiveKeys, lost_keys, refuse_other_contents
from kiseki.operations.errors import RestoreRefused
from kiseki.security.key_store import KeyStore, KeyStoreCorrupt

__all__ = ["CheckedJournal", "check_journal", "check_keys", "discarded_on_failure", "subjects_without_keys"]

_SEALED: Final = SEALED_MARK.encode()
_PAGE: Final = 500


class CheckedJournal(msgspec.Struct, frozen=True, kw_only=True):
    """What a staged journal holds, and what the live one has beyond it."""

    contents: Contents
    lost_commits: int | None
    """Commits of the live journal that the staged one lacks; None when the live one can't be read."""
    newest: datetime | None
    """When the newest commit of the staged one was decided (UTC)."""


def discarded_on_failure(part: Staged) -> Callable[..., Awaitable[None]]:
    """For an exit stack: removes what is staged when its block raises, so that nothing of it is left."""

    async def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await part.discard()

    return leave


async def check_journal(
    journal: StagedJournal,
    *,
    name: str,
    wanted: Contents | None,
    live: LiveJournal,
    discard_newer: bool,
    progress: Progress,
) -> CheckedJournal:
    """Reads all of a staged journal, and compares it with what it has to hold and with the live one.

    Raises RestoreRefused when the live one has what it lacks, or can't be read, unless `discard_newer`; BackupDamaged,
    Unavailable.
    """
    async with journal.opened() as there, surveyed(there, name, progress) as survey:
        refuse_other_contents(name, wanted, survey.contents)
        lost: int | None = 0
        try:
            async with live() as live_journal:
                if live_journal is not None:
                    comparison = await survey.compare(live_journal, progress)
                    lost = comparison.newer_commits
                    # What it merely lacks, a restore brings back.
                    if (lost or comparison.contradicting) and not discard_newer:
                        raise RestoreRefused(_would_lose(lost, comparison.contradicting))
        except (Unavailable, CorruptJournal, TransferFailed) as problem:
            if not discard_newer:
                raise RestoreRefused(
                    f"the live journal can't be read, so nobody knows what a restore would lose ({problem}); if it is "
                    "lost, run the same with --discard-newer: it is kept aside"
                ) from problem
            lost = None
        return CheckedJournal(contents=survey.contents, lost_commits=lost, newest=survey.contents.newest)


async def check_keys(keys: StagedKeys, *, live: LiveKeys, discard_newer: bool) -> int | None:
    """How many keys of the live store a staged one lacks; None when the live one can't be read.

    Raises RestoreRefused when there are some, unless `discard_newer`; Unavailable.
    """
    async with keys.opened() as there:
        try:
            async with live() as live_keys:
                lost = 0 if live_keys is None else await lost_keys(live_keys, there)
        except (Unavailable, KeyStoreCorrupt) as problem:
            if not discard_newer:
                raise RestoreRefused(
                    f"the live key store can't be read, so nobody knows what a restore would lose ({problem}); if it "
                    "is lost, run the same with --discard-newer: it is kept aside"
                ) from problem
            return None
    if lost and not discard_newer:
        raise RestoreRefused(
            f"the live key store has {lost:,} keys that this backup lacks: the people they belong to could not be read "
            "any more; restore a newer one, or run the same with --discard-newer"
        )
    return lost


async def subjects_without_keys(journal: TransferableJournal, keys: KeyStore) -> tuple[int, int]:
    """How many people have sealed data in a journal, and how many of them neither keys nor a tombstone: what is theirs
    can't be read. Holds the names of people in memory.

    Raises CorruptJournal, Unavailable.
    """
    people: set[str] = set()
    missing: set[str] = set()
    position = await journal.beginning()
    while True:
        page = await journal.feed(position, limit=_PAGE)
        if not page.commits:
            return len(people), len(missing)
        subjects = {
            event.subject or commit.stream
            for commit in page.commits
            for event in commit.events
            if _SEALED in bytes(event.data)
        }
        unknown = subjects - people
        if unknown:
            people |= unknown
            missing |= unknown - set(await keys.load(unknown))
        position = page.position


def _would_lose(newer: int, other: tuple[str, ...]) -> str:
    what = f"{newer:,} commits that this backup lacks" if newer else f"other events of {other[0]} than this backup"
    return (
        f"the live journal has {what}, and they would be lost; nothing was changed. If they have to go, run the same "
        "with --discard-newer: the journal of now is kept aside"
    )
