"""What commands cost on DynamoDB: units of writing per second, table by table. Used by `plan`.

One unit writes 1 KB a second; in a transaction twice. An index is written besides, and has a maximum of its own.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/on-demand-capacity-mode.html
"""

from __future__ import annotations

from math import ceil
from typing import Final

import msgspec

__all__ = ["NEW_TABLE", "TABLE_QUOTA", "Commands", "Writes", "writes_of"]

NEW_TABLE: Final = 4_000
"""Units of writing that a new on-demand table takes at once; more it learns, or is warmed up for."""
TABLE_QUOTA: Final = 40_000
"""Units of writing that an account may use of one table unless AWS raised the quota."""
_KB: Final = 1_024
_TRANSACTION: Final = 2


class Commands(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is expected at the busiest time."""

    per_second: float
    """Commands that write, a second."""
    commit_bytes: int = 1_024
    """Of an item of the journal, at most in most cases: what is above counts as the next KB."""
    claims: float = 1.0
    """Unique values that a command takes or lets go, on average."""


class Writes(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Units of writing of one table, or of an index of it."""

    table: str
    """Without the prefix; `journal/by-slice` is an index."""
    units: int
    """A second."""
    formula: str


def writes_of(commands: Commands) -> tuple[Writes, ...]:
    """What the commands write, if each has an Idempotency-Key and makes a key of personal data: it is never more."""
    each = ceil(commands.commit_bytes / _KB)
    beside = commands.claims + 1
    rate = f"{commands.per_second:g}/s"
    return (
        Writes(
            table="journal",
            units=ceil(commands.per_second * each * _TRANSACTION),
            formula=f"{rate} × {each} KB × {_TRANSACTION}",
        ),
        Writes(table="journal/by-slice", units=ceil(commands.per_second), formula=f"{rate} × 1 KB, keys only"),
        Writes(
            table="claims",
            units=ceil(commands.per_second * beside * _TRANSACTION),
            formula=f"{rate} × {beside:g} items × {_TRANSACTION}",
        ),
        Writes(table="keys", units=ceil(commands.per_second), formula=f"{rate} × 1 item"),
    )
