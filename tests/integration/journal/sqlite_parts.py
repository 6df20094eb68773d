"""What the tests of the SQLite journal share: opening one, counting its groups, and a second process that writes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from kiseki.journal.port import Commit
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.testing.journal_conformance import encoded, metadata


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return monotonic()


class Groups(NoTelemetry):
    """The telemetry that a journal needs: how many commits each durable write carried."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def group_committed(self, commits: int, seconds: float) -> None:
        self.sizes.append(commits)


@asynccontextmanager
async def opened(path: Path, groups: Groups | None = None, **options: Any) -> AsyncIterator[SqliteJournal]:
    journal = await SqliteJournal.open(path, clock=RealClock(), telemetry=groups or Groups(), **options)
    try:
        yield journal
    finally:
        await journal.close()


async def append(journal: SqliteJournal, stream: str, after: int, *, data: bytes = b"{}", **rest: Any) -> Commit:
    """One event, with ids made of its place."""
    name = f"{stream.partition('-')[2]}.{after}"
    return await journal.append(stream, after, [encoded(name, data=data)], metadata=metadata(name), **rest)


async def append_many(journal: SqliteJournal, streams: int, after: int, **rest: Any) -> list[Commit | BaseException]:
    return await asyncio.gather(
        *(append(journal, f"Thing-{n}", after, **rest) for n in range(streams)), return_exceptions=True
    )


_CHILD = """
import asyncio
from pathlib import Path
from {module} import {function}
asyncio.run({function}(Path({path!r}), {arguments}))
"""


async def child(
    function: Callable[..., Awaitable[None]], path: Path, *arguments: str | int
) -> asyncio.subprocess.Process:
    """A process that runs an async function of a test module; it talks by lines on its standard streams."""
    script = _CHILD.format(
        module=function.__module__,
        function=function.__name__,
        path=str(path),
        arguments=", ".join(map(repr, arguments)),
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def line_from(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def say(text: object) -> None:
    print(text, flush=True)


async def hear() -> str:
    return str(await asyncio.to_thread(sys.stdin.readline)).strip()
