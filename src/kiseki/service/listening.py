"""Where a process listens: its sockets, what serves on them, and their bounds. Used by `process` and `supervisor`."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from prometheus_client.core import Metric

from kiseki.application.system import UlidSource
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Auditor
from kiseki.service.composition import Components, ServedApi
from kiseki.service.doors import Door, Doors
from kiseki.service.health import Health
from kiseki.service.http import api_app
from kiseki.service.kinds import Parts
from kiseki.service.management import management_app
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.protocol import ConnectionLimits
from kiseki.service.server import HttpServer, bind
from kiseki.service.serving import Serving
from kiseki.service.settings import Settings
from kiseki.service.shell import HttpLimits, HttpTelemetry
from kiseki.service.transport import Transport

__all__ = ["Exposition", "Management", "bind_apis", "bind_management", "doors_of", "open_apis", "start_management"]

_log = logging.getLogger(__name__)

_MEASURE_TIMEOUT: Final = 2.0
_LAST_PROBES: Final = 0.5
"""Seconds for probes that are being answered when the process ends."""
_HEAD_SLACK: Final = 65_536
"""The protocol stops reading this far above the limits, which the app refuses more exactly."""
_URI_SLACK: Final = 8_192


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


class Management:
    """The management port, the first to open and the last to close."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    @property
    def port(self) -> int:
        """The port it listens on, 0 for a Unix socket."""
        return self._server.port

    async def close(self) -> None:
        """Answers what it was asked, and closes."""
        await self._server.unbind()
        await self._server.requests_done(_LAST_PROBES)
        await self._server.stop(0.0)


async def start_management(
    listener: socket.socket,
    settings: Settings,
    *,
    health: Health,
    metrics: Callable[[], Awaitable[bytes]],
    telemetry: HttpTelemetry,
) -> Management:
    """Serves health and metrics; first of all, so that a process that is starting says so."""
    serving = Serving(time.monotonic)
    app = management_app(
        health=health,
        metrics=metrics,
        serving=serving,
        limits=http_limits(settings),
        ids=UlidSource(),
        telemetry=telemetry,
    )
    server = HttpServer(
        app, listener, serving=serving, limits=connection_limits(settings), keep_alive=settings.keep_alive
    )
    await server.start()
    return Management(server)


class Exposition:
    """The metrics of this process, with gauges that have to be measured first; those are left out while they can't."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.measure: Callable[[], Awaitable[object]] | None = None
        """None while there is nothing that could be measured: before the stores are open, and when they close."""

    async def __call__(self) -> bytes:
        await self._measure()
        return self._metrics.expose()

    async def families(self) -> Iterable[Metric]:
        """The same, not as text."""
        await self._measure()
        return self._metrics.families()

    async def _measure(self) -> None:
        if self.measure is not None:
            try:
                async with asyncio.timeout(_MEASURE_TIMEOUT):
                    self._metrics.measured = await self.measure()  # type: ignore[assignment]
            except (KisekiError, TimeoutError) as problem:
                self._metrics.measured = ()
                _log.warning("projections can't be measured now: %s", problem)


def doors_of(transport: Transport, listeners: Mapping[str, socket.socket], metrics: Metrics, auditor: Auditor) -> Doors:
    settings = transport.settings
    return Doors(
        {
            api: Door(
                api,
                listener,
                limits=http_limits(settings),
                connections=connection_limits(settings),
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


async def open_apis(components: Components, transport: Transport, doors: Doors, metrics: Metrics) -> None:
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
        limits=http_limits(settings),
        ids=UlidSource(),
        telemetry=metrics,
        hosts=transport.hosts,
        cors=transport.cors,
        hsts=transport.hsts,
        auditor=components.auditor,
        peers=transport.peers,
        client=transport.addresses.resolve,
    )


def http_limits(settings: Settings) -> HttpLimits:
    return HttpLimits(
        body=settings.body_limit,
        uri=settings.uri_limit,
        headers=settings.header_limit,
        read_timeout=settings.read_timeout,
        request_timeout=settings.request_timeout,
    )


def connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        head_bytes=settings.uri_limit + settings.header_limit + _HEAD_SLACK,
        uri_bytes=settings.uri_limit + _URI_SLACK,
        write_timeout=settings.write_timeout,
        read_timeout=settings.read_timeout,
        idle=settings.keep_alive,
    )
