"""`run_process`: one process of a service from its first socket to its last, whatever parts it runs.

Used by the command line, for processes that run alone and for those under a supervisor.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from kiseki.application.context import Application
from kiseki.application.system import SystemClock, UlidSource
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Auditor, AuditUnavailable
from kiseki.projection.backoff import Backoff
from kiseki.security.audit.log import AuditLog
from kiseki.security.masking import Masker
from kiseki.security.secrets.reading import SecretUnavailable
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import LaterAudit, open_audit, started_with
from kiseki.service.composition import Components, ServedApi, compose
from kiseki.service.development import DEVELOPMENT_SUBJECT
from kiseki.service.doors import Door, Doors
from kiseki.service.erasures import until_in_force
from kiseki.service.health import Health, disk_check
from kiseki.service.http import api_app
from kiseki.service.identity import DEVELOPMENT_ISSUER, issuer_of
from kiseki.service.kinds import Listening, Parts
from kiseki.service.launch import Launch, watch_supervisor
from kiseki.service.lifecycle import CoordinatedShutdown, Phase
from kiseki.service.limits import client_addresses
from kiseki.service.management import management_app
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.protocol import ConnectionLimits
from kiseki.service.secrets import secrets_of
from kiseki.service.server import HttpServer, bind, bind_private
from kiseki.service.serving import Serving
from kiseki.service.settings import Settings
from kiseki.service.shell import HttpLimits, HttpTelemetry, Uncounted
from kiseki.service.stores import StoreNotReachable, Stores, uses_data_directory
from kiseki.service.transport import Transport, open_transport

__all__ = ["bind_apis", "bind_management", "run_process", "start_management"]

_log = logging.getLogger(__name__)

_MEASURE_TIMEOUT: Final = 2.0
_CHECK_TIMEOUT: Final = 3.0
_HEAD_SLACK: Final = 65_536
"""The protocol stops reading this far above the limits, which the app refuses more exactly."""
_URI_SLACK: Final = 8_192
_STANDARD_INPUT: Final = 0
_FIRST_RETRY: Final = 0.2
_LONGEST_RETRY: Final = 5.0
"""Seconds between two tries to reach stores at the start."""


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
    loop = asyncio.get_running_loop()
    local = {"disk": disk_check(settings.data_dir, settings.disk_free)} if uses_data_directory(settings) else {}
    shutdown = CoordinatedShutdown(_timeouts(settings))
    listeners, management_listener = _listen(parts, settings, launch, shutdown)
    metrics = Metrics()
    health = Health(
        clock=loop.time,
        interval=settings.health_interval,
        timeout=_CHECK_TIMEOUT,
        local=local,
        remote={},
    )
    exposition = _Exposition(metrics)
    management = await start_management(
        management_listener,
        settings,
        health=health,
        metrics=exposition,
        # What a supervisor asks its own processes is no traffic of the service.
        telemetry=metrics if launch is None else Uncounted(),
    )
    doors = Doors({})
    later = LaterAudit()
    try:
        secrets = secrets_of(settings, clock=SystemClock(), masker=masker)
        shutdown.add(Phase.SYSTEM_TERMINATE, "secrets", secrets.close)
        transport = await open_transport(
            settings, secrets=secrets, addresses=client_addresses(settings), clock=SystemClock(), auditor=later
        )
        doors = _doors(transport, listeners, metrics, later)
        opened = await _open_stores(settings, secrets, doors, masker, metrics=metrics, health=health, shutdown=shutdown)
        if opened is None:
            await shutdown.undo()
            await doors.close()
            await management.close()
            return True
        stores, audit = opened
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
        exposition.measure = components.measure
        if not await _erasures_in_force(components, doors, health=health, shutdown=shutdown):
            return await _ended_early(components, doors, management, shutdown)
        await _open_apis(components, transport, doors, metrics)
        await health.start()
        _refuse_what_ended(components)
        _register(shutdown, settings, doors, health, management)
    except BaseException:
        await shutdown.undo()
        await doors.close()
        for listener in listeners.values():
            listener.close()
        await management.close()
        raise
    if launch is None:
        metrics.add_gauges(lambda: [Sample("kiseki_ready", (), float(health.readiness().ready))])
    _settle_garbage_collector()
    health.started = True
    ports = {api: door.server.port for api, door in doors.items()}
    token = await _development_token(settings, application, secrets, audit) if ports and launch is None else None
    announce(Listening(ports=ports, management=management.port, token=token))
    failure = await _until_requested(shutdown, components)
    await shutdown.run()
    if failure is not None:
        raise failure
    return not shutdown.late


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


def bind_apis(parts: Parts, settings: Settings) -> dict[str, socket.socket]:
    """The listening sockets of the APIs. Raises CannotListen, having closed those that were bound."""
    ports = {"command": settings.command_port, "query": settings.query_port}
    bound: dict[str, socket.socket] = {}
    try:
        for api in parts.apis:
            bound[api] = bind(settings.host, ports[api], f"{api}_port")
    except KisekiError:
        for listener in bound.values():
            listener.close()
        raise
    return bound


def bind_management(settings: Settings) -> socket.socket:
    """The listening socket of the management port. Raises CannotListen."""
    return bind(settings.management_host or settings.host, settings.management_port, "management_port")


async def start_management(
    listener: socket.socket,
    settings: Settings,
    *,
    health: Health,
    metrics: Callable[[], Awaitable[bytes]],
    telemetry: HttpTelemetry,
) -> HttpServer:
    """Serves health and metrics; first of all, so that a process that is starting says so."""
    serving = Serving(time.monotonic)
    app = management_app(
        health=health,
        metrics=metrics,
        serving=serving,
        limits=_http_limits(settings),
        ids=UlidSource(),
        telemetry=telemetry,
    )
    server = HttpServer(
        app, listener, serving=serving, limits=_connection_limits(settings), keep_alive=settings.keep_alive
    )
    await server.start()
    return server


class _Exposition:
    """The metrics of this process, with gauges that have to be measured first; those are left out while they can't."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.measure: Callable[[], Awaitable[object]] | None = None

    async def __call__(self) -> bytes:
        if self.measure is not None:
            try:
                async with asyncio.timeout(_MEASURE_TIMEOUT):
                    self._metrics.measured = await self.measure()  # type: ignore[assignment]
            except (KisekiError, TimeoutError) as problem:
                self._metrics.measured = ()
                _log.warning("projections can't be measured now: %s", problem)
        return self._metrics.expose()


