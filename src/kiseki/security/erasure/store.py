"""The port `LedgerStore`: where lines of the ledger of erasures are kept; and one in memory.

A store knows nothing of chains and keys. It must not be in any backup of journal, keys or read models: what is restored
together with them forgets what it is to remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kiseki.kernel.errors import Unavailable
from kiseki.security.erasure.lines import Line, Mark

__all__ = ["LedgerStore", "LedgerUnavailable", "MemoryLedgerStore"]


class LedgerUnavailable(Unavailable):
    """The ledger of erasures can't be used now. A line may or may not have been written; again is safe."""


class LedgerStore(Protocol):
    """Keeps lines by number, and one mark.

    Any number of processes may use it. Every method raises LedgerUnavailable, and LedgerBroken for what it can't read.
    """

    async def last(self) -> Line | None:
        """The line with the highest number."""
        ...

    async def add(self, line: Line) -> bool:
        """Adds a line, durable when this returns; False, and nothing is changed, unless it is the next one. The very
        same line again may count as added: the first answer may have been lost."""
        ...

    async def lines(self, after: int, limit: int) -> Sequence[Line]:
        """At most so many lines with numbers above one, in order."""
        ...

    async def mark(self) -> Mark | None:
        """The mark that was set last; None also for one that can't be read: it only saves work."""
        ...

    async def set_mark(self, mark: Mark) -> None:
        """Replaces the mark."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections; again is fine."""
        ...


class MemoryLedgerStore:
    """A LedgerStore in memory, for tests."""

    def __init__(self) -> None:
        self.kept: list[Line] = []
        self.marked: Mark | None = None

    async def last(self) -> Line | None:
        """As LedgerStore."""
        return self.kept[-1] if self.kept else None

    async def add(self, line: Line) -> bool:
        """As LedgerStore."""
        if line.number != (self.kept[-1].number if self.kept else 0) + 1:
            return False
        self.kept.append(line)
        return True

    async def lines(self, after: int, limit: int) -> Sequence[Line]:
        """As LedgerStore."""
        return [line for line in self.kept if line.number > after][:limit]

    async def mark(self) -> Mark | None:
        """As LedgerStore."""
        return self.marked

    async def set_mark(self, mark: Mark) -> None:
        """As LedgerStore."""
        self.marked = mark

    async def close(self) -> None:
        """As LedgerStore: nothing to do."""
