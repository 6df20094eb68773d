"""`ErasureLedger`: remembers every erasure where no restore of the stores reaches (kernel.erasure.ErasureLog).

Used by the command side and by whoever follows the journal, through the port; by replaying; by `kiseki erasure`.

The order of an erasure, each step durable before the next: the line `erase`, the fact in the journal, the tombstone in
place of the keys, the line `done`, the reply. So a fact in a journal and a tombstone in a key store always have a line
here, and whatever crashes in between, replaying finds an open line and finishes it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple, Self

from kiseki.kernel.erasure import PlannedErasure
from kiseki.kernel.ports import Clock
from kiseki.security.digests import Digests
from kiseki.security.erasure.lines import (
    Kind,
    LedgerBroken,
    Line,
    Mark,
    check_line,
    check_mark,
    new_line,
    new_mark,
)
from kiseki.security.erasure.store import LedgerStore

__all__ = ["Entry", "ErasureLedger", "LedgerForeign"]

_PAGE: Final = 1_000
_REMEMBERED: Final = 10_000


class LedgerForeign(LedgerBroken):
    """The ledger belongs to another key store."""

    code = "ERASURE_LEDGER_FOREIGN"


class LedgerMissing(LedgerBroken):
    """The ledger is empty, and the journal is not: its place is not mounted, or it was not put back."""

    code = "ERASURE_LEDGER_MISSING"


class Entry(NamedTuple):
    """One erasure of the ledger."""

    line: Line
    """The line that began it."""
    is_done: bool
    """The keys were destroyed; else it is open: a crash, or it is on its way."""


class ErasureLedger:
    """The ledger of one key store. Made by `open`; belongs to one event loop."""

    def __init__(self, store: LedgerStore, digests: Digests, clock: Clock) -> None:
        self._store = store
        self._key = digests.ledger_key
        self._key_store_id = digests.key_store_id
        self._clock = clock
        self._open: OrderedDict[str, dict[str, int]] = OrderedDict()
        """Lines begun by this process and not finished yet: numbers by subject and stream; bounded."""
        self._adding = asyncio.Lock()

    @classmethod
    async def open(cls, store: LedgerStore, *, digests: Digests, clock: Clock, begin: bool = True) -> Self:
        """The ledger in a store; an empty one is begun for this key store. The ledger closes the store.

        Raises LedgerForeign, LedgerBroken, LedgerUnavailable.
        """
        ledger = cls(store, digests, clock)
        first = await store.lines(0, 1)
        if not first and not begin:
            raise LedgerMissing(
                "the ledger of erasures is empty, and the journal is not: put the ledger back, or mount its place; if "
                "there never was one, run `kiseki erasure begin`"
            )
        if not first:
            await ledger._add(Kind.OPENED, ledger._key_store_id, only_first=True)
            first = await store.lines(0, 1)
        if first[0].kind is Kind.OPENED and first[0].subject != ledger._key_store_id:
            raise LedgerForeign(
                f"the ledger of erasures belongs to the key store {first[0].subject[:12]}, and this one is "
                f"{ledger._key_store_id[:12]}; check where `erasure_ledger` and `keys` lead"
            )
        check_line(ledger._key, None, first[0])
        if first[0].kind is not Kind.OPENED:
            raise LedgerBroken("the ledger of erasures does not say whose it is: restore it from its own copy")
        return ledger

    async def begin(self, erasure: PlannedErasure) -> None:
        """As ErasureLog. Again, before it was finished or withdrawn, writes nothing."""
        begun = self._open.get(erasure.subject, {})
        if erasure.stream in begun or (begun and not erasure.stream):
            return
        line = await self._add(Kind.ERASE, erasure.subject, stream=erasure.stream, command=erasure.command)
        self._open.setdefault(erasure.subject, begun)[erasure.stream] = line.number
        if len(self._open) > _REMEMBERED:  # of decisions that came to nothing; replaying sees to them
            self._open.popitem(last=False)

    async def finish(self, subject: str) -> None:
        """As ErasureLog. Writes nothing for a subject that this process did not begin with."""
        for number in list(self._open.get(subject, {}).values()):
            await self.settle(number, subject, Kind.DONE)

    async def withdraw(self, subject: str, stream: str) -> None:
        """As ErasureLog."""
        number = self._open.get(subject, {}).get(stream)
        if number is not None:
            await self.settle(number, subject, Kind.WITHDRAWN)

    async def settle(self, number: int, subject: str, kind: Kind) -> None:
        """Writes what became of the erasure that a line began: done or withdrawn. Raises LedgerUnavailable."""
        await self._add(kind, subject, refers=number)
        begun = self._open.get(subject, {})
        for stream in [stream for stream, one in begun.items() if one == number]:
            del begun[stream]
        if not begun:
            self._open.pop(subject, None)

    def take_up(self, line: Line) -> None:
        """From now on this process is the one that finishes what a line began."""
        self._open.setdefault(line.subject, {})[line.stream] = line.number

    async def adopt(self, subject: str) -> None:
        """Writes down an erasure that is in force already. Raises LedgerUnavailable."""
        line = await self._add(Kind.ERASE, subject)
        await self.settle(line.number, subject, Kind.DONE)

    async def entries(self, after: int = 0) -> AsyncGenerator[Entry, None]:
        """The erasures begun after a line, in order, without those withdrawn. Reads them twice, the chain checked.

        Raises LedgerBroken, LedgerUnavailable.
        """
        done: set[int] = set()
        withdrawn: set[int] = set()
        async for line in self.lines(after):
            if line.kind is Kind.DONE:
                done.add(line.refers)
            elif line.kind is Kind.WITHDRAWN:
                withdrawn.add(line.refers)
        async for line in self.lines(after):
            # Done is for good: another process may have found it open, and withdrawn it, while it was on its way.
            if line.kind is Kind.ERASE and (line.number in done or line.number not in withdrawn):
                yield Entry(line, line.number in done)

    async def lines(self, after: int = 0) -> AsyncGenerator[Line, None]:
        """The lines after one, in order, each checked against the one before. Raises as `entries`."""
        before: Line | None = None
        if after:
            found = await self._store.lines(after - 1, 1)
            if not found or found[0].number != after:
                raise LedgerBroken(f"the ledger of erasures lacks line {after}: restore it from its own copy")
            before = found[0]
        while page := await self._store.lines(after, _PAGE):
            for line in page:
                check_line(self._key, before, line)
                yield line
                before = line
            after = page[-1].number

    async def last(self) -> Line | None:
        """The newest line. Raises LedgerUnavailable."""
        return await self._store.last()

    async def mark(self) -> Mark | None:
        """How far the ledger was proved to be in force; None when that is not known.

        Raises LedgerBroken when the ledger does not reach that far any more, LedgerUnavailable.
        """
        mark = await self._store.mark()
        if mark is None or not check_mark(self._key, mark):
            return None
        there = await self._store.lines(mark.number - 1, 1)
        if not there or there[0].number != mark.number or there[0].mac != mark.line_mac:
            raise LedgerBroken(
                f"the ledger of erasures does not hold line {mark.number} any more as it was: it was cut, or "
                "replaced by an older copy; restore its newest copy"
            )
        return mark

    async def set_mark(self, line: Line, key_mark: int, settled: tuple[int, ...] = ()) -> None:
        """Notes that everything up to a line is in force. Raises LedgerUnavailable."""
        await self._store.set_mark(new_mark(self._key, line, key_mark, settled))

    async def close(self) -> None:
        """Closes the store; again is fine."""
        await self._store.close()

    async def _add(
        self,
        kind: Kind,
        subject: str,
        *,
        stream: str = "",
        command: str = "",
        refers: int = 0,
        only_first: bool = False,
    ) -> Line:
        async with self._adding:  # those of one process need not get into each other's way
            while True:
                before = await self._store.last()
                if only_first and before is not None:
                    return before
                line = new_line(
                    self._key,
                    before,
                    kind=kind,
                    at=self._clock.now(),
                    subject=subject,
                    stream=stream,
                    command=command,
                    refers=refers,
                )
                # Ends: every further turn is a line that somebody else got through.
                if await self._store.add(line):
                    return line
