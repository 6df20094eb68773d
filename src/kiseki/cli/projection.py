"""`kiseki projection status | retry | rebuild`: read models, seen from outside and mended.

When an updater runs, in whatever process, it is asked; when none does, the work is done here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from rich.table import Table

from kiseki.application.context import Application
from kiseki.application.system import SystemClock
from kiseki.cli.applications import load_application
from kiseki.cli.journal import settings_of
from kiseki.cli.output import people_table, print_table, progress_bar
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.port import BuildState, ParkedStream, Request
from kiseki.projection.projection import Projection
from kiseki.projection.runner import BuildOwned
from kiseki.projection.status import ProjectionStatus, projection_status, request_rebuild, request_retry
from kiseki.service.composition import make_updater
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores

__all__ = ["rebuild", "retry", "status"]

T = TypeVar("T")

_POLL: Final = 0.1
_ANSWER_TIMEOUT: Final = 30.0
"""Seconds within which a running updater begins to see to a request."""


class ProjectionNotFound(KisekiError):
    """The application has no projection of this name."""

    code = "PROJECTION_NOT_FOUND"


class NoUpdaterAnswers(KisekiError):
    """Another process owns the projection and does not see to requests."""

    code = "NO_UPDATER_ANSWERS"


def status(*, config: Path | None, data_dir: Path | None, json: bool) -> None:
    """Prints how far each build is. Raises SettingsError, DataDirectoryUnusable, Unavailable."""
    found = asyncio.run(_with_stores(settings_of(config, data_dir), _status))
    if json:
        print(msgspec.json.encode([_plain(build) for build in found]).decode())
        return
    if not found:
        print("there is no read model yet; an updater makes them when it starts")
        return
    table = people_table("Projections", "build", "state", "behind", "parked", "problem")
    for build in found:
        table.add_row(
            str(build.name),
            build.state.value,
            f"{build.commits_behind:,} commits, {build.seconds_behind:,.1f} s" if build.commits_behind else "nothing",
            f"{build.parked_count:,}",
            build.problem or "",
        )
    print_table(table)
    for build in found:
        if build.parked:
            print_table(_parked_table(build))


def retry(
    name: str | None, *, stream: str | None, application: str | None, config: Path | None, data_dir: Path | None
) -> int:
    """Retries parked streams; 1 when some stay parked."""
    settings = settings_of(config, data_dir)
    loaded = load_application(application)
    projections = _named(loaded, name)
    outcomes, left = asyncio.run(_with_stores(settings, partial(_retry, loaded, projections, stream, settings)))
    for projection, outcome in zip(projections, outcomes, strict=True):
        print(f"{projection.name}: {outcome}")
    if left:
        print("streams stay parked; `kiseki projection status` shows why", file=sys.stderr)
    return 1 if left else 0


def rebuild(name: str, *, application: str | None, config: Path | None, data_dir: Path | None) -> int:
    """Builds a projection anew and waits until the new build is live; 1 when it does not become live."""
    settings = settings_of(config, data_dir)
    loaded = load_application(application)
    (projection,) = _named(loaded, name)
    problem = asyncio.run(_with_stores(settings, partial(_rebuild, loaded, projection, settings)))
    if problem is None:
        print(f"{name}: the new build is live")
        return 0
    print(f"kiseki: {name} was built anew but is not live: {problem}", file=sys.stderr)
    return 1


def _named(application: Application, name: str | None) -> Sequence[Projection]:
    if name is None:
        return application.projections
    found = [projection for projection in application.projections if projection.name == name]
    if not found:
        names = ", ".join(projection.name for projection in application.projections) or "none"
        raise ProjectionNotFound(f"the application has no projection {name}; it has {names}")
    return found


async def _with_stores(settings: Settings, work: Callable[[Stores], Awaitable[T]]) -> T:
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry(), make=False)
    try:
        return await work(stores)
    finally:
        await stores.close()


async def _status(stores: Stores) -> list[ProjectionStatus]:
    return await projection_status(journal=stores.journal, builds=stores.read_models.builds, clock=SystemClock())


async def _retry(
    application: Application, projections: Sequence[Projection], stream: str | None, settings: Settings, stores: Stores
) -> tuple[list[str], int]:
    """What became of it for each projection, and how many of the streams asked for stay parked."""
    outcomes = []
    for projection in projections:
        request = await request_retry(stores.read_models.builds, projection, stream)
        if not await _done_here(application, projection, settings, stores):
            request = await _done_there(request, stores)
        else:
            request = await stores.read_models.builds.request_of(request.id) or request
        outcomes.append(request.outcome or "nothing to report")
    names = {projection.name for projection in projections}
    left = 0
    for build in await _status(stores):
        if build.state is BuildState.LIVE and build.name.projection in names:
            left += build.parked_count if stream is None else sum(parked.stream == stream for parked in build.parked)
    return outcomes, left


async def _rebuild(application: Application, projection: Projection, settings: Settings, stores: Stores) -> str | None:
    """None when the new build is live, else why it is not."""
    builds = stores.read_models.builds
    request = await request_rebuild(builds, projection)
    total = (await stores.journal.lag(await stores.journal.beginning())).commits
    with progress_bar(f"building {projection.name}", total) as advance_to:
        showing = asyncio.create_task(_show(stores, projection, total, advance_to))
        try:
            if not await _done_here(application, projection, settings, stores):
                await _done_there(request, stores)
                return await _until_live(projection, stores)
        finally:
            showing.cancel()
    return await _until_live(projection, stores)


async def _done_here(application: Application, projection: Projection, settings: Settings, stores: Stores) -> bool:
    """Does what was asked for, unless another process owns the projection."""
    updater = make_updater(application, [projection], stores, settings, clock=SystemClock(), telemetry=NoTelemetry())
    try:
        await updater.run_until_caught_up()
    except BuildOwned:
        return False
    return True


async def _done_there(request: Request, stores: Stores) -> Request:
    """Waits until the process that owns the projection has seen to a request. Raises NoUpdaterAnswers."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            while True:
                now = await stores.read_models.builds.request_of(request.id)
                if now is None or now.finished_at is not None:
                    return now or request
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise NoUpdaterAnswers(
            f"the process that runs projection {request.projection} has not seen to the request within "
            f"{_ANSWER_TIMEOUT:g} s; it will when it can, and its log says why it can't"
        ) from None


