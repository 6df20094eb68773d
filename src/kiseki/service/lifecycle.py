"""`CoordinatedShutdown`: how a process ends without losing or cutting anything. Used by every kind of process.

Parts of a process register tasks in phases; when shutdown starts, the phases run one after the other and the tasks of a
phase together. SIGTERM and SIGINT start it; either of them again shortens the drain delay.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from kiseki.kernel.errors import KisekiError

__all__ = ["SIGNALS", "CoordinatedShutdown", "Phase", "ShutdownTask"]

_log = logging.getLogger(__name__)

ShutdownTask = Callable[[], Awaitable[None]]


class Phase(enum.Enum):
    """The phases, in their order."""

    BEFORE_SERVICE_UNBIND = "before-service-unbind"
    """Readiness fails at once; the process keeps serving until the load balancer has noticed."""
    SERVICE_UNBIND = "service-unbind"
    """It stops accepting connections."""
    SERVICE_REQUESTS_DONE = "service-requests-done"
    """Accepted requests end; new ones on open connections are refused with 503."""
    SERVICE_STOP = "service-stop"
    """Connections and background services end."""
    BEFORE_CLUSTER_SHUTDOWN = "before-cluster-shutdown"
    """Projections finish their page and save their guards."""
    BEFORE_SYSTEM_TERMINATE = "before-system-terminate"
    """What is buffered is written out: snapshots, audit, telemetry."""
    SYSTEM_TERMINATE = "system-terminate"
    """Stores and pools close."""


SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What asks a process to shut down."""


class CoordinatedShutdown:
    """Runs registered tasks phase by phase, once.

    `timeouts` gives the seconds for each phase. A task that is late is logged by name and no longer waited for (it is
    cancelled); a task that fails is logged; neither keeps the next phase from running.
    """

    def __init__(self, timeouts: Mapping[Phase, float]) -> None:
        self._timeouts = {phase: timeouts[phase] for phase in Phase}
        self._tasks: dict[Phase, list[tuple[str, ShutdownTask]]] = {phase: [] for phase in Phase}
        self._requested = asyncio.Event()
        self._hurried = asyncio.Event()
        self._run: asyncio.Task[None] | None = None
        self._cause = ""
        self._level = logging.INFO
        self._late: list[str] = []

    @property
    def requested(self) -> bool:
        """Whether shutdown was asked for."""
        return self._requested.is_set()

    @property
    def cause(self) -> str:
        """Why shutdown was asked for; empty while it was not."""
        return self._cause

    @property
    def late(self) -> tuple[str, ...]:
        """The tasks that were late or failed, as `phase/name`."""
        return tuple(self._late)

    def add(self, phase: Phase, name: str, task: ShutdownTask) -> None:
        """Registers a task. Tasks added once their phase has begun are not run."""
        self._tasks[phase].append((name, task))

    def request(self, cause: str) -> None:
        """Asks for shutdown; asking again shortens the drain delay. Safe to call from a signal handler of the loop."""
        if self._requested.is_set():
            if not self._hurried.is_set():
                _log.warning("%s again: the drain delay is cut short", cause)
            self._hurried.set()
            return
        self._cause = cause
        self._requested.set()

    def install_signal_handlers(self) -> None:
        """Makes SIGTERM and SIGINT ask for shutdown. Call it before a port is bound, on the event loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.request, number.name)

    async def drain(self, delay: float) -> None:
        """Waits out a drain delay in seconds, less when shutdown is asked for again."""
        try:
            async with asyncio.timeout(delay):
                await self._hurried.wait()
        except TimeoutError:
            pass

    async def wait_requested(self) -> None:
        """Returns when shutdown is asked for."""
        await self._requested.wait()

    async def wait_hurried(self) -> None:
        """Returns when it is asked for again."""
        await self._hurried.wait()

    async def run(self) -> None:
        """Waits until shutdown is asked for and runs it to its end. Every caller waits for the same one run."""
        if self._run is None:
            self._run = asyncio.create_task(self._phases(), name="coordinated shutdown")
        await asyncio.shield(self._run)

    async def undo(self) -> None:
        """Runs what is registered so far, for a start that failed: quietly, because the failure is what matters."""
        self._level = logging.DEBUG
        self.request("the start failed")
        self._hurried.set()
        await self.run()

    async def _phases(self) -> None:
        await self._requested.wait()
        loop = asyncio.get_running_loop()
        started = loop.time()
        _log.log(self._level, "shutting down: %s", self._cause)
        for phase in Phase:
            await self._phase(phase)
        _log.log(self._level, "shut down in %.1f s", loop.time() - started)

    async def _phase(self, phase: Phase) -> None:
        registered = self._tasks[phase]
        if not registered:
            return
        _log.debug("shutdown phase %s: %s", phase.value, ", ".join(name for name, _ in registered))
        running = {asyncio.create_task(_call(task), name=name): name for name, task in registered}
        done, late = await asyncio.wait(running, timeout=self._timeouts[phase])
        for task in late:
            self._late.append(f"{phase.value}/{running[task]}")
            _log.error(
                "shutdown phase %s: %s is not done after %g s and is no longer waited for",
                phase.value,
                running[task],
                self._timeouts[phase],
            )
            task.cancel()
        for task in done:
            problem = None if task.cancelled() else task.exception()
            if isinstance(problem, KisekiError):
                self._late.append(f"{phase.value}/{running[task]}")
                _log.error("shutdown phase %s: %s failed: %s", phase.value, running[task], problem)
            elif task.cancelled() or problem is not None:
                self._late.append(f"{phase.value}/{running[task]}")
                _log.error("shutdown phase %s: %s failed", phase.value, running[task], exc_info=problem)


async def _call(task: ShutdownTask) -> None:
    await task()
