"""The lease of a service: its record, the store that keeps it, and what a journal offers that can refuse by itself.

The record lies in a witness region, which is neither of the two sites. Every change of it is compare-and-set, so all
changes have one order. Three facts make it safe, and none of them compares the wall clocks of two machines:

1. A process may write for `seconds` from the START of a change that put it among the writers, less a margin, by its own
   monotonic clock. Only an active record takes writers, and only of the holder's site.
2. A failover first makes the record say `handing-over`. Whatever was granted was asked for before that moment.
3. The failover then waits until every writer has let go, or the longest of their leases has passed, with a margin, by
   its own monotonic clock. Only then is the record active again, for another site.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from kiseki.journal.port import JournalUnavailable
from kiseki.kernel.errors import KisekiError

__all__ = [
    "FencedJournal",
    "LeaseBroken",
    "LeaseRecord",
    "LeaseStore",
    "LeaseUnavailable",
    "Monotonic",
    "NotTheWriter",
    "WriterEntry",
    "elapsed_clock",
    "wait_of",
]

CLOCK_RATE: Final = 0.01
"""By how much two monotonic clocks may differ in their speed; real ones differ by a ten-thousandth."""

Monotonic: TypeAlias = Callable[[], float]
"""Seconds that never go back, also while the machine sleeps."""


class NotTheWriter(JournalUnavailable):
    """This process may not write now: its site does not hold the lease, or its lease has lapsed."""

    code = "NOT_THE_WRITER"

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class LeaseUnavailable(JournalUnavailable):
    """The witness can't be asked now. Who may write goes on doing so until their lease lapses."""

    code = "LEASE_UNAVAILABLE"


class LeaseBroken(KisekiError):
    """What is kept as the lease is no record of one."""

    code = "LEASE_BROKEN"


class WriterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One process that may write."""

    seconds: float
    """How long its permission lasts from the start of its last renewal."""
    renewals: int
    renewed_at: datetime
    """By its own wall clock: for people, nothing depends on it."""


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may write. There is one for a service."""

    version: int
    """Raised by each change."""
    stamp: str
    """Random, of each change: whoever got no answer recognises its own."""
    holder: str
    """The site that writes, or wrote until the handing over began."""
    term: int
    """Raised whenever a site begins to write: a store that knows it refuses writers of earlier terms."""
    state: Literal["active", "handing-over"]
    since: datetime
    """When the state began, by the wall clock of who changed it: for people."""
    writers: Mapping[str, WriterEntry] = {}
    target: str = ""
    """The site that is to write next, while handing over."""
    operation: str = ""
    """Random, of the run of the failover that is at work."""
    operator: str = ""
    """Who runs it, for people."""
    beat: int = 0
    """Counted up while that run lives."""
    waited: bool = False
    """No writer is left: the wait is over, and a run that is resumed need not wait again."""

    def changed(self, **fields: object) -> LeaseRecord:
        """The record after a change."""
        return msgspec.structs.replace(self, version=self.version + 1, stamp=secrets.token_hex(8), **fields)

    def admits(self, site: str) -> bool:
        """Whether processes of a site may write."""
        return self.state == "active" and self.holder == site


class LeaseStore(Protocol):
    """Keeps one record. Reading sees every change that was acknowledged before; all methods raise LeaseUnavailable."""

    @property
    def label(self) -> str:
        """Where it is, for messages; no secret."""
        ...

    async def read(self) -> LeaseRecord | None:
        """The record, None where there is none. Raises LeaseBroken."""
        ...

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        """Puts a record in the place of the one of `before`'s version (None: of none), durable when this returns True.

        False: another one is there. When it raises, the change may have happened or not.
        """
        ...

    async def close(self) -> None:
        """Lets go of the store. Again is fine."""
        ...


@runtime_checkable
class FencedJournal(Protocol):
    """A journal whose store compares the term of an append with its own, and its time with the store's."""

    async def fence(self, term: int) -> None:
        """Refuses appends of earlier terms from now on; those under way end first. Raises NotTheWriter when the store
        knows a later term, JournalUnavailable."""
        ...

    async def unfence(self) -> None:
        """Takes appends of everybody again, of processes without a lease too. Raises JournalUnavailable."""
        ...

    async def fenced_term(self) -> int:
        """The term that the store knows; 0 when it never had one. Raises JournalUnavailable."""
        ...

    async def permit(self, term: int, seconds: float) -> None:
        """Appends of this journal carry the term from now on, and are refused by the store when they reach it more than
        `seconds` after the beginning of this call. Raises JournalUnavailable."""
        ...


def elapsed_clock() -> float:
    """A Monotonic of this machine. On Linux it goes on while the machine sleeps, which `time.monotonic` does not."""
    return time.clock_gettime(_CLOCK)


_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wait_of(record: LeaseRecord) -> float:
    """How long, by a clock that may be slower, to wait until no writer of a record has permission any more."""
    longest = max((writer.seconds for writer in record.writers.values()), default=0.0)
    return longest * (1 + 2 * CLOCK_RATE)
