"""What integration tests of projections share: updaters and queries on real read models, of each database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Table, func, select

from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import Journal
from kiseki.kernel.ports import Protector
from kiseki.projection.port import BuildName, BuildState, ParkedStream
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.status import ProjectionStatus, projection_status
from kiseki.projection.subscription import Subscription
from kiseki.projection.updater import Updater
from kiseki.query.postgres.read_models import DEFAULT_SCHEMA, PostgresReadModels
from kiseki.query.sqlite.read_models import SqliteReadModels
from tests.servers.postgres import PostgresServer
from tests.unit.projection.parts import DECIDERS, Totals, World

NEVER = 3_600.0
"""Seconds: a poll that no test lives to see."""


class ReadModels(Protocol):
    """Read models, open."""

    builds: Any  # a BuildCatalog, of which tests replace methods
    database: Any

    async def close(self) -> None: ...


class Storage(Protocol):
    """Where read models are, whatever database that is."""

    async def open(self, *, queries: int | None = None, statement_timeout: float = 5.0) -> ReadModels:
        """Opens them as a process of its own would; `queries` run at a time."""
        ...

    def lose(self, name: BuildName) -> None:
        """Deletes a build, which nobody is told."""
        ...

    def there(self) -> list[str]:
        """The builds that take up room."""
        ...


class SqliteStorage:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def open(self, *, queries: int | None = None, statement_timeout: float = 5.0) -> SqliteReadModels:
        return await SqliteReadModels.open(
            self.directory, clock=SystemClock(), readers=queries or 4, statement_timeout=statement_timeout
        )

    def lose(self, name: BuildName) -> None:
        for path in self.directory.glob(f"{name}.sqlite*"):
            path.unlink()

    def there(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.v*.sqlite"))


class PostgresStorage:
    """A database."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.url = url
        self.address = PostgresAddress.parse(url, schema=DEFAULT_SCHEMA)

    async def open(self, *, queries: int | None = None, statement_timeout: float = 5.0) -> PostgresReadModels:
        return await PostgresReadModels.open(
            self.address, clock=SystemClock(), pool=queries or 5, statement_timeout=statement_timeout
        )

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.url)

    def schema(self, name: BuildName) -> str:
        return f"{DEFAULT_SCHEMA}_{name.projection}_v{name.version}_{name.generation}"

    def lose(self, name: BuildName) -> None:
        self.sql(f"DROP SCHEMA {self.schema(name)} CASCADE")

    def there(self) -> list[str]:
        names = self.sql(f"SELECT nspname FROM pg_namespace WHERE nspname LIKE '{DEFAULT_SCHEMA}\\_%'").splitlines()
        plain = (name.removeprefix(f"{DEFAULT_SCHEMA}_").rpartition("_") for name in names)
        return sorted(f"{'.'.join(rest.rsplit('_', 1))}.{generation}" for rest, _, generation in plain)


class Place:
    """Read models somewhere, and whatever runs on them."""

    def __init__(self, world: World, storage: Storage, models: ReadModels) -> None:
        self.world = world
        self.storage = storage
        self.models = models
        self.journal: Journal = world.journal
        self.protector: Protector = world.protector

    def updater(self, *totals: Totals, **settings: Any) -> Updater:
        """An updater as a process of its own would have it; it does not wait long, and polls only when told to."""
        defaults = {
            "poll_interval": NEVER,
            "backoff_initial": 0.001,
            "backoff_maximum": 0.01,
            "takeover_interval": 0.01,
        }
        return Updater(
            projections=[one.projection for one in totals],
            deciders=self.world.deciders,
            journal=self.journal,
            builds=self.models.builds,
            codec=self.world.codec,
            protector=self.protector,
            telemetry=self.world.telemetry,
            clock=SystemClock(),
            settings=UpdaterSettings(**{**defaults, **settings}),
        )

    async def rows(self, totals: Totals, table: Table) -> list[tuple[Any, ...]]:
        async with self.models.database.open([totals.projection]) as read:
            found = await read.all(select(table).order_by(*table.primary_key.columns))
        return [tuple(row) for row in found]

    async def count(self, totals: Totals) -> int:
        """How many events were applied."""
        async with self.models.database.open([totals.projection]) as read:
            row = await read.first(select(func.count()).select_from(totals.steps))
        assert row is not None
        return int(row[0])

    async def status(self, **options: Any) -> list[ProjectionStatus]:
        return await projection_status(
            journal=self.journal, builds=self.models.builds, clock=self.world.clock, **options
        )

    async def live(self, projection: str = "totals") -> BuildName | None:
        builds = await self.models.builds.builds(projection)
        return next((build.name for build in builds if build.state is BuildState.LIVE), None)


@asynccontextmanager
async def running(updater: Updater) -> AsyncIterator[asyncio.Task[None]]:
    """An updater that runs, until the end of the block."""
    task = asyncio.create_task(updater.run())
    try:
        yield task
    finally:
        await updater.stop()
        await task


async def until(condition: Callable[[], Any], *, seconds: float = 20.0) -> None:
    """Waits for something that no event tells of (another process, a file); awaits the condition if it must be."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.005)


def expected_steps(commits: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, int, int]]:
    """The rows of `steps` after these commits, computed without the machinery."""
    numbers: dict[str, int] = {}
    steps = []
    for stream, amounts in commits:
        for amount in amounts:
            numbers[stream] = numbers.get(stream, 0) + 1
            steps.append((stream.partition("-")[2], numbers[stream], amount))
    return sorted(steps)


async def is_live(place: Place, generation: int) -> bool:
    return await place.live() == BuildName("totals", 1, generation)


TOTALS = Totals()
"""Of the build that the fixture `store` has open."""
DEFINITION = Subscription(TOTALS.projection, DECIDERS).definition
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def parked(stream: str, number: int = 1, code: str = "APPLY_FAILED") -> ParkedStream:
    return ParkedStream(
        stream=stream,
        sequence_number=number,
        event_type="Counted",
        code=code,
        detail="ValueError at shop.stock:7",
        occurred_at=NOW,
        parked_at=NOW,
        attempts=number,
    )