def _doors(transport: Transport, listeners: Mapping[str, socket.socket], metrics: Metrics, auditor: Auditor) -> Doors:
    settings = transport.settings
    return Doors(
        {
            api: Door(
                api,
                listener,
                limits=_http_limits(settings),
                connections=_connection_limits(settings),
                keep_alive=settings.keep_alive,
                ids=UlidSource(),
                telemetry=metrics,
                tls=transport.tls,
                hosts=transport.hosts,
                cors=transport.cors,
                hsts=transport.hsts,
                admission=transport.admission(),
                handshake_timeout=settings.tls_handshake_timeout,
                auditor=auditor,
                peers=transport.peers,
                client=transport.addresses.resolve,
            )
            for api, listener in listeners.items()
        }
    )


async def _open_stores(
    settings: Settings,
    secrets: SecretSource,
    doors: Doors,
    masker: Masker,
    *,
    metrics: Metrics,
    health: Health,
    shutdown: CoordinatedShutdown,
) -> tuple[Stores, AuditLog] | None:
    """Stores and audit log, once they can all be reached; None when the process is told to end before that.

    While it waits, requests are refused and readiness names the cause. Raises KisekiError for what waiting can't mend.
    """
    backoff = Backoff(initial=_FIRST_RETRY, maximum=_LONGEST_RETRY, jitter=random.random)
    while True:
        try:
            stores = await Stores.open(settings, clock=SystemClock(), telemetry=metrics, secrets=secrets)
            try:
                audit = await open_audit(settings, secrets=secrets, clock=SystemClock(), masker=masker)
            except BaseException:
                await stores.close()
                raise
        except (StoreNotReachable, AuditUnavailable, SecretUnavailable) as problem:
            if health.waiting != str(problem):
                _log.warning("waits for a store: %s", problem)
            health.waiting = str(problem)
            await doors.open()
        else:
            health.waiting = None
            shutdown.add(Phase.BEFORE_SYSTEM_TERMINATE, "audit log", audit.close)
            await audit.record(started_with(settings))
            return stores, audit
        asked = asyncio.ensure_future(shutdown.wait_requested())
        try:
            if (await asyncio.wait([asked], timeout=backoff.failed()))[0]:
                return None
        finally:
            asked.cancel()


