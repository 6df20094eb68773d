"""Comparing two journals commit by commit, event by event. Used by planned failover and by failback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from kiseki.journal.port import Commit, Journal, Position
from kiseki.journal.transfer.lines import StoredCommit, stored
from kiseki.journal.transfer.notes import TransferNotes
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.journal.transfer.walk import JournalWalk, commits_of

__all__ = ["Difference", "commits_after", "differences", "walked"]

_AT_ONCE: Final = 16
_PAGE: Final = 500


class Difference(NamedTuple):
    """A commit that the other journal lacks, or has otherwise."""

    commit: StoredCommit
    other: Commit | None
    """What is at its place there, if anything is."""


async def commits_after(journal: Journal, since: Position) -> AsyncIterator[Sequence[StoredCommit]]:
    """What the feed gives after a position, until it has no more; a commit may come twice."""
    while (page := await journal.feed(since, limit=_PAGE)).commits:
        yield [stored(commit) for commit in page.commits]
        since = page.position


async def walked(journal: TransferableJournal) -> AsyncIterator[Sequence[StoredCommit]]:
    """Every commit of a journal, once. Raises TransferFailed, CorruptJournal, Unavailable."""
    with TransferNotes() as notes:
        async for page in JournalWalk(journal, notes).pages():
            yield page


async def differences(page: Sequence[StoredCommit], other: Journal) -> list[Difference]:
    """The commits of a page that another journal lacks or has otherwise, in the order of the page."""
    streams: dict[str, list[StoredCommit]] = {}
    for each in page:
        streams.setdefault(each.commit.stream, []).append(each)
    free = asyncio.Semaphore(_AT_ONCE)

    async def of_stream(commits: Sequence[StoredCommit]) -> list[Difference]:
        first = min(each.commit.first_sequence_number for each in commits)
        last = max(each.commit.last_sequence_number for each in commits)
        async with free:
            there = {
                commit.first_sequence_number: commit
                async for commit in commits_of(other, commits[0].commit.stream, after=first - 1, before=last + 1)
            }
        found = []
        for each in commits:
            at_its_place = there.get(each.commit.first_sequence_number)
            if at_its_place is None or stored(at_its_place).document != each.document:
                found.append(Difference(each, at_its_place))
        return found

    found = await asyncio.gather(*(of_stream(commits) for commits in streams.values()))
    return [difference for of_one in found for difference in of_one]
