"""The cache of states: what the command handler remembers of streams, so that most commands load nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

__all__ = ["CachedState", "StateCache"]


class CachedState:
    """One stream's state as this process knows it. The journal's condition decides, never this."""

    __slots__ = (
        "forgotten",
        "is_erased",
        "last_used",
        "lock",
        "sequence_number",
        "snapshot_at",
        "state",
        "subjects",
        "users",
    )

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        """One command at a time per stream in a process: others would only meet Conflict."""
        self.state: Any = None
        self.sequence_number = -1
        """The last event that `state` includes; -1 when nothing was loaded yet."""
        self.snapshot_at = 0
        self.subjects: frozenset[str] = frozenset()
        """Whose personal data the state may hold."""
        self.is_erased = False
        """Whether the stream's events erase its own subject. Such a stream has no snapshots, so nothing is missed."""
        self.forgotten = 0
        """How often `forget` was called: what was read before is not remembered after it."""
        self.last_used = 0.0
        self.users = 0
        """Commands that hold or wait for the lock; such an entry is not evicted."""

    def forget(self) -> None:
        """Drops the state; the next command loads it again."""
        self.state = None
        self.sequence_number = -1
        self.snapshot_at = 0
        self.subjects = frozenset()
        self.is_erased = False
        self.forgotten += 1


class StateCache:
    """States in order of use: bounded in number, and evicted when idle for `idle` seconds."""

    def __init__(self, *, capacity: int, idle: float) -> None:
        self._entries: OrderedDict[str, CachedState] = OrderedDict()
        self._capacity = capacity
        self._idle = idle

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, stream: str, now: float) -> CachedState:
        """The entry of a stream, marked as in use until `leave`."""
        entry = self._entries.get(stream)
        if entry is None:
            entry = self._entries[stream] = CachedState()
        else:
            self._entries.move_to_end(stream)
        entry.last_used = now
        entry.users += 1
        return entry

    def leave(self, entry: CachedState) -> None:
        """Ends one use."""
        entry.users -= 1

    def evict(self, now: float) -> int:
        """Drops idle entries, and the least recently used ones above capacity; returns how many."""
        before = len(self._entries)
        kept: list[tuple[str, CachedState]] = []
        while self._entries:
            stream, entry = next(iter(self._entries.items()))
            if len(self._entries) + len(kept) <= self._capacity and now - entry.last_used < self._idle:
                break
            del self._entries[stream]
            if entry.users:
                kept.append((stream, entry))
        for stream, entry in reversed(kept):
            self._entries[stream] = entry
            self._entries.move_to_end(stream, last=False)
        return before - len(self._entries)

    def forget_subject(self, subject: str) -> None:
        """Drops every state that may hold personal data of a subject."""
        for entry in self._entries.values():
            if subject in entry.subjects:
                entry.forget()
