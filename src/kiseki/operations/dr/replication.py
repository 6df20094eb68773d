"""`Replication`: what a failover needs of what carries a journal to the other site; a module for each kind."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kiseki.journal.port import Position
from kiseki.operations.errors import OperationFailed

__all__ = ["FailoverRefused", "Lag", "Replication", "Verified"]


class FailoverRefused(OperationFailed):
    """The other site must not or can't take over. The message says which site writes now."""

    code = "FAILOVER_REFUSED"


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far the other site is behind; None: it can't be measured from here."""

    bytes: int | None = None
    seconds: float | None = None
    detail: str = ""
    """For people: what was looked at."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """That one journal has what another one has."""

    commits: int
    """Compared one by one, event by event."""
    detail: str = ""


class Replication(Protocol):
    """From the site that writes to the one that is to. All methods raise Unavailable."""

    async def lag(self) -> Lag:
        """How far the copy is behind now."""
        ...

    async def promoted(self) -> bool:
        """Whether the copy has been made one that is written already."""
        ...

    async def mark(self) -> Position:
        """A place in the journal that is written: what comes after it is compared."""
        ...

    async def check(self) -> None:
        """Raises FailoverRefused when the one is not a copy of the other that follows it now."""
        ...

    async def fence(self, term: int) -> str:
        """Lets the store that was written refuse earlier terms, if it can by itself; what was done, for people."""
        ...

    async def verify(self, since: Position) -> Verified:
        """Waits until the copy has followed, and compares; only after nobody writes. Raises FailoverRefused when it
        differs, or does not follow in time."""
        ...

    async def newest(self) -> str:
        """What the copy has, for people: without the other site nobody knows what it lacks."""
        ...

    async def promote(self, *, clean: bool) -> str:
        """Makes the copy one that is written, detached from the other; again is fine. What was done, for people.

        `clean`: every writer has said that nothing of it is under way. Raises FailoverRefused when somebody else has to
        do it."""
        ...

    async def admit(self, term: int) -> None:
        """The promoted store refuses earlier terms, if it can; 0: it takes everybody's."""
        ...

    async def close(self) -> None:
        """Lets go of both stores. Again is fine."""
        ...
