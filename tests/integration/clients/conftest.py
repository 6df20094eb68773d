"""Servers that the clients of stores are tried on, and credentials that any of them takes."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from tests.integration.clients.fake_dynamodb import FakeDynamoDb
from tests.servers.emulator import REGION


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.fixture
async def fake() -> AsyncIterator[FakeDynamoDb]:
    async with FakeDynamoDb() as server:
        yield server


@pytest.fixture
async def client(aws_keys: None, aws_endpoint: str) -> AsyncIterator[DynamoDbClient]:
    """A client of the emulator, with a prefix of this test's own."""
    address = DynamoDbAddress(prefix=f"client-{secrets.token_hex(4)}", region=REGION, endpoint=aws_endpoint)
    opened = DynamoDbClient(address)
    yield opened
    await opened.close()
