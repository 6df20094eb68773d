"""`MemoryJournal`: the whole contract in plain Python, for tests. Nothing outlives the process.

Commits are kept as documents with checksums, as on every other store, so that a test meets the same data.
"""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from kiseki.journal.format import checksum, decode_commit, encode_commit
from kiseki.journal.port import (
    START,
    ClaimChange,
    ClaimTaken,
    Commit,
    CommitMetadata,
    Conflict,
    FeedPage,
    IdempotencyRecord,
    IdempotencyTaken,
    JournalUnavailable,
    Lag,
    Limits,
    Position,
    RecordedEvent,
    Snapshot,
    new_commit,
)
from kiseki.journal.transfer.transferable import HELD_PAGE, HeldClaim, claims_by_value, records_by_key
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock

__all__ = ["MemoryJournal"]

_PAGE_COMMITS: Final = 256


class _Stored(NamedTuple):
    stream: str
    first_sequence_number: int
    last_sequence_number: int
    commit_id: str
    committed_at: datetime
    document: bytes
    checksum: str

    def decode(self) -> Commit:
        return decode_commit(self.stream, self.first_sequence_number, self.document, self.checksum)


def _first(stored: _Stored) -> int:
    return stored.first_sequence_number


def _last(stored: _Stored) -> int:
    return stored.last_sequence_number


