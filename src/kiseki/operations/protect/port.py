"""The port `Protection`: copies what is new, again and again, so that a lost machine costs minutes and not a day.

Used by `kiseki backup protect`, by restoring from what it copied, and by the drill.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from kiseki.operations.backup.port import Progress, StagedJournal, StagedKeys

__all__ = ["JournalProtection", "KeyProtection", "Protected", "Protection"]


class Protected(NamedTuple):
    """What one step did."""

    through: datetime
    """All that was durable in the live store at this time (UTC) is in the place."""
    commits: int
    """Of the journal that this step copied; other parts count what they have."""
    bytes: int
    base: bool
    """A new base was made, on which the next copies build."""


class Protection(Protocol):
    """Protects one part of one store. Raises PlaceUnavailable, NoRoom, OperationFailed and its kinds, Unavailable."""

    name: str
    """What it protects, for messages."""

    async def step(self, progress: Progress) -> Protected:
        """Copies what is new since the last step, by this process or an earlier one; durable in the place when this
        returns. Makes a base first where there is none, or the last is too old, or does not belong to this life of the
        store. A step that was killed is made good by the next."""
        ...

    async def prune(self, now: datetime) -> int:
        """Removes what is over the retention and what nothing builds on any more, never the last base that is whole;
        how many things."""
        ...

    async def through(self) -> datetime | None:
        """How far the place covers the store, read from the place alone; None when it holds nothing."""
        ...

    async def close(self) -> None:
        """Ends what runs for it; again is fine."""
        ...


class JournalProtection(Protection, Protocol):
    """Protects a journal with its claims."""

    async def reaches(self, until: datetime | None) -> datetime | None:
        """The time (UTC) of the last copy of before a time, which `recover` would go to; None when there is none."""
        ...

    async def recover(self, work: Path, progress: Progress, *, until: datetime | None = None) -> StagedJournal:
        """Puts together, in the empty folder `work` or beside the live store, the newest journal that the place has, or
        what it was at a time (UTC). Raises BackupMissing, BackupDamaged."""
        ...


class KeyProtection(Protection, Protocol):
    """Protects a key store, in a place of its own."""

    async def recover(self, work: Path, progress: Progress) -> StagedKeys:
        """Puts together the newest key store that the place has. Raises BackupMissing, BackupDamaged."""
        ...
