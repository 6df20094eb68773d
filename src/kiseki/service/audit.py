"""The audit log, as the settings say it: its key, its sinks, and where its heads are anchored.

Used by the composition root and the command line. The libraries of a database are imported where one is named.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from kiseki.kernel.ports import AuditEvent, Clock
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.places import AuditPlaces, open_places
from kiseki.security.audit.sink import AnchorStore, AuditSink
from kiseki.security.audit.stdout_sink import StdoutSink
from kiseki.security.masking import Masker
from kiseki.service.settings import Settings, SettingsError

__all__ = ["SINKS", "audit_directory", "audit_places", "migrate_audit", "open_audit", "started_with"]

SINKS: Final = ("file", "stdout", "database")
_SCHEMA: Final = "kiseki_audit"
_ANCHOR_SCHEMA: Final = "kiseki_anchors"


def audit_directory(settings: Settings) -> Path:
    """Where the files of the log are."""
    return settings.audit_dir or settings.data_dir / "audit"


async def open_audit(settings: Settings, *, clock: Clock, masker: Masker) -> AuditLog:
    """The log of this process, which has begun. Raises SettingsError, AuditKeyRefused, AuditUnavailable."""
    writer = new_writer()
    keys = await asyncio.to_thread(_keys, settings)
    sinks: list[AuditSink] = []
    for name in dict.fromkeys(settings.audit_sinks):
        if name == "file":
            sinks.append(await FileSink.open(audit_directory(settings), writer=writer))
        elif name == "stdout":
            sinks.append(StdoutSink())
        elif name == "database":
            from kiseki.security.audit.postgres_lines import PostgresSink

            sinks.append(await PostgresSink.open(_database(settings), writer=writer))
        else:
            raise SettingsError(f"audit_sinks: {name!r} is none; they are {', '.join(SINKS)}")
    if not sinks:
        raise SettingsError(f"audit_sinks is empty; name at least one of {', '.join(SINKS)}")
    return await AuditLog.open(
        keys=keys,
        writer=writer,
        sinks=sinks,
        clock=clock,
        masker=masker,
        anchors=_anchors(settings),
        settings=AuditLogSettings(failure=settings.audit_failure),
    )


def audit_places(settings: Settings) -> AbstractAsyncContextManager[AuditPlaces]:
    """What reads the log that these settings name. Raises SettingsError, AuditKeyRefused, AuditLogNotKept."""
    places: dict[str, Any] = {}
    if "file" in settings.audit_sinks:
        places["directory"] = audit_directory(settings)
    elif "database" in settings.audit_sinks:
        places["database"] = _database(settings)
    if _is_database(settings.audit_anchors):
        places["anchor_database"] = _anchor_database(settings)
    elif settings.audit_anchors:
        places["anchor_directory"] = Path(settings.audit_anchors)
    return open_places(keys=_keys(settings), **places)


async def migrate_audit(settings: Settings) -> Sequence[str]:
    """Makes the tables of the log, when it is in a database; what was done, line by line. Raises Unavailable."""
    done: list[str] = []
    if "database" in settings.audit_sinks:
        from kiseki.security.audit.postgres_lines import migrate_records

        done += await migrate_records(_database(settings))
    if _is_database(settings.audit_anchors):
        from kiseki.security.audit.postgres_lines import migrate_anchors

        done += await migrate_anchors(_anchor_database(settings))
    return done


def _keys(settings: Settings) -> AuditKeys:
    if settings.audit_key:
        return AuditKeys(AuditKey(settings.audit_key.encode()))
    directory = settings.data_dir / "keys"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return AuditKeys(AuditKey.load_or_create(directory / "audit.key"))


def _anchors(settings: Settings) -> AnchorStore | None:
    if not settings.audit_anchors:
        return None
    if _is_database(settings.audit_anchors):
        from kiseki.security.audit.postgres_lines import PostgresAnchors

        return PostgresAnchors.open(_anchor_database(settings))
    return FileAnchors(Path(settings.audit_anchors))


def _is_database(where: str) -> bool:
    return where.startswith(("postgresql://", "postgres://"))


def _database(settings: Settings) -> Any:
    from kiseki.clients.postgres import PostgresAddress

    if not settings.audit_database:
        raise SettingsError("audit_database is not set, but audit_sinks names a database; give postgresql://…")
    return PostgresAddress.parse(settings.audit_database, schema=_SCHEMA)


def _anchor_database(settings: Settings) -> Any:
    from kiseki.clients.postgres import PostgresAddress

    return PostgresAddress.parse(settings.audit_anchors, schema=_ANCHOR_SCHEMA)


def started_with(settings: Settings) -> AuditEvent:
    """The record of what a process was told: its profile, and a digest of its settings, secrets left out."""
    shown = {name: str(getattr(settings, name)) for name, field in Settings.model_fields.items() if field.repr}
    digest = hashlib.sha256(msgspec.json.encode(shown, order="sorted")).hexdigest()[:16]
    return AuditEvent(kind="settings.loaded", outcome="done", target=settings.profile, detail=f"settings {digest}")
