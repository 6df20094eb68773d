"""`kiseki audit tail | verify | export`: the log of security events, read without a service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from string import hexdigits
from typing import TypeAlias

import msgspec

from kiseki.cli.output import people_table, print_table, progress_bar
from kiseki.journal.transfer.file import new_file
from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.export import export_log
from kiseki.security.audit.places import AuditPlaces
from kiseki.security.audit.record import AuditRecord, when
from kiseki.security.audit.tail import Tail
from kiseki.security.audit.verify import AuditReport, verify_log

__all__ = ["OpenedAudit", "export", "moment", "tail", "verify"]

OpenedAudit: TypeAlias = Callable[[], AbstractAsyncContextManager[AuditPlaces]]
"""Opens the audit log that the settings name, on the running event loop, and closes it at the end."""


class TimeInvalid(KisekiError):
    """A time on the command line can't be read."""

    code = "TIME_INVALID"


def moment(text: str | None) -> datetime | None:
    """A time as people write it: 2026-03-01, 2026-03-01T12:30 or with an offset; UTC unless it says so.

    Raises TimeInvalid.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise TimeInvalid("a time is written like 2026-03-01 or 2026-03-01T12:30:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def tail(*, opened: OpenedAudit, lines: int, follow: bool, json: bool) -> None:
    """Prints the last records of all writers by time, and with `follow` those that come, until interrupted.

    Lines that are not authentic are told of on standard error. Raises LinesUnreadable, SinkFailed.
    """

    async def run() -> None:
        async with opened() as places:
            reader = Tail(places.records, keys=places.keys, suspicious=_suspicious)
            newest = await reader.newest(lines)
            if json or follow:
                _print_lines(newest, json=json)
            else:
                _print_table(places.name, newest)
            if follow:
                async for records in reader.follow():
                    _print_lines(records, json=json)

    asyncio.run(run())


def verify(*, opened: OpenedAudit, since: str | None, json: bool) -> int:
    """Verifies the log and prints what was found; 1 when something is wrong.

    Raises TimeInvalid, LinesUnreadable, SinkFailed.
    """
    from_then_on = moment(since)

    async def run() -> tuple[str, AuditReport]:
        async with opened() as places:
            with progress_bar("verifying", 0) as advance_to:
                return places.name, await verify_log(
                    places.records,
                    keys=places.keys,
                    anchors=places.anchors,
                    now=datetime.now(UTC),
                    since=from_then_on,
                    progress=advance_to,
                )

    name, report = asyncio.run(run())
    if json:
        print(msgspec.json.encode({"sound": report.sound, **msgspec.to_builtins(report)}).decode())
        return 0 if report.sound else 1
    _tell(report)
    if report.sound:
        reach = f", anchored up to {_readable(report.last_anchor)} UTC" if report.last_anchor is not None else ""
        print(f"{name} is sound: {_counts(report)}{reach}")
        return 0
    if report.key_is_wrong:
        print(f"{name} can't be verified: {_counts(report)}")
        return 1
    print(f"{name} is not as it was written: {_counts(report)}; keep a copy of it and of its anchors as they are")
    return 1


def export(
    file: Path, *, opened: OpenedAudit, since: str | None, until: str | None, kept_since: str | None, force: bool
) -> int:
    """Writes the records of `since` <= time < `until` to a file and a manifest beside it; 1 when the log is not sound.

    What is authentic is copied in any case, and the manifest says what is wrong. Raises TimeInvalid, TransferFailed,
    LinesUnreadable, SinkFailed.
    """
    first, end, kept = moment(since), moment(until), moment(kept_since)
    manifest_file = file.with_name(f"{file.name}.manifest.json")

    async def run() -> AuditReport:
        async with opened() as places:
            with new_file(file, replace=force) as output, progress_bar("exporting", 0) as advance_to:
                report, manifest = await export_log(
                    places.records,
                    output,
                    keys=places.keys,
                    anchors=places.anchors,
                    now=datetime.now(UTC),
                    since=first,
                    until=end,
                    kept_since=kept,
                    progress=advance_to,
                )
            with new_file(manifest_file, replace=force) as output:
                output.write(manifest + b"\n")
            return report

    report = asyncio.run(run())
    _tell(report)
    copied = "sound" if report.sound else "not as it was written; only what is authentic was copied"
    copied = "not verified; nothing was copied" if report.key_is_wrong else copied
    print(f"exported to {file}, manifest {manifest_file}; the log ({_counts(report)}) is {copied}")
    return 0 if report.sound else 1


def _suspicious(what: str) -> None:
    print(f"warning: {what}; run `kiseki audit verify`", file=sys.stderr)


def _tell(report: AuditReport) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if report.problems_found > len(report.problems):
        print(f"problem: {report.problems_found - len(report.problems)} more like these", file=sys.stderr)


def _counts(report: AuditReport) -> str:
    return f"{report.records:,} records, {report.writers:,} writers, {report.anchors:,} anchors"


def _print_table(name: str, records: Iterable[AuditRecord]) -> None:
    table = people_table(name, "time (UTC)", "what", "who", "about", "why", "times")
    for record in records:
        table.add_row(
            _readable(record.at),
            f"{record.kind} {record.outcome}",
            _who(record),
            _about(record),
            _shown(" ".join(part for part in (record.code, record.detail) if part)),
            f"{record.count:,}",
        )
    print_table(table)


def _print_lines(records: Iterable[AuditRecord], *, json: bool) -> None:
    for record in records:
        if json:
            fields = {name: value for name, value in msgspec.to_builtins(record).items() if value not in (None, [], ())}
            # ASCII, as it is stored: nothing that clients sent plays tricks on a terminal.
            print(dumps({**fields, "at": when(record.at)}, ensure_ascii=True, separators=(",", ":")), flush=True)
        else:
            times = f" x{record.count:,}" if record.count > 1 else ""
            parts = (_readable(record.at), record.kind, record.outcome, _who(record), _about(record), record.code)
            text = " ".join(part for part in (*parts, record.detail) if part)
            print(f"{_shown(text)}{times}", flush=True)


def _who(record: AuditRecord) -> str:
    return _shown(" ".join(part for part in (record.actor and _short(record.actor), record.address) if part))


def _about(record: AuditRecord) -> str:
    operations = ", ".join(record.operations)
    return _shown(" ".join(part for part in (record.api, record.operation, operations, record.target) if part))


def _readable(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at is not None else ""


def _shown(text: str) -> str:
    """Without what could make a terminal show something else: what clients sent is in here."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _short(actor: str) -> str:
    """A pseudonym is told apart by its first digits; a name stays whole."""
    return actor[:12] if all(character in hexdigits for character in actor) else actor
