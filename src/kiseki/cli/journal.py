"""`kiseki journal show` and `kiseki journal verify`: reading a journal without a service."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from kiseki.application.system import SystemClock
from kiseki.cli.output import people_table, print_table, progress_bar
from kiseki.journal.port import RecordedEvent
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.verify import VerifyReport
from kiseki.journal.verify import verify as walk
from kiseki.kernel.codec import SEALED_MARK
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.streams import STREAM
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.settings import Settings
from kiseki.service.settings_sources import load_settings
from kiseki.service.store_family import StoreJournal
from kiseki.service.store_urls import StoreKind, store_urls
from kiseki.service.stores import open_journal

__all__ = ["journal_name", "opened_journal", "settings_of", "show", "verify"]

PERSONAL = "<personal>"


class StreamNotFound(KisekiError):
    """The journal has no such stream."""

    code = "STREAM_NOT_FOUND"


def show(stream: str, *, config: Path | None, data_dir: Path | None, json: bool) -> None:
    """Prints the events of a stream. Raises StreamNotFound, DataDirectoryUnusable, Unavailable, CorruptJournal."""
    settings = settings_of(config, data_dir)
    events = asyncio.run(_events(settings, stream))
    if not events:
        raise StreamNotFound(
            f"{journal_name(settings)} has no stream {stream}; a name is <AggregateType>-<id>, "
            "such as UserAccount-01J00000000000000000000000"
        )
    if json:
        for event in events:
            print(msgspec.json.encode(_plain(event)).decode())
        return
    table = people_table(stream, "#", "event", "time (UTC)", "actor", "data")
    for event in events:
        table.add_row(
            str(event.sequence_number),
            f"{event.type} v{event.version}",
            f"{event.occurred_at:%Y-%m-%d %H:%M:%S}",
            event.actor[:12],
            _lines(_masked(msgspec.json.decode(event.data))),
        )
    print_table(table)


def verify(*, config: Path | None, data_dir: Path | None) -> int:
    """Walks the journal with a progress bar and prints what it found; 1 when something is wrong."""
    settings = settings_of(config, data_dir)
    report, damage = asyncio.run(_verify(settings))
    for problem in (*damage, *report.problems):
        print(f"problem: {problem}", file=sys.stderr)
    if report.problems_found > len(report.problems):
        print(f"problem: {report.problems_found - len(report.problems)} more like these", file=sys.stderr)
    what = f"{report.commits:,} commits, {report.events:,} events, {report.streams:,} streams"
    if report.sound and not damage:
        print(f"{journal_name(settings)} is sound: {what}")
        return 0
    how_far = "" if report.complete else "; the walk ended early, at damage it can't get past"
    print(f"{journal_name(settings)} is damaged: {what}{how_far}; stop writing, keep a copy, restore a backup")
    return 1


def settings_of(config: Path | None, data_dir: Path | None) -> Settings:
    """The settings of a command that looks into stores. Raises SettingsError."""
    return load_settings(options={"data_dir": data_dir}, environ=os.environ, directory=Path.cwd(), config=config)


def journal_name(settings: Settings) -> str:
    """What to call the journal in a sentence; never its URL, which may hold a password."""
    kind = store_urls(settings).journal.kind
    return f"the journal in {settings.data_dir.absolute()}" if kind is StoreKind.SQLITE else f"the journal on {kind}"


def opened_journal(
    settings: Settings, *, make: bool = False
) -> Callable[[], AbstractAsyncContextManager[StoreJournal]]:
    """What opens the journal of the settings; with `make` an embedded one that is not there is made."""
    return lambda: open_journal(settings, clock=SystemClock(), telemetry=NoTelemetry(), make=make)


async def _events(settings: Settings, stream: str) -> list[RecordedEvent]:
    if not STREAM.fullmatch(stream):
        return []
    async with open_journal(settings, clock=SystemClock(), telemetry=NoTelemetry()) as journal:
        return [event async for page in journal.read(stream) for event in page]


async def _verify(settings: Settings) -> tuple[VerifyReport, tuple[str, ...]]:
    async with open_journal(settings, clock=SystemClock(), telemetry=NoTelemetry()) as journal:
        total = (await journal.lag(await journal.beginning())).commits
        with progress_bar("verifying", total) as advance_to:
            report = await walk(journal, advance_to)
        # Only an embedded store has a file of its own to look at.
        return report, await journal.integrity() if isinstance(journal, SqliteJournal) else ()


def _lines(data: Any) -> str:
    """One line for each field: `name: value`."""
    if not isinstance(data, dict):
        return msgspec.json.encode(data).decode()
    plain = (str, int, float)
    return "\n".join(
        f"{name}: {value if isinstance(value, plain) else msgspec.json.encode(value).decode()}"
        for name, value in data.items()
    )


def _plain(event: RecordedEvent) -> dict[str, Any]:
    return {
        "stream": event.stream,
        "sequenceNumber": event.sequence_number,
        "eventId": event.event_id,
        "type": event.type,
        "version": event.version,
        "occurredAt": event.occurred_at,
        "commitId": event.commit_id,
        "correlationId": event.correlation_id,
        "causationId": event.causation_id,
        "actor": event.actor,
        "data": _masked(msgspec.json.decode(event.data)),
    }


def _masked(value: Any) -> Any:
    """Stored data with every sealed field replaced by a word."""
    if isinstance(value, dict):
        if SEALED_MARK in value:
            return PERSONAL
        return {key: _masked(inner) for key, inner in value.items()}
    return [_masked(inner) for inner in value] if isinstance(value, list) else value
