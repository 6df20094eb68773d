"""What the Lambda handler is made of, from its environment: application, settings, stores. Its composition root."""

from __future__ import annotations

import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from kiseki.application.context import Application
from kiseki.application.system import SystemClock
from kiseki.clients.dynamodb_address import DynamoDbAddress
from kiseki.clients.dynamodb_generations import resolved
from kiseki.journal.dynamodb.items import commit_of
from kiseki.journal.port import Commit
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.master_keys import is_local
from kiseki.service.erasures import ledger_directory
from kiseki.service.lambda_updater import PushedUpdater
from kiseki.service.settings import ENVIRONMENT_PREFIX, Settings, SettingsError
from kiseki.service.settings_sources import load_settings
from kiseki.service.store_urls import StoreKind, store_urls
from kiseki.service.stores import Stores

__all__ = ["LambdaParts", "ParkedCounter", "Source", "Warm", "load_lambda_application", "open_stores", "prepare"]

_APP: Final = f"{ENVIRONMENT_PREFIX}APP"
_SHIPPED: Final = "kiseki.users:app"


class ParkedCounter(NoTelemetry):
    """Counts the streams that were parked."""

    def __init__(self) -> None:
        self.parked_streams = 0

    def parked(self, projection: str, code: str) -> None:
        """As Telemetry."""
        self.parked_streams += 1


class Source(NamedTuple):
    """The stream that records have to come from, and how its items are read."""

    table: str
    region: str | None
    commit_of: Callable[[Mapping[str, Any]], Commit]


class Warm(NamedTuple):
    """What is open between invocations."""

    updater: PushedUpdater
    close: Callable[[], Awaitable[None]]


class LambdaParts(NamedTuple):
    """What does not change while the process lives."""

    settings: Settings
    source: Source
    telemetry: ParkedCounter
    open: Callable[[], Awaitable[Warm]]
    """Opens the stores. Raises Unavailable, SettingsError."""
    in_force: Callable[[], Awaitable[Source]] | None = None
    """Asks whose records count now: a restore may have put another table in force. None where none can. Raises
    Unavailable."""


def prepare(environ: Mapping[str, str], directory: Path) -> LambdaParts:
    """From the environment, and `kiseki.toml` in the directory that the package was unpacked to if there is one.

    Raises SettingsError.
    """
    given = dict(environ)
    reference = given.pop(_APP, "") or _SHIPPED
    settings = load_settings(options={}, environ=given, directory=directory)
    source = _source(settings)
    _require_master_key(settings)
    _require_ledger(settings)
    application = load_lambda_application(reference)
    telemetry = ParkedCounter()

    async def opened() -> Warm:
        return await open_stores(application, settings, telemetry)

    async def in_force() -> Source:
        address = await resolved(DynamoDbAddress.parse(store_urls(settings).journal.text), "journal")
        return source._replace(table=address.table("journal"))

    return LambdaParts(settings, source, telemetry, opened, in_force)


async def open_stores(application: Application, settings: Settings, telemetry: ParkedCounter) -> Warm:
    """Opens the stores, and makes none: this is for the updater and `kiseki migrate`. Raises Unavailable."""
    clock = SystemClock()
    stores = await Stores.open(settings, clock=clock, telemetry=telemetry, make=False)
    updater = PushedUpdater(
        projections=application.projections,
        deciders=application.deciders,
        journal=stores.journal,
        builds=stores.read_models.builds,
        codec=EventCodec(application.schema, stores.protector, telemetry),
        protector=stores.protector,
        telemetry=telemetry,
        clock=clock,
    )

    async def close() -> None:
        try:
            await updater.close()
        finally:
            await stores.close()

    return Warm(updater, close)


def _source(settings: Settings) -> Source:
    url = store_urls(settings).journal
    if url.kind is not StoreKind.DYNAMODB:
        raise SettingsError(
            f"this function gets records of DynamoDB Streams, but the journal is on {url.kind}; set "
            f"{ENVIRONMENT_PREFIX}JOURNAL to dynamodb://prefix?region=…"
        )
    address = DynamoDbAddress.parse(url.text)
    return Source(address.table("journal"), address.region, commit_of)


def _require_master_key(settings: Settings) -> None:
    """Every environment would else make a key of its own, and the first one the key of a new key store."""
    if not settings.master_key or (is_local(settings.master_key) and not Path(settings.master_key).is_file()):
        raise SettingsError(
            f"{ENVIRONMENT_PREFIX}MASTER_KEY has to name a file of the function that holds the master key, the same as "
            "that of the service's other processes"
        )


def _require_ledger(settings: Settings) -> None:
    """What a function keeps in its own files is gone with it."""
    if ledger_directory(settings.erasure_ledger, settings.data_dir) is not None:
        raise SettingsError(
            f"{ENVIRONMENT_PREFIX}ERASURE_LEDGER has to name a database (postgresql://… or dynamodb://…), the same as "
            "that of the service's other processes"
        )


def load_lambda_application(reference: str) -> Application:
    """The application of a reference `package.module:attribute`. Raises SettingsError."""
    try:
        found = pkgutil.resolve_name(reference)
    except (ValueError, ImportError, AttributeError) as problem:
        raise SettingsError(
            f"{_APP}={reference} can't be loaded: {problem}; it must be package.module:attribute, such as "
            "shop.main:app, and be in the function's package"
        ) from problem
    if not isinstance(found, Application):
        raise SettingsError(f"{_APP}={reference} is a {type(found).__name__}; it must be a kiseki Application")
    return found
