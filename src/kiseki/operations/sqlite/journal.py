"""`SqliteJournalBackups`: the JournalBackups of an embedded journal. Made by the composition of operations."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.sqlite.schema import SCHEMA_VERSION, begin_life, journal_epoch
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.ports import Clock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.contents import ContentsDigest
from kiseki.operations.backup.manifest import Contents, Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.disk import explained_room
from kiseki.operations.places.scratch import Scratch
from kiseki.operations.places.threads import in_thread
from kiseki.operations.sqlite.copying import (
    check_sound,
    copy_pages,
    moment_of,
    opened_copy,
    opened_moment,
    packed,
    unpacked,
)
from kiseki.operations.sqlite.switching import (
    held_for_switch,
    put_in_place,
    refuse_in_use,
    remove_database,
    staged_path,
)

__all__ = ["SqliteJournalBackups", "SqliteStagedJournal", "contents_of", "head_of", "pack_journal"]

_FILE: Final = "journal.db.gz"
_EVERY: Final = 100_000
_COMMITS: Final = "SELECT stream, first_sequence, count, document, committed_at FROM commits"
_CLAIMS: Final = "SELECT count(*) FROM claims"
_HEAD: Final = "SELECT coalesce(max(position), 0) FROM commits"
_WITHOUT: Final = "DELETE FROM snapshots"
"""They are made again, and keys of states need not be in a copy."""


class SqliteJournalBackups:
    """Online copies of one file."""

    store = "sqlite"

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups: the copy and what has to be in it are of the same moment. Raises OperationFailed, NoRoom."""
        as_of = self._clock.now()
        progress("copying")
        position, contents = await in_thread(lambda: copied_journal(self._path, folder / _FILE, progress))
        return Made(
            store=self.store,
            method="online",
            as_of=as_of,
            versions={"sqlite": sqlite3.sqlite_version, "journal": str(SCHEMA_VERSION)},
            position=position,
            contents=contents,
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[TransferableJournal]:
        """As JournalBackups."""
        async with Scratch().folder("verify-journal") as work:
            path = work / "journal.db"
            await in_thread(lambda: unpacked(folder / _FILE, path))
            async with opened_file(path, self._clock) as journal:
                yield journal

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> SqliteStagedJournal:
        """As JournalBackups."""
        progress("unpacking")

        def put(path: Path) -> None:
            unpacked(folder / _FILE, path)

        return await SqliteStagedJournal.made(
            self._path, manifest.id, put, contents=manifest.made.contents, clock=self._clock
        )


class SqliteStagedJournal:
    """A StagedJournal: a file beside the live one, in a new life already. `made` is the way in."""

    def __init__(self, staged: Path, live: Path, *, contents: Contents | None, clock: Clock) -> None:
        self._staged = staged
        self._live = live
        self.contents = contents
        self._clock = clock
        self._switched = False

    @classmethod
    async def made(
        cls, live: Path, identity: str, put: Callable[[Path], None], *, contents: Contents | None, clock: Clock
    ) -> SqliteStagedJournal:
        """Has `put` make the file, in a thread, and begins its new life. Raises what `put` does, JournalUnavailable."""

        def make() -> Path:
            with explained_room(live.parent, "make room there"):
                path = staged_path(live, identity)
                try:
                    put(path)
                    begin_life(path, above=journal_epoch(live), at=int(clock.now().timestamp()))
                except BaseException:
                    remove_database(path)
                    raise
                return path

        return cls(await in_thread(make), live, contents=contents, clock=clock)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[TransferableJournal]:
        """As StagedJournal."""
        async with opened_file(self._staged, self._clock) as journal:
            yield journal

    async def switch(self) -> Switched:
        """As Staged: one rename. Raises RestoreRefused while a process has the live file open."""
        kept = await in_thread(self._switch)
        self._switched = True
        return Switched(kept)

    def _switch(self) -> str:
        with held_for_switch(self._live, what="the journal"):
            refuse_in_use(self._live, what="the journal")
            refuse_in_use(self._staged, what="the restored journal")
            return put_in_place(self._staged, self._live, now=self._clock.now())

    async def discard(self) -> None:
        """As Staged."""
        if not self._switched:
            await in_thread(lambda: remove_database(self._staged))


@asynccontextmanager
async def opened_file(path: Path, clock: Clock) -> AsyncIterator[SqliteJournal]:
    """A journal in a file that nobody else uses."""
    journal = await SqliteJournal.open(path, clock=clock, telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()


def copied_journal(live: Path, target: Path, progress: Progress) -> tuple[str, Contents]:
    """Copies a live journal, compressed; its position and contents, of the same moment. Blocks."""
    plain = target.with_suffix("")
    with explained_room(target.parent, "make room there"):
        with opened_moment(live) as connection:
            copy_pages(connection, plain)
            progress("counting")
            position, contents = head_of(connection), contents_of(connection, progress)
        progress("compressing")
        pack_journal(plain, target)
    return position, contents


def pack_journal(plain: Path, target: Path) -> None:
    """Compresses the copy of a journal, without what can be made again. Blocks."""
    with opened_copy(plain) as copy:
        copy.execute(_WITHOUT)
    check_sound(plain)
    packed(plain, target)


def head_of(connection: sqlite3.Connection) -> str:
    """The position of the newest commit that a connection sees: journal, life and row."""
    facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    (row,) = connection.execute(_HEAD).fetchone()
    return f"{facts[b'journal_id'].decode()}-{facts[b'epoch']}-{row}"


def contents_of(connection: sqlite3.Connection, progress: Progress) -> Contents:
    """What a journal holds as a connection sees it."""
    digest = ContentsDigest()
    with closing(connection.cursor()) as cursor:
        for number, (stream, first, count, document, at) in enumerate(cursor.execute(_COMMITS), 1):
            digest.add(stream.decode(), first, count, document, moment_of(at))
            if number % _EVERY == 0:
                progress(f"counting, {number:,} commits")
    (claims,) = connection.execute(_CLAIMS).fetchone()
    return digest.contents(claims=claims)
