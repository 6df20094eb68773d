"""The contract of a journal: what every store promises to the command side and to projections.

A commit is the events of one command, atomic, contiguous within its stream. The key (stream, sequence number of the
commit's first event) is unique, which is at once the atomic append and the whole optimistic lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final, NewType, Protocol

import msgspec

from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.event import EventMetadata
from kiseki.kernel.streams import STREAM

__all__ = [
    "START",
    "ClaimChange",
    "ClaimTaken",
    "Commit",
    "CommitMetadata",
    "CommitTooLarge",
    "Conflict",
    "CorruptJournal",
    "FeedPage",
    "IdempotencyRecord",
    "IdempotencyTaken",
    "Journal",
    "JournalUnavailable",
    "Lag",
    "Limits",
    "Position",
    "RecordedEvent",
    "Snapshot",
    "SnapshotStore",
    "check_limits",
    "new_commit",
]

Position = NewType("Position", str)
"""An opaque place in the journal-wide feed; only the store that gave it can read it."""

START: Final = Position("")
"""Before the first commit."""


class Conflict(KisekiError):
    """The stream has moved since it was read; nothing was written."""

    code = "CONFLICT"

    def __init__(self, stream: str, after: int) -> None:
        super().__init__(f"{stream} has moved on from sequence number {after}")
        self.stream = stream
        self.after = after


class ClaimTaken(KisekiError):
    """Another stream holds the value; nothing was written."""

    code = "CLAIM_TAKEN"

    def __init__(self, scope: str) -> None:
        super().__init__(f"the value for {scope} is already taken")
        self.scope = scope


class IdempotencyTaken(KisekiError):
    """A commit with this idempotency key exists; nothing was written. `recall` gives what it did."""

    code = "IDEMPOTENCY_TAKEN"


class CommitTooLarge(KisekiError):
    """The commit is over a limit; nothing was written. The message names the limit."""

    code = "COMMIT_TOO_LARGE"


class JournalUnavailable(Unavailable):
    """The store can't be used now. The commit may or may not have been written; the same append again, with the
    same commit id, is safe."""


class CorruptJournal(KisekiError):
    """Stored bytes are not what was written. Never ignored: stop, verify, restore."""

    code = "CORRUPT_JOURNAL"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How large things may be; the same on every store, so that a journal can move between them."""

    event_bytes: int = 256_000
    commit_events: int = 500
    commit_bytes: int = 1_000_000


class CommitMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What surrounds the events of one commit."""

    commit_id: str
    """A ULID; by it a retry recognises its own write."""
    committed_at: datetime
    """UTC, in microseconds: when the command was decided."""
    correlation_id: str
    causation_id: str | None = None
    actor: str = ""


class RecordedEvent(EventMetadata, frozen=True, kw_only=True):
    """An event as a journal gives it back: its envelope, and its data as stored (JSON, personal fields sealed)."""

    subject: str | None
    data: msgspec.Raw


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """The events of one command."""

    stream: str
    first_sequence_number: int
    metadata: CommitMetadata
    events: tuple[EncodedEvent, ...]

    @property
    def last_sequence_number(self) -> int:
        """The sequence number of the last event."""
        return self.first_sequence_number + len(self.events) - 1

    def recorded(self, after: int = 0) -> list[RecordedEvent]:
        """The events with their envelopes, those up to sequence number `after` left out."""
        about = self.metadata
        return [
            RecordedEvent(
                stream=self.stream,
                sequence_number=number,
                event_id=event.event_id,
                type=event.type,
                version=event.version,
                occurred_at=about.committed_at,
                commit_id=about.commit_id,
                correlation_id=about.correlation_id,
                causation_id=about.causation_id,
                actor=about.actor,
                subject=event.subject,
                data=event.data,
            )
            for number, event in enumerate(self.events, self.first_sequence_number)
            if number > after
        ]


class ClaimChange(msgspec.Struct, frozen=True):
    """Takes (or releases) a value within a scope for the committing stream. `digest` is a keyed hash of the value."""

    scope: str
    digest: str
    take: bool


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a keyed command did, kept with its commit."""

    key: str
    """A keyed hash of who asked and the key they gave."""
    command_hash: str
    stream: str
    sequence_number: int
    """The last sequence number the command wrote."""
    expires_at: datetime


class FeedPage(msgspec.Struct, frozen=True):
    """A page of the feed. `position` is the place after its last commit; with no commits, where the feed now ends."""

    commits: tuple[Commit, ...]
    position: Position
    at_end: bool | None = None
    """Whether `position` is the end of the feed, as far as the store showed it during the call.

    True: what had been appended some seconds before the call is not after `position`. An empty page is the end too.
    False: more may follow.
    None: the store does not say, which only one may whose feed has one order, where later appends come later. There,
    and only there, counting tells it: who asks `lag`, and then gets as many commits as that said, has passed all there
    were. Elsewhere new commits come between old ones, and some come twice, so counting tells nothing.
    """


