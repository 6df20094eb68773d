"""The fence of a PostgreSQL journal: appends carry the term of their site's lease, and the database compares.

Used by the journal, which is a `FencedJournal` by it, and by its appends. Two comparisons in the appending statement:

- the term with the one in the table `fence`. It is exact: raising it takes the lock that no append may hold.
- the time with the database's own clock, for a database that nobody can raise the fence of, because it was cut off. It
  keeps an append out that was frozen on its way. A database whose wall clock is set back just then lets it in; what
  came in so late is not acknowledged (see `journal/lease/guarded.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from kiseki.clients.postgres import PostgresConnection, transaction
from kiseki.journal.lease.port import NotTheWriter, elapsed_clock

__all__ = ["ALLOWED", "OPEN", "Permit", "fenced_term", "new_permit", "open_fence", "raise_fence", "refuse_when_fenced"]


class Permit(NamedTuple):
    """What an append carries."""

    term: int
    until: datetime
    """By the database's clock."""


OPEN: Final = Permit(0, datetime(9999, 1, 1, tzinfo=UTC))
"""Of a service without a lease."""

# As one value of the whole statement, of two parameters that follow it.
ALLOWED: Final = "(SELECT fence.term <= {term}::bigint AND clock_timestamp() < {until}::timestamptz FROM fence)"
_LOOK: Final = "SELECT term, term <= $1 AND clock_timestamp() < $2 AS allowed FROM fence"
_TERM: Final = "SELECT term FROM fence"
_RAISE: Final = "UPDATE fence SET term = $1"
_TIME: Final = "SELECT clock_timestamp()"


async def refuse_when_fenced(connection: PostgresConnection, permit: Permit) -> None:
    """After a statement that wrote less than it was to: was that the fence? It only ever closes, so this is certain.

    Raises NotTheWriter; what asyncpg raises.
    """
    row = await connection.fetchrow(_LOOK, permit.term, permit.until)
    if row is not None and row["allowed"]:
        return
    term = 0 if row is None else row["term"]
    if term <= permit.term:
        raise NotTheWriter("an append came to the journal after its lease had lapsed; it was refused")
    mine = f"term {permit.term}" if permit.term else "a process without a lease (set `lease` and `site`)"
    raise NotTheWriter(f"the journal is written by another site, in term {term}, and refuses {mine}")


async def raise_fence(connection: PostgresConnection, term: int, label: str) -> None:
    """Waits for appends under way, and lets none of an earlier term follow.

    Raises NotTheWriter; what asyncpg raises.
    """
    async with transaction(connection):
        # An append takes its lock before the snapshot by which it sees the fence.
        await connection.execute("LOCK TABLE commits IN EXCLUSIVE MODE")
        there = await connection.fetchval(_TERM)
        if there > term:
            raise NotTheWriter(f"{label} is written by another site, in term {there}, and refuses term {term}")
        await connection.execute(_RAISE, term)


async def open_fence(connection: PostgresConnection) -> None:
    """Lets everybody append. Raises what asyncpg raises."""
    await connection.execute(_RAISE, 0)


async def fenced_term(connection: PostgresConnection) -> int:
    """The term that the database knows. Raises what asyncpg raises."""
    term: int = await connection.fetchval(_TERM)
    return term


async def new_permit(connection: PostgresConnection, term: int, until: float) -> Permit:
    """A permit until a time of `elapsed_clock`. The database's clock was read before the answer came, so by it the end
    is no later. Raises what asyncpg raises."""
    time: datetime = await connection.fetchval(_TIME)
    return Permit(term, time + timedelta(seconds=until - elapsed_clock()))
