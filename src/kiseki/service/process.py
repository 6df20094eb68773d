"""`run_process`: one process of a service from its first socket to its last, whatever parts it runs.

Used by the command line, for processes that run alone and for those under a supervisor.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.application.context import Application
from kiseki.application.system import SystemClock, UlidSource
from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.log import AuditLog
from kiseki.security.masking import Masker
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import LaterAudit, audit_directory
from kiseki.service.composition import Components, compose
from kiseki.service.development import DEVELOPMENT_SUBJECT
from kiseki.service.doors import Door, Doors
from kiseki.service.embedded_metrics import EmbeddedWriter, embedded_writer
from kiseki.service.health import Check, Health, disk_check
from kiseki.service.identity import DEVELOPMENT_ISSUER, issuer_of
from kiseki.service.kinds import Listening, Parts
from kiseki.service.launch import SUPERVISOR_GONE, SUPERVISOR_SAYS_SO, Launch, watch_supervisor
from kiseki.service.lifecycle import CoordinatedShutdown, Phase
from kiseki.service.limits import client_addresses
from kiseki.service.listening import (
    Exposition,
    Management,
    bind_apis,
    bind_management,
    doors_of,
    open_apis,
    start_management,
)
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.secrets import secrets_of
from kiseki.service.server import bind_private
from kiseki.service.settings import Settings
from kiseki.service.shell import Uncounted
from kiseki.service.shutdown_times import phase_times
from kiseki.service.starting import erasures_in_force, open_stores, unless_asked_to_end
from kiseki.service.stores import uses_data_directory
from kiseki.service.transport import open_transport

__all__ = ["run_process"]

_log = logging.getLogger(__name__)

_CHECK_TIMEOUT: Final = 3.0
_STANDARD_INPUT: Final = 0
_HANDSHAKES: Final = 0.1
"""Seconds for connections that are half open when the ports close."""


class _Started(NamedTuple):
    """What a start made."""

    components: Components
    doors: Doors
    secrets: SecretSource
    audit: AuditLog


async def run_process(
    parts: Parts,
    application: Application,
    settings: Settings,
    announce: Callable[[Listening], None],
    *,
    launch: Launch | None = None,
    masker: Masker,
) -> bool:
    """Runs until shutdown; returns whether everything ended in time.

    `launch` is given under a supervisor: sockets are inherited, and management answers on a private socket.
    Raises KisekiError, one clear line, when it can't start or can't go on.
    """
    shutdown = CoordinatedShutdown(phase_times(settings))
    listeners, management_listener = _listen(parts, settings, launch, shutdown)
    metrics = Metrics()
    health = Health(
        clock=asyncio.get_running_loop().time,
        interval=settings.health_interval,
        timeout=_CHECK_TIMEOUT,
        local=_local_checks(settings),
        remote={},
    )
    exposition = Exposition(metrics)
    management = await start_management(
        management_listener,
        settings,
        health=health,
        metrics=exposition,
        # What a supervisor asks its own processes is no traffic of the service.
        telemetry=metrics if launch is None else Uncounted(),
    )
    writer = None
    if launch is None:
        metrics.add_gauges(lambda: [Sample("kiseki_ready", (), float(health.readiness().ready))])
        writer = embedded_writer(parts, settings, exposition.families)
    try:
        start = _start(
            parts,
            application,
            settings,
            listeners,
            masker,
            metrics=metrics,
            health=health,
            exposition=exposition,
            shutdown=shutdown,
            launch=launch,
        )
        started = await unless_asked_to_end(start, shutdown)
    except BaseException:
        await shutdown.undo()
        for listener in listeners.values():
            listener.close()
        await _end(management, writer)
        raise
    failure = None
    if started is not None:
        _settle_garbage_collector()
        health.started = True
        ports = {api: door.server.port for api, door in started.doors.items()}
        token = None
        if ports and launch is None:
            token = await _development_token(settings, application, started.secrets, started.audit)
        announce(Listening(ports=ports, management=management.port, token=token))
        failure = await _until_requested(shutdown, started.components)
    await shutdown.run()
    for listener in listeners.values():
        listener.close()
    # The last of all, so that what ends is not taken for dead, or restarted, before it has ended.
    await _end(management, writer)
    if failure is not None:
        raise failure
    return not shutdown.late


async def _start(
    parts: Parts,
    application: Application,
    settings: Settings,
    listeners: dict[str, socket.socket],
    masker: Masker,
    *,
    metrics: Metrics,
    health: Health,
    exposition: Exposition,
    shutdown: CoordinatedShutdown,
    launch: Launch | None,
) -> _Started | None:
    """Everything up to the moment from which it serves; what it opens is registered to be ended.

    None when it is told to end meanwhile. Raises KisekiError for what waiting can't mend.
    """
    later = LaterAudit()
    secrets = secrets_of(settings, clock=SystemClock(), masker=masker)
    shutdown.add(Phase.SYSTEM_TERMINATE, "secrets", secrets.close)
    transport = await open_transport(
        settings, secrets=secrets, addresses=client_addresses(settings), clock=SystemClock(), auditor=later
    )
    doors = doors_of(transport, listeners, metrics, later)
    _register(shutdown, settings, doors, health, launch)
    stores, audit = await open_stores(
        settings, secrets, doors, masker, metrics=metrics, health=health, shutdown=shutdown
    )
    later.begin(audit)
    secrets.audit_to(audit)
    components = await compose(
        parts,
        application,
        settings,
        stores,
        clock=SystemClock(),
        ids=UlidSource(),
        metrics=metrics,
        health=health,
        shutdown=shutdown,
        audit=audit,
        secrets=secrets,
        transport=transport,
    )
    shutdown.add(Phase.BEFORE_SYSTEM_TERMINATE, "background tasks", partial(_end_tasks, components, exposition))
    exposition.measure = components.measure
    if not await erasures_in_force(components, doors, health=health, shutdown=shutdown):
        _refuse_what_ended(components)
        return None
    await open_apis(components, transport, doors, metrics)
    await health.start()
    _refuse_what_ended(components)
    return _Started(components, doors, secrets, audit)


def _local_checks(settings: Settings) -> dict[str, Check]:
    """What concerns this machine alone."""
    local = {}
    if uses_data_directory(settings):
        local["disk"] = disk_check(settings.data_dir, settings.disk_free)
    audit = audit_directory(settings)
    if "file" in settings.audit_sinks and not (local and audit.is_relative_to(settings.data_dir)):
        local["audit disk"] = disk_check(audit, settings.disk_free, "the directory of the audit log")
    return local


def _register(
    shutdown: CoordinatedShutdown, settings: Settings, doors: Doors, health: Health, launch: Launch | None
) -> None:
    async def drain() -> None:
        health.draining = True
        for _, door in doors.items():
            door.serving.draining = True
        # Nobody has to notice anything where there is no API, or where it never was ready.
        await shutdown.drain(settings.drain_delay if doors.items() and health.started else 0.0)

    async def unbind(door: Door) -> None:
        # Where other processes go on to accept on the same socket, its connections must not be held back.
        alone = launch is None or shutdown.cause in (SUPERVISOR_SAYS_SO, SUPERVISOR_GONE)
        await door.unbind(min(_HANDSHAKES, settings.unbind_timeout / 4) if alone else 0.0)

    for api, door in doors.items():
        done = partial(door.server.requests_done, settings.requests_done_timeout)
        shutdown.add(Phase.SERVICE_UNBIND, f"{api} port", partial(unbind, door))
        shutdown.add(Phase.SERVICE_REQUESTS_DONE, f"{api} requests", done)
        shutdown.add(Phase.SERVICE_STOP, f"{api} connections", door.server.stop)
    shutdown.add(Phase.BEFORE_SERVICE_UNBIND, "drain", drain)
    shutdown.add(Phase.SYSTEM_TERMINATE, "health checks", health.stop)


async def _end_tasks(components: Components, exposition: Exposition) -> None:
    """What runs beside the service uses the stores, which close next."""
    exposition.measure = None
    for task in components.running:
        task.cancel()
    if components.running:
        await asyncio.wait(components.running)


async def _end(management: Management, writer: EmbeddedWriter | None) -> None:
    await management.close()
    if writer is not None:
        await writer.close()


def _listen(
    parts: Parts, settings: Settings, launch: Launch | None, shutdown: CoordinatedShutdown
) -> tuple[dict[str, socket.socket], socket.socket]:
    """The sockets of the APIs and of management, and who can ask for shutdown from now on. Raises CannotListen."""
    if launch is None:
        shutdown.install_signal_handlers()
        return bind_apis(parts, settings), bind_management(settings)
    watch_supervisor(_STANDARD_INPUT, shutdown.request)
    inherited = {api: socket.socket(fileno=descriptor) for api, descriptor in launch.sockets.items()}
    return inherited, bind_private(Path(launch.control))


async def _development_token(
    settings: Settings, application: Application, secrets: SecretSource, audit: AuditLog
) -> str | None:
    """A token with every role, where tokens have a key that this start made; None elsewhere."""
    if not settings.development or settings.token_issuer != DEVELOPMENT_ISSUER:
        return None
    issuer = await issuer_of(settings, secrets=secrets, clock=SystemClock(), auditor=audit, private_key=None)
    roles = {"user", "admin"} | application.access.roles
    lifetime = int(min(settings.token_lifetime, 3_600))
    return (await issuer.issue(DEVELOPMENT_SUBJECT, roles=roles, lifetime=lifetime)).token


def _settle_garbage_collector() -> None:
    """Takes what was made at the start out of every later collection, and makes collections rarer.

    Schemas, statements and modules live as long as the process. Looking through them again and again took a quarter of
    the processor under load, and made single requests wait for a tenth of a second. Reference counting frees nearly
    everything else at once; cycles wait for fifty thousand new objects instead of seven hundred.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _refuse_what_ended(components: Components) -> None:
    """Raises what ended a task already: a definition that can't work shows at once, and is no reason to have served."""
    for task in components.running:
        if task.done():
            raise _why_ended(task)


def _why_ended(task: asyncio.Task[None]) -> BaseException:
    return task.exception() or KisekiError(f"the {task.get_name()} ended without a reason")


async def _until_requested(shutdown: CoordinatedShutdown, components: Components) -> BaseException | None:
    """Waits for a request to shut down, and makes one when a task ends that should not; gives why it did."""
    asked = asyncio.create_task(shutdown.wait_requested(), name="shutdown requested")
    await asyncio.wait([asked, *components.running], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    for task in components.running:
        if task.done() and not shutdown.requested:
            shutdown.request(f"the {task.get_name()} ended")
            return _why_ended(task)
    return None
