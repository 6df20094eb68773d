"""`import_journal`: makes an empty journal, of any store, hold what an export says; for `kiseki journal import`.

Everything is checked before anything is written: the whole file, and that what the journal holds is the beginning of
what the file says, as it is after an import that was interrupted. The journal is read back at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import BinaryIO, Final, NamedTuple

import msgspec

from kiseki.journal.format import encode_commit
from kiseki.journal.port import (
    ClaimTaken,
    CommitTooLarge,
    Conflict,
    IdempotencyRecord,
    IdempotencyTaken,
    check_limits,
)
from kiseki.journal.transfer.lines import Counts, StoredCommit
from kiseki.journal.transfer.notes import FILE, JOURNAL, NOTHING, TransferNotes
from kiseki.journal.transfer.reader import TransferPage, TransferReader
from kiseki.journal.transfer.transferable import (
    HeldClaim,
    Progress,
    TransferableJournal,
    TransferFailed,
    TransferFileDamaged,
    TransferTargetDiffers,
)
from kiseki.journal.transfer.walk import JournalWalk
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.kernel.streams import STREAM

__all__ = ["ImportReport", "import_journal"]

_STREAMS_AT_ONCE: Final = 32

_HOW_TO_DIFFER: Final = (
    "import into an empty journal, or into the one that an earlier run with this file has begun; nothing was written"
)


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal holds now, all of it compared with the file."""

    counts: Counts
    written: int
    """Commits that this run wrote; the others were there already."""


async def import_journal(
    journal: TransferableJournal, source: BinaryIO, *, clock: Clock, progress: Progress
) -> ImportReport:
    """Writes what `source`, a file that can be read again from its start, says and `journal` does not hold yet.

    Commits keep their ids, times and documents, byte for byte. Nobody should serve the journal meanwhile. Memory is
    bounded. An interrupted run is finished by the same one again. Raises TransferFileDamaged and TransferTargetDiffers
    before anything is written; TransferFailed, which says what was written; CorruptJournal, JournalUnavailable.
    """
    with TransferNotes() as notes:
        run = _Import(journal, source, notes, clock, progress)
        counts = await run.check()
        try:
            await run.write(counts)
        except (KisekiError, ValueError) as problem:
            # A ValueError is of a store that can't hold what another one could.
            differs = isinstance(problem, Conflict | ClaimTaken | IdempotencyTaken | TransferTargetDiffers)
            raise (TransferTargetDiffers if differs else TransferFailed)(
                f"{problem}; this run wrote {run.written:,} of {counts.commits:,} commits: mend that, and run the same "
                "import again, which goes on from there"
            ) from problem
        await run.compare(counts)
        return ImportReport(counts=counts, written=run.written)


class _Work(NamedTuple):
    """What a page of the file asks to be written."""

    commits_read: int
    streams: list[list[StoredCommit]]
    claims: list[HeldClaim]
    records: list[IdempotencyRecord]


