"""The management port: `/startup`, `/ready`, `/alive` and `/metrics`. Used by every kind of process.

It is for the platform, not for the public: it asks for no identity, tells nothing personal, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from kiseki.graphql.answers import JSON, Answer
from kiseki.kernel.ports import IdSource
from kiseki.service.health import Health
from kiseki.service.metrics import CONTENT_TYPE
from kiseki.service.serving import Serving
from kiseki.service.shell import Exchange, HttpLimits, HttpTelemetry, Route, Shell

__all__ = ["management_app"]

_HEADERS: Final = ((b"content-type", JSON),)


def management_app(
    *,
    health: Health,
    metrics: Callable[[], Awaitable[bytes]],
    serving: Serving,
    limits: HttpLimits,
    ids: IdSource,
    telemetry: HttpTelemetry,
) -> Shell:
    """The ASGI app of the management port. `metrics` gives Prometheus text."""
    pages = _Pages(health, metrics)
    routes = {
        "/startup": Route({"GET": pages.startup}),
        "/ready": Route({"GET": pages.ready}),
        "/alive": Route({"GET": pages.alive}),
        "/metrics": Route({"GET": pages.metrics}),
    }
    return Shell(
        "management",
        routes=routes,
        serving=serving,
        limits=limits,
        ids=ids,
        telemetry=telemetry,
        any_host=True,
        probes=frozenset(routes),
    )


class _Pages:
    def __init__(self, health: Health, metrics: Callable[[], Awaitable[bytes]]) -> None:
        self._health = health
        self._metrics = metrics

    async def startup(self, _exchange: Exchange) -> Answer:
        if self._health.started:
            return _json(200, {"status": "started"})
        cause = self._health.waiting
        return _json(503, {"status": "starting"} if cause is None else {"status": "waiting", "cause": cause})

    async def ready(self, exchange: Exchange) -> Answer:
        readiness = self._health.readiness(local=exchange.query == b"scope=local")
        return _json(200 if readiness.ready else 503, readiness)

    async def alive(self, _exchange: Exchange) -> Answer:
        cause = self._health.stuck()
        return _json(200, {"status": "alive"}) if cause is None else _json(503, {"status": "stuck", "cause": cause})

    async def metrics(self, _exchange: Exchange) -> Answer:
        return Answer(200, ((b"content-type", CONTENT_TYPE),), await self._metrics())


def _json(status: int, body: object) -> Answer:
    return Answer(status, _HEADERS, msgspec.json.encode(body))
