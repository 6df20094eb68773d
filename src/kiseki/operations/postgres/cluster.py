"""Facts about a whole PostgreSQL cluster, the slot that keeps its log, and what forbids to copy it as a whole.

Used by the protection.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection
from kiseki.operations.errors import BackupRefused, OperationFailed
from kiseki.operations.postgres.session import explained_server, session

__all__ = [
    "Cluster",
    "Mark",
    "Slot",
    "cluster_of",
    "make_slot",
    "mark_of",
    "private_parts",
    "remove_slot",
    "slot_of",
    "system_of",
]

_SENDERS: Final = 3
"""A base backup takes two, and receiving the log one."""

_SYSTEM: Final = "SELECT system_identifier::text FROM pg_control_system()"
_FACTS: Final = """
    SELECT current_setting('server_version_num')::integer / 10000 AS major,
           current_setting('server_version') AS version,
           current_setting('wal_level') AS wal_level, current_setting('max_wal_senders')::integer AS senders,
           current_setting('max_replication_slots')::integer AS slots,
           current_setting('max_slot_wal_keep_size') AS keeps,
           pg_size_bytes(current_setting('wal_segment_size')) AS segment,
           pg_is_in_recovery() AS standby, current_user AS role,
           (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS replicates,
           (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')) AS tablespaces
"""
_TIMELINE: Final = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer"
_MARK: Final = "SELECT clock_timestamp() AS at, pg_current_wal_flush_lsn()::text AS lsn"
_SLOT: Final = """
    SELECT wal_status, active, restart_lsn >= $2::text::pg_lsn AS reached,
           pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::bigint AS behind
    FROM pg_replication_slots WHERE slot_name = $1
"""
_MAKE_SLOT: Final = "SELECT pg_create_physical_replication_slot($1, true)"
_REMOVE_SLOT: Final = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1"


class Cluster(NamedTuple):
    """One life of a cluster."""

    system: str
    timeline: int
    segment: int
    """Bytes of a file of its log."""
    major: int
    version: str
    bounded: bool
    """Whether a slot that nobody reads ends before the disk is full."""


class Mark(NamedTuple):
    """What is durable in the cluster now."""

    at: datetime
    lsn: str


class Slot(NamedTuple):
    """What keeps the log until it was received."""

    lost: bool
    active: bool
    reached: bool
    """Whether everything up to the asked position was received."""
    behind: int
    """Bytes of the log that it holds back."""


async def cluster_of(connection: PostgresConnection, address: PostgresAddress) -> Cluster:
    """Looks whether the cluster can be copied as a whole. Raises OperationFailed; what asyncpg raises."""
    row = await connection.fetchrow(_FACTS)
    assert row is not None  # noqa: S101  # it has no FROM
    refusal = _refusal(row)
    if refusal is not None:
        raise OperationFailed(f"the cluster of {address.label} can't be protected: {refusal}")
    return Cluster(
        system=await connection.fetchval(_SYSTEM),
        timeline=await connection.fetchval(_TIMELINE),
        segment=row["segment"],
        major=row["major"],
        version=row["version"],
        bounded=row["keeps"] != "-1",
    )


def _refusal(row: asyncpg.Record) -> str | None:
    if row["standby"]:
        return "it is a standby; the URL has to lead to the primary"
    if not row["replicates"]:
        return f"its role lacks REPLICATION; as a superuser run ALTER ROLE {row['role']} REPLICATION"
    if row["wal_level"] == "minimal":
        return "wal_level is minimal; set it to replica and restart the server"
    if row["senders"] < _SENDERS:
        return f"max_wal_senders is {row['senders']}; set it to {_SENDERS} or more and restart the server"
    if row["slots"] < 1:
        return "max_replication_slots is 0; set it to 10 and restart the server"
    if row["tablespaces"]:
        return "it has tablespaces outside its data directory, which a base backup can't put back; use dumps"
    return None


async def system_of(address: PostgresAddress) -> str:
    """Which cluster an address leads to. Raises Unavailable, OperationFailed."""
    with explained_server(address, "asking which cluster it is on"):
        async with session(address) as connection:
            system: str = await connection.fetchval(_SYSTEM)
    return system


async def private_parts(
    system: str, ledger: PostgresAddress | None, private: Sequence[tuple[str, PostgresAddress]]
) -> tuple[str, ...]:
    """Which private stores are inside a cluster, and so inside its backups. Raises BackupRefused for the ledger."""
    if ledger is not None and await system_of(ledger) == system:
        raise BackupRefused(
            f"the erasure ledger ({ledger.label}) is on the cluster that is to be backed up, so a restore would forget "
            "erasures; move it to another server (setting `erasure_ledger`), or protect the journal by dumps only"
        )
    return tuple([name for name, address in private if await system_of(address) == system])


async def mark_of(connection: PostgresConnection) -> Mark:
    """What is durable now."""
    row = await connection.fetchrow(_MARK)
    assert row is not None  # noqa: S101  # it has no FROM
    return Mark(row["at"], row["lsn"])


async def slot_of(connection: PostgresConnection, name: str, lsn: str = "0/0") -> Slot | None:
    """The slot; None when there is none."""
    row = await connection.fetchrow(_SLOT, name, lsn)
    if row is None:
        return None
    return Slot(row["wal_status"] == "lost", row["active"], bool(row["reached"]), row["behind"] or 0)


async def make_slot(connection: PostgresConnection, name: str, address: PostgresAddress) -> None:
    """Makes it; the log is kept from now on. Raises OperationFailed; what asyncpg raises."""
    try:
        await connection.execute(_MAKE_SLOT, name)
    except asyncpg.ConfigurationLimitExceededError as problem:
        raise OperationFailed(
            f"the cluster of {address.label} can't be protected: all its replication slots are in use; raise "
            "max_replication_slots and restart the server"
        ) from problem


async def remove_slot(connection: PostgresConnection, name: str) -> None:
    """Lets the server recycle its log; again is fine."""
    await connection.execute(_REMOVE_SLOT, name)
