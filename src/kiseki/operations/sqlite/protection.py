"""`SqliteJournalProtection`: copies new commits of an embedded journal every minute. Made by `Drivers`.

A journal only ever grows, so what is new since the last step is a range of rows; claims and idempotency records go with
the streams that these rows are of (see `increments`). A whole copy a day is what increments build on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.journal.sqlite.transfer import held_changes_of
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.contents import ContentsDigest
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.places.port import Place
from kiseki.operations.places.threads import in_thread
from kiseki.operations.protect.port import Protected
from kiseki.operations.sqlite.copying import copy_pages, moment_of, opened_moment
from kiseki.operations.sqlite.increments import FORMAT, IncrementHeader, row_hash, sha256_of, write_increment
from kiseki.operations.sqlite.journal import SqliteStagedJournal, contents_of, head_of, pack_journal
from kiseki.operations.sqlite.line_pruning import prune_covered
from kiseki.operations.sqlite.lines import (
    Head,
    Line,
    base_name,
    increment_name,
    is_base_due,
    is_whole,
    new_line,
    publish_base,
    read_lines,
    refuse_another,
    remove_rest,
    through_of,
    write_head,
)
from kiseki.operations.sqlite.recovery import JOURNAL_FILE, reach_of, recovered_journal

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
    base: str
    """The name of a new base, whose files are in the folder `base`; empty without one."""


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
            for line in lines[-1:]:
                await remove_rest(self._place, line)
            # What is damaged where it lies does no harm when the next copy builds on a new base.
            whole = bool(lines) and await is_whole(self._place, lines[-1])
            progress("copying")
            step = await in_thread(lambda: self._collect(work, lines, audit, progress, whole=whole))
            size = 0
            for name in step.increments:
                size += (work / name).stat().st_size
                await self._place.put(f"{step.prefix}/{name}", work / name)
            if step.base:
                size += await publish_base(self._place, step.prefix, step.base, work / "base", step.head)
            await write_head(self._place, step.prefix, step.head)
            return Protected(step.head.through, step.commits, size, bool(step.base))

    def _collect(
        self, work: Path, lines: Sequence[Line], audit: Mapping[str, int], progress: Progress, *, whole: bool
    ) -> _Step:
        through = self._clock.now()
        plain = work / "base" / JOURNAL_FILE.removesuffix(".gz")
        with explained_room(work, "make room there"):
            with opened_moment(self._path) as connection:
                life, _, text = head_of(connection).rpartition("-")
                row, held_changes = int(text), held_changes_of(connection)
                identity = f"{life.rpartition('-')[0]}-"
                refuse_another(lines, identity, what="journal", label=self._place.label)
                line = lines[-1] if lines else None
                before = None if line is None else line.head
                increments: list[str] = []
                if line is not None and before is not None and line.bases and _is_of(before, life, connection):
                    prefix, bases, last = line.prefix, tuple(base.name for base in line.bases), before.last_sha256
                    contents = _grown(connection, before, row)
                    commits = contents.commits - (before.contents.commits if before.contents else 0)
                    for after in range(before.row, row, _CHUNK):
                        header = IncrementHeader(
                            format=FORMAT,
                            life=life,
                            after=after,
                            row=min(after + _CHUNK, row),
                            through=through,
                            previous=last,
                            contents=contents if after + _CHUNK >= row else None,
                        )
                        increments.append(increment_name(after, header.row, through))
                        write_increment(connection, header, work / increments[-1])
                        last = sha256_of(work / increments[-1])
                    # Claims that come without a commit, as an import brings them, are in a base alone.
                    has_base = not whole or held_changes != before.held_changes or is_base_due(line, through)
                else:
                    prefix, bases, last = new_line(WHAT, lines, life), (), ""
                    contents = contents_of(connection, progress)
                    commits, has_base = contents.commits, True
                if has_base:
                    progress("copying all of it")
                    plain.parent.mkdir()
                    copy_pages(connection, plain)
                base = base_name(row, through) if has_base else ""
                head = Head(
                    life=life,
                    row=row,
                    row_hash=row_hash(connection, row),
                    through=through,
                    bases=(*bases, base) if has_base else bases,
                    last_sha256=last,
                    contents=contents,
                    held_changes=held_changes,
                    audit=audit,
                )
            if has_base:
                pack_journal(plain, plain.with_name(JOURNAL_FILE))
        return _Step(prefix, head, increments, commits, base)

    async def prune(self, now: datetime) -> int:
        """As Protection: every time of the last `days` can be gone back to, as far as it was copied."""
        async with self._place.lock(_LOCK):
            return await prune_covered(self._place, WHAT, now - timedelta(days=self._days))

    async def through(self) -> datetime | None:
        """As Protection."""
        return through_of(await read_lines(self._place, WHAT))

    async def reaches(self, until: datetime | None) -> datetime | None:
        """As JournalProtection."""
        return reach_of(await read_lines(self._place, WHAT), until)

    async def close(self) -> None:
        """As Protection: nothing runs between two steps."""

    async def recover(self, work: Path, progress: Progress, *, until: datetime | None = None) -> SqliteStagedJournal:
        """As JournalProtection. A time is met at the last copy of before: at most a minute earlier."""
        return await recovered_journal(
            self._place, WHAT, self._path, work, clock=self._clock, until=until, progress=progress
        )


def _is_of(head: Head, life: str, connection: sqlite3.Connection) -> bool:
    """Whether a line is of this journal and life, and not of another one that was put in its place by hand."""
    return head.life == life and row_hash(connection, head.row) == head.row_hash


def _grown(connection: sqlite3.Connection, before: Head, row: int) -> Contents:
    digest = ContentsDigest(before.contents)
    for stream, first, count, document, at in connection.execute(_NEW, (before.row, row)):
        digest.add(stream.decode(), first, count, document, moment_of(at))
    (claims,) = connection.execute(_CLAIMS).fetchone()
    return digest.contents(claims=claims)
