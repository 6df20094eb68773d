"""A whole application in a test: `async with running(app) as service: …`, without server, network or data directory.

The journal and the keys are in memory; read models are in a temporary folder. Everything else is what a process runs:
the same command handler, updater and queries.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest, CommandResult
from kiseki.command.idempotency import IdempotencyKey
from kiseki.journal.memory import MemoryJournal
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.command import Command
from kiseki.kernel.event import Event
from kiseki.kernel.ports import Clock, Protector
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.subscription import follows_of
from kiseki.projection.updater import Updater
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.queries import Queries
from kiseki.query.query import Arguments
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.query.waiting import ConsistencyWaiter
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector

__all__ = ["RunningApplication", "running"]

_SUBJECT = "test"


class RunningApplication:
    """An application that runs inside a test."""

    def __init__(
        self,
        application: Application,
        *,
        journal: MemoryJournal,
        protector: Protector,
        commands: CommandHandler,
        queries: Queries,
    ) -> None:
        self.journal = journal
        self.protector = protector
        self._application = application
        self._codec = EventCodec(application.schema, protector, NoTelemetry())
        self._commands = commands
        self._queries = queries
        self._token = ConsistencyToken()

    async def send(self, command: Command, *, idempotency_key: str | None = None) -> CommandResult:
        """Handles a command. Raises Rejected and what else CommandHandler.handle raises."""
        key = None if idempotency_key is None else IdempotencyKey(_SUBJECT, idempotency_key)
        request = CommandRequest(actor=_SUBJECT, correlation_id=_SUBJECT, idempotency_key=key)
        result = await self._commands.handle(command, request)
        self._token = self._token.with_stream(result.stream, result.sequence_number)
        return result

    async def ask(self, name: str, arguments: Arguments) -> object:
        """Answers a query, from a read model that has seen the commands sent before it (the last 16 streams).

        Raises KeyError for an unknown name, and what the handler raises.
        """
        query = self._application.queries[name]
        return await self._queries.ask(query, arguments, subject=_SUBJECT, token=self._token)

    async def events(self, stream: str) -> list[Event]:
        """The facts of a stream, by its full name, in order."""
        return [event async for page in self.journal.read(stream) for event in await self._codec.decode(page)]


@asynccontextmanager
async def running(application: Application, *, clock: Clock | None = None) -> AsyncIterator[RunningApplication]:
    """Runs an application until the context ends."""
    time = clock or SystemClock()
    telemetry = NoTelemetry()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kiseki-test-"))
        journal = MemoryJournal(clock=time)
        stack.push_async_callback(journal.close)
        wrapper = LocalMasterKey(secrets.token_bytes(32))
        protector = await KeyProtector.open(store=MemoryKeyStore(), wrapper=wrapper, clock=time)
        read_models = await SqliteReadModels.open(Path(folder), clock=time)
        stack.push_async_callback(read_models.close)
        updater = Updater(
            projections=application.projections,
            deciders=application.deciders,
            journal=journal,
            builds=read_models.builds,
            codec=EventCodec(application.schema, protector, telemetry),
            protector=protector,
            telemetry=telemetry,
            clock=time,
            settings=UpdaterSettings(),
        )
        running_updater = asyncio.create_task(updater.run(), name="updater")
        stack.push_async_callback(_end, updater, running_updater)
        follows = follows_of(application.projections, application.deciders)
        waiter = ConsistencyWaiter(read_models.database, follows=follows, timeout=10.0)
        stack.push_async_callback(waiter.close)
        updater.subscribe(waiter.notify)
        handler = command_handler(
            application,
            journal=journal,
            snapshots=journal,
            protector=protector,
            clock=time,
            ids=UlidSource(),
            telemetry=telemetry,
            settings=CommandSettings(),
        )
        stack.push_async_callback(handler.close)
        protector.on_erase(handler.forget_subject)
        await updater.caught_up()
        yield RunningApplication(
            application,
            journal=journal,
            protector=protector,
            commands=handler,
            queries=Queries(database=read_models.database, waiter=waiter, telemetry=telemetry, clock=time),
        )


async def _end(updater: Updater, running_updater: asyncio.Task[None]) -> None:
    await updater.stop()
    await running_updater
