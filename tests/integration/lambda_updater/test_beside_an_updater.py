"""A function and an updater on the same builds at the same time: every event once, nothing parked, by either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.journal.dynamodb.items import commit_of
from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import START, Commit
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.streams import StreamId
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.status import audit_projection
from kiseki.projection.subscription import Subscription
from kiseki.projection.updater import Updater
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.service.lambda_handler import LambdaHandler
from kiseki.service.lambda_parts import LambdaParts, ParkedCounter, Source, Warm
from kiseki.service.lambda_updater import PushedUpdater
from kiseki.service.settings import Settings
from kiseki.service.store_family import ReadModels
from kiseki.users import app
from kiseki.users.read_model import accounts
from kiseki.users.user_account import CreateUserAccount, EmailAddress, FirstName, LastName, RenameUserAccount
from tests.unit.service.lambda_bench import FINE, TABLE, Context, record_of

REQUEST = CommandRequest(actor="someone", correlation_id="test")
CLOCK, TELEMETRY = SystemClock(), NoTelemetry()
ACCOUNTS = 40
RENAMES = 4


Opening = Callable[[], Awaitable[ReadModels]]


@pytest.fixture(params=["sqlite", "postgresql"])
async def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens the same read models again and again, as processes of their own would."""
    if request.param == "sqlite":

        async def open_files() -> ReadModels:
            return await SqliteReadModels.open(tmp_path, clock=CLOCK)

        return open_files

    from kiseki.clients.postgres import PostgresAddress
    from kiseki.query.postgres.read_models import PostgresReadModels

    address = PostgresAddress.parse(request.getfixturevalue("postgres_url"), schema="kiseki_read_models")
    await PostgresReadModels.migrate(address)

    async def open_database() -> ReadModels:
        return await PostgresReadModels.open(address, clock=CLOCK)

    return open_database


class Place:
    """A journal in memory, read models, and two functions that get every record."""

    def __init__(self, models: ReadModels, opening: Opening, protector: KeyProtector) -> None:
        self.opening = opening
        self.protector = protector
        self.journal = MemoryJournal(clock=CLOCK)
        self.codec = EventCodec(app.schema, protector, TELEMETRY)
        self.commands: CommandHandler = command_handler(
            app,
            journal=self.journal,
            snapshots=self.journal,
            protector=protector,
            clock=CLOCK,
            ids=UlidSource(),
            telemetry=TELEMETRY,
            settings=CommandSettings(),
        )
        self.updater = Updater(
            projections=app.projections,
            deciders=app.deciders,
            journal=self.journal,
            builds=models.builds,
            codec=self.codec,
            protector=protector,
            telemetry=TELEMETRY,
            clock=CLOCK,
            settings=UpdaterSettings(page_commits=7, backoff_initial=0.001, backoff_maximum=0.01),
        )

    def function(self) -> LambdaHandler:
        return LambdaHandler(
            environ={},
            prepare=lambda environ, directory: LambdaParts(
                Settings(), Source(TABLE, None, commit_of), ParkedCounter(), self._open
            ),
        )

    async def _open(self) -> Warm:
        models = await self.opening()
        updater = PushedUpdater(
            projections=app.projections,
            deciders=app.deciders,
            journal=self.journal,
            builds=models.builds,
            codec=self.codec,
            protector=self.protector,
            telemetry=TELEMETRY,
            clock=CLOCK,
        )

        async def close() -> None:
            await updater.close()
            await models.close()

        return Warm(updater, close)

    async def command(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            name = FirstName(f"Number{number}")
            created = await self.commands.handle(
                CreateUserAccount(name, LastName("山田"), EmailAddress(f"{name}@example.com")), REQUEST
            )
            account = StreamId(created.stream.partition("-")[2])
            for rename in range(RENAMES):
                last = LastName(f"Name{rename}")
                await self.commands.handle(RenameUserAccount(account, name, last), REQUEST)

    async def deliver(self, function: LambdaHandler, done: asyncio.Event) -> None:
        """Gives a function all records, in batches of 9, and again from where it says; until there are no more."""
        given = 0
        while True:
            is_last = done.is_set()
            commits: list[Commit] = list((await self.journal.feed(START, limit=10_000)).commits)[given:][:9]
            records = [record_of(commit, given + place) for place, commit in enumerate(commits)]
            if records:
                answer: dict[str, Any] = await function.answer({"Records": records}, Context())
                failed = answer["batchItemFailures"]
                given = int(failed[0]["itemIdentifier"]) if answer != FINE else given + len(records)
            elif is_last:
                return
            else:
                await asyncio.sleep(0)


async def test_a_function_and_an_updater_apply_everything_once_together(opening: Opening) -> None:
    models = await opening()
    protector = await KeyProtector.open(store=MemoryKeyStore(), wrapper=LocalMasterKey(bytes(32)), clock=CLOCK)
    place = Place(models, opening, protector)
    functions = place.function(), place.function()
    running = asyncio.create_task(place.updater.run())
    try:
        async with asyncio.timeout(120):
            await place.updater.caught_up()  # so that there is a build
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for function in functions:
                    group.create_task(place.deliver(function, done))
                commanding = [asyncio.ensure_future(place.command(first, ACCOUNTS // 4)) for first in range(0, 40, 10)]
                await asyncio.gather(*commanding)
                done.set()
            await place.updater.caught_up()
        (build,) = await models.builds.builds()
        assert (await models.builds.inspect(build.name)).parked_count == 0
        subscription = Subscription(app.projections[0], app.deciders)
        audit = await audit_projection(
            journal=place.journal, builds=models.builds, name=build.name, subscription=subscription
        )
        assert (audit.streams, audit.behind, audit.ahead) == (ACCOUNTS, (), ())
        async with models.database.open(app.projections) as read:
            rows = await read.all(select(accounts.c.full_name))
        assert sorted(row[0] for row in rows) == sorted(f"Number{n} Name{RENAMES - 1}" for n in range(ACCOUNTS))
    finally:
        await place.updater.stop()
        await running
        for function in functions:
            await function.close()
        await place.commands.close()
        await models.close()
