"""Walks a restored journal and says what it holds, and compares it, event by event, with the live one.

Used by `verify`, `restore`, and whoever has to know what one journal has and another lacks. Notes about streams are in
a temporary file, so memory stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from kiseki.journal.port import CorruptJournal
from kiseki.journal.transfer.lines import StoredCommit
from kiseki.journal.transfer.notes import FILE, JOURNAL, NOTHING, TransferNotes
from kiseki.journal.transfer.transferable import TransferableJournal, TransferFailed
from kiseki.journal.transfer.walk import JournalWalk
from kiseki.operations.backup.contents import ContentsDigest
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress
from kiseki.operations.errors import BackupDamaged

__all__ = ["Comparison", "Survey", "surveyed"]

_EVERY: Final = 50_000
_PAGE: Final = 500


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How another journal stands to the surveyed one."""

    same_commits: int
    """Commits of the surveyed journal that the other one has, byte for byte."""
    newer_commits: int
    """Commits of the other one that come after what the surveyed one has of their streams."""
    differing: tuple[str, ...]
    """Streams that differ, or that the other one lacks in part; the first ten."""
    contradicting: tuple[str, ...]
    """Those of which the other one has other events, not merely fewer; the first ten."""


class Survey:
    """What a journal holds, and notes enough to compare another one with it. Made by `surveyed`."""

    def __init__(self, contents: Contents, notes: TransferNotes, journal: TransferableJournal) -> None:
        self.contents = contents
        self._notes = notes
        self._journal = journal

    def last(self, streams: Sequence[str]) -> dict[str, int]:
        """The last sequence number of those of the streams that there are. Blocks."""
        return {name: note.last for name, note in self._notes.streams(JOURNAL, streams).items()}

    async def compare(self, other: TransferableJournal, progress: Progress) -> Comparison:
        """Compares every commit with those of another journal, which may be written meanwhile.

        Raises CorruptJournal, TransferFailed, JournalUnavailable of the other one.
        """
        with TransferNotes() as notes:
            run = _Run(self._notes, notes)
            shown = 0
            async for page in JournalWalk(other, notes).pages():
                await asyncio.to_thread(run.page, page)
                if run.seen - shown >= _EVERY:
                    shown = run.seen
                    progress(f"comparing, {shown:,} commits")
            contradicting = list(run.differing)
            if run.streams < await asyncio.to_thread(self._notes.stream_count, JOURNAL):
                await asyncio.to_thread(run.find_missing)
                contradicting += await self._other_beginnings(notes, progress)
            return Comparison(
                same_commits=run.same,
                newer_commits=run.newer,
                differing=tuple(dict.fromkeys(run.differing))[:10],
                contradicting=tuple(dict.fromkeys(contradicting))[:10],
            )

    async def _other_beginnings(self, theirs: TransferNotes, progress: Progress) -> list[str]:
        """Streams that are shorter in the other journal, and no beginning of those here. Notes are of ends, so this
        journal is walked through once more, up to where the other one's streams end."""
        progress("comparing what the live journal lacks")
        with TransferNotes() as notes:
            run = _Run(theirs, notes)
            async for page in JournalWalk(self._journal, notes).pages():
                await asyncio.to_thread(run.page, page)
            return run.differing


@asynccontextmanager
async def surveyed(journal: TransferableJournal, what: str, progress: Progress) -> AsyncIterator[Survey]:
    """Reads all of a journal: checksums, streams without gaps, what it holds. `what` names it in messages.

    Raises BackupDamaged, Unavailable.
    """
    with TransferNotes() as notes:
        digest = ContentsDigest()
        walk = JournalWalk(journal, notes)
        seen = shown = 0
        try:
            async for page in walk.pages():
                await asyncio.to_thread(_add, digest, page)
                seen += len(page)
                if seen - shown >= _EVERY:
                    shown = seen
                    progress(f"reading, {seen:,} commits")
            claims = 0
            async for held in journal.held_claims():
                claims += len(held)
        except (CorruptJournal, TransferFailed) as problem:
            raise BackupDamaged(f"{what} does not hold a sound journal: {problem}; use another one") from problem
        yield Survey(digest.contents(claims=claims), notes, journal)


def _add(digest: ContentsDigest, page: Sequence[StoredCommit]) -> None:
    for commit, document in page:
        digest.add(
            commit.stream,
            commit.first_sequence_number,
            len(commit.events),
            document,
            commit.metadata.committed_at,
        )


class _Run:
    """One comparison: `ours` are the notes of the surveyed journal, `theirs` those of the walk through the other."""

    def __init__(self, ours: TransferNotes, theirs: TransferNotes) -> None:
        self._ours = ours
        self._theirs = theirs
        self.seen = self.same = self.newer = self.streams = 0
        self.differing: list[str] = []

    def page(self, page: Sequence[StoredCommit]) -> None:
        names = {commit.stream for commit, _ in page}
        ours = self._ours.streams(JOURNAL, names)
        # The walk keeps its own notes; these are of the commits one by one, up to where the surveyed journal ends.
        running = self._theirs.streams(FILE, names)
        pending: dict[str, int] = {}
        for stored in page:
            stream = stored.commit.stream
            target = ours.get(stream, NOTHING)
            note = running.get(stream, NOTHING).followed_by(stored)
            running[stream] = note
            self.seen += 1
            if note.last > target.last:
                self.newer += 1
                if stored.commit.first_sequence_number <= target.last:
                    self.differing.append(stream)
                continue
            pending[stream] = pending.get(stream, 0) + 1
            if note.last == target.last:
                if note.digest == target.digest:
                    self.streams += 1
                else:
                    self.differing.append(stream)
        self.same += sum(pending.values())
        self._theirs.keep(FILE, running)

    def find_missing(self) -> None:
        """Names streams of which the other journal lacks the end."""
        after = ""
        while (names := self._ours.names(JOURNAL, after, _PAGE)) and len(self.differing) < 2 * _PAGE:
            ours, theirs = self._ours.streams(JOURNAL, names), self._theirs.streams(FILE, names)
            self.differing += [name for name in names if theirs.get(name, NOTHING).last < ours[name].last]
            after = names[-1]
