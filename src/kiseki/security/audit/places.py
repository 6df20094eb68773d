"""`AuditPlaces`: what reads an audit log, wherever it is kept. Used by the commands that show and verify it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import RECORDS
from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.sink import LineSource

if TYPE_CHECKING:
    from kiseki.clients.postgres import PostgresAddress

__all__ = ["AuditLogNotKept", "AuditPlaces", "open_places"]


class AuditLogNotKept(KisekiError):
    """There is no place that the audit log could be read from."""

    code = "AUDIT_LOG_NOT_KEPT"


class AuditPlaces(NamedTuple):
    """Where records and anchors are, and the keys that they are verified with."""

    name: str
    """What to call the log in a sentence; no secret."""
    records: LineSource
    anchors: LineSource | None
    keys: AuditKeys


@asynccontextmanager
async def open_places(
    *,
    keys: AuditKeys,
    directory: Path | None = None,
    database: PostgresAddress | None = None,
    anchor_directory: Path | None = None,
    anchor_database: PostgresAddress | None = None,
) -> AsyncIterator[AuditPlaces]:
    """Opens what there is for the time of the block; of records files go before a database.

    Raises AuditLogNotKept.
    """
    opened: list[LineSource] = []
    try:
        if directory is not None:
            if not await asyncio.to_thread(directory.is_dir):
                raise AuditLogNotKept(f"there is no audit log in {directory}; a service that has started makes it")
            name = f"the audit log in {directory}"
            opened.append(LineFiles(directory, prefix=RECORDS))
        elif database is not None:
            from kiseki.security.audit.postgres_lines import PostgresLines  # noqa: PLC0415 - only where it is used

            name = f"the audit log on {database.label}"
            opened.append(PostgresLines.records(database))
        else:
            raise AuditLogNotKept("the audit log is only printed; name its folder or its database to read it")
        anchors: LineSource | None = None
        if anchor_directory is not None:
            anchors = FileAnchors(anchor_directory)
        elif anchor_database is not None:
            from kiseki.security.audit.postgres_lines import PostgresAnchors  # noqa: PLC0415 - only where it is used

            anchors = PostgresAnchors.open(anchor_database)
        if anchors is not None:
            opened.append(anchors)
        yield AuditPlaces(name, opened[0], anchors, keys)
    finally:
        for each in opened:
            await each.close()
