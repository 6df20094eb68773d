"""Commands on DynamoDB, their stream, the function's real package in an emulated Lambda, PostgreSQL, and queries.

No updater runs: what is seen was applied by the function. The emulator does not deliver again what is given back
(AWS does), so it also plays a stream that loses records, which the sweeper finds.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiobotocore.session import get_session
from sqlalchemy import select

from kiseki import Erased, StreamId
from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest, CommandResult
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import CommitMetadata
from kiseki.kernel.codec import EncodedEvent, EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.port import StreamProgress
from kiseki.projection.subscription import follows_of
from kiseki.projection.sweeper import Sweeper, SweeperSettings
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.waiting import ConsistencyWaiter
from kiseki.service.composition import make_updater
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores, migrate
from kiseki.users import app
from kiseki.users.read_model import accounts
from kiseki.users.user_account import (
    CreateUserAccount,
    EmailAddress,
    EraseUserAccount,
    FirstName,
    LastName,
    RenameUserAccount,
)
from tests.integration.lambda_updater.package import function_package
from tests.servers.emulator import REGION
from tests.servers.postgres import NoPostgres, PostgresServer

REQUEST = CommandRequest(actor="someone", correlation_id="test")
CLOCK, TELEMETRY = SystemClock(), NoTelemetry()
WAIT = 60.0
"""Seconds within which an event must arrive: an outer bound, on a busy machine."""


@pytest.fixture(scope="module")
def package() -> bytes:
    return function_package()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return iter(())


class Shop:
    """The users application on DynamoDB and PostgreSQL, its function, and no updater."""

    def __init__(self, stores: Stores, commands: CommandHandler, functions: Any, mapping: str) -> None:
        self.stores = stores
        self.commands = commands
        self._functions = functions
        self._mapping: str | None = mapping
        assert isinstance(stores.journal, DynamoDbJournal)
        self.journal = stores.journal

    async def lose_the_stream(self) -> None:
        """From here on the function gets no records any more; again is fine."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            await self._functions.delete_event_source_mapping(UUID=mapping)

    async def send(self, command: Any) -> CommandResult:
        return await self.commands.handle(command, REQUEST)

    async def create(self, name: str) -> CommandResult:
        return await self.send(
            CreateUserAccount(FirstName(name), LastName("山田"), EmailAddress(f"{name}@example.com"))
        )

    async def seen(self, *results: CommandResult) -> None:
        """Waits, as a query with a consistency token does, until the read model has seen these commands."""
        token = ConsistencyToken()
        for result in results:
            token = token.with_stream(result.stream, result.sequence_number)
        waiter = ConsistencyWaiter(
            self.stores.read_models.database, follows=follows_of(app.projections, app.deciders), timeout=WAIT
        )
        try:
            await waiter.wait(app.projections, token, subject="someone")
        finally:
            await waiter.close()

    async def names(self) -> Sequence[str]:
        async with self.stores.read_models.database.open(app.projections) as read:
            rows = await read.all(select(accounts.c.first_name).order_by(accounts.c.first_name))
        return [row[0] for row in rows]

    async def progress(self, stream: str) -> StreamProgress:
        (build,) = await self.stores.read_models.builds.builds()
        return (await self.stores.read_models.builds.progress(build.name, [stream]))[stream]

    async def parked(self, stream: str) -> StreamProgress:
        async with asyncio.timeout(WAIT):
            while (progress := await self.progress(stream)).parked is None:
                await asyncio.sleep(0.05)  # no event tells of it across processes
        return progress

    async def append_unknown(self, stream: str, after: int) -> None:
        event = EncodedEvent(secrets.token_hex(13), "Unheard", 1, msgspec.Raw(b'{"amount":1}'))
        metadata = CommitMetadata(commit_id=secrets.token_hex(13), committed_at=CLOCK.now(), correlation_id="test")
        await self.journal.append(stream, after, [event], metadata=metadata)

    async def sweep(self) -> Sequence[str]:
        """Streams that a sweep found to have lost something."""
        sweeper = Sweeper(
            projections=app.projections,
            deciders=app.deciders,
            journal=self.journal,
            heads=self.journal,
            builds=self.stores.read_models.builds,
            codec=EventCodec(app.schema, self.stores.protector, TELEMETRY),
            protector=self.stores.protector,
            telemetry=TELEMETRY,
            clock=CLOCK,
            settings=SweeperSettings(grace=0.0),
        )
        findings = await sweeper.sweep(CLOCK.now() - timedelta(hours=1))
        return [stream for finding in findings for stream in finding.streams]


@pytest.fixture
async def shop(aws_endpoint: str, postgres_url: str, package: bytes, tmp_path: Path) -> AsyncIterator[Shop]:
    async with a_shop(aws_endpoint, postgres_url, package, tmp_path) as made:
        yield made


