"""Replication of PostgreSQL: a primary in one region, a streaming replica in the other. Used by `kiseki dr`.

The replica holds everything that is in the cluster: journal, keys, and whatever else lies there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_errors import reason
from kiseki.journal.port import JournalUnavailable, Position
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.dr.compare import commits_after, differences
from kiseki.operations.dr.replication import FailoverRefused, Lag, Verified

__all__ = ["PostgresReplication"]

_FOLLOWS: Final = 60.0
"""Seconds that a planned failover waits for the replica; nobody writes meanwhile."""
_LOOK: Final = 0.05
_PROMOTION: Final = 60

_PRIMARY: Final = """
    SELECT pg_is_in_recovery() AS standby, (SELECT system_identifier FROM pg_control_system()) AS cluster,
           CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS written
"""
_REPLICA: Final = """
    SELECT pg_is_in_recovery() AS standby, (SELECT system_identifier FROM pg_control_system()) AS cluster,
           pg_last_wal_replay_lsn() AS replayed, pg_last_wal_receive_lsn() AS received,
           (SELECT count(*) FROM pg_stat_wal_receiver) AS receivers,
           pg_last_xact_replay_timestamp() AS newest,
           extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS behind
"""
_BEHIND: Final = "SELECT ($1::pg_lsn - $2::pg_lsn)::bigint"
_HAS: Final = "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn"
_PROMOTE: Final = "SELECT pg_promote(true, $1)"


class PostgresReplication:
    """As Replication. Connects for each question: either side may have gone."""

    def __init__(self, primary: PostgresAddress | None, replica: PostgresAddress) -> None:
        """`primary`: None when nobody said where it is."""
        self._primary = primary
        self._replica = replica

    async def lag(self) -> Lag:
        """As Replication: bytes when both answer; seconds since the newest transaction that was replayed, which grow
        while nobody writes too."""
        async with _asked(self._replica) as replica:
            there = await replica.fetchrow(_REPLICA)
            assert there is not None  # noqa: S101  # a SELECT without FROM gives one row
            if not there["standby"]:
                return Lag(detail=f"{self._replica.label} is no replica: it is written itself")
            seconds = there["behind"]
            try:
                async with _asked(self._known_primary()) as primary:
                    here = await primary.fetchrow(_PRIMARY)
                    assert here is not None  # noqa: S101  # as above
            except JournalUnavailable as problem:
                return Lag(seconds=seconds, detail=f"the other side can't be asked: {problem}")
            if here["standby"]:
                return Lag(seconds=seconds, detail="both sides are replicas")
            behind = await replica.fetchval(_BEHIND, here["written"], there["replayed"])
        is_followed = "follows" if there["receivers"] else "is NOT connected to its primary"
        return Lag(bytes=max(0, behind), seconds=0.0 if behind <= 0 else seconds, detail=f"the replica {is_followed}")

    async def promoted(self) -> bool:
        """As Replication."""
        async with _asked(self._replica) as replica:
            return not (await replica.fetchrow(_REPLICA))["standby"]  # type: ignore[index]

    async def mark(self) -> Position:
        """As Replication: with physical replication a place is the same on both sides."""
        async with _journal(self._known_primary()) as journal:
            return await journal.head()

    async def check(self) -> None:
        """As Replication: one cluster, the one a primary, the other a replica that is connected."""
        async with _asked(self._known_primary()) as primary, _asked(self._replica) as replica:
            here, there = await primary.fetchrow(_PRIMARY), await replica.fetchrow(_REPLICA)
        assert here is not None and there is not None  # noqa: S101, PT018  # as above
        if here["standby"]:
            raise FailoverRefused(
                f"{self._known_primary().label} is a replica itself; name the database that is written"
            )
        if not there["standby"]:
            raise FailoverRefused(
                f"{self._replica.label} is no replica, so it does not follow; if it was one, `kiseki dr failback` says "
                "what to do"
            )
        if here["cluster"] != there["cluster"]:
            raise FailoverRefused(f"{self._replica.label} is a replica of another cluster than the one that is written")
        if not there["receivers"]:
            raise FailoverRefused(f"{self._replica.label} is not connected to its primary; mend replication first")

    async def fence(self, term: int) -> str:
        """As Replication. Exact: what is under way ends first, and the database refuses what comes later."""
        address = self._known_primary()
        journal = await PostgresJournal.open(address, clock=SystemClock(), telemetry=NoTelemetry())
        try:
            await journal.fence(term)
        finally:
            await journal.close()
        return f"{address.label} refuses writers of terms before {term}"

    async def verify(self, since: Position) -> Verified:
        """As Replication: the replica has replayed all that the primary wrote, and every commit after `since` is the
        same on both sides. One that was promoted meanwhile is compared alone."""
        address = self._known_primary()
        async with _asked(address) as primary:
            written = (await primary.fetchrow(_PRIMARY))["written"]  # type: ignore[index]

        if not await self.promoted():
            await self._follows(written)
        compared = 0
        async with _journal(address) as ours, _journal(self._replica) as theirs:
            async for page in commits_after(ours, since):
                found = await differences(page, theirs)
                if found:
                    commit = found[0].commit.commit
                    raise FailoverRefused(
                        f"{self._replica.label} differs from {address.label}: {commit.stream} at sequence number "
                        f"{commit.first_sequence_number}, and {len(found) - 1} more on this page"
                    )
                compared += len(page)
        return Verified(commits=compared, detail=f"replayed up to {_lsn(written)}, all that was written")

    async def newest(self) -> str:
        """As Replication."""
        async with _asked(self._replica) as replica:
            there = await replica.fetchrow(_REPLICA)
        assert there is not None  # noqa: S101  # as above
        if there["newest"] is None:
            return "the replica has replayed nothing since it was started"
        return f"the newest transaction of the replica was committed at {there['newest']:%Y-%m-%d %H:%M:%S.%f} UTC"

    async def promote(self, *, clean: bool) -> str:
        """As Replication: it stops following, on a timeline of its own."""
        async with _asked(self._replica, statement_timeout=_PROMOTION + 5.0) as replica:
            if not (await replica.fetchrow(_REPLICA))["standby"]:  # type: ignore[index]
                return f"{self._replica.label} was promoted already"
            try:
                done = await replica.fetchval(_PROMOTE, _PROMOTION)
            except asyncpg.InsufficientPrivilegeError as problem:
                raise FailoverRefused(
                    f"the role may not promote {self._replica.label}: promote it by hand (pg_ctl promote; on RDS "
                    "promote-read-replica) and run the same again, which goes on from here; or GRANT EXECUTE ON "
                    "FUNCTION pg_promote TO the role"
                ) from problem
        if not done:
            raise FailoverRefused(f"{self._replica.label} was not promoted within {_PROMOTION} s; run the same again")
        return f"{self._replica.label} is promoted, and follows nobody"

    async def admit(self, term: int) -> None:
        """As Replication. Opening the journal begins its new epoch, so that readers of the old one start over."""
        journal = await PostgresJournal.open(self._replica, clock=SystemClock(), telemetry=NoTelemetry())
        try:
            await (journal.fence(term) if term else journal.unfence())
        finally:
            await journal.close()

    async def close(self) -> None:
        """As Replication: nothing is kept open."""

    def _known_primary(self) -> PostgresAddress:
        if self._primary is None:
            raise JournalUnavailable("nobody said where the other site's journal is; give its settings with --other")
        return self._primary

    async def _follows(self, written: int) -> None:
        try:
            async with asyncio.timeout(_FOLLOWS), _asked(self._replica) as replica:
                while not await replica.fetchval(_HAS, written):  # noqa: ASYNC110  # of another machine
                    await asyncio.sleep(_LOOK)
        except TimeoutError as problem:
            raise FailoverRefused(
                f"{self._replica.label} did not follow within {_FOLLOWS:g} s; look at `kiseki dr status`"
            ) from problem


def _lsn(place: int) -> str:
    """As PostgreSQL writes it."""
    return f"{place >> 32:X}/{place & 0xFFFFFFFF:X}"


@asynccontextmanager
async def _asked(address: PostgresAddress, *, statement_timeout: float = 10.0) -> AsyncIterator[PostgresConnection]:
    """A connection for some questions. Raises JournalUnavailable."""
    try:
        connection = await connect(address, application="kiseki dr", statement_timeout=statement_timeout)
        try:
            yield connection
        finally:
            connection.terminate()
    except asyncpg.InsufficientPrivilegeError as problem:
        raise JournalUnavailable(
            f"{address.label}: the role may not ask about replication; GRANT pg_monitor TO it, and EXECUTE ON FUNCTION "
            "pg_control_system()"
        ) from problem
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as problem:
        raise JournalUnavailable(f"{address.label} can't be asked: {reason(problem)}") from problem


@asynccontextmanager
async def _journal(address: PostgresAddress) -> AsyncIterator[PostgresJournal]:
    """A journal, to be read."""
    journal = await PostgresJournal.open(address, clock=SystemClock(), telemetry=NoTelemetry(), read_only=True)
    try:
        yield journal
    finally:
        await journal.close()
