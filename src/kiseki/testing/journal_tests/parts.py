# ruff: noqa: S101  # tests, though they are shipped
"""What tests of a journal are made of: a clock, events, metadata, claims, and reading to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from kiseki.journal.port import (
    START,
    ClaimChange,
    Commit,
    CommitMetadata,
    IdempotencyRecord,
    Journal,
    Position,
    RecordedEvent,
    SnapshotStore,
)
from kiseki.kernel.codec import EncodedEvent

__all__ = [
    "NOON",
    "JournalStore",
    "SetClock",
    "claim",
    "claimed",
    "encoded",
    "everything",
    "idempotency",
    "kinds_of",
    "metadata",
    "outcomes_of",
    "whole_feed",
]

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)


class JournalStore(Journal, SnapshotStore, Protocol):
    """A journal that keeps snapshots too, as the suite expects it."""


class SetClock:
    """A clock that shows what it was set to; durations are real enough for tests: they are zero."""

    def __init__(self, now: datetime = NOON) -> None:
        self.moment = now

    def now(self) -> datetime:
        """The time it was set to."""
        return self.moment

    def monotonic(self) -> float:
        """The same time, in seconds."""
        return self.moment.timestamp()

    def advance(self, by: timedelta) -> None:
        """Lets time pass."""
        self.moment += by


def encoded(name: str, *, data: bytes = b'{"text":"hello"}', subject: str | None = None) -> EncodedEvent:
    """An event with `name` as its id."""
    return EncodedEvent(f"{name:0>26}", "ThingHappened", 1, msgspec.Raw(data), subject)


def metadata(name: str, *, at: datetime = NOON) -> CommitMetadata:
    """The metadata of a commit with `name` as its id."""
    return CommitMetadata(
        commit_id=f"{name:0>26}", committed_at=at, correlation_id=f"correlation of {name}", actor="someone"
    )


def claim(digest: str, *, take: bool = True) -> ClaimChange:
    """A claim for a value within the scope `address`."""
    return ClaimChange("address", digest, take)


def claimed(*digests: str) -> list[ClaimChange]:
    """Claims that take values."""
    return [claim(digest) for digest in digests]


def idempotency(key: str, stream: str, sequence_number: int, *, expires_at: datetime) -> IdempotencyRecord:
    """The record of a keyed command."""
    return IdempotencyRecord(
        key=key,
        command_hash=f"hash of {key}",
        stream=stream,
        sequence_number=sequence_number,
        expires_at=expires_at,
    )


async def everything(journal: Journal, stream: str, after: int = 0) -> list[RecordedEvent]:
    """All events of a stream after a sequence number."""
    return [event async for page in journal.read(stream, after) for event in page]


async def whole_feed(journal: Journal, after: Position = START, *, limit: int = 500) -> list[Commit]:
    """All commits after a position."""
    commits: list[Commit] = []
    while True:
        page = await journal.feed(after, limit=limit)
        if not page.commits:
            return commits
        assert len(page.commits) <= limit
        commits.extend(page.commits)
        after = page.position


async def outcomes_of(*appends: Awaitable[Commit]) -> list[Commit | BaseException]:
    """What became of appends that were all under way at once: commits and errors."""
    return await asyncio.gather(*appends, return_exceptions=True)


def kinds_of(outcomes: Sequence[object]) -> list[type]:
    """The types of outcomes."""
    return [type(outcome) for outcome in outcomes]
