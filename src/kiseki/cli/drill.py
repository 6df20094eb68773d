"""`kiseki dr drill` and `kiseki dr probe`: a disaster on purpose, and what watches a system from outside."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from kiseki.cli.journal import settings_of
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backups import Backups
from kiseki.operations.drill.probe import Change, probe_address, watch
from kiseki.operations.drill.processes import Ports, free_ports
from kiseki.operations.drill.report import DRILLS, DrillReport, in_words
from kiseki.operations.drill.run import DrillPlan, run_drill
from kiseki.operations.drill.system import DrillSystem, SqliteSystem
from kiseki.operations.errors import OperationFailed
from kiseki.service.settings import Settings

__all__ = ["drill", "probe"]


def drill(
    store: str,
    *,
    events: int,
    clients: int,
    interval: float,
    moments: tuple[float, float],
    folder: Path | None,
    config: Path | None,
    data_dir: Path | None,
    json: bool,
) -> int:
    """Runs a drill and prints what it measured; 1 when a target was missed. Raises OperationFailed."""
    settings = settings_of(config, data_dir)
    if moments[0] > moments[1]:
        raise OperationFailed("--shortest is longer than --longest")
    made = folder is None
    work = Path(tempfile.mkdtemp(prefix="kiseki-drill-")) if folder is None else folder.absolute()
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise OperationFailed(f"{work} is not empty; a drill works in an empty folder")
    ports = free_ports()
    plan = DrillPlan(work, events, clients, interval, *moments)
    console = Console(stderr=True)

    async def run(tell: Callable[[str], None]) -> DrillReport:
        report = await run_drill(_system(store, work, ports, interval, settings), ports, plan, tell)
        await _keep(settings, report)
        return report

    try:
        if console.is_terminal:
            with console.status("") as status:
                report = asyncio.run(run(status.update))
        else:
            report = asyncio.run(run(lambda _: None))
    finally:
        if made:
            shutil.rmtree(work, ignore_errors=True)
    print(
        msgspec.json.encode({**msgspec.to_builtins(report), "passed": report.passed}).decode()
        if json
        else in_words(report)
    )
    return 0 if report.passed else 1


def probe(urls: Sequence[str], *, every: float, failures: int, once: bool, json: bool) -> int:
    """Watches until it is told to end; with `once` until it knows: 0 up, 1 down. Raises OperationFailed."""
    addresses = [probe_address(url) for url in urls]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    last: list[Change] = []

    def tell(change: Change) -> None:
        last[:] = [change]
        moment = datetime.now(UTC)
        if json:
            print(msgspec.json.encode({**change._asdict(), "time": moment}).decode(), flush=True)
        elif change.up:
            print(f"{moment:%Y-%m-%d %H:%M:%S} UTC: up", flush=True)
        else:
            seconds = time.monotonic() - change.since
            print(f"{moment:%Y-%m-%d %H:%M:%S} UTC: DOWN for {seconds:,.0f} s: {change.cause}", flush=True)
        if once:
            stop.set()

    watch(addresses, every=every, failures=failures, tell=tell, stop=stop)
    return 0 if last and last[0].up else 1


def _system(store: str, folder: Path, ports: Ports, interval: float, settings: Settings) -> DrillSystem:
    if store == "sqlite":
        return SqliteSystem(folder, ports, interval=interval)
    if store == "postgresql":
        from kiseki.operations.drill.postgres_system import PostgresSystem  # noqa: PLC0415

        return PostgresSystem(folder, ports, interval=interval, programs=settings.postgres_programs)
    raise OperationFailed(f"--store {store!r} can't be drilled; name sqlite or postgresql")


async def _keep(settings: Settings, report: DrillReport) -> None:
    """Keeps the report where backups are, so that `kiseki dr status` knows how old the last drill is."""
    if not settings.backup:
        return
    async with Backups.opened(settings) as backups:
        name = f"{DRILLS}/{report.at:%Y%m%dT%H%M%SZ}.json"
        await backups.place(Part.JOURNAL).write(name, msgspec.json.encode(report) + b"\n")
