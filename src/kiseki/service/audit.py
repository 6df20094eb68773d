"""The audit log, as the settings say it: its key, its sinks, and where its heads are anchored.

Used by the composition root and the command line. The libraries of a database are imported where one is named.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from kiseki.kernel.ports import AuditEvent, Auditor, AuditUnavailable, Clock
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.places import AuditPlaces, open_places
from kiseki.security.audit.sink import AnchorStore, AuditSink
from kiseki.security.audit.stdout_sink import StdoutSink
from kiseki.security.masking import Masker
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings, SettingsError

__all__ = [
    "SINKS",
    "LaterAudit",
    "audit_database",
    "audit_directory",
    "audit_keys",
    "audit_places",
    "migrate_audit",
    "open_audit",
    "started_with",
]

SINKS: Final = ("file", "stdout", "database")
_KEPT: Final = 1_000
_SCHEMA: Final = "kiseki_audit"
_ANCHOR_SCHEMA: Final = "kiseki_anchors"


class LaterAudit:
    """An Auditor for what starts before the audit log: it keeps what is noted until there is one."""

    def __init__(self) -> None:
        self._kept: deque[AuditEvent] = deque(maxlen=_KEPT)
        self._auditor: Auditor | None = None

    def begin(self, auditor: Auditor) -> None:
        """From now on this one is told; first what was kept."""
        self._auditor = auditor
        while self._kept:
            auditor.note(self._kept.popleft())

    def note(self, event: AuditEvent) -> None:
        """As Auditor."""
        if self._auditor is None:
            self._kept.append(event)
        else:
            self._auditor.note(event)

    async def record(self, event: AuditEvent) -> None:
        """As Auditor."""
        if self._auditor is None:
            raise AuditUnavailable("security events can't be recorded yet")
        await self._auditor.record(event)


def audit_directory(settings: Settings) -> Path:
    """Where the files of the log are."""
    return settings.audit_dir or settings.data_dir / "audit"


async def open_audit(settings: Settings, *, secrets: SecretSource, clock: Clock, masker: Masker) -> AuditLog:
    """The log of this process, which has begun.

    Raises SettingsError, AuditKeyRefused, SecretUnavailable, AuditUnavailable.
    """
    writer = new_writer()
    keys = await audit_keys(settings, secrets)
    sinks: list[AuditSink] = []
    for name in dict.fromkeys(settings.audit_sinks):
        if name == "file":
            sinks.append(await FileSink.open(audit_directory(settings), writer=writer))
        elif name == "stdout":
            sinks.append(StdoutSink())
        elif name == "database":
            from kiseki.security.audit.postgres_lines import PostgresSink

            sinks.append(await PostgresSink.open(audit_database(settings, secrets), writer=writer))
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
        anchors=_anchors(settings, secrets),
        settings=AuditLogSettings(failure=settings.audit_failure),
    )


def audit_places(
    settings: Settings, keys: AuditKeys, secrets: SecretSource
) -> AbstractAsyncContextManager[AuditPlaces]:
    """What reads the log that these settings name. Raises SettingsError, AuditKeyRefused, AuditLogNotKept."""
    places: dict[str, Any] = {}
    if "file" in settings.audit_sinks:
        places["directory"] = audit_directory(settings)
    elif "database" in settings.audit_sinks:
        places["database"] = audit_database(settings, secrets)
    if _is_database(settings.audit_anchors):
        places["anchor_database"] = _anchor_database(settings, secrets)
    elif settings.audit_anchors:
        places["anchor_directory"] = Path(settings.audit_anchors.removeprefix("file:"))
    return open_places(keys=keys, **places)


async def migrate_audit(settings: Settings, secrets: SecretSource) -> Sequence[str]:
    """Makes the tables of the log, when it is in a database; what was done, line by line. Raises Unavailable."""
    done: list[str] = []
    if "database" in settings.audit_sinks:
        from kiseki.security.audit.postgres_lines import migrate_records

        done += await migrate_records(audit_database(settings, secrets))
    if _is_database(settings.audit_anchors):
        from kiseki.security.audit.postgres_lines import migrate_anchors

        done += await migrate_anchors(_anchor_database(settings, secrets))
    return done


async def audit_keys(settings: Settings, secrets: SecretSource) -> AuditKeys:
    """What the log is verified with. Raises AuditKeyRefused, SecretUnavailable."""

    async def key(setting: str) -> AuditKey:
        return AuditKey((await secrets.get(setting)).reveal().encode())

    own = settings.data_dir / "keys"
    current = await (key(settings.audit_key) if settings.audit_key else asyncio.to_thread(_own_key, own))
    return AuditKeys(current, [await key(setting) for setting in settings.audit_keys_previous])


def _own_key(directory: Path) -> AuditKey:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return AuditKey.load_or_create(directory / "audit.key")


def _anchors(settings: Settings, secrets: SecretSource) -> AnchorStore | None:
    if not settings.audit_anchors:
        return None
    if _is_database(settings.audit_anchors):
        from kiseki.security.audit.postgres_lines import PostgresAnchors

        return PostgresAnchors.open(_anchor_database(settings, secrets))
    return FileAnchors(Path(settings.audit_anchors.removeprefix("file:")))


def _is_database(where: str) -> bool:
    return where.startswith(("postgresql://", "postgres://"))


def audit_database(settings: Settings, secrets: SecretSource) -> Any:
    """The address of the table of the log. Raises SettingsError."""
    from kiseki.clients.postgres import PostgresAddress

    if not settings.audit_database:
        raise SettingsError("audit_database is not set, but audit_sinks names a database; give postgresql://…")
    return PostgresAddress.parse(settings.audit_database, schema=_SCHEMA, passwords=partial(SecretPassword, secrets))


def _anchor_database(settings: Settings, secrets: SecretSource) -> Any:
    from kiseki.clients.postgres import PostgresAddress

    return PostgresAddress.parse(
        settings.audit_anchors, schema=_ANCHOR_SCHEMA, passwords=partial(SecretPassword, secrets)
    )


def started_with(settings: Settings) -> AuditEvent:
    """The record of what a process was told: its profile, and a digest of its settings, secrets left out."""
    shown = {name: str(getattr(settings, name)) for name, field in Settings.model_fields.items() if field.repr}
    digest = hashlib.sha256(msgspec.json.encode(shown, order="sorted")).hexdigest()[:16]
    return AuditEvent(kind="settings.loaded", outcome="done", target=settings.profile, detail=f"settings {digest}")
