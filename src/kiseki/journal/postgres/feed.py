"""The feed of the PostgreSQL journal: what may be read now without ever missing what comes later.

Rows are ordered by (epoch, transaction id, row number). Transactions do not commit in the order of their ids, so a
reader that goes on behind the last row it saw would lose a slow one. It stops before the lowest transaction that may
still bring a commit: the bound.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PostgresConnection
from kiseki.journal.format import FORMAT, decode_commit
from kiseki.journal.port import START, Commit, CorruptJournal, Lag, Position
from kiseki.journal.postgres.schema import Lives

__all__ = [
    "PAGE_BYTES",
    "Place",
    "PlaceLost",
    "place_of",
    "position_of",
    "read_feed",
    "read_head",
    "read_lag",
    "stored",
]

PAGE_BYTES: Final = 2_000_000
_COUNTED_AT_MOST: Final = 10_000

# Who holds a transaction id, and who writes to `commits`. Looked at once, after the statement's snapshot was taken.
_LOCKS: Final = """
    SELECT held.transactionid, held.relation, held.virtualtransaction FROM pg_locks AS held
    WHERE (held.locktype = 'transactionid' AND held.mode = 'ExclusiveLock' AND held.granted)
       OR (held.locktype = 'relation' AND held.relation = 'commits'::regclass AND held.mode = 'RowExclusiveLock'
           AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
# Transactions of others, in this database or another, hold nothing back: of those that the snapshot says are running,
# one counts only when it writes to `commits`, or when that can't be told. It can be told of a transaction that is still
# running after the locks were looked at. It had all its locks then, and an append has the one on `commits` before it
# has an id. Of one that ended meanwhile (it gives its locks back one by one) nothing is known, so it counts.
# A standby's snapshots list no running transactions; there the plain bound is taken.
_BOUND: Final = """
    SELECT coalesce(
        min(running.xid) FILTER (WHERE writing.virtualtransaction IS NOT NULL OR holder.virtualtransaction IS NULL
                                       OR pg_xact_status(running.xid) IS DISTINCT FROM 'in progress'),
        CASE WHEN pg_is_in_recovery() THEN pg_snapshot_xmin(pg_current_snapshot())
             ELSE pg_snapshot_xmax(pg_current_snapshot()) END) AS xid
    FROM pg_snapshot_xip(pg_current_snapshot()) AS running(xid)
    LEFT JOIN locks AS holder ON holder.transactionid = running.xid::xid
    LEFT JOIN (SELECT DISTINCT virtualtransaction FROM locks WHERE relation IS NOT NULL) AS writing
        ON writing.virtualtransaction = holder.virtualtransaction
"""
# Rows of earlier epochs need no bound: a new one begins when no append is under way.
_READABLE: Final = f"""
    WITH locks AS MATERIALIZED ({_LOCKS}),
    bound AS MATERIALIZED ({_BOUND}),
    readable_below AS MATERIALIZED (SELECT (SELECT max(epoch) FROM epochs) AS epoch, (SELECT xid FROM bound) AS xid)
"""  # noqa: S608  # of constants of this module
# The page, and with it the row that the reader saw last, without its document: is it still there?
_FEED: Final = f"""
    {_READABLE}
    SELECT * FROM (
        SELECT epoch, xid, position, stream, first_sequence, count, commit_id, format, checksum, document FROM (
            SELECT *, sum(octet_length(document)) OVER (ORDER BY epoch, xid, position) - octet_length(document)
                AS before
            FROM (
                SELECT * FROM commits
                WHERE (epoch, xid, position) > ($1, $2, $3)
                  AND (epoch, xid) < ((SELECT epoch FROM readable_below), (SELECT xid FROM readable_below))
                ORDER BY epoch, xid, position LIMIT $4) AS next) AS measured
        WHERE before < $5
        UNION ALL
        SELECT epoch, xid, position, stream, first_sequence, count, commit_id, format, checksum, NULL FROM commits
        WHERE (epoch, xid, position) = ($1, $2, $3)) AS page
    ORDER BY epoch, xid, position
"""  # noqa: S608  # as above
_HEAD: Final = f"""
    {_READABLE}
    SELECT epoch, xid, position FROM commits
    WHERE (epoch, xid) < ((SELECT epoch FROM readable_below), (SELECT xid FROM readable_below))
    ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1
"""  # noqa: S608  # as above
# Also what may not be read yet. From a row that is not there, as the feed would: from the start.
_LAG: Final = """
    WITH origin AS MATERIALIZED (
        SELECT max(epoch) AS epoch, max(xid) AS xid, max(position) AS position FROM (
            SELECT epoch, xid, position FROM commits WHERE (epoch, xid, position) = ($1, $2, $3)
            UNION ALL SELECT 0, '0'::xid8, 0) AS known
    ), behind AS MATERIALIZED (
        SELECT position, committed_at FROM commits
        WHERE (epoch, xid, position)
              > ((SELECT epoch FROM origin), (SELECT xid FROM origin), (SELECT position FROM origin))
        ORDER BY epoch, xid, position LIMIT $4
    )
    SELECT (SELECT count(*) FROM behind) AS counted,
           (SELECT committed_at FROM behind LIMIT 1) AS oldest,
           (SELECT position FROM commits ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1)
               - (SELECT position FROM origin) AS rows_between
"""


class Place(NamedTuple):
    """A row of `commits` in the order of the feed; zeros are before the first."""

    epoch: int
    xid: int
    row: int


_START: Final = Place(0, 0, 0)


class PlaceLost(Exception):
    """The row that a reader saw last is not there."""


def position_of(place: Place, lives: Lives) -> Position:
    """As text: `<life>.<epoch>.<transaction id>.<row>`. Raises KeyError when the life is not among those."""
    return START if place == _START else Position(f"{lives[place.epoch]}.{place.epoch}.{place.xid}.{place.row}")


def place_of(position: Position, lives: Lives) -> Place | None:
    """The place of a position; None when its life is not among those."""
    if position == START:
        return _START
    life, _, numbers = position.partition(".")
    try:
        epoch, xid, row = map(int, numbers.split("."))
    except ValueError:
        return None
    return Place(epoch, xid, row) if lives.get(epoch) == life else None


async def read_feed(connection: PostgresConnection, after: Place, *, limit: int) -> tuple[tuple[Commit, ...], Place]:
    """The commits after a place, of bounded size together, and the place after them.

    Raises PlaceLost, CorruptJournal; what asyncpg raises.
    """
    rows = await connection.fetch(_FEED, *after, limit, PAGE_BYTES)
    if after != _START:
        if not rows or _place(rows[0]) != after:
            raise PlaceLost
        del rows[0]
    return tuple([stored(row) for row in rows]), _place(rows[-1]) if rows else after


async def read_head(connection: PostgresConnection) -> Place:
    """The place after the newest commit that the feed would give now."""
    row = await connection.fetchrow(_HEAD)
    return _START if row is None else _place(row)


async def read_lag(connection: PostgresConnection, after: Place) -> Lag:
    """How far a place is behind. Large numbers are estimated by row numbers, of which conflicts use some up."""
    row = await connection.fetchrow(_LAG, *after, _COUNTED_AT_MOST)
    assert row is not None  # noqa: S101  # it has no FROM
    counted: int = row["counted"]
    if counted == _COUNTED_AT_MOST:
        counted = max(counted, row["rows_between"])
    return Lag(counted, row["oldest"])


def stored(row: asyncpg.Record) -> Commit:
    """The commit of a row. Raises CorruptJournal when it is damaged."""
    stream, first = row["stream"], row["first_sequence"]
    if row["format"] != FORMAT:
        raise CorruptJournal(
            f"the commit of {stream} at sequence number {first} has format {row['format']}; this kiseki reads {FORMAT}"
        )
    commit = decode_commit(stream, first, row["document"].encode(), row["checksum"])
    if (len(commit.events), commit.metadata.commit_id) != (row["count"], row["commit_id"]):
        raise CorruptJournal(f"the row of {stream} at sequence number {first} does not belong to its document")
    return commit


_numbers: Final = itemgetter("epoch", "xid", "position")


def _place(row: asyncpg.Record) -> Place:
    return Place(*_numbers(row))
