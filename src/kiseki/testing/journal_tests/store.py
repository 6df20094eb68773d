"""What a subclass of the suite says about its store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from kiseki.journal.port import (
    CommitMetadata,
)
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_tests.parts import JournalStore, SetClock

__all__ = ["StoreUnderTest"]


class StoreUnderTest:
    """How the suite gets at a store."""

    pytestmark: ClassVar[Any] = pytest.mark.asyncio

    async def open_journal(self, clock: Clock) -> JournalStore:
        """A journal on the store of this test, empty at first. Called again it opens the same store once more, as
        another process would; a store that lives in one process may give the same journal again."""
        raise NotImplementedError

    async def open_other_life(self, clock: Clock) -> JournalStore:
        """A journal of the same kind that did not give the positions of `open_journal`'s, empty or not."""
        raise NotImplementedError

    async def begin_slow_append(
        self, journal: JournalStore, stream: str, events: Sequence[EncodedEvent], about: CommitMetadata
    ) -> Callable[[], Awaitable[None]] | None:
        """Starts an append to a new stream that stays unfinished while later ones pass it, and returns what lets it
        land. None when the store's writes can't overtake one another."""
        return None

    @asynccontextmanager
    async def opened(self, clock: Clock | None = None) -> AsyncIterator[JournalStore]:
        """A journal that is closed after the test."""
        journal = await self.open_journal(clock or SetClock())
        try:
            yield journal
        finally:
            await journal.close()
