"""How often may be asked, as the settings say it: in memory, or shared by several processes in Redis.

Used by the composition root. The library of Redis is imported where the settings name one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.kernel.ports import Auditor, Clock
from kiseki.security.addresses import ClientAddresses, parse_networks
from kiseki.security.limits.facade import RateLimits
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.shared import SharedLimiter
from kiseki.security.limits.shared_store import SharedWindows
from kiseki.security.limits.verdict import LimitPolicy
from kiseki.security.secrets.findings import connection_findings
from kiseki.security.secrets.secret import Secret
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from kiseki.security.limits.redis_address import RedisAddress
    from kiseki.security.limits.redis_windows import RedisWindows

__all__ = ["IN_MEMORY", "client_addresses", "rate_limits"]

IN_MEMORY: Final = "memory"
"""The value of `rate_store` that says: in memory, on purpose, because there is one process alone."""
_log = logging.getLogger(__name__)
_EXTRA: Final = "rate_store needs kiseki[redis]; install it"


def client_addresses(settings: Settings) -> ClientAddresses:
    """Which proxies may say whose request it is. Raises SettingsError."""
    try:
        return ClientAddresses(parse_networks(settings.trusted_proxies))
    except DefinitionError as problem:
        raise SettingsError(f"trusted_proxies: {problem}") from problem


async def rate_limits(
    settings: Settings,
    *,
    secrets: SecretSource,
    clock: Clock,
    auditor: Auditor,
    digest: Callable[[str, str], str],
) -> RateLimits:
    """The limits of a process, both APIs together. Connects to no Redis yet.

    Raises SettingsError, StoreUrlInvalid, SecretUnavailable.
    """
    address = LimitPolicy("address", settings.rate_limit_address)
    subject = LimitPolicy("subject", settings.rate_limit)
    if settings.rate_store in ("", IN_MEMORY):
        return RateLimits(
            by_address=MemoryLimiter(address, clock=clock),
            by_subject=MemoryLimiter(subject, clock=clock),
            auditor=auditor,
        )
    try:
        from kiseki.security.limits.redis_windows import RedisWindows
    except ImportError as problem:
        raise SettingsError(_EXTRA) from problem

    async def renewed() -> RedisAddress:
        return _address(settings, await secrets.renew(settings.rate_store))

    windows = RedisWindows(_address(settings, await secrets.get(settings.rate_store)), digest=digest, renew=renewed)
    secrets.on_change(settings.rate_store, lambda secret: _use(windows, settings, secret))
    shared = SharedWindows(windows, clock=clock, auditor=auditor)
    processes = settings.workers if settings.workers > 1 else None
    return RateLimits(
        by_address=SharedLimiter(address, shared=shared, clock=clock, processes=processes),
        by_subject=SharedLimiter(subject, shared=shared, clock=clock, processes=processes),
        auditor=auditor,
        shared=shared,
    )


def _address(settings: Settings, secret: Secret) -> RedisAddress:
    from kiseki.security.limits.redis_address import RedisAddress

    url = secret.reveal()
    # A secret may hold the password: a URL that holds one as it is was found before.
    weak = [one for one in connection_findings(url) if one.name != "redis.password"]
    if weak and not settings.development:
        raise SettingsError(f"rate_store: {weak[0].problem}; {weak[0].remedy}")
    ca_file = None if settings.rate_store_ca is None else str(settings.rate_store_ca)
    return RedisAddress(url, ca_file=ca_file)


def _use(windows: RedisWindows, settings: Settings, secret: Secret) -> None:
    """Takes up an address that was rotated, or stays with the one before when it would not have been taken at start."""
    try:
        windows.use(_address(settings, secret))
    except KisekiError as problem:
        _log.error("the new secret of rate_store is not used, the one before stays: %s", problem)
