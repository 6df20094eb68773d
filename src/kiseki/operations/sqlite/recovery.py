"""Puts an embedded journal together from its bases and increments. Used by the protection of journals."""

from __future__ import annotations

import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, BackupMissing
from kiseki.operations.places.port import Place
from kiseki.operations.places.threads import in_thread
from kiseki.operations.sqlite.copying import explained_full, move_file, unpacked
from kiseki.operations.sqlite.increments import IncrementHeader, apply_increment, read_header, sha256_of
from kiseki.operations.sqlite.journal import SqliteStagedJournal
from kiseki.operations.sqlite.lines import Base, Increment, Line, fetched_base, read_lines

__all__ = ["JOURNAL_FILE", "reach_of", "recovered_journal"]

JOURNAL_FILE: Final = "journal.db.gz"
_AT_ONCE: Final = 100
_CLAIMS: Final = "SELECT count(*) FROM claims"
_INDEXES: Final = (
    "CREATE INDEX recovering_claims ON claims (stream)",
    "CREATE INDEX recovering_records ON idempotency (stream)",
)
"""What a stream holds is replaced by each increment: without them each would read all there is."""
_NO_INDEXES: Final = ("DROP INDEX IF EXISTS recovering_claims", "DROP INDEX IF EXISTS recovering_records")


async def recovered_journal(
    place: Place,
    what: str,
    live: Path,
    work: Path,
    *,
    clock: Clock,
    until: datetime | None,
    progress: Progress,
) -> SqliteStagedJournal:
    """The newest journal that a place has, or that of the last copy before a time (UTC), staged beside the live one.

    Raises BackupMissing, BackupDamaged, which says up to when it is whole, NoRoom, PlaceUnavailable.
    """
    line, base = _chosen(await read_lines(place, what), until, place.label)
    recovery = _Recovery(place, line, base, work / "journal.db", until)
    contents = await recovery.run(progress)

    def put(path: Path) -> None:
        move_file(recovery.path, path)

    return await SqliteStagedJournal.made(live, f"{clock.now():%Y%m%dT%H%M%SZ}", put, contents=contents, clock=clock)


def reach_of(lines: Sequence[Line], until: datetime | None) -> datetime | None:
    """The time of the last step of before a time that can be gone back to; None when there is none."""
    try:
        line, base = _chosen(lines, until, "")
    except BackupMissing:
        return None
    if line.head is not None and (until is None or until >= line.head.through):
        return line.head.through
    reached = base.at
    for increment in line.increments:
        if increment.row > base.row:
            if until is not None and increment.through > until:
                break
            reached = increment.through
    return reached


def _chosen(lines: Sequence[Line], until: datetime | None, label: str) -> tuple[Line, Base]:
    """The line and base to begin with. Raises BackupMissing."""
    for line in reversed(lines):
        fitting = [base for base in line.bases if until is None or base.at <= until]
        if fitting:
            return line, fitting[-1]
    when = "" if until is None else f" of before {until:%Y-%m-%d %H:%M:%S} UTC"
    raise BackupMissing(f"{label} has no copy of the journal{when}; `kiseki backup list` shows what there is")


