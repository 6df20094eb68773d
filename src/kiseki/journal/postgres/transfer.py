"""Putting claims and idempotency records into a PostgreSQL journal that is being filled from an export.

Used by the PostgreSQL journal only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from kiseki.clients.postgres import PostgresConnection, transaction
from kiseki.journal.port import ClaimTaken, IdempotencyRecord, IdempotencyTaken
from kiseki.journal.postgres.append import lock_values, refuse_unstorable, storable_record
from kiseki.journal.transfer.transferable import HeldClaim, claims_by_value, records_by_key

__all__ = ["restore_held"]

_HELD_BY_OTHERS: Final = """
    SELECT claims.scope FROM claims
    JOIN unnest($1::text[], $2::text[], $3::text[]) AS given(scope, digest, stream)
        ON claims.scope = given.scope AND claims.digest = given.digest
    WHERE claims.stream <> given.stream LIMIT 1
"""
_ADD_CLAIMS: Final = """
    INSERT INTO claims (scope, digest, stream) SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
    ON CONFLICT DO NOTHING
"""
_OTHER_RECORDS: Final = """
    SELECT EXISTS (
        SELECT FROM idempotency AS there
        JOIN unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[])
            AS given(key, command_hash, stream, sequence_number, expires_at) ON there.key = given.key
        WHERE there.expires_at > $6
          AND (there.command_hash, there.stream, there.sequence_number, there.expires_at)
              <> (given.command_hash, given.stream, given.sequence_number, given.expires_at))
"""
_ADD_RECORDS: Final = """
    INSERT INTO idempotency (key, command_hash, stream, sequence_number, expires_at)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[])
        AS given(key, command_hash, stream, sequence_number, expires_at)
    WHERE given.expires_at > $6
    ON CONFLICT (key) DO UPDATE SET command_hash = excluded.command_hash, stream = excluded.stream,
        sequence_number = excluded.sequence_number, expires_at = excluded.expires_at
"""


async def restore_held(
    connection: PostgresConnection, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord], now: datetime
) -> None:
    """Adds all of them, in one transaction under the locks that appends take.

    Raises ClaimTaken, IdempotencyTaken, ValueError; what asyncpg raises.
    """
    for claim in claims:
        refuse_unstorable(claim.scope, claim.digest, claim.stream)
    holders = claims_by_value(claims)
    kept = records_by_key([storable_record(record) for record in records])
    claim_columns = (
        [scope for scope, _ in holders],
        [digest for _, digest in holders],
        list(holders.values()),
    )
    record_columns = (
        list(kept),
        [record.command_hash for record in kept.values()],
        [record.stream for record in kept.values()],
        [record.sequence_number for record in kept.values()],
        [record.expires_at for record in kept.values()],
    )
    async with transaction(connection):
        await lock_values(connection, keys=list(kept), claims=list(holders))
        scope = await connection.fetchval(_HELD_BY_OTHERS, *claim_columns)
        if scope is not None:
            raise ClaimTaken(scope)
        if await connection.fetchval(_OTHER_RECORDS, *record_columns, now):
            raise IdempotencyTaken("an idempotency record of the same key says something else")
        await connection.execute(_ADD_CLAIMS, *claim_columns)
        await connection.execute(_ADD_RECORDS, *record_columns, now)
