"""Makes restored claims fit a restored journal, although AWS copied the two tables at different moments.

Used by the driver of journals. Claims are always copied first. A commit that came between the two copies is in the
journal, and what it did to claims is not in the claims; its own item says what that was. So what commits did from some
minutes before the copy on is done again. That is harmless where the claims are there already: of each value the last
word of each stream counts, and at most one stream can have the last word that it holds it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.journal.dynamodb.held import KEY, HeldClaimKey, changed_claims_of, claim_key
from kiseki.journal.dynamodb.items import BY_SLICE, CHANGED_CLAIMS, INDEX_KEY, SLICES, place_of, text_of, timestamp
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.errors import OperationFailed

__all__ = ["mend_claims"]

_BEFORE: Final = timedelta(minutes=20)
"""Before the copy of claims: a commit's time in the index may be some minutes off, and copies of AWS too."""
_AFTER_ALL: Final = "~"
_BATCH: Final = 100
_AT_ONCE: Final = 8
_ROUNDS: Final = 10


class _Word(NamedTuple):
    """The last that a stream said of a value."""

    number: int
    holds: bool
    committed_at: str


async def mend_claims(tables: Tables, restored: DynamoDbAddress, *, copied_at: datetime) -> int:
    """Brings the claims of restored tables to what their journal says; of how many values that was.

    Raises OperationFailed, CorruptJournal, DynamoDbUnavailable.
    """
    words: dict[HeldClaimKey, dict[str, _Word]] = defaultdict(dict)
    since = timestamp(copied_at - _BEFORE)
    for first in range(0, SLICES, _AT_ONCE):
        await asyncio.gather(
            *(_collect(tables, restored, number, since, words) for number in range(first, first + _AT_ONCE))
        )
    values = list(words.items())
    mended = 0
    for start in range(0, len(values), _AT_ONCE):
        some = values[start : start + _AT_ONCE]
        mended += sum(await asyncio.gather(*(_settle(tables, restored, value, said) for value, said in some)))
    return mended


async def _collect(
    tables: Tables,
    restored: DynamoDbAddress,
    number: int,
    since: str,
    words: dict[HeldClaimKey, dict[str, _Word]],
) -> None:
    async for item in _changing(tables, restored.table("journal"), number, since):
        place = place_of(item)
        for value, holds in changed_claims_of(item[CHANGED_CLAIMS]):
            before = words[value].get(place.stream)
            if before is None or before.number < place.first_sequence_number:
                words[value][place.stream] = _Word(place.first_sequence_number, holds, text_of(item, "committed-at"))


async def _settle(tables: Tables, restored: DynamoDbAddress, value: HeldClaimKey, said: Mapping[str, _Word]) -> bool:
    """Whether the claim had to be changed."""
    table = restored.table("claims")
    key = {KEY: {"S": claim_key(value.scope, value.digest)}}
    holders = sorted((word.committed_at, stream) for stream, word in said.items() if word.holds)
    there = (await tables.call("GetItem", {"TableName": table, "Key": key, "ConsistentRead": True})).get("Item")
    held_by = text_of(there, "stream") if there else None
    if holders:
        holder = holders[-1][1]
        if held_by == holder:
            return False
        item = key | {"scope": {"S": value.scope}, "digest": {"S": value.digest}, "stream": {"S": holder}}
        await tables.call("PutItem", {"TableName": table, "Item": item})
        return True
    if held_by is None or held_by not in said:
        return False
    await tables.call("DeleteItem", {"TableName": table, "Key": key})
    return True


async def _changing(tables: Tables, table: str, number: int, since: str) -> AsyncIterator[dict[str, Any]]:
    """The commits of a slice since a time that changed claims."""
    request: dict[str, Any] = {
        "TableName": table,
        "IndexName": BY_SLICE,
        "KeyConditionExpression": "#slice = :slice AND #at BETWEEN :since AND :end",
        "ExpressionAttributeNames": {"#slice": "slice", "#at": INDEX_KEY},
        "ExpressionAttributeValues": {
            ":slice": {"N": str(number)},
            ":since": {"S": since},
            ":end": {"S": _AFTER_ALL},
        },
    }
    while True:
        answer = await tables.call("Query", request)
        keys = [{name: item[name] for name in ("persistence-id", "sequence-nr")} for item in answer["Items"]]
        for start in range(0, len(keys), _BATCH):
            for item in await _items(tables, table, keys[start : start + _BATCH]):
                if CHANGED_CLAIMS in item:
                    yield item
        if not answer.get("LastEvaluatedKey"):
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


async def _items(tables: Tables, table: str, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for attempt in range(_ROUNDS):
        wanted = {
            "Keys": keys,
            "ConsistentRead": True,
            "ProjectionExpression": "#stream, #number, #claims, #at",
            "ExpressionAttributeNames": {
                "#stream": "persistence-id",
                "#number": "sequence-nr",
                "#claims": CHANGED_CLAIMS,
                "#at": "committed-at",
            },
        }
        answer = await tables.call("BatchGetItem", {"RequestItems": {table: wanted}})
        found += answer["Responses"].get(table, ())
        keys = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
        if not keys:
            return found
        await asyncio.sleep(0.05 * 2**attempt)
    raise OperationFailed(f"{table} is throttled: it reads only parts; run the same again later")