class _Import:
    """One run, step by step."""

    def __init__(
        self, journal: TransferableJournal, source: BinaryIO, notes: TransferNotes, clock: Clock, progress: Progress
    ) -> None:
        self._journal = journal
        self._source = source
        self._notes = notes
        self._clock = clock
        self._progress = progress
        self.written = 0

    async def check(self) -> Counts:
        """Reads the journal and the file, and notes what they hold. Writes nothing."""
        await self._survey("reading what is there", 0)
        reader = await self._reader()
        with self._progress("checking the file", 0) as advance_to:
            done = 0
            while (page := await asyncio.to_thread(reader.page)) is not None:
                await asyncio.to_thread(self._note, page)
                done += len(page.commits)
                advance_to(done)
        counts = reader.counts
        if counts is None or counts.streams != await asyncio.to_thread(self._notes.stream_count, FILE):
            raise TransferFileDamaged("the last line does not say what the file holds; export again")
        stream = await asyncio.to_thread(self._notes.stream_beyond_the_file)
        if stream is not None:
            raise TransferTargetDiffers(f"the journal has events of {stream} that the file has not; {_HOW_TO_DIFFER}")
        claim = await asyncio.to_thread(self._notes.claim_of_the_journal_alone)
        if claim is not None:
            raise TransferTargetDiffers(
                f"in the journal {claim.stream} holds a value for {claim.scope} that it does not hold in the file; "
                f"{_HOW_TO_DIFFER}"
            )
        return counts

    async def write(self, counts: Counts) -> None:
        """Appends the commits that are missing, then adds claims and records."""
        reader = await self._reader()
        with self._progress("writing", counts.commits) as advance_to:
            done = 0
            page = await asyncio.to_thread(self._next, reader)
            while page is not None:
                # The next page is read while this one is written.
                reading = asyncio.ensure_future(asyncio.to_thread(self._next, reader))
                try:
                    await self._write_page(page)
                finally:
                    await asyncio.gather(reading, return_exceptions=True)
                done += page.commits_read
                advance_to(done)
                page = reading.result()
        if reader.counts != counts:
            raise TransferFailed("the file was changed while it was imported")

    async def compare(self, counts: Counts) -> None:
        """Reads the journal back and holds it against the file. Raises TransferFailed at the first difference."""
        await asyncio.to_thread(self._notes.forget, JOURNAL)
        walk = await self._survey("comparing", counts.commits)
        last = ""
        while streams := await asyncio.to_thread(self._notes.different_streams, last, _STREAMS_AT_ONCE):
            # What the feed does not show yet is read from the streams.
            await asyncio.gather(*map(walk.complete, streams))
            for name in streams:
                if not await asyncio.to_thread(self._notes.is_same, name):
                    raise self._differs(f"{name} is not what the file says")
            last = streams[-1]
        stream = await asyncio.to_thread(self._notes.stream_beyond_the_file)
        if stream is not None:
            raise self._differs(f"it has events of {stream} that the file has not")
        claim = await asyncio.to_thread(self._notes.claim_of_one_side)
        if claim is not None:
            raise self._differs(f"{claim.stream} holds a value for {claim.scope} on one side only")
        if await asyncio.to_thread(self._notes.lacks_a_record, self._clock.now()):
            raise self._differs("an idempotency record of the file is not there")

    def _differs(self, how: str) -> TransferTargetDiffers:
        return TransferTargetDiffers(
            f"{self.written:,} commits were written, but read back the journal differs from the file: {how}; "
            "does anything else write to it?"
        )

    async def _survey(self, what: str, total: int) -> JournalWalk:
        """Notes all that the journal holds."""
        walk = JournalWalk(self._journal, self._notes)
        with self._progress(what, total) as advance_to:
            done = 0
            async for commits in walk.pages():
                done += len(commits)
                advance_to(done)
        async for claims in self._journal.held_claims():
            await asyncio.to_thread(self._notes.keep_claims, JOURNAL, claims)
        async for records in self._journal.idempotency_records():
            await asyncio.to_thread(self._notes.keep_records, JOURNAL, records)
        return walk

    async def _reader(self) -> TransferReader:
        return await asyncio.to_thread(TransferReader, self._source)

    def _note(self, page: TransferPage) -> None:
        """Notes what a page of the file says, and refuses what is no beginning of a journal or can't be appended."""
        names = {stored.commit.stream for stored in page.commits}
        seen, there = self._notes.streams(FILE, names), self._notes.streams(JOURNAL, names)
        for stored in page.commits:
            commit, stream = stored.commit, stored.commit.stream
            before = seen.get(stream, NOTHING)
            if not STREAM.fullmatch(stream):
                raise TransferFileDamaged(f"not the name of a stream: {stream[:300]!a}")
            if commit.first_sequence_number != before.last + 1:
                raise TransferFileDamaged(
                    f"{stream} is not contiguous in the file: after sequence number {before.last} comes "
                    f"{commit.first_sequence_number}; export again"
                )
            try:
                check_limits(stream, commit.events, self._journal.limits)
            except CommitTooLarge as problem:
                raise TransferFailed(
                    f"{problem}; the limits of this journal are lower; nothing was written"
                ) from problem
            after = seen[stream] = before.followed_by(stored)
            known = there.get(stream, NOTHING)
            if before.last < known.last <= after.last and known != after:
                raise TransferTargetDiffers(
                    f"{stream} in the journal is not what the file says up to sequence number {known.last}; "
                    f"{_HOW_TO_DIFFER}"
                )
        self._notes.keep(FILE, seen)
        if self._notes.keep_claims(FILE, page.claims) != len(page.claims):
            raise TransferFileDamaged("the file says of a claim twice who holds it; export again")
        if self._notes.keep_records(FILE, page.records) != len(page.records):
            raise TransferFileDamaged("the file holds an idempotency record twice; export again")

    def _next(self, reader: TransferReader) -> _Work | None:
        """What the next page asks to be written; commits that are there already are left out."""
        page = reader.page()
        if page is None:
            return None
        there = self._notes.streams(JOURNAL, {stored.commit.stream for stored in page.commits})
        streams: dict[str, list[StoredCommit]] = {}
        for stored in page.commits:
            if stored.commit.first_sequence_number > there.get(stored.commit.stream, NOTHING).last:
                streams.setdefault(stored.commit.stream, []).append(stored)
        return _Work(len(page.commits), list(streams.values()), page.claims, page.records)

    async def _write_page(self, work: _Work) -> None:
        # Streams side by side, so that their commits share durable writes; within a stream one after the other.
        outcomes = await asyncio.gather(*map(self._append, work.streams), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        if work.claims or work.records:
            await self._journal.restore_held(work.claims, work.records)

    async def _append(self, commits: Sequence[StoredCommit]) -> None:
        for commit, document in commits:
            landed = await self._journal.append(
                commit.stream, commit.first_sequence_number - 1, commit.events, metadata=commit.metadata
            )
            self.written += 1
            if encode_commit(landed.metadata, landed.events) != document:
                raise TransferTargetDiffers(
                    f"{commit.stream} has another commit with the same id at sequence number "
                    f"{commit.first_sequence_number}"
                )
