"""What a store adds to a `Journal` so that all of it can be moved, and the errors of moving it.

Commits move through `feed` and `append`. Claims and idempotency records are kept beside them and can't be told from
them, so a store lists and restores them. Every store implements this; `export`, `import` and the
conformance tests use it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeAlias

import msgspec

from kiseki.journal.port import ClaimTaken, IdempotencyRecord, IdempotencyTaken, Journal, Position
from kiseki.kernel.errors import KisekiError

__all__ = [
    "HELD_PAGE",
    "HeldClaim",
    "Progress",
    "TransferFailed",
    "TransferFileDamaged",
    "TransferTargetDiffers",
    "TransferableJournal",
    "claims_by_value",
    "records_by_key",
    "why",
]

HELD_PAGE: Final = 500
"""Claims, or records, that one call of `restore_held` gets at most."""

Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Begins to show a piece of work: its name and how much it is; gives what is told how much is done."""


class TransferFailed(KisekiError):
    """A journal could not be exported or imported. The message says what was written and what to do."""

    code = "TRANSFER_FAILED"


class TransferFileDamaged(TransferFailed):
    """The file is not a whole, unchanged export. Nothing was written."""

    code = "TRANSFER_FILE_DAMAGED"


class TransferTargetDiffers(TransferFailed):
    """The journal holds what the file does not say, so the one can't become the other."""

    code = "TRANSFER_TARGET_DIFFERS"


class HeldClaim(msgspec.Struct, frozen=True):
    """A value that a stream holds within a scope. `digest` is a keyed hash of the value."""

    scope: str
    digest: str
    stream: str


class TransferableJournal(Journal, Protocol):
    """A journal that can be moved as a whole."""

    async def beginning(self) -> Position:
        """Where a walk by `feed` begins that has to meet all of the journal.

        `START` says that too, but where a feed's end can't be told for sure, a walk from there may end before it. From
        here it does not end before it has met all that was appended before this call. Raises JournalUnavailable.
        """
        ...

    async def life(self) -> str:
        """Names the life that the journal is in; whoever restores one begins another. In one life it only grows: what
        was read from it is in it as long as this stays the same. Never empty. Raises JournalUnavailable.
        """
        ...

    def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """Every claim that is held, once, in pages of bounded size and in any order.

        What changes meanwhile may be seen or not. Raises CorruptJournal, JournalUnavailable.
        """
        ...

    def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """Every unexpired idempotency record, once, in pages of bounded size and in any order.

        What changes meanwhile may be seen or not. Raises CorruptJournal, JournalUnavailable.
        """
        ...

    async def restore_held(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """Adds those that are missing, at most `HELD_PAGE` of each, durable when this returns; the same again is fine.

        Their commits need not be there. Records that have expired are left out, and give way to others of their key.
        Raises ClaimTaken when another stream holds a value, IdempotencyTaken when an unexpired record of a key says
        something else, JournalUnavailable; some of them may have been added then.
        """
        ...


def claims_by_value(claims: Sequence[HeldClaim]) -> dict[tuple[str, str], str]:
    """Who holds (scope, digest), for stores: each value once. Raises ClaimTaken when two streams are said to."""
    holders: dict[tuple[str, str], str] = {}
    for claim in claims:
        if holders.setdefault((claim.scope, claim.digest), claim.stream) != claim.stream:
            raise ClaimTaken(claim.scope)
    return holders


def records_by_key(records: Sequence[IdempotencyRecord]) -> dict[str, IdempotencyRecord]:
    """Records by their key, for stores: each key once. Raises IdempotencyTaken when two say different things."""
    kept: dict[str, IdempotencyRecord] = {}
    for record in records:
        if kept.setdefault(record.key, record) != record:
            raise IdempotencyTaken("two idempotency records of one key say different things")
    return kept


def why(problem: OSError) -> str:
    """The cause that an operating system gives, as part of a line."""
    return (problem.strerror or str(problem)).lower()
