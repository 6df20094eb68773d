"""The index by time of writing of the DynamoDB journal: what was written since a moment, slice by slice.

Used by the DynamoDB journal only: to come back after an outage that outlasted the stream, to measure, and to sweep.
The index follows the table a little late and holds keys only; commits are read from the table, consistently. Its times
are those of `indexed_at`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbClient
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.items import (
    BY_SLICE,
    INDEX_KEY,
    SLICES,
    Place,
    commit_of,
    place_of,
    text_of,
    timestamp,
)
from kiseki.journal.port import Commit, CorruptJournal

__all__ = ["IndexPage", "TimeIndex"]

_STREAMS_AT_ONCE: Final = 16
_SLICES_AT_ONCE: Final = 8
_END: Final = "~"
"""After every time in text order."""


class IndexPage(NamedTuple):
    """Commits of one slice in the order of their streams, and where it goes on; None at its end."""

    commits: tuple[Commit, ...]
    key: dict[str, Any] | None


class TimeIndex:
    """Reads the index by time of writing of one table."""

    def __init__(self, client: DynamoDbClient) -> None:
        self._client = client
        self._table = client.address.table("journal")

    async def page(self, number: int, since: str, until: str, key: Mapping[str, Any] | None, limit: int) -> IndexPage:
        """Commits of a slice that were written from `since` to before `until`, from about `limit` keys of the index.

        Clocks of writers differ, and some commits stand where they were made while others of their stream stand where
        they were written, so a stream's commits may stand in the index in another order than their own. What a
        commit of this page follows and a later page would give is given with it, in order. Raises CorruptJournal.
        """
        answer = await self._query(number, since, until, key=key, limit=limit)
        items = answer.get("Items", [])
        wanted: dict[str, list[int]] = {}
        for item in items:
            place = place_of(item)
            wanted.setdefault(place.stream, []).append(place.first_sequence_number)
        page_end = text_of(items[-1], INDEX_KEY) if items else ""
        commits: list[Commit] = []
        streams = list(wanted)
        for start in range(0, len(streams), _STREAMS_AT_ONCE):
            for found in await asyncio.gather(
                *(
                    self._commits(stream, wanted[stream], page_end)
                    for stream in streams[start : start + _STREAMS_AT_ONCE]
                )
            ):
                commits += found
        return IndexPage(tuple(commits), answer.get("LastEvaluatedKey"))

    async def _commits(self, stream: str, numbers: list[int], page_end: str) -> list[Commit]:
        """The stream's commits from the first to the last of these, and those before the first that come later in the
        index."""
        first, last = min(numbers), max(numbers)
        found: list[Commit] = []
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "#stream = :stream AND #number <= :number",
            "ExpressionAttributeNames": {"#stream": "persistence-id", "#number": "sequence-nr"},
            "ExpressionAttributeValues": {":stream": {"S": stream}, ":number": {"N": str(last)}},
            "ConsistentRead": True,
            "ScanIndexForward": False,
            "Limit": len(numbers) + 1,
        }
        while True:
            with explained():
                answer = await self._client.call("Query", request)
            for item in answer.get("Items", []):
                if place_of(item).first_sequence_number < first and text_of(item, INDEX_KEY) <= page_end:
                    return found[::-1]
                found.append(commit_of(item))
            if not answer.get("LastEvaluatedKey"):
                return found[::-1]
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def places(self, since: datetime) -> AsyncIterator[list[Place]]:
        """Where commits were written since a moment, in pages, in any order."""
        for number in range(SLICES):
            key: dict[str, Any] | None = None
            while True:
                answer = await self._query(number, timestamp(since), _END, key=key)
                page = [place_of(item) for item in answer.get("Items", [])]
                if page:
                    yield page
                key = answer.get("LastEvaluatedKey")
                if not key:
                    break

    async def count(
        self, since: str, until: str = _END, *, first: int = 0, key: Mapping[str, Any] | None = None, at_most: int
    ) -> int:
        """How many commits were written since a moment, in the slices from the `first` on, there from `key` on.

        Counting ends when it is over `at_most`.
        """
        counted = 0
        for number in range(first, SLICES):
            while counted <= at_most:
                answer = await self._query(number, since, until, key=key, counts=True)
                counted += int(answer.get("Count", 0))
                key = answer.get("LastEvaluatedKey")
                if not key:
                    break
        return counted

    async def oldest(self, since: str) -> datetime | None:
        """When the oldest commit since a moment was written."""
        found: list[str] = []
        for start in range(0, SLICES, _SLICES_AT_ONCE):
            answers = await asyncio.gather(
                *(self._query(number, since, _END, limit=1) for number in range(start, start + _SLICES_AT_ONCE))
            )
            found += [text_of(item, INDEX_KEY) for answer in answers for item in answer.get("Items", [])]
        if not found:
            return None
        try:
            return datetime.fromisoformat(min(found).partition("#")[0])
        except ValueError as problem:
            raise CorruptJournal(
                "the index by time of writing has a key that is no time; run `kiseki journal verify`"
            ) from problem

    async def _query(
        self,
        number: int,
        since: str,
        until: str,
        *,
        key: Mapping[str, Any] | None = None,
        limit: int | None = None,
        counts: bool = False,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": BY_SLICE,
            "KeyConditionExpression": "#slice = :slice AND #at BETWEEN :since AND :until",
            "ExpressionAttributeNames": {"#slice": "slice", "#at": INDEX_KEY},
            "ExpressionAttributeValues": {
                ":slice": {"N": str(number)},
                ":since": {"S": since},
                ":until": {"S": until},
            },
        }
        if counts:
            request["Select"] = "COUNT"
        if limit is not None:
            request["Limit"] = limit
        if key:
            request["ExclusiveStartKey"] = dict(key)
        with explained():
            return await self._client.call("Query", request)
