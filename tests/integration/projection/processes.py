"""Updaters in processes of their own, and a journal on disk that they and a test share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.telemetry import NoTelemetry
from tests.integration.projection.parts import Place, PostgresStorage
from tests.unit.projection.parts import Facts

ROOT = Path(__file__).parents[3]


class Process:
    """An updater in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, place: Place, directory: Path) -> Process:
        """On the place's read models, and the journal in a directory."""
        where = [place.storage.url] if isinstance(place.storage, PostgresStorage) else []
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.integration.projection.updater_process",
                str(directory),
                *where,
                cwd=ROOT,
                env={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def following(self) -> None:
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"following\n"

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def on_disk(place: Place, directory: Path) -> AsyncIterator[None]:
    """The place with a journal that other processes can follow."""
    journal = await SqliteJournal.open(directory / "journal.db", clock=SystemClock(), telemetry=NoTelemetry())
    place.journal = journal
    place.world.facts = Facts(journal, place.world.codec, place.world.clock)
    try:
        yield
    finally:
        await journal.close()
