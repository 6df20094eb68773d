"""What the tests of the DynamoDB journal share: tables of a test's own, opening a journal, and clients that fail."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import Commit
from kiseki.testing.journal_conformance import encoded, metadata
from tests.integration.journal.sqlite_parts import Groups, RealClock
from tests.servers.emulator import REGION

PAUSE = 0.01
"""Between looks at what seems to be the end of a shard; the emulator has no parts of a shard that are empty."""

_numbers = itertools.count(1)


def emulator_credentials(patch: pytest.MonkeyPatch) -> None:
    """Any will do."""
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def new_address(endpoint: str) -> DynamoDbAddress:
    """Tables that nobody else uses; they are not there yet."""
    return DynamoDbAddress(f"t{os.getpid()}-{next(_numbers)}", REGION, endpoint)


async def new_tables(endpoint: str) -> DynamoDbAddress:
    """Tables that nobody else uses."""
    address = new_address(endpoint)
    await DynamoDbJournal.migrate(address)
    return address


@asynccontextmanager
async def opened(
    address: DynamoDbAddress, groups: Groups | None = None, **options: Any
) -> AsyncIterator[DynamoDbJournal]:
    options.setdefault("clock", RealClock())
    options.setdefault("pause", PAUSE)
    journal = await DynamoDbJournal.open(address, telemetry=groups or Groups(), **options)
    try:
        yield journal
    finally:
        await journal.close()


async def append(journal: DynamoDbJournal, stream: str, after: int, *, data: bytes = b"{}", **rest: Any) -> Commit:
    """One event, with ids made of its place, decided now."""
    name = f"{stream.partition('-')[2]}.{after}"
    about = metadata(name, at=RealClock().now())
    return await journal.append(stream, after, [encoded(name, data=data)], metadata=about, **rest)


Tamper = Callable[[str, Mapping[str, Any]], Awaitable[None]]


class TamperedClient(DynamoDbClient):
    """A client for which `before` and `after` are awaited around every call; they may delay it, or raise."""

    before: Tamper | None = None
    after: Tamper | None = None

    def __init__(self, address: DynamoDbAddress, **options: Any) -> None:
        super().__init__(address, **options)
        self.calls: list[str] = []

    async def _tampered(self, call: Callable[..., Any], operation: str, request: Mapping[str, Any], **rest: Any) -> Any:
        self.calls.append(operation)
        if self.before is not None:
            await self.before(operation, request)
        answer = await call(operation, request, **rest)
        if self.after is not None:
            await self.after(operation, request)
        return answer

    async def call(self, operation: str, request: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._tampered(super().call, operation, request, **rest)
        return answer

    async def call_streams(self, operation: str, request: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._tampered(super().call_streams, operation, request, **rest)
        return answer


class Gate:
    """Holds calls that fit until it is opened."""

    def __init__(self, fits: Callable[[str, Mapping[str, Any]], bool]) -> None:
        self._fits = fits
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, operation: str, request: Mapping[str, Any]) -> None:
        if self._fits(operation, request):
            self.reached.set()
            await self.opened.wait()
