"""`Updater`: runs all projections of an application in one process. Started by the service, and by the command line.

updater = Updater(projections=app.projections, deciders=app.deciders, journal=journal, builds=builds, ...)
await updater.run()                  # until another task calls `await updater.stop()`
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kiseki.journal.port import START, Journal, Position
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.kernel.ports import Clock, Protector, Telemetry
from kiseki.projection.erasure import Erasures
from kiseki.projection.pause import happens
from kiseki.projection.port import BuildCatalog
from kiseki.projection.projection import Projection
from kiseki.projection.runner import ProjectionRunner
from kiseki.projection.settings import BuildProgress, RunnerParts, UpdaterSettings
from kiseki.projection.subscription import Subscription

__all__ = ["Updater"]

_log = logging.getLogger(__name__)


class Updater:
    """Follows the journal into read models: at once when it is woken, and every `poll_interval` without.

    Each projection has a runner of its own: one that waits or stands by does not hold up another. Any number of
    processes may run an updater on the same read models; each projection version is run by one of them, and the others
    stand by and take over when it ends or dies.
    """

    def __init__(
        self,
        *,
        projections: Iterable[Projection],
        deciders: Sequence[Decider[Any, Any, Any]],
        journal: Journal,
        builds: BuildCatalog,
        codec: EventCodec,
        protector: Protector,
        telemetry: Telemetry,
        clock: Clock,
        settings: UpdaterSettings | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._builds = builds
        self._listeners: dict[object, Callable[[str], None]] = {}
        self._erasures = Erasures(deciders=deciders, protector=protector)
        self._parts = RunnerParts(
            journal=journal,
            builds=builds,
            codec=codec,
            erasures=self._erasures,
            telemetry=telemetry,
            clock=clock,
            settings=settings or UpdaterSettings(),
            jitter=jitter,
            applied=self._applied,
        )
        self._runners = tuple(ProjectionRunner(Subscription(p, deciders), self._parts) for p in projections)
        self._wake = asyncio.Event()
        self._stopping = False
        self._done: asyncio.Event | None = None

    async def run(self) -> None:
        """Runs until `stop`; waits for whatever is unavailable.

        Raises DefinitionError at once when a projection's definition changed without its version, or can't work.
        """
        self._done = asyncio.Event()
        end_journal_watch = self._journal.watch(self._woken)
        end_request_watch = self._builds.watch(self._requested)
        try:
            await self.check()
            async with asyncio.TaskGroup() as group:
                for runner in self._runners:
                    group.create_task(runner.run(), name=repr(runner))
                if not self._runners:
                    group.create_task(self._only_erase(), name="erasures")
        except* DefinitionError as problems:
            raise problems.exceptions[0] from None
        finally:
            end_journal_watch()
            end_request_watch()
            self._done.set()

    async def stop(self) -> None:
        """Ends `run` after the pages that are being applied; returns when all builds are closed. For good."""
        self._stopping = True
        self._wake.set()
        for runner in self._runners:
            runner.stop()
        if self._done is not None:
            await self._done.wait()

    async def run_until_caught_up(self) -> tuple[BuildProgress, ...]:
        """Instead of `run`: does what was requested, catches up, promotes what was built, and returns what it reached.

        For the command line, when no updater runs. A build with a `problem` in the result did not become live.
        Raises BuildOwned when another process runs a projection, DefinitionError, Unavailable, CorruptJournal.
        """
        await self.check()
        reached = [await runner.run_until_caught_up() for runner in self._runners]
        return tuple(progress for of_one in reached for progress in of_one)

    async def caught_up(self) -> None:
        """Returns when all that the feed has now is applied to live builds; `run` must be running in another task.

        Waits for as long as something is unavailable, stands by, or does not become live.
        """
        await asyncio.gather(*(runner.caught_up() for runner in self._runners))

    def status(self) -> tuple[BuildProgress, ...]:
        """What this process does for each projection; see `projection_status` for what is so."""
        return tuple(progress for runner in self._runners for progress in runner.status())

    def subscribe(self, applied: Callable[[str], None]) -> Callable[[], None]:
        """Calls `applied` with a projection's name, on the event loop, whenever something new can be seen in it.

        Returns the function that ends it.
        """
        listener = object()
        self._listeners[listener] = applied

        def end() -> None:
            self._listeners.pop(listener, None)

        return end

    def _applied(self, projection: str) -> None:
        for listener in tuple(self._listeners.values()):
            try:
                listener(projection)
            except Exception:  # noqa: BLE001  # a listener's fault is not the projection's
                _log.exception("a function that waits for projection %s failed", projection)

    def _woken(self) -> None:
        self._wake.set()
        for runner in self._runners:
            runner.wake()

    def _requested(self) -> None:
        for runner in self._runners:
            runner.wake_for_request()

    async def check(self) -> None:
        """Raises DefinitionError when a projection's definition changed without its version; `run` does the same.

        For who starts it: what can't work is said before anything runs. Whatever is unavailable is passed over.
        """
        for runner in self._runners:
            try:
                await runner.check()
            except Unavailable as problem:
                # It is checked again when the builds are opened; what can't be reached now is no reason not to start.
                _log.warning("%r can't be checked now: %s", runner, problem)

    async def _only_erase(self) -> None:
        """An application without projections still destroys the keys of who is erased.

        It begins at the start each time, because it has no build to keep a position in; what is done already is only
        read.
        """
        position: Position = START
        backoff = self._parts.new_backoff()
        while not self._stopping:
            self._wake.clear()
            pause = self._parts.settings.poll_interval
            try:
                page = await self._journal.feed(position, limit=self._parts.settings.page_commits)
                await self._erasures.ensure(page.commits)
                position = page.position
                backoff.succeeded()
                if page.commits:
                    continue
            except Unavailable as problem:
                _log.warning("erasures wait: %s", problem)
                pause = backoff.failed()
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("erasures can't go on")
                pause = backoff.failed()
            await happens(self._wake, pause)
