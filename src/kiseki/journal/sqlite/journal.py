"""`SqliteJournal`: the embedded store. One file, one writing thread, group commit, any number of processes.

The production-grade default of a single machine: durable by WAL with synchronous=FULL, fast because concurrent appends
share one sync of the disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

import msgspec

from kiseki.journal.format import checksum, encode_commit
from kiseki.journal.port import (
    START,
    ClaimChange,
    Commit,
    CommitMetadata,
    CorruptJournal,
    FeedPage,
    IdempotencyRecord,
    JournalUnavailable,
    Lag,
    Limits,
    Position,
    RecordedEvent,
    Snapshot,
    new_commit,
)
from kiseki.journal.sqlite.append import AppendRequest, timestamp
from kiseki.journal.sqlite.reader import (
    SqliteReaders,
    integrity_problems,
    read_claims,
    read_feed,
    read_head,
    read_idempotency,
    read_lag,
    read_records,
    read_snapshot,
    read_stream,
)
from kiseki.journal.sqlite.schema import JournalFile, open_file
from kiseki.journal.sqlite.transfer import HeldParts
from kiseki.journal.sqlite.wakeup import WakeupListener, WakeupSender
from kiseki.journal.sqlite.writer import SqliteWriter
from kiseki.journal.transfer.transferable import HELD_PAGE, HeldClaim
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock, Telemetry

__all__ = ["SqliteJournal"]

_STREAM_PAGE: Final = 256

_PROVE_WRITABLE: Final = "UPDATE meta SET value = value + 1 WHERE name = 'writes_proved'"
_SAVE_SNAPSHOT: Final = """
    INSERT INTO snapshots (stream, schema, sequence_number, saved_at, data) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (stream, schema, sequence_number) DO UPDATE SET saved_at = excluded.saved_at, data = excluded.data
"""
_DROP_OLDER: Final = """
    DELETE FROM snapshots WHERE stream = ?1 AND schema = ?2 AND sequence_number <=
        (SELECT sequence_number FROM snapshots WHERE stream = ?1 AND schema = ?2
         ORDER BY sequence_number DESC LIMIT 1 OFFSET ?3)
