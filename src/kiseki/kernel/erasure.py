"""The port `ErasureLog`: what is told of erasures before and after they happen. Filled by the security room.

The command side and whoever follows the journal tell it. Behind it is the ledger of erasures, which no backup contains.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["ErasureLog", "NoErasureLog", "PlannedErasure"]


class PlannedErasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that was decided. Names of streams are pseudonyms: nothing here is personal data."""

    subject: str
    stream: str
    """The stream whose event says so; mostly the subject itself. Empty for who only destroys keys: then one that was
    begun for the subject already is meant, if there is one."""
    actor: str | None = None
    """Who asked for it; None for who only finds that it was decided."""
    command: str = ""
    """The command that decided it, when it has no other field than the id of its stream, so that it can be sent again;
    else empty."""


class ErasureLog(Protocol):
    """Remembers erasures where a restore of the stores does not reach."""

    async def begin(self, erasure: PlannedErasure) -> None:
        """Before the fact is written and before keys are destroyed; durable when this returns. Raises Unavailable."""
        ...

    async def finish(self, subject: str) -> None:
        """After the keys were destroyed; durable when this returns. Raises Unavailable."""
        ...

    async def withdraw(self, subject: str, stream: str) -> None:
        """It is certain that nothing was written, and whoever asked is told so: nobody is to carry it out later.
        Raises Unavailable."""
        ...


class NoErasureLog:
    """An ErasureLog that remembers nothing: for tests, and for stores that are never restored."""

    async def begin(self, erasure: PlannedErasure) -> None:
        """As ErasureLog: nothing to do."""

    async def finish(self, subject: str) -> None:
        """As ErasureLog: nothing to do."""

    async def withdraw(self, subject: str, stream: str) -> None:
        """As ErasureLog: nothing to do."""