async def _erasures_in_force(
    components: Components, doors: Doors, *, health: Health, shutdown: CoordinatedShutdown
) -> bool:
    """Before anything is served; False when the process is told to end, or a task ends, before that."""

    async def waits(cause: str) -> None:
        if health.waiting != cause:
            _log.warning("waits: %s", cause)
        health.waiting = cause
        await doors.open()

    in_force = await until_in_force(
        components.erasures, running=components.running, asked_to_end=shutdown.wait_requested, waits=waits
    )
    health.waiting = None
    return in_force


async def _ended_early(
    components: Components, doors: Doors, management: HttpServer, shutdown: CoordinatedShutdown
) -> bool:
    """Ends a process that was told to before it served. Raises what ended a task."""
    _refuse_what_ended(components)
    await shutdown.undo()
    await doors.close()
    await management.close()
    return True


async def _open_apis(components: Components, transport: Transport, doors: Doors, metrics: Metrics) -> None:
    for api in components.apis:
        door = doors[api.name]
        door.app = _api_app(api, components, transport, door.serving, metrics)
        metrics.add_gauges(_gauges(api.name, door.server, door.serving))
    await doors.open()


def _gauges(api: str, server: HttpServer, serving: Serving) -> Callable[[], list[Sample]]:
    return lambda: [
        Sample("kiseki_http_requests_in_flight", (api,), serving.in_flight),
        Sample("kiseki_http_connections", (api,), server.connections),
        Sample("kiseki_http_connections_refused", (api,), server.refused),
    ]


def _api_app(
    api: ServedApi, components: Components, transport: Transport, serving: Serving, metrics: Metrics
) -> Callable[..., Awaitable[None]]:
    settings = transport.settings
    assert components.gate is not None  # noqa: S101  # there is one where there are APIs
    return api_app(
        api.name,
        endpoint=api.endpoint,
        sdl=api.sdl,
        gate=components.gate,
        admin=components.admin if api.name == "query" else None,
        development=settings.development,
        serving=serving,
        limits=_http_limits(settings),
        ids=UlidSource(),
        telemetry=metrics,
        hosts=transport.hosts,
        cors=transport.cors,
        hsts=transport.hsts,
        auditor=components.auditor,
        peers=transport.peers,
        client=transport.addresses.resolve,
    )


def _register(
    shutdown: CoordinatedShutdown,
    settings: Settings,
    doors: Doors,
    health: Health,
    management: HttpServer,
) -> None:
    async def drain() -> None:
        health.draining = True
        for _, door in doors.items():
            door.serving.draining = True
        # Without an API nobody has to notice anything.
        await shutdown.drain(settings.drain_delay if doors.items() else 0.0)

    shutdown.add(Phase.BEFORE_SERVICE_UNBIND, "drain", drain)
    for api, door in doors.items():
        shutdown.add(Phase.SERVICE_UNBIND, f"{api} port", door.server.unbind)
        shutdown.add(Phase.SERVICE_REQUESTS_DONE, f"{api} requests", door.server.requests_done)
        shutdown.add(Phase.SERVICE_STOP, f"{api} connections", door.server.stop)
    shutdown.add(Phase.SYSTEM_TERMINATE, "health checks", health.stop)
    shutdown.add(Phase.SYSTEM_TERMINATE, "management port", management.close)


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


def _timeouts(settings: Settings) -> Mapping[Phase, float]:
    return {
        # The delay itself, and a moment to set out and come back.
        Phase.BEFORE_SERVICE_UNBIND: settings.drain_delay + 1.0,
        Phase.SERVICE_UNBIND: settings.unbind_timeout,
        Phase.SERVICE_REQUESTS_DONE: settings.requests_done_timeout,
        Phase.SERVICE_STOP: settings.stop_timeout,
        Phase.BEFORE_CLUSTER_SHUTDOWN: settings.projections_timeout,
        Phase.BEFORE_SYSTEM_TERMINATE: settings.flush_timeout,
        Phase.SYSTEM_TERMINATE: settings.close_timeout,
    }


def _http_limits(settings: Settings) -> HttpLimits:
    return HttpLimits(
        body=settings.body_limit,
        uri=settings.uri_limit,
        headers=settings.header_limit,
        read_timeout=settings.read_timeout,
        request_timeout=settings.request_timeout,
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        head_bytes=settings.uri_limit + settings.header_limit + _HEAD_SLACK,
        uri_bytes=settings.uri_limit + _URI_SLACK,
        write_timeout=settings.write_timeout,
        read_timeout=settings.read_timeout,
        idle=settings.keep_alive,
    )
