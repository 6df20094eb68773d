"""`guarded`: a journal that writes only while its process holds the lease. Put around the store by `service/stores`.

Permission is looked at before a write begins, and again when the store has answered. The first keeps a site that lost
the lease from writing. The second keeps it from acknowledging: a process may be frozen in between for longer than any
margin, and what it wrote then is not acknowledged, whatever the store did. A store that can refuse by itself
(`FencedJournal`) has refused it. Costs two reads of the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from kiseki.journal.lease.holder import WriterLease
from kiseki.journal.lease.port import NotTheWriter
from kiseki.journal.port import (
    ClaimChange,
    Commit,
    CommitMetadata,
    FeedPage,
    IdempotencyRecord,
    Lag,
    Limits,
    Position,
    RecordedEvent,
    Snapshot,
    SnapshotStore,
)
from kiseki.journal.transfer.transferable import HeldClaim, TransferableJournal
from kiseki.kernel.codec import EncodedEvent

__all__ = ["GuardedJournal", "guarded"]


class _Whole(TransferableJournal, SnapshotStore, Protocol):
    """What is guarded."""


@runtime_checkable
class _Indexed(Protocol):
    """A journal that says which streams were written to lately."""

    def heads(self, since: datetime) -> AsyncIterator[Mapping[str, int]]: ...


class GuardedJournal:
    """A journal under a lease. Reads go through; so does what can be derived again, except saving it."""

    def __init__(self, journal: _Whole, lease: WriterLease) -> None:
        """The lease is let go when the journal is closed."""
        self._journal = journal
        self._lease = lease

    @property
    def limits(self) -> Limits:
        """As Journal."""
        return self._journal.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._journal.limits = limits

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
        """As Journal. Raises NotTheWriter, also when the lease lapsed before the store had answered: the commit may be
        there then, and counts for nothing unless the site that writes has it."""
        self._lease.begin()
        try:
            commit = await self._journal.append(
                stream, after, events, metadata=metadata, claims=claims, idempotency=idempotency
            )
        except asyncio.CancelledError:
            # Its caller has gone, and the store may still write it.
            self._lease.end_later()
            raise
        except BaseException:
            self._lease.end()
            raise
        self._lease.end()
        self._acknowledge()
        return commit

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As TransferableJournal. Raises NotTheWriter."""
        self._lease.begin()
        try:
            await self._journal.restore_held(claims, records)
        finally:
            self._lease.end()
        self._acknowledge()

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """As SnapshotStore. Raises NotTheWriter: the state may be of events that the site that writes lacks."""
        self._lease.check()
        await self._journal.save_snapshot(snapshot, keep=keep)

    async def check(self) -> None:
        """As Journal; where this process may not write, only that the store can be read."""
        if self._lease.permitted:
            await self._journal.check()
        else:
            await self._journal.recall("reachable")

    def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """As Journal."""
        return self._journal.read(stream, after)

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """As Journal."""
        return await self._journal.feed(after, limit=limit)

    async def head(self) -> Position:
        """As Journal."""
        return await self._journal.head()

    async def lag(self, after: Position) -> Lag:
        """As Journal."""
        return await self._journal.lag(after)

    async def beginning(self) -> Position:
        """As TransferableJournal."""
        return await self._journal.beginning()

    async def life(self) -> str:
        """As TransferableJournal."""
        return await self._journal.life()

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """As Journal."""
        return await self._journal.recall(key)

    def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As TransferableJournal."""
        return self._journal.held_claims()

    def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As TransferableJournal."""
        return self._journal.idempotency_records()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As Journal."""
        return self._journal.watch(wake)

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """As SnapshotStore."""
        return await self._journal.load_snapshot(stream, schema)

    async def delete_snapshots(self, stream: str) -> None:
        """As SnapshotStore: an erasure is never held back."""
        await self._journal.delete_snapshots(stream)

    async def close(self) -> None:
        """As Journal; first lets go of the lease."""
        await self._lease.let_go()
        await self._journal.close()

    def _acknowledge(self) -> None:
        if not self._lease.permitted:
            raise NotTheWriter("the lease lapsed while a commit was being written; it is not acknowledged")


class _GuardedIndexed(GuardedJournal):
    """The same of a journal that has an index."""

    def __init__(self, journal: _Whole, index: _Indexed, lease: WriterLease) -> None:
        super().__init__(journal, lease)
        self._index = index

    def heads(self, since: datetime) -> AsyncIterator[Mapping[str, int]]:
        """As the journal that is guarded."""
        return self._index.heads(since)


def guarded(journal: _Whole, lease: WriterLease) -> GuardedJournal:
    """A journal that writes only under the lease; with an index if the journal has one."""
    return _GuardedIndexed(journal, journal, lease) if isinstance(journal, _Indexed) else GuardedJournal(journal, lease)
