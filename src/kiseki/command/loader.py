"""Loading: the state of a stream from its newest usable snapshot and the events after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kiseki.command.cache import CachedState
from kiseki.command.erasure import erasing_names
from kiseki.journal.port import Journal, Snapshot, SnapshotStore
from kiseki.kernel.codec import EventCodec, StateCodec
from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import Clock, Protector, Telemetry

__all__ = ["Loader"]

_log = logging.getLogger(__name__)


class _Loaded:
    """A state while it is being read; the entry gets it at the end, or not."""

    __slots__ = ("from_snapshot", "is_erased", "sequence_number", "snapshot_at", "state", "subjects")

    def __init__(
        self,
        state: Any,
        sequence_number: int,
        snapshot_at: int,
        subjects: frozenset[str],
        *,
        is_erased: bool,
        from_snapshot: bool = False,
    ) -> None:
        self.state = state
        self.sequence_number = sequence_number
        self.snapshot_at = snapshot_at
        self.subjects = subjects
        self.is_erased = is_erased
        self.from_snapshot = from_snapshot


class Loader:
    """Brings a cached state up to date, and saves snapshots.

    Snapshots shorten loading and nothing else: one that is missing, of another schema, damaged or of an erased subject
    is passed over.
    """

    def __init__(
        self,
        *,
        deciders: Mapping[str, Decider[Any, Any, Any]],
        journal: Journal,
        snapshots: SnapshotStore,
        codec: EventCodec,
        protector: Protector,
        telemetry: Telemetry,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        snapshots_keep: int,
    ) -> None:
        self._deciders = deciders
        self._journal = journal
        self._snapshots = snapshots
        self._codec = codec
        self._telemetry = telemetry
        self._clock = clock
        self._keep = snapshots_keep
        self._erasing: frozenset[str] = frozenset().union(*(erasing_names(decider) for decider in deciders.values()))
        self._states = {
            aggregate_type: StateCodec(decider, protector, random_bytes) for aggregate_type, decider in deciders.items()
        }

    async def refresh(self, aggregate_type: str, stream: str, entry: CachedState) -> None:
        """Brings the entry to the stream's end, reading only what is new to it.

        Raises UnknownEvent, Unreadable, CorruptJournal, SubjectKeyMissing, Unavailable; the entry is then forgotten.
        """
        decider = self._deciders[aggregate_type]
        try:
            while True:
                forgotten, count = entry.forgotten, 0
                loaded = await self._load(decider, stream, entry)
                async for page in self._journal.read(stream, loaded.sequence_number):
                    events = await self._codec.decode(page)
                    state = loaded.state
                    for event in events:
                        state = decider.evolve(state, event)
                    loaded.state = state
                    loaded.sequence_number = page[-1].sequence_number
                    loaded.subjects |= self._codec.subjects(page)
                    loaded.is_erased |= any(
                        event.type in self._erasing and event.subject in (None, stream) for event in page
                    )
                    count += len(page)
                if entry.forgotten == forgotten:
                    break
                # Somebody was erased while this was read: it may hold what must not be remembered.
        except BaseException:
            entry.forget()
            raise
        entry.state, entry.sequence_number = loaded.state, loaded.sequence_number
        entry.snapshot_at, entry.subjects, entry.is_erased = loaded.snapshot_at, loaded.subjects, loaded.is_erased
        self._telemetry.loaded(aggregate_type, count, cached=False, from_snapshot=loaded.from_snapshot)

    async def _load(self, decider: Decider[Any, Any, Any], stream: str, entry: CachedState) -> _Loaded:
        """What is known so far: from the entry, else from a snapshot, else nothing."""
        if entry.sequence_number >= 0:
            return _Loaded(
                entry.state, entry.sequence_number, entry.snapshot_at, entry.subjects, is_erased=entry.is_erased
            )
        snapshot = await self._from_snapshot(decider.aggregate_type, stream)
        return snapshot or _Loaded(decider.initial, 0, 0, frozenset(), is_erased=False)

    async def _from_snapshot(self, aggregate_type: str, stream: str) -> _Loaded | None:
        codec = self._states[aggregate_type]
        snapshot = await self._snapshots.load_snapshot(stream, codec.schema)
        if snapshot is None:
            return None
        try:
            decoded = await codec.decode(stream, snapshot.sequence_number, snapshot.data)
        except Unavailable:
            raise
        except KisekiError as problem:
            self._telemetry.snapshot(aggregate_type, "unreadable")
            _log.warning("snapshot of %s at %d is passed over: %s", stream, snapshot.sequence_number, problem)
            return None
        if decoded is None:
            return None
        state, subjects = decoded
        number = snapshot.sequence_number
        return _Loaded(state, number, number, subjects, is_erased=False, from_snapshot=True)

    async def save_snapshot(
        self, aggregate_type: str, stream: str, sequence_number: int, state: Any, subjects: frozenset[str]
    ) -> None:
        """Saves a snapshot; a failure is counted and logged, nothing else."""
        codec = self._states[aggregate_type]
        try:
            data = await codec.encode(stream, sequence_number, state, subjects)
            if data is None:
                return
            await self._snapshots.save_snapshot(
                Snapshot(
                    stream=stream,
                    sequence_number=sequence_number,
                    schema=codec.schema,
                    data=data,
                    saved_at=self._clock.now(),
                ),
                keep=self._keep,
            )
        except KisekiError as problem:
            self._telemetry.snapshot(aggregate_type, "failed")
            _log.warning("snapshot of %s at %d was not saved: %s", stream, sequence_number, problem)
        else:
            self._telemetry.snapshot(aggregate_type, "saved")

    async def delete_snapshots(self, stream: str) -> None:
        """Removes a stream's snapshots. Raises Unavailable."""
        await self._snapshots.delete_snapshots(stream)
