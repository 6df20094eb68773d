"""A walk through a whole journal that meets every commit once, in the order of its stream, whatever the feed repeats.

Used by `export`, which writes down what it meets, and by `import`, which compares it with the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from kiseki.journal.port import Commit, CommitMetadata, Journal, Position, RecordedEvent
from kiseki.journal.transfer.lines import StoredCommit, stored
from kiseki.journal.transfer.notes import JOURNAL, NOTHING, StreamNote, TransferNotes
from kiseki.journal.transfer.transferable import TransferableJournal, TransferFailed
from kiseki.kernel.codec import EncodedEvent

__all__ = ["JournalWalk", "commits_of"]

_PAGE_COMMITS: Final = 500


class JournalWalk:
    """Follows the feed to where it has no more, and notes how far each stream was seen."""

    def __init__(self, journal: TransferableJournal, notes: TransferNotes) -> None:
        self._journal = journal
        self._notes = notes
        self._position: Position | None = None

    async def pages(self) -> AsyncIterator[Sequence[StoredCommit]]:
        """New commits, in pages of bounded size, until the feed has no more; called again, what came since.

        What the feed leaves out within a stream is read from the stream. Raises TransferFailed when a stream is not
        contiguous, CorruptJournal, JournalUnavailable.
        """
        position = await self._reached()
        while True:
            page = await self._journal.feed(position, limit=_PAGE_COMMITS)
            if not page.commits:
                return
            async for new in self._new(page.commits):
                yield new
            position = self._position = page.position

    async def behind(self) -> int:
        """How many commits there are that the feed has not shown yet. Raises JournalUnavailable."""
        return (await self._journal.lag(await self._reached())).commits

    async def _reached(self) -> Position:
        if self._position is None:
            self._position = await self._journal.beginning()
        return self._position

    async def complete(self, stream: str) -> None:
        """Notes what a stream holds beyond what the feed has shown so far; a feed may lag behind its streams."""
        note = (await asyncio.to_thread(self._notes.streams, JOURNAL, [stream])).get(stream, NOTHING)
        async for commit in commits_of(self._journal, stream, after=note.last):
            note = note.followed_by(stored(commit))
        await asyncio.to_thread(self._notes.keep, JOURNAL, {stream: note})

    async def _new(self, commits: Sequence[Commit]) -> AsyncIterator[Sequence[StoredCommit]]:
        seen = await asyncio.to_thread(self._notes.streams, JOURNAL, {commit.stream for commit in commits})
        page: list[StoredCommit] = []
        for commit in commits:
            stream, first = commit.stream, commit.first_sequence_number
            note = seen.get(stream, NOTHING)
            if commit.last_sequence_number <= note.last:
                continue  # given before: a feed may repeat itself
            if first > note.last + 1:
                async for missing in commits_of(self._journal, stream, after=note.last, before=first):
                    note = seen[stream] = _append(page, missing, note)
                    if len(page) >= _PAGE_COMMITS:
                        await asyncio.to_thread(self._notes.keep, JOURNAL, seen)
                        yield page
                        page = []
            seen[stream] = _append(page, commit, note)
        await asyncio.to_thread(self._notes.keep, JOURNAL, seen)
        if page:
            yield page


def _append(page: list[StoredCommit], commit: Commit, note: StreamNote) -> StreamNote:
    if commit.first_sequence_number != note.last + 1 or not commit.events:
        raise TransferFailed(
            f"{commit.stream} is not contiguous: after sequence number {note.last} comes a commit that begins with "
            f"{commit.first_sequence_number}; run `kiseki journal verify`"
        )
    page.append(stored(commit))
    return note.followed_by(page[-1])


async def commits_of(journal: Journal, stream: str, *, after: int, before: int | None = None) -> AsyncIterator[Commit]:
    """The commits of a stream between two sequence numbers, put together from its events. Raises what `read` raises."""
    group: list[RecordedEvent] = []
    async for page in journal.read(stream, after):
        for event in page:
            if before is not None and event.sequence_number >= before:
                break
            if group and event.commit_id != group[0].commit_id:
                yield _commit(group)
                group = []
            group.append(event)
        else:
            continue
        break
    if group:
        yield _commit(group)


def _commit(events: Sequence[RecordedEvent]) -> Commit:
    first = events[0]
    return Commit(
        stream=first.stream,
        first_sequence_number=first.sequence_number,
        metadata=CommitMetadata(
            commit_id=first.commit_id,
            committed_at=first.occurred_at,
            correlation_id=first.correlation_id,
            causation_id=first.causation_id,
            actor=first.actor,
        ),
        events=tuple(EncodedEvent(each.event_id, each.type, each.version, each.data, each.subject) for each in events),
    )
