"""What was read of one shard of DynamoDB's stream: changes, and runs of them without a gap.

Used by the DynamoDB journal only. Pure: nothing here calls DynamoDB, but for the lock of whoever does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from kiseki.journal.dynamodb.items import commit_of, is_commit, item_bytes, moment_of
from kiseki.journal.port import Commit

__all__ = ["Change", "Run", "Window"]


class Change:
    """One record of the stream."""

    __slots__ = ("_commit", "_image", "bytes", "created", "sequence")

    def __init__(self, record: Mapping[str, Any]) -> None:
        about = record["dynamodb"]
        self.sequence = str(about["SequenceNumber"])
        self.created = float(about.get("ApproximateCreationDateTime", 0))
        """Seconds of the epoch, AWS's time."""
        image = about.get("NewImage") or {}
        self._image: Mapping[str, Any] | None = image if is_commit(image) else None
        self.bytes = item_bytes(image)
        self._commit: Commit | None = None

    @property
    def is_commit(self) -> bool:
        """Whether a commit was added; nobody but an administrator does anything else to the table."""
        return self._image is not None or self._commit is not None

    def commit(self) -> Commit:
        """The commit that was added. Raises CorruptJournal."""
        if self._commit is None:
            self._commit = commit_of(self._image or {})
            self._image = None  # so that it is not kept twice
        return self._commit

    def committed_at(self) -> datetime:
        """When the commit was made. Raises CorruptJournal."""
        if self._commit is not None:
            return self._commit.metadata.committed_at
        return moment_of(self._image or {}, "committed-at")


class Run(NamedTuple):
    """Changes of a shard one after the other. `drained`: there is nothing more now; `ended`: nor will there be.

    `short`: they end where the last call ended, at this time of the event loop, and that call gave less than it could.
    """

    changes: Sequence[Change]
    drained: bool
    ended: bool
    short: float | None = None


class Window:
    """Changes of a shard without a gap, growing at its tip."""

    def __init__(self, arn: str, shard: str, start: str | None, *, latest: bool = False) -> None:
        self.arn = arn
        self.shard = shard
        self.start = start
        self.latest = latest
        """Whether it began at what was then the tip, so that nobody's cursor leads to its begin."""
        self.changes: list[Change] = []
        self.places: dict[str, int] = {}
        self.bytes = 0
        self.iterator: str | None = None
        self.ended = False
        self.vain = 0
        """How many calls in a row found nothing."""
        self.settled = False
        """Whether the iterator was at the tip once, so that a call that finds nothing is the tip."""
        self.at_tip = False
        """Whether the last call found nothing, and nothing was there."""
        self.short = False
        """Whether the last call gave less than it could."""
        self.looked_at = float("-inf")
        self.used_at = float("-inf")
        self.calls = 0
        self.lock = asyncio.Lock()

    def place(self, cursor: str | None) -> int | None:
        """The index of the first change after a cursor, None when the window does not know it."""
        if cursor == self.start and not self.latest:
            return 0
        return None if cursor is None else self.places.get(cursor)

    @property
    def tip(self) -> str | None:
        return self.changes[-1].sequence if self.changes else self.start

    def add(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.changes.append(change)
            self.places[change.sequence] = len(self.changes)
            self.bytes += change.bytes

    def drop_half(self) -> None:
        """Forgets the older half."""
        half = (len(self.changes) + 1) // 2
        self.start, self.latest = self.changes[half - 1].sequence, False
        self.changes = self.changes[half:]
        self.places = {change.sequence: place for place, change in enumerate(self.changes, 1)}
        self.bytes = sum(change.bytes for change in self.changes)
