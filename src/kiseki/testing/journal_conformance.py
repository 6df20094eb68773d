"""`JournalConformance`: the tests that every journal has to pass, for the stores of kiseki and for stores of others.

Subclass it in a pytest module (with pytest-asyncio installed) and say how a store is opened:

    class TestMyJournal(JournalConformance):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path): self.path = tmp_path / "journal"

        async def open_journal(self, clock): return await MyJournal.open(self.path, clock=clock)
        async def open_other_life(self, clock): ...

`kiseki.testing.journal_machine` adds a model-based test on top.
"""

from __future__ import annotations

import sys

import pytest

# Before they are imported, so that a failing assertion of the suite says what it saw.
if "kiseki.testing.journal_tests" not in sys.modules:
    pytest.register_assert_rewrite("kiseki.testing.journal_tests")

from kiseki.testing.journal_tests.claims import ClaimTests
from kiseki.testing.journal_tests.conflicts import ConflictTests
from kiseki.testing.journal_tests.feed import FeedTests
from kiseki.testing.journal_tests.keeping import KeepingTests
from kiseki.testing.journal_tests.parts import (
    JournalStore,
    SetClock,
    claim,
    claimed,
    encoded,
    everything,
    idempotency,
    metadata,
    whole_feed,
)
from kiseki.testing.journal_tests.transfer import TransferTests
from kiseki.testing.journal_tests.writing import WritingTests

__all__ = [
    "JournalConformance",
    "JournalStore",
    "SetClock",
    "claim",
    "claimed",
    "encoded",
    "everything",
    "idempotency",
    "metadata",
    "whole_feed",
]


class JournalConformance(WritingTests, ConflictTests, FeedTests, ClaimTests, KeepingTests, TransferTests):
    """The contract as tests. A subclass overrides `open_journal` and `open_other_life`, and `begin_slow_append` where
    the store's writes can overtake one another."""
