"""`ErasureReplay`: brings every erasure of the ledger into force. Run before a process serves, and now and then.

What a restore brings back is taken away again: keys, facts that the journal has lost, claims, snapshots. Where nothing
was restored only the newest erasures are looked at. A restore shows by a key store that knows fewer erasures than the
mark says, or by one of the newest that is not in force; then all of them are looked at.

The newest are enough to tell, because a restore goes back in time: a store from before an erasure lacks that erasure
and all later ones. Those that were made side by side may stand in another order in the ledger than in the journal, and
that is what the number of those looked at is for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import msgspec

from kiseki.journal.port import SnapshotStore
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.decider import Rejected
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor
from kiseki.security.erasure.ledger import Entry, ErasureLedger
from kiseki.security.erasure.lines import Kind, Line, Mark
from kiseki.security.grouped import each
from kiseki.security.key_store import KeyStore
from kiseki.security.protector import KeyProtector

__all__ = ["AppliedRows", "EraseAgain", "ErasureReplay", "ReplayJournal", "ReplayReport"]

_PAGE: Final = 200
_NAMED_AT_MOST: Final = 100
_NEWEST: Final = 300
"""Lines before the mark that are looked at again each time: some 150 erasures."""

_log = logging.getLogger(__name__)


class EraseAgain(Protocol):
    """Decides the command of an erasure once more (`CommandHandler.erase_again`)."""

    def __call__(self, stream: str, name: str, held: Sequence[tuple[str, str]], /) -> Awaitable[object]:
        """`held`: claims that the stream holds. Raises Rejected, KeyError, Unavailable."""
        ...


class AppliedRows(Protocol):
    """What is known of the read models that answer queries (`projection.erasure.ErasedRows`)."""

    async def behind(self, facts: Mapping[str, int]) -> Collection[str]:
        """The streams whose fact, of this sequence number, some live build has not applied. Raises Unavailable."""
        ...

    async def reached(self, streams: Collection[str]) -> Mapping[str, int]:
        """The highest sequence number of each stream that a live build has applied; 0 for none. Raises Unavailable."""
        ...

    async def build_anew(self, streams: Collection[str]) -> None:
        """Returns when every live build that has applied something of these streams was replaced by a new one."""
        ...

    async def until_applied(self, facts: Mapping[str, int]) -> Collection[str]:
        """Waits until all have, except the streams it returns: they are parked, and an operator has to see to them."""
        ...


class ReplayJournal(TransferableJournal, SnapshotStore, Protocol):
    """A journal that keeps snapshots too."""


class ReplayReport(msgspec.Struct, kw_only=True):
    """What was looked at, and what had to be done."""

    looked_at: int = 0
    everything: bool = False
    """All erasures were looked at, not only the newest."""
    facts_made: int = 0
    keys_destroyed: int = 0
    finished: int = 0
    """Erasures that a crash had left open."""
    withdrawn: int = 0
    adopted: int = 0
    """Erasures that the key store knew and the ledger did not."""
    without_fact: list[str] = msgspec.field(default_factory=list)
    """Subjects whose keys are destroyed though the journal holds no fact of it; the first hundred."""
    parked: list[str] = msgspec.field(default_factory=list)
    """Erased streams whose rows may still be in a read model, because they are parked."""

    @property
    def changed(self) -> int:
        """How much was not in force."""
        return self.facts_made + self.keys_destroyed + self.adopted

    def __str__(self) -> str:
        what = "all" if self.everything else "the newest"
        return (
            f"{self.looked_at:,} erasures looked at ({what}): {self.facts_made} facts made again, "
            f"{self.keys_destroyed} keys destroyed again, {self.finished} finished, {self.withdrawn} withdrawn, "
            f"{self.adopted} adopted, {len(self.parked)} parked"
        )


class ErasureReplay:
    """Replays one ledger onto the stores of one service. Several processes may do so at once."""

    def __init__(
        self,
        *,
        ledger: ErasureLedger,
        key_store: KeyStore,
        protector: KeyProtector,
        journal: ReplayJournal,
        erasing: Collection[str],
        erase_again: EraseAgain,
        rows: AppliedRows,
        auditor: Auditor | None = None,
    ) -> None:
        """`erasing`: names of the events that erase their subject."""
        self._ledger = ledger
        self._key_store = key_store
        self._protector = protector
        self._journal = journal
        self._erasing = frozenset(erasing)
        self._erase_again = erase_again
        self._rows = rows
        self._auditor = auditor
        self._running = asyncio.Lock()

    async def run(self, *, everything: bool = False) -> ReplayReport:
        """Brings every erasure into force, in stores and read models; the mark is set when all are.

        `everything`: looks at all of them, whatever the mark says. Raises LedgerBroken, CorruptJournal, UnknownEvent,
        Unavailable; then nothing may be served.
        """
        async with self._running:
            head = await self._ledger.last()
            mark = await self._ledger.mark()
            key_mark = (await self._key_store.erasures(None)).mark
            everything = everything or mark is None or key_mark < mark.key_mark
            # More than the lines after the mark account for: the ledger is an older copy, and does not know them.
            if mark is not None and not everything:
                told = {entry.line.subject async for entry in self._ledger.entries(mark.number) if entry.is_done}
                everything = key_mark > mark.key_mark + len(told)
            self._settled = set(mark.settled) if mark is not None and not everything else set()
            self._stale: set[str] = set()
            if mark is not None and not everything:
                report, facts = await self._pass(max(0, mark.number - _NEWEST), mark.number)
                if report is None:
                    everything = True
            if everything or mark is None:
                report, facts = await self._pass(0, None)
                assert report is not None  # noqa: S101  # without a number nothing ends it early
                report.everything = True
                report.adopted = await self._adopt()
            assert report is not None  # noqa: S101
            if self._stale:
                _log.error(
                    "read models hold %d erased streams whose fact the journal has lost; they are built anew before "
                    "anything is served",
                    len(self._stale),
                )
                await self._rows.build_anew(self._stale)
            await self._key_store.tidy()
            report.parked = sorted(await self._rows.until_applied(facts))
            for stream in report.parked[:10]:
                _log.error(
                    "%s was erased, and is parked in a read model: its rows stay there until it is retried", stream
                )
            if head is not None and not report.parked and head.number >= (mark.number if mark else 0):
                await self._note_mark(mark, head, (await self._key_store.erasures(None)).mark)
            return report

    async def _note_mark(self, mark: Mark | None, head: Line, key_mark: int) -> None:
        settled = tuple(sorted(self._settled))
        if mark is not None and (mark.number, mark.key_mark, mark.settled) == (head.number, key_mark, settled):
            return
        try:
            await self._ledger.set_mark(head, key_mark, settled)
        except Unavailable as problem:
            # It only saves work, and a place that can be read is enough to serve.
            _log.warning("how far erasures are in force is not noted: %s", problem)

    async def _pass(self, after: int, proved: int | None) -> tuple[ReplayReport | None, dict[str, int]]:
        """Looks at the erasures after a line; no report when one up to the line `proved` was not in force."""
        report = ReplayReport()
        facts: dict[str, int] = {}
        page: list[Entry] = []
        async with aclosing(self._ledger.entries(after)) as entries:
            async for entry in entries:
                page.append(entry)
                if len(page) == _PAGE:
                    if not await self._see_to(page, proved, report, facts):
                        return None, {}
                    page = []
        if page and not await self._see_to(page, proved, report, facts):
            return None, {}
        return report, facts

    async def _see_to(
        self, page: Sequence[Entry], proved: int | None, report: ReplayReport, facts: dict[str, int]
    ) -> bool:
        report.looked_at += len(page)
        numbers = await each(lambda entry: self._fact(entry.line), page)
        found = {_stream(entry.line): number for entry, number in zip(page, numbers, strict=True) if number}
        # Not by opening keys: one that is damaged, or whose master key is gone, can be destroyed all the same.
        known = await self._key_store.load({entry.line.subject for entry in page})
        erased = {subject for subject, keys in known.items() if keys.erased_at is not None}
        if proved is not None:
            old = [entry.line for entry in page if entry.line.number <= proved]
            lost_key = any(line.subject in known and line.subject not in erased for line in old)
            behind = await self._rows.behind(
                {_stream(line): found[_stream(line)] for line in old if _stream(line) in found}
            )
            if lost_key or behind or await self._lost_facts(old, found):
                return False
        lost = [entry for entry, number in zip(page, numbers, strict=True) if number is None and entry.line.command]
        held = await self._held({entry.line.stream for entry in lost}) if lost else {}
        before = {_stream(entry.line) for entry, number in zip(page, numbers, strict=True) if number is None}
        reached = await self._rows.reached(before) if before else {}
        for entry, number in zip(page, numbers, strict=True):
            is_erased = entry.line.subject in erased
            fact = await self._bring_into_force(entry, number, is_erased, held.get(entry.line.stream, ()), report)
            if fact is not None:
                facts[_stream(entry.line)] = fact
            number_reached = reached.get(_stream(entry.line), 0)
            if number is not None or entry.line.number in self._settled:
                continue
            if fact is not None:
                if number_reached >= fact:  # the build is from after what the journal is from: it would pass it over
                    self._stale.add(_stream(entry.line))
            elif entry.line.subject in await self._gone({entry.line.subject}):
                self._settled.add(entry.line.number)
                if number_reached:
                    self._stale.add(_stream(entry.line))
        return True

    async def _gone(self, subjects: Collection[str]) -> set[str]:
        known = await self._key_store.load(subjects)
        return {subject for subject, keys in known.items() if keys.erased_at is not None}

    async def _lost_facts(self, lines: Sequence[Line], found: Mapping[str, int]) -> bool:
        """Whether the journal holds one of these streams, but not that it was erased."""
        for line in lines:
            if line.command and line.stream not in found and line.number not in self._settled:
                async for _ in self._journal.read(line.stream):
                    return True
        return False

    async def _bring_into_force(
        self,
        entry: Entry,
        fact: int | None,
        is_erased: bool,
        held: Sequence[tuple[str, str]],
        report: ReplayReport,
    ) -> int | None:
        line = entry.line
        if entry.is_done and is_erased and (fact is not None or not line.command):
            return fact
        self._ledger.take_up(line)
        if fact is None and line.command:
            # Before the keys go: with them the claims can be told that have to be given back.
            try:
                await self._erase_again(line.stream, line.command, held)
            except (Rejected, KeyError) as problem:
                _log.info("%s is not erased again in the journal: %s", line.stream, problem)
            else:
                fact = await self._fact(line)
                report.facts_made += fact is not None
        if fact is None and line.stream and not entry.is_done and not is_erased:
            # It was decided, but never became a fact, and was never acknowledged.
            await self._ledger.settle(line.number, line.subject, Kind.WITHDRAWN)
            report.withdrawn += 1
            return None
        if fact is None and len(report.without_fact) < _NAMED_AT_MOST:
            report.without_fact.append(line.subject)
        if not is_erased:
            if not await self._gone([line.subject]):
                await self._protector.destroy(line.subject)
            report.keys_destroyed += 1
            self._note(line)
        if fact is not None:
            await self._journal.delete_snapshots(_stream(line))
        await self._ledger.finish(line.subject)
        report.finished += not entry.is_done
        return fact

    async def _fact(self, line: Line) -> int | None:
        """The sequence number of the event that erases the subject, as the journal has it now."""
        stream = _stream(line)
        async for page in self._journal.read(stream):
            for event in page:
                if event.type in self._erasing and (event.subject or stream) == line.subject:
                    return event.sequence_number
        return None

    async def _held(self, streams: Collection[str]) -> dict[str, list[tuple[str, str]]]:
        held: dict[str, list[tuple[str, str]]] = {}
        async for page in self._journal.held_claims():
            for claim in page:
                if claim.stream in streams:
                    held.setdefault(claim.stream, []).append((claim.scope, claim.digest))
        return held

    async def _adopt(self) -> int:
        """Writes down erasures that the key store knows and the ledger does not: from before there was one, or of one
        that was lost."""
        told = {entry.line.subject async for entry in self._ledger.entries()}
        unknown = [subject for subject in (await self._key_store.erasures(0)).subjects if subject not in told]
        if unknown:
            _log.warning(
                "the key store knows %d erasures that the ledger does not; they are added. If the ledger is not new, "
                "it was cut or replaced: find out by whom",
                len(unknown),
            )
        for subject in unknown:
            await self._ledger.adopt(subject)
        return len(unknown)

    def _note(self, line: Line) -> None:
        if self._auditor is not None:
            self._auditor.note(
                AuditEvent(
                    kind="erasure.done",
                    outcome="done",
                    target=line.subject,
                    operation="erasure replay",
                    detail=f"line {line.number} of the ledger of erasures",
                )
            )


def _stream(line: Line) -> str:
    return line.stream or line.subject
