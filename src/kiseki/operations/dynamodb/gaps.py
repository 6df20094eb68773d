"""Drops from a restored journal what AWS's copy has although it lacks something before it.

Used by the driver of journals. Of the two minutes around its request a copy may have a later commit of a stream and
lack an earlier one. Nobody reads such a stream, so what follows a gap that is younger than what is surely there goes.
An older gap is none of AWS's: it stays, and whoever reads the stream says that it is damaged.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.journal.dynamodb.items import BY_SLICE, INDEX_KEY, SLICES, number_of, place_of, text_of, timestamp
from kiseki.operations.dynamodb.calls import Tables

__all__ = ["drop_after_gaps", "drop_from", "indexed_since", "young_since"]

_CLOCKS: Final = timedelta(minutes=5)
"""A commit stands in the index at the time of its writer's clock, which is that far from AWS's at most."""
_AFTER_ALL: Final = "~"
_AT_ONCE: Final = 8


class _Found(NamedTuple):
    number: int
    events: int
    indexed: str


def young_since(as_of: datetime) -> str:
    """From there on in the index may stand what was written after `as_of`; all before it was written earlier."""
    return timestamp(as_of - _CLOCKS)


async def drop_after_gaps(tables: Tables, table: str, as_of: datetime) -> int:
    """Drops what follows a gap that is younger than `as_of`; how many commits.

    Raises OperationFailed, CorruptJournal, DynamoDbUnavailable.
    """
    since = young_since(as_of)
    dropped = 0
    for number in range(SLICES):
        firsts: dict[str, int] = defaultdict(lambda: 1 << 62)
        async for item in indexed_since(tables, table, number, since):
            place = place_of(item)
            firsts[place.stream] = min(firsts[place.stream], place.first_sequence_number)
        streams = list(firsts.items())
        for start in range(0, len(streams), _AT_ONCE):
            some = streams[start : start + _AT_ONCE]
            dropped += sum(await asyncio.gather(*(_mend(tables, table, *each, since) for each in some)))
    return dropped


async def drop_from(tables: Tables, table: str, stream: str, number: int) -> int:
    """Drops the commits of a stream from a sequence number on; how many. Raises as `drop_after_gaps`."""
    numbers = [found.number async for found in _commits(tables, table, stream, number, forward=True)]
    # The last one first: what a killed run leaves has no gap.
    for each in reversed(numbers):
        key = {"persistence-id": {"S": stream}, "sequence-nr": {"N": str(each)}}
        await tables.call("DeleteItem", {"TableName": table, "Key": key})
    return len(numbers)


async def indexed_since(tables: Tables, table: str, number: int, since: str) -> AsyncIterator[Mapping[str, Any]]:
    """What the index by time of writing has in a slice since a time. Raises OperationFailed, DynamoDbUnavailable."""
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
        for item in answer["Items"]:
            yield item
        if not answer.get("LastEvaluatedKey"):
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


async def _mend(tables: Tables, table: str, stream: str, first: int, since: str) -> int:
    """Drops what follows the first gap at or after a commit, if what follows is young; how many commits."""
    expected = 1
    async for before in _commits(tables, table, stream, first - 1, forward=False):
        expected = before.number + before.events
        break
    async for found in _commits(tables, table, stream, first, forward=True):
        if found.number > expected:
            return await drop_from(tables, table, stream, found.number) if found.indexed >= since else 0
        expected = found.number + found.events
    return 0


async def _commits(tables: Tables, table: str, stream: str, number: int, *, forward: bool) -> AsyncIterator[_Found]:
    """The commits of a stream from a sequence number on, or from it back to the first."""
    request: dict[str, Any] = {
        "TableName": table,
        "KeyConditionExpression": f"#stream = :stream AND #number {'>=' if forward else '<='} :number",
        "ProjectionExpression": "#number, #count, #at",
        "ExpressionAttributeNames": {
            "#stream": "persistence-id",
            "#number": "sequence-nr",
            "#count": "count",
            "#at": INDEX_KEY,
        },
        "ExpressionAttributeValues": {":stream": {"S": stream}, ":number": {"N": str(number)}},
        "ConsistentRead": True,
        "ScanIndexForward": forward,
        **({} if forward else {"Limit": 1}),
    }
    while True:
        answer = await tables.call("Query", request)
        for item in answer["Items"]:
            yield _Found(number_of(item, "sequence-nr"), number_of(item, "count"), text_of(item, INDEX_KEY))
        if not answer.get("LastEvaluatedKey"):
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
