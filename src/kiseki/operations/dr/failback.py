"""Failback: what the store that was written before a forced failover has, and the one that is written now lacks.

Used by `kiseki dr failback`. Nothing of it is thrown away: it is written into a file, in the format of a moved journal,
before the old store may be made a copy of the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.journal.port import Journal
from kiseki.journal.transfer.file import new_file
from kiseki.journal.transfer.lines import Counts, StoredCommit, TransferWriter
from kiseki.journal.transfer.reader import TransferReader
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.dr.compare import Difference, differences, walked
from kiseki.operations.dr.failover import Tell
from kiseki.operations.errors import OperationFailed

__all__ = ["Diverged", "DivergedReport", "diverged_commits", "refuse_unless_kept", "write_diverged"]

_SHOWN: Final = 20
_EVERY: Final = 10_000


class Diverged(OperationFailed):
    """The old store has commits that the new one lacks; they have to be kept before it is made a copy."""

    code = "DIVERGED"


class DivergedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the old store has and the new one lacks."""

    compared: int
    missing: int
    """Commits at whose place the new store has nothing."""
    otherwise: int
    """Commits at whose place the new store has another one."""
    streams: tuple[str, ...]
    """Their streams, the first twenty."""
    file: str = ""
    """Where they were written."""


async def diverged_commits(
    old: TransferableJournal, new: Journal, tell: Tell
) -> tuple[DivergedReport, list[Difference]]:
    """Walks through all of the old journal and looks each commit up in the new one.

    Raises TransferFailed, CorruptJournal, Unavailable.
    """
    compared = 0
    found: list[Difference] = []
    async for page in walked(old):
        found += await differences(page, new)
        if (compared + len(page)) // _EVERY > compared // _EVERY:
            tell(f"compared {compared + len(page):,} commits, {len(found):,} diverged")
        compared += len(page)
    otherwise = sum(difference.other is not None for difference in found)
    streams = tuple(dict.fromkeys(difference.commit.commit.stream for difference in found))[:_SHOWN]
    report = DivergedReport(compared=compared, missing=len(found) - otherwise, otherwise=otherwise, streams=streams)
    return report, found


async def write_diverged(found: Sequence[Difference], path: Path, now: datetime) -> Counts:
    """Writes them as lines of JSON, in a new file. Raises TransferFailed."""
    commits = [difference.commit for difference in found]

    def write() -> Counts:
        with new_file(path, replace=False) as output:
            writer = TransferWriter(output, now)
            writer.write_commits(commits)
            return writer.finish(len({commit.stream for commit, _ in commits}))

    return await asyncio.to_thread(write)


async def refuse_unless_kept(found: Sequence[Difference], path: Path) -> None:
    """Looks that a file holds all of them, byte for byte. Raises Diverged; TransferFileDamaged, TransferFailed."""

    def read() -> list[StoredCommit]:
        try:
            source = path.open("rb")
        except OSError as problem:
            raise Diverged(f"{path} can't be read: {(problem.strerror or '').lower()}") from problem
        with source:
            reader = TransferReader(source)
            kept: list[StoredCommit] = []
            while (page := reader.page()) is not None:
                kept += page.commits
            return kept

    kept = {
        (each.commit.stream, each.commit.first_sequence_number, each.document) for each in await asyncio.to_thread(read)
    }
    lacking = [
        difference
        for difference in found
        if (difference.commit.commit.stream, difference.commit.commit.first_sequence_number, difference.commit.document)
        not in kept
    ]
    if lacking:
        raise Diverged(
            f"{path} lacks {len(lacking):,} of the {len(found):,} diverged commits; run it without --accept-diverged, "
            "which writes them into another file"
        )
