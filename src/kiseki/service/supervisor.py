"""The supervisor of `--workers N`: N processes that serve the APIs, one that runs the updater, and this around them.

Used by the command line. It binds the sockets and hands them on, owns the management port, starts a process again that
died, adds up metrics and readiness, and ends everything in order: the API processes drain first, the updater ends last.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client.core import Metric

from kiseki.kernel.errors import KisekiError
from kiseki.service.child import Child
from kiseki.service.control import NoAnswer, Reply, ask
from kiseki.service.embedded_metrics import EmbeddedWriter, embedded_writer
from kiseki.service.health import Health
from kiseki.service.kinds import Listening, Parts
from kiseki.service.launch import Launch
from kiseki.service.lifecycle import CoordinatedShutdown, Phase
from kiseki.service.listening import bind_apis, bind_management, start_management
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.metrics_merge import MergedMetrics
from kiseki.service.settings import Settings
from kiseki.service.shutdown_times import KILL_MARGIN, api_process_time, phase_times, updater_process_time

__all__ = ["supervise"]

_log = logging.getLogger(__name__)

_ASK_TIMEOUT: Final = 2.0
_MOMENT: Final = 2.0
"""Seconds to kill what hangs."""
_STARTING: Final = 0.2
"""Seconds between two looks at processes that wait for a store."""


class NotReady(KisekiError):
    """A process of this service is not ready. The message is what it says itself."""

    code = "NOT_READY"


async def supervise(
    parts: Parts, application: str | None, settings: Settings, announce: Callable[[Listening], None]
) -> bool:
    """Runs until shutdown; returns whether everything ended in time.

    Raises CannotListen, ChildFailed when it can't start.
    """
    shutdown = CoordinatedShutdown(_timeouts(settings, parts))
    shutdown.install_signal_handlers()
    listeners = bind_apis(parts, settings)
    private = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="kiseki-"))
    try:
        supervisor = _Supervisor(parts, application, settings, shutdown=shutdown, listeners=listeners, private=private)
        await supervisor.run(announce)
        return not shutdown.late
    finally:
        for listener in listeners.values():
            listener.close()
        await asyncio.to_thread(shutil.rmtree, private, ignore_errors=True)


class EndedBadly(KisekiError):
    """A process did not end in order. The message says which, and how."""

    code = "ENDED_BADLY"


def _timeouts(settings: Settings, parts: Parts) -> Mapping[Phase, float]:
    return {
        **phase_times(settings),
        Phase.SERVICE_REQUESTS_DONE: api_process_time(settings, parts.without_updater) + KILL_MARGIN + _MOMENT,
        Phase.BEFORE_CLUSTER_SHUTDOWN: updater_process_time(settings) + KILL_MARGIN + _MOMENT,
    }


class _Supervisor:
    def __init__(
        self,
        parts: Parts,
        application: str | None,
        settings: Settings,
        *,
        shutdown: CoordinatedShutdown,
        listeners: Mapping[str, socket.socket],
        private: Path,
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._shutdown = shutdown
        self._listeners = listeners
        self._metrics = Metrics()
        self._merged = MergedMetrics()
        self._merging = asyncio.Lock()

        def child(name: str, its_parts: Parts) -> Child:
            sockets = {api: listeners[api].fileno() for api in its_parts.apis}
            launch = Launch(
                name=name,
                parts=its_parts,
                application=application,
                settings=settings.model_dump(mode="json"),
                sockets=sockets,
                control=str(private / f"{name}.sock"),
            )
            return Child(launch, stop_requested=shutdown.wait_requested)

        self._workers = [child(f"worker-{number}", parts.without_updater) for number in range(1, settings.workers + 1)]
        self._updaters = [child("updater", Parts(updater=True))] if parts.updater else []
        self._health = Health(
            clock=asyncio.get_running_loop().time,
            interval=settings.health_interval,
            timeout=_ASK_TIMEOUT + 0.5,
            local={"workers": self._any_worker},
            remote={each.name: partial(_ready, each) for each in self._children},
        )
        self._health.stuck = self._stuck
        self._watching: asyncio.Task[None] | None = None

    @property
    def _children(self) -> Sequence[Child]:
        return (*self._updaters, *self._workers)

    async def run(self, announce: Callable[[Listening], None]) -> None:
        management = await start_management(
            bind_management(self._settings),
            self._settings,
            health=self._health,
            metrics=self._expose,
            telemetry=self._metrics,
        )
        self._register()
        self._metrics.add_gauges(lambda: [Sample("kiseki_ready", (), float(self._health.readiness().ready))])
        writer = embedded_writer(self._parts, self._settings, self._families)
        try:
            await self._start()
        except BaseException:
            # Those that have begun may serve already.
            await self._shutdown.undo()
            await management.close()
            await _close(writer)
            raise
        if not self._shutdown.requested:
            await self._health.start()
            self._health.started = True
            announce(
                Listening(
                    ports={api: bound.getsockname()[1] for api, bound in self._listeners.items()},
                    management=management.port,
                )
            )
        await self._shutdown.run()
        # The last of all, so that what ends is not taken for dead, or restarted, before it has ended.
        await management.close()
        await _close(writer)

    async def _start(self) -> None:
        """The first one alone, so that what keeps a process from starting is said once; then the others.

        Returns when all of them serve, or shutdown was asked for. Raises ChildFailed.
        """
        first, *others = self._children
        for group in ([first], others):
            await asyncio.gather(*(child.start() for child in group))
            if self._shutdown.requested:
                return
        stopping = asyncio.ensure_future(self._shutdown.wait_requested())
        try:
            while waiting := [child for child in self._children if child.waits_for is not None]:
                self._health.waiting = "; ".join(f"{child.name}: {child.waits_for}" for child in waiting)
                if (await asyncio.wait([stopping], timeout=_STARTING))[0]:
                    return
                await asyncio.gather(*(child.has_begun() for child in waiting))
        finally:
            stopping.cancel()
        self._health.waiting = None
        for child in self._children:
            child.keep()
        self._watching = asyncio.create_task(self._watch(), name="watch")

    async def _watch(self) -> None:
        """Has a process started again that is there and does nothing: it would hold connections for ever."""
        stuck_after = self._settings.stuck_after
        while True:
            await asyncio.gather(*(child.look(_ASK_TIMEOUT) for child in self._children))
            for child in self._children:
                if child.silent > stuck_after and not self._shutdown.requested:
                    _log.error("%s has not answered for %.0f s and is killed", child.name, child.silent)
                    child.end_now()
            await asyncio.sleep(min(self._settings.health_interval, stuck_after / 4))

    def _stuck(self) -> str | None:
        silent = [child for child in self._children if child.silent > self._settings.stuck_after / 2]
        return "; ".join(f"{child.name} has not answered for {child.silent:.0f} s" for child in silent) or None

    def _register(self) -> None:
        stop = self._shutdown
        stop.add(Phase.BEFORE_SERVICE_UNBIND, "workers are asked to drain", self._drain)
        stop.add(Phase.SERVICE_REQUESTS_DONE, "workers", self._workers_done)
        stop.add(Phase.BEFORE_CLUSTER_SHUTDOWN, "updater", self._updater_done)
        stop.add(Phase.SYSTEM_TERMINATE, "health checks", self._health.stop)
        stop.add(Phase.SYSTEM_TERMINATE, "watch", self._end_watch)

    async def _drain(self) -> None:
        self._health.draining = True
        # The workers own the sockets from here on: the last of them to let go refuses further connections.
        for listener in self._listeners.values():
            listener.close()
        for child in self._workers:
            child.stop()

    async def _workers_done(self) -> None:
        hurrying = asyncio.create_task(self._hurry(), name="hurry")
        try:
            within = api_process_time(self._settings, self._parts.without_updater) + KILL_MARGIN
            _refuse(await asyncio.gather(*(child.ended(within) for child in self._workers)))
        finally:
            hurrying.cancel()

    async def _hurry(self) -> None:
        await self._shutdown.wait_hurried()
        for child in self._workers:
            child.stop()

    async def _updater_done(self) -> None:
        for child in self._updaters:
            child.stop()
        within = updater_process_time(self._settings) + KILL_MARGIN
        _refuse(await asyncio.gather(*(child.ended(within) for child in self._updaters)))

    async def _end_watch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _any_worker(self) -> None:
        answers = await asyncio.gather(
            *(_ready(child, "/ready?scope=local") for child in self._workers), return_exceptions=True
        )
        causes = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(causes) == len(answers):
            raise NotReady("; ".join(f"{c.name}: {e}" for c, e in zip(self._workers, causes, strict=True)))

    async def _expose(self) -> bytes:
        async with self._merging:
            await self._merge()
            return self._merged.expose()

    async def _families(self) -> Iterable[Metric]:
        async with self._merging:
            await self._merge()
            return list(self._merged.families())

    async def _merge(self) -> None:
        texts = await asyncio.gather(*(_exposition(child) for child in self._children))
        for child, text in zip(self._children, texts, strict=True):
            if text is not None:
                self._merged.update(child.name, child.incarnation, text)
            elif not child.running:
                self._merged.ended(child.name)
        self._merged.update("supervisor", 0, self._metrics.expose().decode())


async def _close(writer: EmbeddedWriter | None) -> None:
    if writer is not None:
        await writer.close()


def _refuse(problems: Iterable[str | None]) -> None:
    """Raises EndedBadly when there is one."""
    said = [problem for problem in problems if problem is not None]
    if said:
        raise EndedBadly("; ".join(said))


async def _ready(child: Child, target: str = "/ready") -> None:
    """Raises NoAnswer, or NotReady with what the process says."""
    reply = await ask(child.control, target, within=_ASK_TIMEOUT)
    if reply.status != 200:
        raise NotReady(_causes(reply))


def _causes(reply: Reply) -> str:
    try:
        checks = msgspec.json.decode(reply.body)["checks"]
        return ", ".join(f"{name}: {of.get('cause')}" for name, of in checks.items() if of["status"] != "ok")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return "not ready"


async def _exposition(child: Child) -> str | None:
    try:
        reply = await ask(child.control, "/metrics", within=_ASK_TIMEOUT)
    except NoAnswer:
        return None
    return reply.body.decode() if reply.status == 200 else None
