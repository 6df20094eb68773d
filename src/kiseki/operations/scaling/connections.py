"""Which PostgreSQL connections a process opens at most, by the name that each has in `pg_stat_activity`.

The numbers are those of the pools; a test runs the processes against a real PostgreSQL and compares. Used by `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

from kiseki.clients.urls import StoreUrlInvalid
from kiseki.service.kinds import PARTS, Parts
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, store_urls

__all__ = ["KINDS", "Kind", "Opened", "connections_of", "servers_of"]

Kind = Literal["serve", "command-api", "query-api", "updater", "lambda", "migrate"]
KINDS: Final[tuple[Kind, ...]] = ("serve", "command-api", "query-api", "updater", "lambda", "migrate")

_HINTS: Final = 1
_REVOCATIONS: Final = 1
_LEDGER: Final = 2
_AUDIT: Final = 2
_ANCHORS: Final = 2
_LEASE: Final = 2
_BUILDS: Final = 4
"""An API only looks at builds, but looks at several at a time when it is busy."""
_OWNER: Final = 1
_BUILDS_AT_ONCE: Final = 2
"""Of each projection: the live one, and the one that is to replace it. Each is vacuumed on a connection of its own."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Connections of one use to one server."""

    server: str
    """Host and port, as the URL names them."""
    application: str
    """The `application_name` of the sessions."""
    setting: str
    """The setting that makes it fewer; empty where none does."""
    at_most: int
    """Open at a time, in one process."""


def connections_of(settings: Settings, kind: Kind, *, projections: int) -> tuple[Opened, ...]:
    """What one process, or one environment of a Lambda, opens at most; with `workers`, all processes of a task.

    `projections`: those of the application. Raises SettingsError, StoreUrlInvalid.
    """
    if kind == "lambda":
        return tuple(_function(settings, projections))
    if kind == "migrate":
        return tuple(_migration(settings))
    parts = PARTS[kind]
    if settings.workers == 1 or not parts.apis:
        return tuple(_process(settings, parts, projections))
    alone = tuple(_process(settings, parts.without_updater, projections))
    opened = [msgspec.structs.replace(one, at_most=one.at_most * settings.workers) for one in alone]
    if parts.updater:
        opened += _process(settings, Parts(updater=True), projections)
    return tuple(opened)


def servers_of(settings: Settings) -> Mapping[str, str]:
    """A URL for each PostgreSQL server that the settings name: one through which it can be asked.

    Raises SettingsError, StoreUrlInvalid.
    """
    urls = store_urls(settings)
    named = [one.text for one in (urls.journal, urls.keys, urls.read_model) if one.kind is StoreKind.POSTGRESQL]
    others = (settings.erasure_ledger, settings.audit_database, settings.audit_anchors, settings.lease)
    return {_server(url): url for url in reversed([*named, *filter(_is_postgres, others)])}


def _process(settings: Settings, parts: Parts, projections: int) -> Iterator[Opened]:
    urls = store_urls(settings)
    if urls.journal.kind is StoreKind.POSTGRESQL:
        yield _opened(urls.journal.text, "kiseki journal writer", settings.journal_writers, "journal_writers")
        yield _opened(urls.journal.text, "kiseki journal reader", settings.journal_readers, "journal_readers")
        yield _opened(urls.journal.text, "kiseki journal hints", _HINTS)
    if urls.keys.kind is StoreKind.POSTGRESQL:
        yield _opened(urls.keys.text, "kiseki-keys", settings.key_connections, "key_connections")
        if parts.apis:
            yield _opened(urls.keys.text, "kiseki-revocations", _REVOCATIONS)
    if urls.read_model.kind is StoreKind.POSTGRESQL:
        if parts.query:
            yield _opened(
                urls.read_model.text, "kiseki queries", settings.read_model_connections, "read_model_connections"
            )
        # An API asks the catalog one thing after the other; an updater writes builds, owns them and vacuums them.
        builds = _BUILDS + (_OWNER + _BUILDS_AT_ONCE * projections if parts.updater else 0)
        yield _opened(urls.read_model.text, "kiseki projections", builds)
    if _is_postgres(settings.erasure_ledger):
        yield _opened(settings.erasure_ledger, "kiseki-erasures", _LEDGER)
    if "database" in settings.audit_sinks and _is_postgres(settings.audit_database):
        yield _opened(settings.audit_database, "kiseki-audit", _AUDIT)
    if _is_postgres(settings.audit_anchors):
        yield _opened(settings.audit_anchors, "kiseki-audit", _ANCHORS)
    if _is_postgres(settings.lease):
        yield _opened(settings.lease, "kiseki lease", _LEASE)


def _function(settings: Settings, projections: int) -> Iterator[Opened]:
    """An environment handles one batch at a time; it owns no build, and its journal is on DynamoDB."""
    urls = store_urls(settings)
    if urls.keys.kind is StoreKind.POSTGRESQL:
        yield _opened(urls.keys.text, "kiseki-keys", settings.key_connections, "key_connections")
    if urls.read_model.kind is StoreKind.POSTGRESQL:
        builds = _BUILDS + _BUILDS_AT_ONCE * projections
        yield _opened(urls.read_model.text, "kiseki projections", builds)
    if _is_postgres(settings.erasure_ledger):
        yield _opened(settings.erasure_ledger, "kiseki-erasures", _LEDGER)


def _migration(settings: Settings) -> Iterator[Opened]:
    """One connection that migrates; then every store is opened once, and asked one thing after the other."""
    for server in servers_of(settings):
        yield Opened(server=server, application="kiseki migrate", setting="", at_most=1)
    for one in _process(settings, Parts(), projections=0):
        yield msgspec.structs.replace(one, at_most=1, setting="")


def _opened(url: str, application: str, at_most: int, setting: str = "") -> Opened:
    return Opened(server=_server(url), application=application, setting=setting, at_most=at_most)


def _server(url: str) -> str:
    """Host and port; of several hosts all. The library of PostgreSQL is not needed for it, and no password is read."""
    try:
        parts = urlsplit(url)
        parameters = parse_qs(parts.query)
    except ValueError as problem:
        raise StoreUrlInvalid("the URL of a PostgreSQL database can't be read") from problem
    port = parameters.get("port", ["5432"])[0]
    hosts = (parts.netloc.rpartition("@")[2] or parameters.get("host", [""])[0]).split(",")
    if not all(hosts):
        raise StoreUrlInvalid("the URL of a PostgreSQL database names no host")
    return ",".join(host if host.rpartition("]")[2].count(":") else f"{host}:{port}" for host in hosts)


def _is_postgres(where: str) -> bool:
    return where.startswith(("postgresql://", "postgres://"))
