"""The SQLite journal passes the suite that every store passes, and the machine of random crowds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.sqlite.schema import raise_epoch
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_conformance import JournalConformance, JournalStore
from kiseki.testing.journal_machine import OpenJournal, journal_machine
from kiseki.testing.journal_tests.store import StoreUnderTest
from tests.integration.journal.sqlite_parts import Groups


class SqliteUnderTest(StoreUnderTest):
    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.path = tmp_path / "journal.db"

    async def open_journal(self, clock: Clock) -> JournalStore:
        return await SqliteJournal.open(self.path, clock=clock, telemetry=Groups())

    async def open_other_life(self, clock: Clock) -> JournalStore:
        return await SqliteJournal.open(self.path.with_name("other.db"), clock=clock, telemetry=Groups())


class TestSqliteJournal(SqliteUnderTest, JournalConformance):
    pass


class TestRestoredSqliteJournal(SqliteUnderTest):
    """Where the other life is the same file after a restore."""

    async def open_other_life(self, clock: Clock) -> JournalStore:
        raise_epoch(self.path)
        return await self.open_journal(clock)

    test_positions = JournalConformance.test_positions_of_another_life_read_from_the_start
    test_life = JournalConformance.test_a_journal_that_grows_stays_in_its_life


def new_store() -> OpenJournal:
    directory = tempfile.TemporaryDirectory(prefix="kiseki-journal-")

    async def open_journal(clock: Clock) -> JournalStore:
        return await SqliteJournal.open(Path(directory.name) / "journal.db", clock=clock, telemetry=Groups())

    return open_journal


TestSqliteMachine = journal_machine(new_store).TestCase
TestSqliteMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
