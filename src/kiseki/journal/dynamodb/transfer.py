"""Listing the claims and idempotency records of the DynamoDB journal, and putting them back.

Used by the DynamoDB journal only, when a journal is moved as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbClient
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.held import (
    CLAIMS,
    KEY,
    RECORDS,
    ClaimAction,
    claim_put,
    held_claim_of,
    record_of,
    record_put,
)
from kiseki.journal.port import ClaimTaken, IdempotencyRecord, IdempotencyTaken
from kiseki.journal.transfer.transferable import HELD_PAGE, HeldClaim, claims_by_value, records_by_key
from kiseki.kernel.ports import Clock

__all__ = ["HeldParts"]

_T = TypeVar("_T")

_AT_ONCE: Final = 32


def _batches(things: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(things), _AT_ONCE):
        yield things[start : start + _AT_ONCE]


async def _all(writes: Iterable[Awaitable[None]]) -> None:
    """Awaits all of them, so that none is still under way when the first failure is raised."""
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    with explained():
        for outcome in outcomes:
            if outcome is not None:
                raise outcome


class HeldParts:
    """The claims table of one journal, as a whole."""

    def __init__(self, client: DynamoDbClient, *, clock: Clock, aws_time: Callable[[], datetime]) -> None:
        self._client = client
        self._table = client.address.table("claims")
        self._clock = clock
        self._aws_time = aws_time

    async def claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        """As `TransferableJournal.held_claims` says."""
        async for items in self._items(CLAIMS):
            yield [held_claim_of(item) for item in items]

    async def records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        """As `TransferableJournal.idempotency_records` says."""
        async for items in self._items(RECORDS):
            found = [record_of(item, self._clock.now()) for item in items]
            page = [record for record in found if record is not None]
            if page:
                yield page

    async def restore(self, claims: Sequence[HeldClaim], records: Sequence[IdempotencyRecord]) -> None:
        """As `TransferableJournal.restore_held` says."""
        holders, kept = claims_by_value(claims), records_by_key(records)
        now = self._clock.now()
        for some in _batches([*holders.items()]):
            await _all(self._claim(scope, digest, stream) for (scope, digest), stream in some)
        for others in _batches([record for record in kept.values() if record.expires_at > now]):
            await _all(self._record(record, now) for record in others)

    async def _claim(self, scope: str, digest: str, stream: str) -> None:
        put = claim_put(self._table, stream, ClaimAction(scope, digest, takes=True, holds=True))["Put"]
        try:
            await self._put(put)
        except ConditionFailed as refusal:
            raise ClaimTaken(scope) from refusal

    async def _record(self, record: IdempotencyRecord, now: datetime) -> None:
        try:
            await self._put(record_put(self._table, record, now, self._aws_time())["Put"])
        except ConditionFailed as refusal:
            if record_of(refusal.item, now) != record:
                raise IdempotencyTaken("an idempotency record of the same key says something else") from refusal

    async def _put(self, put: dict[str, Any]) -> None:
        await self._client.call("PutItem", put)

    async def _items(self, prefix: str) -> AsyncIterator[list[dict[str, Any]]]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "FilterExpression": "begins_with(#key, :prefix)",
            "ExpressionAttributeNames": {"#key": KEY},
            "ExpressionAttributeValues": {":prefix": {"S": prefix}},
            "ConsistentRead": True,
            "Limit": HELD_PAGE,
        }
        while True:
            with explained():
                answer = await self._client.call("Scan", request)
            items = answer.get("Items", [])
            if items:
                yield items
            if not answer.get("LastEvaluatedKey"):
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
