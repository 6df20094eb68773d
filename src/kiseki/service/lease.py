"""The lease of the writing site, as the settings name it. Used by `stores`, and by `kiseki dr`.

The library of a database is imported where one is named.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import parse_qs, urlsplit

from kiseki.clients.urls import StoreUrlInvalid
from kiseki.journal.lease.folder import FolderLeaseStore
from kiseki.journal.lease.holder import WriterLease
from kiseki.journal.lease.port import FencedJournal, LeaseStore, elapsed_clock
from kiseki.journal.port import START, Journal
from kiseki.kernel.ports import Clock
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings, SettingsError

__all__ = [
    "lease_problem",
    "migrate_lease",
    "once_permitted",
    "open_lease_store",
    "region_of",
    "until_permitted",
    "writer_lease",
]

_SCHEMA: Final = "kiseki_lease"
_FORMS: Final = "a folder, postgresql://user@host/database or dynamodb://prefix?region=eu-west-1"
_PATIENCE: Final = 0.5
_CALLS: Final = 1 / 12
"""Of the lease, for one call to its store: several have to fit into the time in which it is renewed."""


async def open_lease_store(settings: Settings, secrets: SecretSource) -> LeaseStore:
    """Where the lease is kept; nothing is asked yet. Raises SettingsError."""
    where, timeout = settings.lease, min(5.0, settings.lease_seconds * _CALLS)
    scheme, separator, _ = where.partition("://")
    try:
        if not separator:
            return FolderLeaseStore(Path(where.removeprefix("file:")))
        if scheme in ("postgresql", "postgres"):
            from kiseki.clients.postgres import PostgresAddress
            from kiseki.journal.lease.postgres import PostgresLeaseStore

            passwords = partial(SecretPassword, secrets)
            return await PostgresLeaseStore.open(
                PostgresAddress.parse(where, schema=_SCHEMA, passwords=passwords), timeout=timeout
            )
        if scheme == "dynamodb":
            from kiseki.clients.dynamodb import DynamoDbAddress
            from kiseki.journal.lease.dynamodb import DynamoDbLeaseStore

            return await DynamoDbLeaseStore.open(DynamoDbAddress.parse(where), timeout=timeout)
    except StoreUrlInvalid as problem:
        raise SettingsError(f"lease: {problem}") from problem
    raise SettingsError(f"lease names no place that is known; set it to {_FORMS}")


async def migrate_lease(settings: Settings, secrets: SecretSource) -> Sequence[str]:
    """Makes its table, when it is in a database; what was done, line by line.

    Raises LeaseUnavailable, SettingsError.
    """
    where = settings.lease
    try:
        if where.startswith(("postgresql://", "postgres://")):
            from kiseki.clients.postgres import PostgresAddress
            from kiseki.journal.lease.postgres import PostgresLeaseStore

            passwords = partial(SecretPassword, secrets)
            return await PostgresLeaseStore.migrate(PostgresAddress.parse(where, schema=_SCHEMA, passwords=passwords))
        if where.startswith("dynamodb://"):
            from kiseki.clients.dynamodb import DynamoDbAddress
            from kiseki.journal.lease.dynamodb import DynamoDbLeaseStore

            return await DynamoDbLeaseStore.migrate(DynamoDbAddress.parse(where))
    except StoreUrlInvalid as problem:
        raise SettingsError(f"lease: {problem}") from problem
    return ()


async def writer_lease(
    settings: Settings, journal: Journal, *, secrets: SecretSource, clock: Clock, make: bool
) -> WriterLease:
    """The permission of this process, not asked for yet. With `make` the first process of the primary begins the lease
    of a journal that is empty. That of any other was lost or is new, and a person has to say so (`kiseki dr begin`).

    Raises SettingsError.
    """
    problem = lease_problem(settings)
    if problem is not None:
        raise SettingsError(problem)

    async def is_new() -> bool:
        return not (await journal.feed(START, limit=1)).commits

    return WriterLease(
        await open_lease_store(settings, secrets),
        site=settings.site,
        writer=f"{socket.gethostname()[:60]}-{os.getpid()}-{token_hex(4)}",
        seconds=settings.lease_seconds,
        clock=elapsed_clock,
        now=clock.now,
        journal=journal if isinstance(journal, FencedJournal) else None,
        may_begin=is_new if make and settings.site == settings.primary_region else None,
    )


async def until_permitted(
    lease: WriterLease,
    *,
    running: Sequence[asyncio.Task[None]],
    asked_to_end: Callable[[], Awaitable[None]],
    waits: Callable[[str], Awaitable[None]],
) -> bool:
    """Returns when this process may write; False when it is told to end first, or one of its tasks ends.

    `waits` is told why it waits.
    """
    asked = asyncio.ensure_future(asked_to_end())
    granted = asyncio.ensure_future(lease.granted())
    try:
        await asyncio.wait([granted, asked, *running], timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        while not granted.done():
            if asked.done() or any(task.done() for task in running):
                return False
            await waits(lease.refusal)
            await asyncio.wait([granted, asked, *running], timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        return True
    finally:
        asked.cancel()
        granted.cancel()


async def once_permitted(lease: WriterLease, run: Callable[[], Coroutine[None, None, None]]) -> None:
    """Runs what writes to stores that both sites share, from when this site may write."""
    await lease.granted()
    await run()


def lease_problem(settings: Settings) -> str | None:
    """What keeps these settings from having a lease, if anything does."""
    sites = (settings.primary_region, settings.secondary_region)
    if not all(sites) or sites[0] == sites[1]:
        return "lease is set, but primary_region and secondary_region are not two names; set both"
    if settings.site not in sites:
        return f"site has to be {sites[0]} or {sites[1]}, as primary_region and secondary_region are"
    return None


def region_of(url: str) -> str:
    """The region that a URL of DynamoDB names; none of others."""
    return parse_qs(urlsplit(url).query).get("region", [""])[0] if url.startswith("dynamodb://") else ""
