"""Loading: the state of a stream from its newest usable snapshot and the events after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kiseki.command.cache import CachedState
from kiseki.journal.port import Journal, Snapshot, SnapshotStore
from kiseki.kernel.codec import EventCodec, StateCodec
from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import Clock, Protector, Telemetry

__all__ = ["Loader"]

_log = logging.getLogger(__name__)


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
        self._states = {
            aggregate_type: StateCodec(decider, protector, random_bytes) for aggregate_type, decider in deciders.items()
        }

    async def refresh(self, aggregate_type: str, stream: str, entry: CachedState) -> None:
        """Brings the entry to the stream's end, reading only what is new to it.

        Raises UnknownEvent, Unreadable, CorruptJournal, SubjectKeyMissing, Unavailable; the entry is then forgotten.
        """
        decider = self._deciders[aggregate_type]
        try:
            from_snapshot = False
            if entry.sequence_number < 0:
                entry.state, entry.sequence_number = decider.initial, 0
                from_snapshot = await self._from_snapshot(aggregate_type, stream, entry)
            count = 0
            async for page in self._journal.read(stream, entry.sequence_number):
                events = await self._codec.decode(page)
                state = entry.state
                for event in events:
                    state = decider.evolve(state, event)
                entry.state = state
                entry.sequence_number = page[-1].sequence_number
                entry.subjects |= self._codec.subjects(page)
                count += len(page)
        except BaseException:
            entry.forget()
            raise
        self._telemetry.loaded(aggregate_type, count, cached=False, from_snapshot=from_snapshot)

    async def _from_snapshot(self, aggregate_type: str, stream: str, entry: CachedState) -> bool:
        codec = self._states[aggregate_type]
        snapshot = await self._snapshots.load_snapshot(stream, codec.schema)
        if snapshot is None:
            return False
        try:
            decoded = await codec.decode(stream, snapshot.sequence_number, snapshot.data)
        except Unavailable:
            raise
        except KisekiError as problem:
            self._telemetry.snapshot(aggregate_type, "unreadable")
            _log.warning("snapshot of %s at %d is passed over: %s", stream, snapshot.sequence_number, problem)
            return False
        if decoded is None:
            return False
        entry.state, entry.subjects = decoded
        entry.sequence_number = entry.snapshot_at = snapshot.sequence_number
        return True

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
