"""A service on DynamoDB (the emulator) loses its tables: copied, verified, restored and switched as the commands do."""

from __future__ import annotations

import secrets
from pathlib import Path

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.command.handler import CommandRequest
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.backups import Backups
from kiseki.operations.dynamodb.calls import opened_tables
from kiseki.operations.restore.plan import RestorePlan
from kiseki.operations.restore.run import restore
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores, migrate
from kiseki.users import app
from kiseki.users.user_account import CreateUserAccount, EmailAddress, FirstName, LastName
from tests.servers.emulator import REGION


async def create_people(settings: Settings, first: int, count: int) -> None:
    """Commands, as a process of the service handles them."""
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry())
    commands = command_handler(
        app,
        journal=stores.journal,
        snapshots=stores.journal,
        protector=stores.protector,
        clock=SystemClock(),
        ids=UlidSource(),
        telemetry=NoTelemetry(),
        settings=CommandSettings(),
    )
    for number in range(first, first + count):
        create = CreateUserAccount(FirstName("花子"), LastName("山田"), EmailAddress(f"n{number}@example.com"))
        await commands.handle(create, CommandRequest(actor="someone", correlation_id="test"))
    await commands.close()
    await stores.close()


async def test_a_service_that_lost_its_tables_goes_on(aws_endpoint: str, tmp_path: Path) -> None:
    prefix = f"shop-{secrets.token_hex(4)}"
    url = f"dynamodb://{prefix}?region={REGION}&endpoint={aws_endpoint}"
    settings = Settings(
        journal=url,
        read_model="sqlite:",
        data_dir=tmp_path / "data",
        backup=str(tmp_path / "backups"),
        backup_keys=str(tmp_path / "keys"),
    )
    await migrate(settings)
    await create_people(settings, 0, 5)
    async with Backups.opened(settings, writers_stopped=True) as backups:
        for part in (Part.JOURNAL, Part.KEYS):
            _, verification = await backups.create(part, nothing)
            assert verification.sound
        async with opened_tables(DynamoDbAddress.parse(url)) as tables:
            for name in ("journal", "claims", "snapshots", "keys", "revocations"):
                await tables.remove(f"{prefix}-{name}")
        report = await restore(backups, app, RestorePlan(), nothing)
    assert report.journal is not None
    assert (report.journal.commits, report.people_without_keys) == (5, 0)
    assert (report.journal_kept, report.keys_kept) == ("", "")
    assert await migrate(settings) == []
    await create_people(settings, 5, 2)
    async with Backups.opened(settings) as backups, backups.live.journal() as journal:
        assert journal is not None
        assert len((await journal.feed(await journal.beginning())).commits) == 7
