"""The function under AWS's own runtime client, in a process of its own, on embedded stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.journal.port import START
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.composition import make_updater
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.users import app
from kiseki.users.read_model import accounts
from kiseki.users.user_account import CreateUserAccount, EmailAddress, FirstName, LastName
from tests.servers.lambda_runtime import LambdaRuntime, Result
from tests.unit.service.lambda_bench import FINE, given_back, record_of

ROOT = Path(__file__).parents[3]
FUNCTION = "tests.integration.lambda_updater.embedded_function.handler"
REQUEST = CommandRequest(actor="someone", correlation_id="test")


class Shop:
    """The command side on embedded stores, and a look into the read model that the function writes."""

    def __init__(self, directory: Path, stores: Stores, commands: CommandHandler) -> None:
        self.directory = directory
        self.stores = stores
        self.commands = commands

    def function(self, *, do: str = "", timeout: float = 60.0) -> LambdaRuntime:
        environment = {"KISEKI_TEST_DIRECTORY": str(self.directory), "KISEKI_TEST_DO": do}
        return LambdaRuntime(FUNCTION, path=[ROOT, ROOT / "src"], environment=environment, timeout=timeout)

    async def create(self, count: int) -> None:
        for number in range(count):
            name = f"Number{number}"
            await self.commands.handle(
                CreateUserAccount(FirstName(name), LastName("山田"), EmailAddress(f"{name}@example.com")), REQUEST
            )

    async def records(self) -> list[dict[str, Any]]:
        """What the stream would have of everything that happened."""
        commits = (await self.stores.journal.feed(START)).commits
        return [record_of(commit, 100 + place) for place, commit in enumerate(commits)]

    async def names(self) -> Sequence[str]:
        async with self.stores.read_models.database.open(app.projections) as read:
            rows = await read.all(select(accounts.c.first_name).order_by(accounts.c.first_name))
        return [row[0] for row in rows]


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    settings, clock, telemetry = Settings(data_dir=tmp_path / "data"), SystemClock(), NoTelemetry()
    stores = await Stores.open(settings, clock=clock, telemetry=telemetry)
    handler = command_handler(
        app,
        journal=stores.journal,
        snapshots=stores.journal,
        protector=stores.protector,
        clock=clock,
        ids=UlidSource(),
        telemetry=telemetry,
        settings=CommandSettings(),
    )
    # Makes the builds, as an updater or `kiseki migrate` does, and ends.
    updater = make_updater(app, app.projections, stores, settings, clock=clock, telemetry=telemetry)
    await updater.run_until_caught_up()
    try:
        yield Shop(tmp_path / "data", stores, handler)
    finally:
        await handler.close()
        await stores.close()


async def invoke(function: LambdaRuntime, records: Sequence[Any]) -> Result:
    return await asyncio.to_thread(function.invoke, {"Records": list(records)})


def names(count: int) -> list[str]:
    return sorted(f"Number{number}" for number in range(count))


async def test_cold_and_warm_and_after_a_freeze(shop: Shop) -> None:
    await shop.create(7)
    records = await shop.records()
    with shop.function() as function:
        assert (await invoke(function, records[:3]))[:2] == (FINE, None), function.output
        assert (await invoke(function, records[3:5]))[:2] == (FINE, None)
        function.freeze()
        function.thaw()
        assert (await invoke(function, records))[:2] == (FINE, None)
        assert function.starts == 1
        counts = function.reports(3)
        opened = [line for line in function.lines() if line["message"].startswith("applies to")]
    assert [(one["records"], one["applied"], one["skipped"]) for one in counts] == [(3, 3, 0), (2, 2, 0), (7, 2, 5)]
    assert len({one["request_id"] for one in counts}) == 3
    assert len(opened) == 1
    assert await shop.names() == names(7)


async def test_an_environment_that_is_killed_after_writing_has_applied_everything_once(shop: Shop) -> None:
    await shop.create(5)
    records = await shop.records()
    with shop.function(do="die") as function:
        result = await invoke(function, records[:3])
        assert result.error is not None
        assert result.error["errorType"] == "Runtime.ExitError"
    # The event source mapping delivers all of it again, to another environment.
    with shop.function() as function:
        assert (await invoke(function, records))[:2] == (FINE, None)
        assert function.reports(1)[-1]["applied"] == 2
    assert await shop.names() == names(5)


async def test_a_function_that_waits_for_its_database_answers_before_it_is_killed(shop: Shop) -> None:
    await shop.create(2)
    records = await shop.records()
    with shop.function(do="wait", timeout=4.0) as function:
        assert (await invoke(function, records))[:2] == (given_back(records[0]), None), function.output
        assert function.reports(1)[-1]["redelivered"] == 2
    with shop.function() as function:
        assert (await invoke(function, records))[:2] == (FINE, None)
    assert await shop.names() == names(2)


async def test_a_function_that_is_killed_because_its_time_was_up_has_lost_nothing(shop: Shop) -> None:
    await shop.create(2)
    records = await shop.records()
    with shop.function(do="stuck", timeout=4.0) as function:
        result = await invoke(function, records)
        assert result.error is not None
        assert result.error["errorType"] == "Sandbox.Timedout"
    with shop.function() as function:
        assert (await invoke(function, records))[:2] == (FINE, None)
    assert await shop.names() == names(2)


async def test_a_function_that_is_set_up_wrongly_says_so() -> None:
    with LambdaRuntime("kiseki.service.lambda_handler.handler", path=[ROOT / "src"]) as function:
        result = await invoke(function, [{}])
        assert result.error is not None
        assert result.error["errorType"] == "SettingsError"
        assert "KISEKI_JOURNAL" in result.error["errorMessage"]
        assert (await invoke(function, [{}])).error is not None
        assert function.starts == 1
