"""`run_drill`: destroys a copy of the system at a random moment under load, has it recovered, and measures. Used by
`kiseki dr drill`.

The witness is apart from the system: clients remember what was acknowledged, a process of its own notices that the
system is gone and that it is back, and the recovered journal is compared with what the clients know.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from kiseki._version import __version__
from kiseki.application.system import SystemClock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.port import Progress
from kiseki.operations.backups import Backups
from kiseki.operations.drill.load import Acknowledged, Load
from kiseki.operations.drill.processes import DrillProcess, Ports, probe_changes, run_kiseki, until_ready
from kiseki.operations.drill.report import DrillReport
from kiseki.operations.drill.system import DrillSystem, protect_process, service_process, settings_from
from kiseki.operations.errors import BackupDamaged, OperationFailed
from kiseki.service.stores import open_journal

__all__ = ["DrillPlan", "run_drill"]

_FIRST_ANSWER: Final = 60.0
_BASE_SECONDS: Final = 3_600.0
_LOOK: Final = 0.5
_PROBE_FAILURES: Final = 3


class DrillPlan(NamedTuple):
    """What a drill does."""

    folder: Path
    """Where it works; empty."""
    events: int
    clients: int
    interval: float
    """Between two copies of what is new, seconds."""
    shortest: float
    longest: float
    """Between these, in seconds, lies the random time from the first whole copy to the destruction."""
    probe_every: float = 5.0
    """Seconds between two looks of the probe; three bad ones in a row are a disaster."""


class _Recovered(NamedTuple):
    events: int
    sound: bool
    lost: list[Acknowledged]


async def run_drill(system: DrillSystem, ports: Ports, plan: DrillPlan, progress: Progress) -> DrillReport:
    """One drill, from an empty folder to the report. Raises OperationFailed when it can't be carried through."""
    async with AsyncExitStack() as ending:
        ending.push_async_callback(system.close)
        filled = await system.prepare(plan.events, progress)
        service = service_process(system.environment, plan.folder)
        protection = protect_process(system.environment, plan.folder)
        for process in (service, protection):
            ending.push_async_callback(process.kill)
        progress("starting")
        await service.start()
        await until_ready(ports.management, service)
        await protection.start()
        load = Load(ports.command, clients=plan.clients)
        load.start()
        ending.callback(load.stop)
        if not await asyncio.to_thread(load.wait_first, _FIRST_ANSWER):
            raise OperationFailed("the drill's service acknowledges no command; look into service.log")
        probe = _probe(ports, plan)
        ending.push_async_callback(probe.kill)
        await probe.start(piped=True)
        await probe_changes(probe, up=True)
        progress("waiting for a whole copy")
        await _until_protected(system, protection, after=datetime.now(UTC))
        waited = random.uniform(plan.shortest, plan.longest)  # noqa: S311  # a moment, no secret
        progress(f"under load; destroyed at a random moment within {plan.longest:g} s")
        await _under_load(waited, [service, protection])

        at, destroyed = datetime.now(UTC), time.monotonic()
        await asyncio.gather(service.kill(), protection.kill())
        await system.lose_machine()
        progress("destroyed; waiting for the probe")
        noticed, _ = await probe_changes(probe, up=False)
        seen = load.stop()

        progress("recovering")
        restoring = time.monotonic()
        await system.recover()
        restarting = time.monotonic()
        service = service_process(system.environment, plan.folder)
        ending.push_async_callback(service.kill)
        await service.start()
        await until_ready(ports.management, service)
        back, _ = await probe_changes(probe, up=True)

        progress("comparing")
        proved = await asyncio.to_thread(_prove, ports)
        behind = await _behind(system)
        acknowledged = [one for one in seen.acknowledged if one.at <= destroyed]
        await service.end()
        recovered = await _recovered(system, acknowledged, progress)
        return DrillReport(
            at=at,
            kiseki=__version__,
            store=system.store,
            events=filled + len(acknowledged),
            clients=plan.clients,
            protection_interval=plan.interval,
            waited=waited,
            detection=noticed - destroyed,
            rpo=max((destroyed - one.at for one in recovered.lost), default=0.0),
            rto=back - destroyed,
            phases={
                "until noticed": noticed - destroyed,
                "restore": restarting - restoring,
                "start": back - restarting,
            },
            acknowledged=len(acknowledged),
            lost=len(recovered.lost),
            recovered_events=recovered.events,
            sound=recovered.sound,
            projections_behind=behind,
            proved=proved,
        )


def _probe(ports: Ports, plan: DrillPlan) -> DrillProcess:
    command = [sys.executable, "-m", "kiseki", "dr", "probe", f"http://127.0.0.1:{ports.management}/ready"]
    command += [f"http://127.0.0.1:{port}/api/health" for port in (ports.command, ports.query)]
    command += ["--every", f"{plan.probe_every:g}", "--failures", f"{_PROBE_FAILURES}", "--json"]
    return DrillProcess("probe", command, {}, plan.folder / "probe.log")


async def _until_protected(system: DrillSystem, protection: DrillProcess, *, after: datetime) -> None:
    """Returns when the place covers everything up to a time. Looks into the place alone."""
    try:
        async with asyncio.timeout(_BASE_SECONDS), Backups.opened(settings_from(system.environment)) as backups:
            for each in backups.protections():
                while (through := await each.through()) is None or through < after:
                    protection.refuse_ended()
                    await asyncio.sleep(_LOOK)
    except TimeoutError as problem:
        raise OperationFailed("the drill's protection made no whole copy within an hour") from problem


async def _under_load(seconds: float, processes: Sequence[DrillProcess]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _LOOK))
        for process in processes:
            process.refuse_ended()


def _prove(ports: Ports) -> str:
    """Writes to the recovered system, and sees that it goes on acknowledging. Raises OperationFailed."""
    load = Load(ports.command, clients=1)
    load.start()
    answered = load.wait_first(_FIRST_ANSWER)
    seen = load.stop()
    if not answered:
        raise OperationFailed("the recovered system acknowledges no command; look into service.log")
    return f"acknowledges commands again ({len(seen.acknowledged)} tried)"


async def _behind(system: DrillSystem) -> int:
    """Commits that read models have not applied, measured against the journal, once they had time for the last ones."""
    behind = 1
    for _ in range(20):
        output = await run_kiseki(["projection", "status", "--json"], system.environment, what="look at read models")
        behind = max(
            (int(build["commitsBehind"]) for build in json.loads(output) if build["state"] == "live"), default=1
        )
        if not behind:
            break
        await asyncio.sleep(_LOOK)
    return behind


async def _recovered(system: DrillSystem, acknowledged: Sequence[Acknowledged], progress: Progress) -> _Recovered:
    settings = settings_from(system.environment)
    try:
        async with (
            open_journal(settings, clock=SystemClock(), telemetry=NoTelemetry()) as journal,
            surveyed(journal, "the recovered journal", progress) as survey,
        ):
            last = survey.last(sorted({one.stream for one in acknowledged}))
            lost = [one for one in acknowledged if last.get(one.stream, 0) < one.sequence_number]
            return _Recovered(survey.contents.events, True, lost)
    except BackupDamaged:
        return _Recovered(0, False, list(acknowledged))
