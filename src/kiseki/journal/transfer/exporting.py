"""`export_journal`: writes a whole journal into one file, for `kiseki journal export` and for moving between stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec

from kiseki.journal.transfer.lines import Counts, TransferWriter
from kiseki.journal.transfer.notes import JOURNAL, TransferNotes
from kiseki.journal.transfer.transferable import Progress, TransferableJournal, TransferFailed
from kiseki.journal.transfer.walk import JournalWalk
from kiseki.kernel.ports import Clock

__all__ = ["ExportReport", "export_journal"]

_PAUSE: Final = 0.1
"""Seconds between looks at a feed that holds something back."""


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    counts: Counts
    appended_meanwhile: bool
    """Whether the journal grew while claims and records were read: these may then say more or less than the commits."""


async def export_journal(
    journal: TransferableJournal, output: BinaryIO, *, clock: Clock, progress: Progress, patience: float = 30.0
) -> ExportReport:
    """Writes every commit once and in the order of its stream, then the claims and idempotency records that are held.

    What is appended while the commits are read is written too; reading ends where the journal does. Claims and records
    are read after that, so writers should be stopped: an export of a journal that is written to is right about commits
    alone. A feed holds commits back while an append before them is under way; that is waited for, `patience` seconds.
    Memory is bounded. Raises TransferFailed, CorruptJournal, JournalUnavailable, OSError of the output.
    """
    writer = TransferWriter(output, clock.now())
    total = (await journal.lag(await journal.beginning())).commits
    with TransferNotes() as notes, progress("exporting", total) as advance_to:
        walk = JournalWalk(journal, notes)
        await _write_commits(walk, writer, advance_to, patience)
        streams = await asyncio.to_thread(notes.stream_count, JOURNAL)
        async for claims in journal.held_claims():
            await asyncio.to_thread(writer.write_claims, claims)
        async for records in journal.idempotency_records():
            await asyncio.to_thread(writer.write_records, records)
        appended_meanwhile = await walk.behind() > 0
        counts = await asyncio.to_thread(writer.finish, streams)
    return ExportReport(counts=counts, appended_meanwhile=appended_meanwhile)


async def _write_commits(
    walk: JournalWalk, writer: TransferWriter, advance_to: Callable[[int], None], patience: float
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        async for commits in walk.pages():
            await asyncio.to_thread(writer.write_commits, commits)
            advance_to(writer.commits)
            deadline = loop.time() + patience
        behind = await walk.behind()
        if not behind:
            return
        if loop.time() >= deadline:
            raise TransferFailed(
                f"{behind:,} commits can't be read yet, because an append before them is still under way; stop the "
                "writers and try again"
            )
        await asyncio.sleep(_PAUSE)
