"""`kiseki journal export` and `kiseki journal import`: a whole journal as a file of JSON lines, also between stores.

Keys are not part of it: personal data stays sealed, and is readable again only where the same key store is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from kiseki.application.system import SystemClock
from kiseki.cli.output import progress_bar
from kiseki.journal.transfer.exporting import ExportReport, export_journal
from kiseki.journal.transfer.file import new_file, rereadable
from kiseki.journal.transfer.importing import ImportReport, import_journal
from kiseki.journal.transfer.lines import Counts
from kiseki.journal.transfer.transferable import TransferableJournal, TransferFailed, why

__all__ = ["OpenedJournal", "export", "import_"]

OpenedJournal: TypeAlias = Callable[[], AbstractAsyncContextManager[TransferableJournal]]
"""Opens the journal that the settings name, on the running event loop, and closes it at the end."""


def export(file: Path | None, *, opened: OpenedJournal, force: bool, json: bool) -> None:
    """Writes the journal to a file, or to standard output; the summary then goes to standard error.

    Stop writers first: claims and idempotency records are read after the commits.
    Raises TransferFailed, CorruptJournal, JournalUnavailable.
    """

    async def run(output: BinaryIO) -> ExportReport:
        async with opened() as journal:
            return await export_journal(journal, output, clock=SystemClock(), progress=progress_bar)

    if file is None:
        try:
            report = asyncio.run(run(sys.stdout.buffer))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # whoever read it has gone, which is no fault
        except OSError as problem:
            raise TransferFailed(f"standard output can't be written: {why(problem)}") from problem
    else:
        with new_file(file, replace=force) as output:
            report = asyncio.run(run(output))
    words = f"exported {_in_words(report.counts)}"
    if report.appended_meanwhile:
        words += (
            "\nwarning: the journal was written to meanwhile, so claims and idempotency records may belong to later "
            "commits; stop the writers and export again before you move"
        )
    summary = {**_plain(report.counts), "appendedMeanwhile": report.appended_meanwhile}
    print(_json(summary) if json else words, file=sys.stderr if file is None else sys.stdout)


def import_(file: Path | None, *, opened: OpenedJournal, json: bool) -> None:
    """Fills an empty journal from a file, or from standard input; again after an interruption it goes on.

    Nobody should serve the journal meanwhile. Raises TransferFailed, CorruptJournal, JournalUnavailable.
    """
    if file is None and sys.stdin.isatty():
        raise TransferFailed("name the file to import, or lead an export into standard input")

    async def run(source: BinaryIO) -> ImportReport:
        async with opened() as journal:
            return await import_journal(journal, source, clock=SystemClock(), progress=progress_bar)

    with rereadable(file, sys.stdin.buffer) as source:
        try:
            report = asyncio.run(run(source))
        except KeyboardInterrupt:
            print("the import was interrupted; run the same one again, it goes on from there", file=sys.stderr)
            raise
    counts, written = report.counts, report.written
    summary = {**_plain(counts), "written": written, "alreadyThere": counts.commits - written}
    words = f"imported and compared {_in_words(counts)}; {written:,} commits were written by this run"
    print(_json(summary) if json else words)


def _in_words(counts: Counts) -> str:
    return (
        f"{counts.commits:,} commits, {counts.events:,} events, {counts.streams:,} streams, {counts.claims:,} claims, "
        f"{counts.records:,} idempotency records (digest {counts.digest[:16]})"
    )


def _plain(counts: Counts) -> dict[str, int | str]:
    return {
        "commits": counts.commits,
        "events": counts.events,
        "streams": counts.streams,
        "claims": counts.claims,
        "idempotencyRecords": counts.records,
        "digest": counts.digest,
    }


def _json(summary: dict[str, int | str]) -> str:
    return msgspec.json.encode(summary).decode()