"""
_DROP_ALL: Final = "DELETE FROM snapshots WHERE stream = ?"


class SqliteJournal:
    """A Journal and SnapshotStore in one SQLite file; opened by `open`, used on the event loop it was opened on.

    Several processes may open the same file. The order of the feed is the order of commits.
    """

    def __init__(
        self,
        opened: JournalFile,
        *,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits,
        readers: int,
        busy_seconds: float,
    ) -> None:
        """For `open`; starts the threads."""
        self.limits = limits
        self._path = path = opened.path
        self._identity = opened.identity
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._readers = SqliteReaders(opened, threads=readers, busy_seconds=busy_seconds)
        wake_directory = path.with_name(path.name + ".wake")
        self._listener = WakeupListener(wake_directory, self._loop)
        self._sender = WakeupSender(wake_directory, self._listener)
        self._writer = SqliteWriter(
            opened,
            clock=clock,
            telemetry=telemetry,
            loop=self._loop,
            busy_seconds=busy_seconds,
            committed=self._sender.send,
            committed_on_loop=self._listener.wake,
        )

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits | None = None,
        readers: int = 4,
        busy_seconds: float = 5.0,
    ) -> Self:
        """The journal at a path; the file is created (mode 0600) when there is none, its directory has to be there.

        `readers` threads read. A write waits up to `busy_seconds` for other processes that write.
        Raises JournalUnavailable (directory, permissions, disk full, newer schema, not durable here), CorruptJournal.
        """
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(None, partial(open_file, path, busy_seconds=busy_seconds))
        return cls(
            opened,
            clock=clock,
            telemetry=telemetry,
            limits=limits or Limits(),
            readers=readers,
            busy_seconds=busy_seconds,
        )

    async def append(
        self,
        stream: str,
        after: int,
        events: Sequence[EncodedEvent],
        *,
        metadata: CommitMetadata,
        claims: Sequence[ClaimChange] = (),
        idempotency: IdempotencyRecord | None = None,
    ) -> Commit:
        """As the contract says. Raises ValueError for a name that is no stream's."""
        self._refuse_when_closed()
        # Everything that depends on one caller's values is done here, so that it can't fail for the whole group.
        commit = new_commit(stream, after, events, metadata=metadata, limits=self.limits)
        document = encode_commit(metadata, commit.events)
        if claims or idempotency:
            msgspec.json.encode((claims, idempotency))
        request = AppendRequest(
            commit,
            document,
            checksum(stream, after + 1, document),
            tuple(claims),
            idempotency,
            self._loop.create_future(),
        )
        self._writer.submit(request)
        return await request.future

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        """As the contract says."""
        more = True
        while more:
            self._refuse_when_closed()
            page = await self._readers.run(partial(read_stream, stream=stream, after=after, limit=_STREAM_PAGE))
            if not page.commits:
                return
            yield [event for commit in page.commits for event in commit.recorded(after)]
            after = page.commits[-1].last_sequence_number
            more = page.more

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        """As the contract says; a page may be shorter than `limit` before the end, when its commits are large."""
        self._refuse_when_closed()
        page = await self._readers.run(partial(read_feed, after=self._identity.row(after), limit=limit))
        return FeedPage(page.commits, self._identity.position(page.row))

    async def head(self) -> Position:
        """As the contract says."""
        self._refuse_when_closed()
        return self._identity.position(await self._readers.run(read_head))

    async def lag(self, after: Position) -> Lag:
        """As the contract says; from 10,000 commits on, the number may be a little too high."""
        self._refuse_when_closed()
        return await self._readers.run(partial(read_lag, after=self._identity.row(after)))

    async def recall(self, key: str) -> IdempotencyRecord | None:
        """As the contract says."""
        self._refuse_when_closed()
        return await self._readers.run(partial(read_idempotency, key=key, now=self._clock.now()))

    async def beginning(self) -> Position:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        return START

    async def life(self) -> str:
        """As `TransferableJournal` says."""
        self._refuse_when_closed()
        return self._identity.life

    async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As `TransferableJournal` says."""
        after = ("", "")  # no digest is empty
        while True:
            self._refuse_when_closed()
            page = await self._readers.run(partial(read_claims, after=after, limit=HELD_PAGE))
            if not page:
                return
            yield page
            after = (page[-1].scope, page[-1].digest)

    async def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As `TransferableJournal` says."""
        after = ""  # no key is empty
        while True:
            self._refuse_when_closed()
            page = await self._readers.run(partial(read_records, after=after, limit=HELD_PAGE, now=self._clock.now()))
            if not page:
                return
            yield page
            after = page[-1].key

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As `TransferableJournal` says; all of them or none."""
        self._refuse_when_closed()
        refusal = await self._writer.run(partial(HeldParts(claims, records).add, now=self._clock.now()))
        if refusal is not None:
            raise refusal

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As the contract says. Hints between processes go through sockets in `<file>.wake/`."""
        return self._listener.add(wake)

    async def check(self) -> None:
        """As the contract says: room for the largest commit, and a small write that is made durable."""
        self._refuse_when_closed()
        try:
            await self._writer.run(self._prove_writable)
        except CorruptJournal as problem:
            raise JournalUnavailable(str(problem)) from problem

    def _prove_writable(self, connection: sqlite3.Connection) -> None:
        # A small write may find room that the next commit does not, so the room itself is looked at too.
        disk = os.statvfs(self._path.parent)
        free = disk.f_bavail * disk.f_frsize
        needed = 2 * self.limits.commit_bytes
        if disk.f_blocks and free < needed:
            # Always the same words: a change is logged, and a log that grows fills the disk further.
            raise JournalUnavailable(
                f"the journal {self._path} is short of space: a commit may need {needed} bytes, and fewer are free"
            )
        connection.execute(_PROVE_WRITABLE)

    async def integrity(self) -> tuple[str, ...]:
        """What SQLite finds wrong with the file itself, about 20 lines at most; empty when it is sound.

        Reads the whole file. Raises CorruptJournal when it can't even be read, JournalUnavailable.
        """
        self._refuse_when_closed()
        return await self._readers.run(integrity_problems)

    async def close(self) -> None:
        """As the contract says; the log is copied into the file. Again is fine."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name=f"close {self._path.name}")
        # Shielded: whoever is cancelled while waiting does not leave it half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._listener.close()
        await self._readers.close()
        await self._writer.close()
        self._sender.close()

    async def load_snapshot(self, stream: str, schema: str) -> Snapshot | None:
        """As the contract says."""
        self._refuse_when_closed()
        return await self._readers.run(partial(read_snapshot, stream=stream, schema=schema))

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int) -> None:
        """As the contract says."""
        self._refuse_when_closed()

        def save(connection: sqlite3.Connection) -> None:
            key = (snapshot.stream, snapshot.schema)
            saved_at = timestamp(snapshot.saved_at)
            connection.execute(_SAVE_SNAPSHOT, (*key, snapshot.sequence_number, saved_at, snapshot.data))
            connection.execute(_DROP_OLDER, (*key, keep))

        await self._writer.run(save)

    async def delete_snapshots(self, stream: str) -> None:
        """As the contract says; what is deleted is overwritten with zeros."""
        self._refuse_when_closed()

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute(_DROP_ALL, (stream,))

        await self._writer.run(delete)

    def _refuse_when_closed(self) -> None:
        if self._closing is not None:
            raise JournalUnavailable(f"the journal {self._path} is closed")
