"""The DynamoDB journal passes the suite that every store passes, and the machine of random crowds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
from hypothesis import settings

from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import CommitMetadata
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_conformance import JournalConformance, JournalStore
from kiseki.testing.journal_machine import OpenJournal, journal_machine
from tests.integration.journal.dynamodb_parts import (
    PAUSE,
    Gate,
    TamperedClient,
    emulator_credentials,
    new_address,
    new_tables,
)
from tests.integration.journal.sqlite_parts import Groups, RealClock


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator_credentials(monkeypatch)


class TestDynamoDbJournal(JournalConformance):
    @pytest.fixture(autouse=True)
    async def _store(self, aws_endpoint: str, _credentials: None) -> None:
        self.endpoint = aws_endpoint
        self.address = await new_tables(aws_endpoint)

    async def open_journal(self, clock: Clock) -> JournalStore:
        return await DynamoDbJournal.open(self.address, clock=clock, telemetry=Groups(), pause=PAUSE)

    async def open_other_life(self, clock: Clock) -> JournalStore:
        return await DynamoDbJournal.open(await new_tables(self.endpoint), clock=clock, telemetry=Groups(), pause=PAUSE)

    async def begin_slow_append(
        self, journal: JournalStore, stream: str, events: Sequence[EncodedEvent], about: CommitMetadata
    ) -> Callable[[], Awaitable[None]]:
        """A put that is on its way while others land."""
        client = TamperedClient(self.address)
        gate = Gate(lambda operation, request: operation == "PutItem")
        client.before = gate
        slow = await DynamoDbJournal.open(
            self.address, clock=RealClock(), telemetry=Groups(), client=client, pause=PAUSE
        )
        append = asyncio.ensure_future(slow.append(stream, 0, events, metadata=about))
        await gate.reached.wait()

        async def land() -> None:
            gate.opened.set()
            await append
            await slow.close()
            await client.close()

        return land


def _new_store(endpoint: str) -> OpenJournal:
    address = new_address(endpoint)

    async def open_journal(clock: Clock) -> JournalStore:
        await DynamoDbJournal.migrate(address)
        return await DynamoDbJournal.open(address, clock=clock, telemetry=Groups(), pause=PAUSE)

    return open_journal


_endpoint: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _machine_endpoint(aws_endpoint: str) -> Iterator[None]:
    """For the machine, which pytest gives no fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        emulator_credentials(patch)
        _endpoint.append(aws_endpoint)
        yield
        _endpoint.clear()


TestDynamoDbMachine = journal_machine(lambda: _new_store(_endpoint[0])).TestCase
TestDynamoDbMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