class _Recovery:
    """One journal on its way: from a base, one increment after the other."""

    def __init__(self, place: Place, line: Line, base: Base, path: Path, until: datetime | None) -> None:
        self.path = path
        self._place = place
        self._line = line
        self._base = base
        head = line.head
        # Up to a time after the last step is up to the end, which is known for sure.
        self._to_the_end = until is None or (head is not None and until >= head.through)
        self._until = None if self._to_the_end else until
        self._whole_until: datetime | None = None
        self._row = base.row
        self._last = ""
        self._contents: Contents | None = None

    async def run(self, progress: Progress) -> Contents | None:
        """Makes the file, and says what has to be in it, where that is known. Raises BackupDamaged."""
        try:
            return await self._run(progress)
        except BackupDamaged as damage:
            if self._whole_until is None:
                raise BackupDamaged(
                    f"{damage}: nothing from {self._base.at:%Y-%m-%d %H:%M:%S} UTC on can be put together; restore it "
                    "with --until a time before, or restore a backup"
                ) from damage
            raise BackupDamaged(
                f"{damage}: the journal is whole up to {self._whole_until:%Y-%m-%dT%H:%M:%S.%fZ}; restore it with "
                "--until that time, or restore a backup"
            ) from damage

    async def _run(self, progress: Progress) -> Contents | None:
        async with fetched_base(self._place, self._line, self._base) as (folder, head):
            progress("unpacking")
            await in_thread(lambda: unpacked(folder / JOURNAL_FILE, self.path))
        self._whole_until = self._base.at
        self._contents, self._last = head.contents, head.last_sha256
        following = self._following()
        for start in range(0, len(following), _AT_ONCE):
            progress(f"applying, {start:,} of {len(following):,} increments")
            some = following[start : start + _AT_ONCE]
            async with self._place.fetched(self._line.prefix, [increment.name for increment in some]) as folder:
                await in_thread(partial(self._apply, folder, some, first=start == 0))
        self._refuse_other_end()
        await in_thread(self._finish)
        return self._contents

    def _following(self) -> Sequence[Increment]:
        after = [increment for increment in self._line.increments if increment.row > self._base.row]
        for number, increment in enumerate(after):
            # Times may go back with a clock: the first that would be too late ends it.
            if self._until is not None and increment.through > self._until:
                return after[:number]
        return after

    def _apply(self, folder: Path, increments: Sequence[Increment], *, first: bool) -> None:
        with self._connected() as connection:
            if first:
                for statement in _INDEXES:
                    connection.execute(statement)
            connection.execute("BEGIN")
            for increment in increments:
                if increment.after != self._row:
                    raise BackupDamaged(f"{self._line.prefix} lacks what came after row {self._row:,}")
                path = folder / increment.name
                header = _checked_header(path, increment, self._last)
                try:
                    apply_increment(connection, path)
                except sqlite3.IntegrityError as problem:
                    raise BackupDamaged(f"{increment.name} does not fit to what is before it ({problem})") from problem
                self._row, self._last, self._contents = increment.row, sha256_of(path), header.contents
                if header.contents is not None:
                    self._whole_until = increment.through
            connection.execute("COMMIT")

    def _refuse_other_end(self) -> None:
        head = self._line.head
        if self._row > self._base.row and self._contents is None:
            raise BackupDamaged(f"{self._line.prefix} lacks what came after row {self._row:,}, in the middle of a step")
        if not self._to_the_end:
            return
        if head is None and self._line.increments:
            raise BackupDamaged(f"{self._line.prefix}/head.json was altered or is missing, so nobody knows the end")
        if head is not None and (self._row, self._last) != (head.row, head.last_sha256):
            raise BackupDamaged(f"{self._line.prefix} does not end as it should, with row {head.row:,}")

    def _finish(self) -> None:
        with self._connected() as connection:
            for statement in _NO_INDEXES:
                connection.execute(statement)
            connection.execute("PRAGMA journal_mode=DELETE")
            (claims,) = connection.execute(_CLAIMS).fetchone()
        if self._contents is not None and claims != self._contents.claims:
            raise BackupDamaged(
                f"what was put together has {claims:,} claims and should have {self._contents.claims:,}"
            )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        address = f"file:{urllib.parse.quote(str(self.path))}?mode=rw"
        with (
            explained_room(self.path.parent, "make room there"),
            explained_full(self.path.parent),
            closing(sqlite3.connect(address, uri=True, isolation_level=None)) as connection,
        ):
            # Nobody has it yet: it is synced once, when it gets its place.
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA journal_mode=MEMORY")
            yield connection


def _checked_header(path: Path, increment: Increment, last: str) -> IncrementHeader:
    header = read_header(path)
    if (header.after, header.row, header.through) != (increment.after, increment.row, increment.through):
        raise BackupDamaged(f"{path.name} is another one than its name says")
    if header.previous != last:
        raise BackupDamaged(f"{path.name} does not follow what is before it: one of the two was altered")
    return header
