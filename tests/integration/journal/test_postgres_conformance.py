"""The PostgreSQL journal passes the suite that every store passes, and the machine of random crowds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
from hypothesis import settings

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import CommitMetadata
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_conformance import JournalConformance, JournalStore
from kiseki.testing.journal_machine import OpenJournal, journal_machine
from kiseki.testing.journal_tests.store import StoreUnderTest
from tests.integration.journal.postgres_parts import SlowAppend, new_journal
from tests.integration.journal.sqlite_parts import Groups
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    """One database for all tests of this module, each in a schema of its own."""
    return postgres_server.create_database()


class PostgresUnderTest(StoreUnderTest):
    address: PostgresAddress

    @pytest.fixture(autouse=True)
    async def _store(self, url: str) -> None:
        self.url = url
        self.address = await new_journal(url)

    async def open_journal(self, clock: Clock) -> JournalStore:
        return await PostgresJournal.open(self.address, clock=clock, telemetry=Groups())

    async def open_other_life(self, clock: Clock) -> JournalStore:
        return await PostgresJournal.open(await new_journal(self.url), clock=clock, telemetry=Groups())

    async def begin_slow_append(
        self, journal: JournalStore, stream: str, events: Sequence[EncodedEvent], about: CommitMetadata
    ) -> Callable[[], Awaitable[None]]:
        await journal.check()  # the first connection begins the epoch
        return (await SlowAppend.begin(self.address, stream, events=events, about=about)).land


class TestPostgresJournal(PostgresUnderTest, JournalConformance):
    pass


_machine: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def _machine_url(url: str) -> Iterator[None]:
    """The machine makes its stores itself, and no fixture gets there."""
    _machine["url"] = url
    yield
    _machine.clear()


def new_store() -> OpenJournal:
    made: list[PostgresAddress] = []

    async def open_journal(clock: Clock) -> JournalStore:
        if not made:
            made.append(await new_journal(_machine["url"]))
        return await PostgresJournal.open(made[0], clock=clock, telemetry=Groups())

    return open_journal


TestPostgresMachine = journal_machine(new_store).TestCase
TestPostgresMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)
