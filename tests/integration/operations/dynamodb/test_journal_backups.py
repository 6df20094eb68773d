"""Backups of a journal on DynamoDB (the emulator): made under load, compared event by event, restored and switched."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import resolved
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from tests.integration.journal.dynamodb_parts import append, emulator_credentials, new_tables, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import (
    Load,
    commits_of,
    contents,
    folder_in,
    held,
    manifest_of,
)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator_credentials(monkeypatch)


@pytest.fixture
async def address(aws_endpoint: str) -> DynamoDbAddress:
    return await new_tables(aws_endpoint)


def backups_of(address: DynamoDbAddress) -> DynamoDbJournalBackups:
    return DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)


async def test_a_thin_path(address: DynamoDbAddress, tmp_path: Path) -> None:
    backups = backups_of(address)
    async with Load(address).running() as load:
        await load.more(50)
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing))
    async with opened(address) as live, backups.opened(folder, manifest) as restored:
        assert await contents(restored) == await contents(live)
        assert await commits_of(restored) == await commits_of(live)
        assert await held(restored) == await held(live)
    staged = await backups.stage(folder, manifest, nothing)
    async with opened(address) as live, staged.opened() as there:
        assert await contents(there) == await contents(live)
    switched = await staged.switch()
    assert address.table("journal") in switched.kept
    in_force = await resolved(address, "journal")
    assert in_force != address
    async with opened(in_force) as restored:
        await restored.check()
        before = await contents(restored)
        await append(restored, "user-new", 0)
        assert (await contents(restored)).commits == before.commits + 1
