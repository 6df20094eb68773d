"""What integration tests of projections share: updaters and queries on real read-model files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, select

from kiseki.application.system import SystemClock
from kiseki.journal.port import Journal
from kiseki.kernel.ports import Protector
from kiseki.projection.port import BuildName, BuildState
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.status import ProjectionStatus, projection_status
from kiseki.projection.updater import Updater
from kiseki.query.sqlite import SqliteReadModels
from tests.unit.projection.parts import Totals, World

NEVER = 3_600.0
"""Seconds: a poll that no test lives to see."""


class Place:
    """Read models in a directory, and whatever runs on them."""

    def __init__(self, world: World, directory: Path, models: SqliteReadModels) -> None:
        self.world = world
        self.directory = directory
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
