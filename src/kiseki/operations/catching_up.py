"""Read models and erasures where no service runs: brought up to the journal by a command.

Used by `kiseki erasure replay` and after a restore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from kiseki.application.context import Application
from kiseki.application.system import SystemClock
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.pause import happens
from kiseki.projection.port import BuildCatalog, BuildState
from kiseki.projection.projection import Projection
from kiseki.projection.runner import BuildOwned
from kiseki.security.erasure.replay import ReplayReport
from kiseki.service.composition import make_updater
from kiseki.service.erasures import erasure_replay
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores

__all__ = ["BuildsInUse", "catch_up", "forget_builds", "refuse_running", "replay_erasures"]

_LOOK: Final = 0.5


class BuildsInUse(KisekiError):
    """Another process runs a projection whose builds have to go."""

    code = "BUILDS_IN_USE"


async def replay_erasures(
    application: Application, settings: Settings, stores: Stores, *, everything: bool
) -> ReplayReport:
    """Brings every erasure into force, and applies what that makes. Raises as ErasureReplay.run."""
    stop = asyncio.Event()
    following = asyncio.create_task(_follow(application, settings, stores, stop))
    try:
        replay = erasure_replay(application, stores, clock=SystemClock(), telemetry=NoTelemetry())
        run = asyncio.create_task(replay.run(everything=everything))
        await asyncio.wait([run, following], return_when=asyncio.FIRST_COMPLETED)
        if following.done() and following.exception() is not None:
            run.cancel()
            await following
        return await run
    finally:
        # Not cancelled: what is cancelled while it takes a projection lets go of it a little later.
        stop.set()
        await asyncio.wait([following])


async def catch_up(
    application: Application, projections: Sequence[Projection], settings: Settings, stores: Stores
) -> bool:
    """Applies to projections all that the journal has; False when another process runs one: it is left to that."""
    updater = make_updater(application, projections, stores, settings, clock=SystemClock(), telemetry=NoTelemetry())
    try:
        await updater.run_until_caught_up()
    except BuildOwned:
        return False
    return True


async def forget_builds(builds: BuildCatalog) -> int:
    """Removes every build of every projection, because the journal is not the one they were built from any more: what
    they have applied may never have been. They are built anew. How many. Raises BuildsInUse, Unavailable.
    """
    found = await builds.builds()
    for projection, version in sorted({(one.name.projection, one.name.version) for one in found}):
        ownership = await builds.own(projection, version)
        if ownership is None:
            raise _in_use(projection)
        try:
            for build in found:
                if (build.name.projection, build.name.version) == (projection, version):
                    if build.state is BuildState.LIVE:
                        await builds.demote(build.name)
                    await builds.remove(build.name)
        finally:
            await ownership.release()
    return len(found)


async def refuse_running(builds: BuildCatalog) -> None:
    """Raises BuildsInUse when a process runs a projection; Unavailable."""
    for projection, version in sorted({(one.name.projection, one.name.version) for one in await builds.builds()}):
        ownership = await builds.own(projection, version)
        if ownership is None:
            raise _in_use(projection)
        await ownership.release()


def _in_use(projection: str) -> BuildsInUse:
    return BuildsInUse(f"a process runs the projection {projection}; stop kiseki, and run the same again")


async def _follow(application: Application, settings: Settings, stores: Stores, stop: asyncio.Event) -> None:
    """Ends when it is told to, or when something is wrong."""
    while not stop.is_set():
        for projection in application.projections:
            await catch_up(application, [projection], settings, stores)
        await happens(stop, _LOOK)
