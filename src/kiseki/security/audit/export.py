"""A verified copy of an audit log, with a manifest that says what it holds. Used by `kiseki audit export`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO, Final

import msgspec

from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.record import AuditRecord, line_of, when
from kiseki.security.audit.sink import LineSource
from kiseki.security.audit.verify import AuditReport, verify_log

__all__ = ["WriterRange", "export_log"]

FORMAT: Final = 1


class WriterRange(msgspec.Struct, kw_only=True):
    """What of one writer is in the copy: its lines are in order and whole, and so is the chain between them."""

    first: int
    last: int
    previous: str
    """The MAC before the first."""
    mac: str
    """The MAC of the last."""


async def export_log(
    source: LineSource,
    output: BinaryIO,
    *,
    keys: AuditKeys,
    now: datetime,
    anchors: LineSource | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    kept_since: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[AuditReport, bytes]:
    """Verifies the whole log and copies the authentic records of `since` <= time < `until`, a line each.

    The report, and the manifest (JSON): format, when, the hash of the copy, what it holds, what verifying found, and a
    MAC. `kept_since`: as `since` of `verify_log`. Raises LinesUnreadable, SinkFailed; what writing raises.
    """
    digest = hashlib.sha256()
    writers: dict[str, WriterRange] = {}
    count = size = 0

    def copy(record: AuditRecord, line: bytes) -> None:
        nonlocal count, size
        if (since is not None and record.at < since) or (until is not None and record.at >= until):
            return
        data = line + b"\n"
        output.write(data)
        digest.update(data)
        count += 1
        size += len(data)
        known = writers.get(record.writer)
        if known is None:
            writers[record.writer] = WriterRange(
                first=record.number, last=record.number, previous=record.previous, mac=record.mac
            )
        else:
            known.last, known.mac = record.number, record.mac

    report = await verify_log(
        source, keys=keys, now=now, anchors=anchors, since=kept_since, on_record=copy, progress=progress
    )
    manifest = {
        "format": FORMAT,
        "exported_at": when(now),
        "since": when(since) if since is not None else None,
        "until": when(until) if until is not None else None,
        "records": count,
        "bytes": size,
        "sha256": digest.hexdigest(),
        "writers": writers,
        "sound": report.sound,
        "problems": report.problems,
        "problems_found": report.problems_found,
        "notes": report.notes,
        "last_anchor": when(report.last_anchor) if report.last_anchor is not None else None,
        "key": keys.current.id,
    }
    body = msgspec.json.encode(manifest)[:-1]
    return report, line_of(body, keys.current.of_manifest(body))
