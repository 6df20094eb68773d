"""What a process does before it serves: it reaches its stores, brings erasures into force, and says what it waits for.

Used by `kiseki.service.process`, which ends a start at any moment when the process is told to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from kiseki.application.system import SystemClock
from kiseki.kernel.ports import AuditUnavailable
from kiseki.projection.backoff import Backoff
from kiseki.security.audit.log import AuditLog
from kiseki.security.masking import Masker
from kiseki.security.secrets.reading import SecretUnavailable
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import open_audit, started_with
from kiseki.service.composition import Components
from kiseki.service.doors import Doors
from kiseki.service.erasures import until_in_force
from kiseki.service.health import Health
from kiseki.service.lease import until_permitted
from kiseki.service.lifecycle import CoordinatedShutdown, Phase
from kiseki.service.metrics import Metrics
from kiseki.service.settings import Settings
from kiseki.service.stores import StoreNotReachable, Stores

__all__ = ["erasures_in_force", "open_stores", "unless_asked_to_end"]

_log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.2
_LONGEST_RETRY: Final = 5.0
"""Seconds between two tries to reach stores at the start."""


_LET_GO: Final = 2.0
"""Seconds for a start that is given up to close what it was opening."""

_Started = TypeVar("_Started")


async def unless_asked_to_end(
    start: Coroutine[Any, Any, _Started | None], shutdown: CoordinatedShutdown
) -> _Started | None:
    """What a start gives; None when the process is told to end before that, wherever the start is then.

    Raises what the start raises.
    """
    starting = asyncio.create_task(start, name="start")
    asked = asyncio.create_task(shutdown.wait_requested(), name="shutdown requested")
    try:
        await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            return await starting
        starting.cancel()
        await asyncio.wait([starting], timeout=_LET_GO)
        if not starting.done():
            _log.error("the start does not let go after %g s and is no longer waited for", _LET_GO)
        elif not starting.cancelled() and (problem := starting.exception()) is not None:
            _log.debug("the start was given up, and failed: %s", problem)
        return None
    finally:
        starting.cancel()
        asked.cancel()


async def open_stores(
    settings: Settings,
    secrets: SecretSource,
    doors: Doors,
    masker: Masker,
    *,
    metrics: Metrics,
    health: Health,
    shutdown: CoordinatedShutdown,
) -> tuple[Stores, AuditLog]:
    """Stores and audit log, once they can all be reached.

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
            try:
                await audit.record(started_with(settings))
            except BaseException:
                await stores.close()
                raise
            return stores, audit
        await asyncio.sleep(backoff.failed())


async def erasures_in_force(
    components: Components, doors: Doors, *, health: Health, shutdown: CoordinatedShutdown
) -> bool:
    """Before anything is served; False when the process is told to end, or a task ends, before that."""

    async def waits(cause: str) -> None:
        if health.waiting != cause:
            _log.warning("waits: %s", cause)
        health.waiting = cause
        await doors.open()

    if components.lease is not None and not await until_permitted(
        components.lease, running=components.running, asked_to_end=shutdown.wait_requested, waits=waits
    ):
        return False
    in_force = await until_in_force(
        components.erasures, running=components.running, asked_to_end=shutdown.wait_requested, waits=waits
    )
    health.waiting = None
    return in_force