class Lag(msgspec.Struct, frozen=True):
    """How far a position is behind the end of the journal."""

    commits: int
    oldest: datetime | None
    """When the oldest commit after the position was made (UTC); None when there is none."""
    exact: bool = True
    """Whether no more than `commits` follow, as far as the store showed it during the call; so 0 is the end. Else it is
    an estimate, for showing progress: the feed may give more, and 0 says nothing."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A state saved to shorten loading. Derivable: losing one costs time, never facts."""

    stream: str
    sequence_number: int
    schema: str
    data: bytes
    saved_at: datetime


class SnapshotStore(Protocol):
    """Where snapshots are kept, by stream and state schema."""

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """The newest snapshot that this schema can read. Raises Unavailable."""
        ...

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """Saves one and keeps the newest `keep` of the stream and schema. Raises Unavailable."""
        ...

    async def delete_snapshots(self, stream: str) -> None:
        """Removes all snapshots of a stream. Raises Unavailable."""
        ...


class Journal(Protocol):
    """A write store. All times in seconds, all sizes in bytes, all points in time UTC."""

    limits: Limits

    async def append(
        self,
        stream: str,
        after: int,
        events: Sequence[EncodedEvent],
        *,
        metadata: CommitMetadata,
        claims: Sequence[ClaimChange] = (),
        idempotency: IdempotencyRecord | None = None,
    ) -> Commit:
        """Appends one commit after sequence number `after`, which comes from a read; durable when this returns.

        Events, claims and idempotency record land together or not at all. Appending the same commit id again at the
        same place returns the commit that is there. Claims change in their order; a stream may take again what it
        holds, and releases only what it holds.

        Raises CommitTooLarge; IdempotencyTaken; Conflict when the stream is not at `after`; ClaimTaken, the first of
        these that applies; JournalUnavailable.
        """
        ...

    def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """The events of a stream after a sequence number, in order, without gaps, in pages of bounded size.

        Raises CorruptJournal, JournalUnavailable.
        """
        ...

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """Up to `limit` commits after a position: every commit at least once, in order within a stream, none skipped.

        A position of an earlier life of the store (before a restore) reads from the start.
        Raises CorruptJournal, JournalUnavailable.
        """
        ...

    async def head(self) -> Position:
        """The position after the newest commit that `feed` would give. Raises JournalUnavailable."""
        ...

    async def lag(self, after: Position) -> Lag:
        """How far a position is behind. Raises JournalUnavailable."""
        ...

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """The unexpired idempotency record of a key. Raises JournalUnavailable."""
        ...

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` on the event loop soon after something was appended, by this process or another one.

        A hint that may be late, repeated or missed: whoever follows the feed also looks now and then. Returns the
        function that ends it.
        """
        ...

    async def check(self) -> None:
        """Proves that the store can be written now, for readiness. Raises JournalUnavailable with the cause."""
        ...

    async def close(self) -> None:
        """Finishes what was accepted and lets go of the store. Appending after it raises JournalUnavailable."""
        ...


def new_commit(
    stream: str, after: int, events: Sequence[EncodedEvent], *, metadata: CommitMetadata, limits: Limits
) -> Commit:
    """What an append is to write; every store begins with it.

    Raises ValueError for a name that is no stream's, CommitTooLarge when the commit is over a limit.
    """
    if not STREAM.fullmatch(stream):
        raise ValueError(f"not the name of a stream: {stream[:300]!a}")
    check_limits(stream, events, limits)
    return Commit(stream=stream, first_sequence_number=after + 1, metadata=metadata, events=tuple(events))


def check_limits(stream: str, events: Sequence[EncodedEvent], limits: Limits) -> None:
    """Raises CommitTooLarge when a commit is over a limit."""
    if not events:
        raise CommitTooLarge(f"{stream}: a commit holds at least one event")
    if len(events) > limits.commit_events:
        raise CommitTooLarge(f"{stream}: {len(events)} events in one commit; the limit is {limits.commit_events}")
    total = 0
    for event in events:
        size = len(bytes(event.data))
        if size > limits.event_bytes:
            raise CommitTooLarge(f"{stream}: a {event.type} has {size} bytes; the limit is {limits.event_bytes}")
        total += size
    if total > limits.commit_bytes:
        raise CommitTooLarge(f"{stream}: {total} bytes in one commit; the limit is {limits.commit_bytes}")
