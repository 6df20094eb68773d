"""`verify`: walks a whole journal, of any store, and says whether everything in it is as it was written.

Used after a restore, by `kiseki journal verify`, and by tests that pull the plug. It only reads.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from kiseki.journal.port import Commit, CorruptJournal, FeedPage, Position
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.streams import STREAM

__all__ = ["VerifyReport", "verify"]

_PAGE_COMMITS: Final = 500
_PROBLEMS_LISTED: Final = 100

_NOTES: Final = (
    "CREATE TABLE streams (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE commits (stream TEXT, commit_id TEXT, PRIMARY KEY (stream, commit_id)) WITHOUT ROWID",
)
_LAST: Final = "SELECT name, last FROM streams WHERE name IN (SELECT value FROM json_each(?))"
_NOTE_LAST: Final = "INSERT INTO streams VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET last = excluded.last"
_NOTE_COMMIT: Final = "INSERT OR IGNORE INTO commits VALUES (?, ?)"
_STREAMS: Final = "SELECT COUNT(*) FROM streams"


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a walk through a journal found."""

    commits: int
    events: int
    streams: int
    repeats: int
    """Commits that the feed gave once more; some stores may, and it is no fault."""
    head: Position
    """Where the walk ended."""
    complete: bool
    """Whether it came to the end; damage that the feed can't get past ends it early."""
    problems: tuple[str, ...]
    """One line each, the first 100."""
    problems_found: int

    @property
    def sound(self) -> bool:
        """Whether all of the journal was seen and nothing is wrong with it."""
        return self.complete and self.problems_found == 0


async def verify(journal: TransferableJournal, progress: Callable[[int], None]) -> VerifyReport:
    """Reads every commit: checksums, streams without gaps or overlaps, no commit written twice.

    `progress` is told after every page how many commits were seen. Notes about streams are kept in a temporary file, so
    memory stays bounded for any number of them. What is appended meanwhile is walked too. Raises JournalUnavailable.
    """
    walk = _Walk(journal)
    try:
        position, complete, limit = await journal.beginning(), True, _PAGE_COMMITS
        while True:
            try:
                page: FeedPage = await journal.feed(position, limit=limit)
            except CorruptJournal as damage:
                if limit > 1:
                    limit = 1  # again one by one, so that everything before the damage is still looked at
                    continue
                walk.problem(str(damage))
                complete = False
                break
            if not page.commits:
                break
            await walk.page(page.commits)
            position = page.position
            progress(walk.commits)
        return walk.report(position, complete=complete)
    finally:
        walk.close()


class _Walk:
    """What was seen so far."""

    def __init__(self, journal: TransferableJournal) -> None:
        self._journal = journal
        self._problems: list[str] = []
        self._problems_found = 0
        self._repeats = 0
        self._events = 0
        self.commits = 0
        # An empty name is a temporary database that SQLite keeps in memory up to its cache, then in a file.
        self._notes = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in _NOTES:
            self._notes.execute(statement)

    def problem(self, text: str) -> None:
        self._problems_found += 1
        if len(self._problems) < _PROBLEMS_LISTED:
            self._problems.append(text)

    async def page(self, commits: Sequence[Commit]) -> None:
        known = await asyncio.to_thread(self._recall, {commit.stream for commit in commits})
        last = dict(known)
        new: list[Commit] = []
        for commit in commits:
            expected = last.get(commit.stream, 0) + 1
            first = commit.first_sequence_number
            if first < expected and await self._is_repeat(commit):
                self._repeats += 1
                continue
            self.commits += 1
            self._events += len(commit.events)
            new.append(commit)
            self._check(commit, expected)
            last[commit.stream] = max(commit.last_sequence_number, expected - 1)
        for stream, commit_id in await asyncio.to_thread(self._note, new, last):
            self.problem(f"{stream} has commit {commit_id} twice")

    def _check(self, commit: Commit, expected: int) -> None:
        first = commit.first_sequence_number
        if not commit.events:
            self.problem(f"{commit.stream} has a commit without events at {first}")
        if first > expected:
            self.problem(f"{commit.stream} lacks sequence numbers {expected} to {first - 1}")
        if first < expected:
            self.problem(f"{commit.stream} has two commits with sequence number {first}")
        if not STREAM.fullmatch(commit.stream):
            self.problem(f"a commit belongs to {commit.stream[:300]!a}, which is no stream's name")

    async def _is_repeat(self, commit: Commit) -> bool:
        """Whether the stream holds exactly this commit at its place, so that the feed only said it once more."""
        try:
            async for events in self._journal.read(commit.stream, commit.first_sequence_number - 1):
                there = events[: len(commit.events)]
                return there == commit.recorded()[: len(there)] and len(there) > 0
        except CorruptJournal:
            return False
        return False

    def _recall(self, streams: set[str]) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = self._notes.execute(_LAST, (_json(sorted(streams)),)).fetchall()
        return found

    def _note(self, commits: Sequence[Commit], last: dict[str, int]) -> list[tuple[str, str]]:
        """Keeps a page's findings; returns the commits that are there a second time."""
        self._notes.execute("BEGIN")
        twice = [
            (commit.stream, commit.metadata.commit_id)
            for commit in commits
            if self._notes.execute(_NOTE_COMMIT, (commit.stream, commit.metadata.commit_id)).rowcount == 0
        ]
        self._notes.executemany(_NOTE_LAST, last.items())
        self._notes.execute("COMMIT")
        return twice

    def report(self, head: Position, *, complete: bool) -> VerifyReport:
        (streams,) = self._notes.execute(_STREAMS).fetchone()
        return VerifyReport(
            commits=self.commits,
            events=self._events,
            streams=streams,
            repeats=self._repeats,
            head=head,
            complete=complete,
            problems=tuple(self._problems),
            problems_found=self._problems_found,
        )

    def close(self) -> None:
        self._notes.close()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
