"""`SqliteJournalProtection`: copies new commits of an embedded journal every minute. Made by `Drivers`.

A journal only ever grows, so what is new since the last step is a range of rows; claims and idempotency records go with
the streams that these rows are of (see `increments`). A whole copy a day is what increments build on.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.contents import ContentsDigest
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.places.port import Place
from kiseki.operations.protect.port import Protected
from kiseki.operations.sqlite.copying import moment_of, opened_moment
from kiseki.operations.sqlite.increments import FORMAT, IncrementHeader, row_hash, write_increment
from kiseki.operations.sqlite.journal import SqliteStagedJournal, contents_of, copy_moment, head_of
from kiseki.operations.sqlite.lines import (
    Head,
    Line,
    increment_name,
    is_base_due,
    new_line,
    prune_lines,
    publish_base,
    read_lines,
    write_head,
)
from kiseki.operations.sqlite.recovery import JOURNAL_FILE, recovered_journal

__all__ = ["WHAT", "SqliteJournalProtection"]

WHAT: Final = "journal-increments"
_LOCK: Final = f"{WHAT}.lock"
_CHUNK: Final = 20_000
"""Commits of one increment, so that putting them back needs little memory."""
_NEW: Final = """
    SELECT stream, first_sequence, count, document, committed_at FROM commits WHERE position > ? AND position <= ?
"""
_CLAIMS: Final = "SELECT count(*) FROM claims"

AuditHeads = Callable[[], Awaitable[Mapping[str, int]]]


class _Step(NamedTuple):
    """What one step found, in a folder of its own."""

    prefix: str
    head: Head
    increments: list[str]
    commits: int
    has_base: bool


class SqliteJournalProtection:
    """A JournalProtection. The place keeps a second process out for as long as one steps."""

    name = "the journal"

    def __init__(
        self, path: Path, place: Place, *, clock: Clock, days: float, audit_heads: AuditHeads | None = None
    ) -> None:
        """`days`: how long what was copied is kept. `audit_heads`: the newest records of the audit log, noted along."""
        self._path = path
        self._place = place
        self._clock = clock
        self._days = days
        self._audit_heads = audit_heads

    async def step(self, progress: Progress) -> Protected:
        """As Protection."""
        async with self._place.lock(_LOCK), self._place.workspace(f"{WHAT}/step") as work:
            audit = {} if self._audit_heads is None else await self._audit_heads()
            lines = await read_lines(self._place, WHAT)
            line = lines[-1] if lines else None
            (work / "base").mkdir()
            progress("copying")
            step = await asyncio.to_thread(self._collect, work, line, audit, progress)
            if line is not None:
                # Of a step that was killed before it could say so.
                for left in line.increments:
                    if left.row > line.head.row:
                        await self._place.remove(f"{line.prefix}/{left.name}")
            size = 0
            for name in step.increments:
                size += (work / name).stat().st_size
                await self._place.put(f"{step.prefix}/{name}", work / name)
            if step.has_base:
                size += await publish_base(self._place, step.prefix, work / "base", step.head)
            await write_head(self._place, step.prefix, step.head)
            return Protected(step.head.through, step.commits, size, step.has_base)

    def _collect(self, work: Path, line: Line | None, audit: Mapping[str, int], progress: Progress) -> _Step:
        through = self._clock.now()
        with explained_room(work, "make room there"), opened_moment(self._path) as connection:
            life, _, text = head_of(connection).rpartition("-")
            row = int(text)
            goes_on = line is not None and _is_of(line, life, connection)
            (claims,) = connection.execute(_CLAIMS).fetchone()
            increments: list[str] = []
            last, commits = "", 0
            if line is not None and goes_on:
                prefix, before = line.prefix, line.head
                last = before.last_sha256
                contents = _grown(connection, before, row, claims)
                commits = contents.commits - (before.contents.commits if before.contents else 0)
                for after in range(before.row, row, _CHUNK):
                    upto = min(after + _CHUNK, row)
                    header = IncrementHeader(
                        format=FORMAT,
                        life=life,
                        after=after,
                        row=upto,
                        through=through,
                        previous=last,
                        final=upto == row,
                    )
                    increments.append(increment_name(after, upto))
                    write_increment(connection, header, work / increments[-1])
                    last = _sha256(work / increments[-1])
                # Claims that come without a commit, as an import brings them, are in a base alone.
                moved = row == before.row and before.contents is not None and before.contents.claims != claims
                has_base = moved or is_base_due(line, through)
            else:
                prefix = f"{WHAT}/{new_line(life)}"
                contents = contents_of(connection, progress)
                commits = contents.commits
                has_base = True
            if has_base:
                progress("copying all of it")
                copy_moment(connection, work / "base" / JOURNAL_FILE)
            head = Head(
                life=life,
                row=row,
                row_hash=row_hash(connection, row),
                through=through,
                last_sha256=last,
                contents=contents,
                audit=audit,
            )
        return _Step(prefix, head, increments, commits, has_base)

    async def prune(self, now: datetime) -> int:
        """As Protection."""
        async with self._place.lock(_LOCK):
            return await prune_lines(self._place, WHAT, now - timedelta(days=self._days), keep_last=True)

    async def through(self) -> datetime | None:
        """As Protection."""
        lines = await read_lines(self._place, WHAT)
        return lines[-1].head.through if lines else None

    async def close(self) -> None:
        """As Protection: nothing runs between two steps."""

    async def recover(self, work: Path, progress: Progress, *, until: datetime | None = None) -> SqliteStagedJournal:
        """As JournalProtection. A time is met at the last copy of before: at most a minute earlier."""
        return await recovered_journal(
            self._place, WHAT, self._path, work, clock=self._clock, until=until, progress=progress
        )


def _is_of(line: Line, life: str, connection: sqlite3.Connection) -> bool:
    """Whether a line is of this journal and life, and not of another one that was put in its place by hand."""
    return line.head.life == life and row_hash(connection, line.head.row) == line.head.row_hash


def _grown(connection: sqlite3.Connection, before: Head, row: int, claims: int) -> Contents:
    digest = ContentsDigest(before.contents)
    for stream, first, count, document, at in connection.execute(_NEW, (before.row, row)):
        digest.add(stream.decode(), first, count, document, moment_of(at))
    return digest.contents(claims=claims)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