@asynccontextmanager
async def a_shop(aws_endpoint: str, postgres_url: str, package: bytes, tmp_path: Path) -> AsyncIterator[Shop]:
    """Makes tables, a build, the function and its event source mapping."""
    name = f"shop-{secrets.token_hex(4)}"
    settings = Settings(
        data_dir=tmp_path / "data",
        journal=f"dynamodb://{name}?region={REGION}&endpoint={aws_endpoint}",
        read_model=postgres_url,
        master_key=str(tmp_path / "master.key"),
        erasure_ledger=f"dynamodb://{name}?region={REGION}&endpoint={aws_endpoint}",
    )
    async with AsyncExitStack() as opened:
        await migrate(settings)
        stores = await Stores.open(settings, clock=CLOCK, telemetry=TELEMETRY)
        opened.push_async_callback(stores.close)
        updater = make_updater(app, app.projections, stores, settings, clock=CLOCK, telemetry=TELEMETRY)
        await updater.run_until_caught_up()  # makes the build, and ends
        commands = command_handler(
            app,
            journal=stores.journal,
            snapshots=stores.journal,
            protector=stores.protector,
            clock=CLOCK,
            ids=UlidSource(),
            telemetry=TELEMETRY,
            settings=CommandSettings(),
        )
        opened.push_async_callback(commands.close)
        session = get_session()
        functions = await opened.enter_async_context(
            session.create_client("lambda", region_name=REGION, endpoint_url=aws_endpoint)
        )
        tables = await opened.enter_async_context(
            session.create_client("dynamodb", region_name=REGION, endpoint_url=aws_endpoint)
        )
        await functions.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Role="arn:aws:iam::000000000000:role/updater",
            Handler="kiseki.service.lambda_handler.handler",
            Code={"ZipFile": package},
            Timeout=30,
            Environment={
                "Variables": {
                    "KISEKI_APP": "kiseki.users:app",
                    "KISEKI_JOURNAL": settings.journal,
                    "KISEKI_READ_MODEL": settings.read_model,
                    "KISEKI_MASTER_KEY": settings.master_key,
                    "KISEKI_ERASURE_LEDGER": settings.erasure_ledger,
                }
            },
        )
        table = (await tables.describe_table(TableName=f"{name}-journal"))["Table"]
        mapping = await functions.create_event_source_mapping(
            EventSourceArn=table["LatestStreamArn"],
            FunctionName=name,
            StartingPosition="TRIM_HORIZON",
            BatchSize=100,
            FunctionResponseTypes=["ReportBatchItemFailures"],
        )
        shop = Shop(stores, commands, functions, mapping["UUID"])
        opened.push_async_callback(shop.lose_the_stream)
        yield shop


async def test_what_is_commanded_is_seen_by_queries_and_what_is_erased_is_gone(shop: Shop) -> None:
    created = [await shop.create(f"Number{number}") for number in range(5)]
    await shop.seen(*created)
    assert await shop.names() == [f"Number{number}" for number in range(5)]
    account = StreamId(created[0].stream.partition("-")[2])
    await shop.seen(await shop.send(RenameUserAccount(account, FirstName("花子"), LastName("佐藤"))))
    assert "花子" in await shop.names()
    await shop.seen(await shop.send(EraseUserAccount(account)))
    assert await shop.names() == [f"Number{number}" for number in range(1, 5)]
    assert isinstance((await shop.stores.protector.ciphers([created[0].stream]))[created[0].stream], Erased)
    assert await shop.sweep() == []


async def test_an_unknown_event_parks_its_stream_and_the_others_go_on(shop: Shop) -> None:
    first = await shop.create("First")
    await shop.append_unknown(first.stream, 1)
    await shop.seen(await shop.create("Second"))
    progress = await shop.parked(first.stream)
    assert progress.sequence_number == 1
    assert progress.parked is not None
    assert (progress.parked.code, progress.parked.sequence_number) == ("UNKNOWN_EVENT", 2)
    assert await shop.names() == ["First", "Second"]


async def test_what_the_stream_lost_is_found_by_the_sweeper(shop: Shop) -> None:
    await shop.seen(await shop.create("First"))
    await shop.lose_the_stream()
    lost = [await shop.create("Second"), await shop.create("Third")]
    assert sorted(await shop.sweep()) == sorted(result.stream for result in lost)
    assert await shop.names() == ["First", "Second", "Third"]
    assert await shop.sweep() == []


async def test_a_database_that_was_restarted_is_connected_to_again(
    aws_endpoint: str, package: bytes, tmp_path: Path
) -> None:
    try:
        server = PostgresServer().__enter__()
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    try:
        async with a_shop(aws_endpoint, server.create_database(), package, tmp_path) as shop:
            await shop.seen(await shop.create("First"))
            await asyncio.to_thread(server.crash)
            await asyncio.to_thread(server.launch)
            # The function is warm, and its connections are dead.
            second = await shop.create("Second")
            async with asyncio.timeout(WAIT):
                while (await shop.progress(second.stream)).sequence_number == 0:
                    await asyncio.sleep(0.05)  # no event tells of it across processes
            assert await shop.names() == ["First", "Second"]
    finally:
        server.stop()
