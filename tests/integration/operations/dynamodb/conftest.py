"""Tables of a test's own, and what stands between it and the emulator."""

from __future__ import annotations

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from tests.integration.journal.dynamodb_parts import emulator_credentials, new_tables
from tests.integration.operations.dynamodb.dynamodb_backup_parts import Between


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator_credentials(monkeypatch)


@pytest.fixture
async def address(aws_endpoint: str) -> DynamoDbAddress:
    return await new_tables(aws_endpoint)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    return Between(monkeypatch)