async def _until_live(projection: Projection, stores: Stores) -> str | None:
    while True:
        builds = await stores.read_models.builds.builds(projection.name)
        newest = max((b for b in builds if b.name.version == projection.version), key=lambda b: b.name.generation)
        if newest.state is BuildState.LIVE:
            return None
        if newest.problem is not None:
            return newest.problem
        await asyncio.sleep(_POLL)


async def _show(stores: Stores, projection: Projection, total: int, advance_to: Callable[[int], None]) -> None:
    while True:
        for build in await _status(stores):
            if build.name.projection == projection.name and build.state is BuildState.BUILDING:
                advance_to(max(0, total - build.commits_behind))
        await asyncio.sleep(_POLL)


def _parked_table(build: ProjectionStatus) -> Table:
    title = f"Parked in {build.name}"
    table = people_table(title, "stream", "#", "event", "code", "detail", "parked since (UTC)", "attempts")
    for parked in build.parked:
        table.add_row(
            parked.stream,
            str(parked.sequence_number),
            parked.event_type,
            parked.code,
            parked.detail,
            f"{parked.parked_at:%Y-%m-%d %H:%M:%S}",
            str(parked.attempts),
        )
    return table


def _plain(build: ProjectionStatus) -> dict[str, object]:
    return {
        "projection": build.name.projection,
        "version": build.name.version,
        "generation": build.name.generation,
        "state": build.state.value,
        "commitsBehind": build.commits_behind,
        "secondsBehind": build.seconds_behind,
        "parkedCount": build.parked_count,
        "parked": [_plain_parked(parked) for parked in build.parked],
        "problem": build.problem,
    }


def _plain_parked(parked: ParkedStream) -> dict[str, object]:
    return {
        "stream": parked.stream,
        "sequenceNumber": parked.sequence_number,
        "eventType": parked.event_type,
        "code": parked.code,
        "detail": parked.detail,
        "occurredAt": parked.occurred_at,
        "parkedAt": parked.parked_at,
        "attempts": parked.attempts,
    }
