"""`python -m benchmarks rolling`: replaces the processes of a command API under load, for longer than the test does.

It fails when a request fails, an acknowledged command is not in the journal once, or a process does not end well.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchmarkError
from kiseki.service.settings import Settings
from tests.e2e.rolling import Figures, roll, stored_names
from tests.servers.postgres import NoPostgres, PostgresServer


@dataclass(frozen=True)
class RollingEffort:
    """How much; times in seconds. Each round replaces both processes."""

    rounds: int = 8
    connections: int = 48
    pause: float = 0.02
    health_interval: float = 0.1
    drain_delay: float = 1.0


@dataclass(frozen=True)
class RollingRun:
    """One store's run. `wrong` are the names that are not in the journal exactly as often as they were acknowledged."""

    store: str
    workers: int
    figures: Figures
    wrong: int

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = list(self.figures.failures[:5])
        if self.wrong:
            found.append(f"{self.wrong} names are not in the journal exactly as often as they were acknowledged")
        found += [f"a process ended with {code}" for code in self.figures.exit_codes if code]
        return [f"{self.store}: {problem}" for problem in found]


def measure_rolling(effort: RollingEffort) -> list[RollingRun]:
    """Runs on SQLite, the same with two workers in each process, and on PostgreSQL. Raises BenchmarkError."""
    runs = [_run("SQLite", effort), _run("SQLite", effort, workers=2)]
    try:
        with PostgresServer() as server:
            runs.append(_run("PostgreSQL", effort, url=server.create_database()))
    except NoPostgres as problem:
        raise BenchmarkError(f"no PostgreSQL server: {problem}") from problem
    return runs


def print_rolling(runs: list[RollingRun], effort: RollingEffort, console: Console) -> None:
    """The table."""
    table = Table(
        title=f"{effort.connections} kept connections, drain delay {effort.drain_delay:g} s, health every "
        f"{effort.health_interval:g} s, unhealthy after two answers"
    )
    for heading in ("store", "workers", "seconds", "requests", "replaced", "failed", "lost or twice"):
        table.add_column(heading, justify="right" if heading != "store" else "left")
    table.add_column("longest pause", justify="right")
    table.add_column("slowest request", justify="right")
    for run in runs:
        figures = run.figures
        table.add_row(
            run.store,
            str(run.workers),
            f"{figures.seconds:.1f}",
            f"{figures.requests:,}",
            str(figures.replacements),
            str(len(figures.failures)),
            str(run.wrong),
            f"{figures.longest_pause * 1000:.0f} ms",
            f"{figures.slowest_request * 1000:.0f} ms",
        )
    console.print(table)


def _run(store: str, effort: RollingEffort, *, workers: int = 1, url: str = "sqlite:") -> RollingRun:
    with tempfile.TemporaryDirectory(prefix="kiseki-rolling-") as folder:
        place = Path(folder)
        figures = asyncio.run(
            roll(
                place,
                rounds=effort.rounds,
                connections=effort.connections,
                pause=effort.pause,
                health_interval=effort.health_interval,
                drain_delay=effort.drain_delay,
                workers=workers,
                environment={"KISEKI_JOURNAL": url, "KISEKI_READ_MODEL": url},
            )
        )
        settings = Settings(data_dir=place / "data", journal=url, read_model=url)
        stored = asyncio.run(stored_names(settings))
    acknowledged = Counter(figures.acknowledged)
    wrong = sum(1 for name in stored.keys() | acknowledged.keys() if stored[name] != acknowledged[name])
    return RollingRun(store, workers, figures, wrong)
