"""`audit_target`: where the records of a backup are put back, by the settings. Used by `Backups`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from kiseki.operations.backup.audit import PutBack, put_back_files
from kiseki.operations.errors import RestoreRefused
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import audit_database, audit_directory
from kiseki.service.settings import Settings

__all__ = ["audit_target"]


@asynccontextmanager
async def audit_target(settings: Settings, secrets: SecretSource) -> AsyncIterator[PutBack]:
    """Adds records to the log that `kiseki audit verify` reads: files before a table. Raises RestoreRefused."""
    if "file" in settings.audit_sinks:
        yield partial(put_back_files, audit_directory(settings))
    elif "database" in settings.audit_sinks:
        from kiseki.security.audit.postgres_lines import PostgresLines  # noqa: PLC0415 - only where it is used

        lines = PostgresLines.records(audit_database(settings, secrets))
        try:
            yield lines.put_back
        finally:
            await lines.close()
    else:
        raise RestoreRefused("the audit log is only printed, so nothing can be put back; see the setting audit_sinks")