class MemoryJournal:
    """A Journal and SnapshotStore in memory.

    Two hooks make it slow or unreliable for a test: `before_commit` is awaited before a commit is tried,
    `after_commit` after it landed and before the caller hears of it. Either may raise JournalUnavailable: the first is
    a commit that failed, the second a reply that was lost.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limits: Limits | None = None,
        before_commit: Callable[[Commit], Awaitable[None]] | None = None,
        after_commit: Callable[[Commit], Awaitable[None]] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._life = secrets.token_hex(8)
        self._commits: list[_Stored] = []
        self._streams: defaultdict[str, list[_Stored]] = defaultdict(list)
        self._claims: dict[tuple[str, str], str] = {}
        self._keys: dict[str, IdempotencyRecord] = {}
        self._snapshots: defaultdict[str, dict[tuple[str, int], Snapshot]] = defaultdict(dict)
        self._wakes: dict[object, Callable[[], None]] = {}
        self._closed = False
        self._under_way = 0
        self._all_done = asyncio.Event()

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
        """As the contract says. Raises ValueError for a name that is no stream's."""
        self._refuse_when_closed()
        commit = new_commit(stream, after, events, metadata=metadata, limits=self.limits)
        self._under_way += 1
        try:
            if self._before_commit is not None:
                await self._before_commit(commit)
            landed = self._land(commit, claims, idempotency)
            if self._after_commit is not None:
                await self._after_commit(commit)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_done.set()
        return landed

    def _land(self, commit: Commit, claims: Sequence[ClaimChange], idempotency: IdempotencyRecord | None) -> Commit:
        stream, first = commit.stream, commit.first_sequence_number
        stored = self._streams.get(stream, [])
        there = stored[bisect_left(stored, first, key=_first) :][:1]
        if there and _first(there[0]) == first and there[0].commit_id == commit.metadata.commit_id:
            return there[0].decode()
        if idempotency is not None and self._unexpired(idempotency.key) is not None:
            raise IdempotencyTaken("a commit with this idempotency key exists")
        if first != (stored[-1].last_sequence_number if stored else 0) + 1:
            raise Conflict(stream, first - 1)
        held = self._claims.copy() if claims else self._claims
        for claim in claims:
            _change(held, claim, stream)
        document = encode_commit(commit.metadata, commit.events)
        new = _Stored(
            stream,
            first,
            commit.last_sequence_number,
            commit.metadata.commit_id,
            commit.metadata.committed_at,
            document,
            checksum(stream, first, document),
        )
        self._commits.append(new)
        self._streams[stream].append(new)
        self._claims = held
        if idempotency is not None:
            self._keys[idempotency.key] = idempotency
        for wake in self._wakes.values():
            asyncio.get_running_loop().call_soon(wake)
        return commit

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """As the contract says."""
        while True:
            self._refuse_when_closed()
            stored = self._streams.get(stream, [])
            start = bisect_right(stored, after, key=_last)
            page = stored[start : start + _PAGE_COMMITS]
            if not page:
                return
            yield [event for there in page for event in there.decode().recorded(after)]
            after = page[-1].last_sequence_number

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """As the contract says."""
        self._refuse_when_closed()
        start = self._place(after)
        page = self._commits[start : start + limit]
        return FeedPage(tuple(stored.decode() for stored in page), self._position(start + len(page)))

    async def head(self) -> Position:
        """As the contract says."""
        self._refuse_when_closed()
        return self._position(len(self._commits))

    async def lag(self, after: Position) -> Lag:
        """As the contract says."""
        self._refuse_when_closed()
        behind = self._commits[self._place(after) :]
        return Lag(len(behind), behind[0].committed_at if behind else None)

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """As the contract says."""
        self._refuse_when_closed()
        return self._unexpired(key)

    async def beginning(self) -> Position:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        return START

    async def life(self) -> str:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        return self._life

    async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        held = [HeldClaim(scope, digest, stream) for (scope, digest), stream in self._claims.items()]
        for start in range(0, len(held), HELD_PAGE):
            yield held[start : start + HELD_PAGE]

    async def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        records = [record for key in self._keys if (record := self._unexpired(key)) is not None]
        for start in range(0, len(records), HELD_PAGE):
            yield records[start : start + HELD_PAGE]

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As `TransferableJournal` says; all of them or none."""
        self._refuse_when_closed()
        holders, kept = claims_by_value(claims), records_by_key(records)
        for value, stream in holders.items():
            if self._claims.get(value, stream) != stream:
                raise ClaimTaken(value[0])
        for key, record in kept.items():
            if self._unexpired(key) not in (None, record):
                raise IdempotencyTaken("an idempotency record of the same key says something else")
        now = self._clock.now()
        self._claims = {**self._claims, **holders}
        self._keys.update({key: record for key, record in kept.items() if record.expires_at > now})

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As the contract says."""
        watcher = object()
        self._wakes[watcher] = wake

        def end() -> None:
            self._wakes.pop(watcher, None)

        return end

    async def check(self) -> None:
        """As the contract says."""
        self._refuse_when_closed()

    async def close(self) -> None:
        """As the contract says."""
        self._closed = True
        while self._under_way:
            self._all_done.clear()
            await self._all_done.wait()
        self._wakes.clear()

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """As the contract says."""
        self._refuse_when_closed()
        numbers = [number for kept, number in self._snapshots.get(stream, {}) if kept == schema]
        return self._snapshots[stream][schema, max(numbers)] if numbers else None

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """As the contract says."""
        self._refuse_when_closed()
        kept = self._snapshots[snapshot.stream]
        kept[snapshot.schema, snapshot.sequence_number] = snapshot
        numbers = sorted(number for schema, number in kept if schema == snapshot.schema)
        for number in numbers[:-keep]:
            del kept[snapshot.schema, number]

    async def delete_snapshots(self, stream: str) -> None:
        """As the contract says."""
        self._refuse_when_closed()
        self._snapshots.pop(stream, None)

    def _unexpired(self, key: str) -> IdempotencyRecord | None:
        record = self._keys.get(key)
        return record if record is not None and record.expires_at > self._clock.now() else None

    def _position(self, place: int) -> Position:
        return Position(f"{self._life}-{place}")

    def _place(self, position: Position) -> int:
        life, _, place = position.partition("-")
        return int(place) if life == self._life else 0

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise JournalUnavailable("the journal is closed")


def _change(held: dict[tuple[str, str], str], claim: ClaimChange, stream: str) -> None:
    value = (claim.scope, claim.digest)
    holder = held.get(value)
    if claim.take:
        if holder not in (None, stream):
            raise ClaimTaken(claim.scope)
        held[value] = stream
    elif holder == stream:
        del held[value]
