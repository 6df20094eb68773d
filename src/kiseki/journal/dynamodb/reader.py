"""Reading one stream of the DynamoDB journal: consistent, paged, never through an index.

Used by the DynamoDB journal only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from kiseki.clients.dynamodb import DynamoDbClient
from kiseki.journal.dynamodb.append import StreamEnds
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.items import commit_of, number_of
from kiseki.journal.port import Commit, CorruptJournal

__all__ = ["StreamReader"]

_PAGE_ITEMS: Final = 256
_PAGE_BYTES: Final = 2_000_000


class StreamReader:
    """Reads streams of one table, and remembers where they ended."""

    def __init__(self, client: DynamoDbClient, *, ends: StreamEnds) -> None:
        self._client = client
        self._table = client.address.table("journal")
        self._ends = ends

    async def pages(self, stream: str, after: int) -> AsyncIterator[list[Commit]]:
        """The commits that hold events after a sequence number; only the first may begin before it.

        Raises CorruptJournal when one is missing or damaged, JournalUnavailable.
        """
        first, expected = await self._begin(stream, after), after + 1
        is_first = True
        async for items in self._items(stream, first):
            page: list[Commit] = []
            size = 0
            for item in items:
                commit = commit_of(item)
                begins, last = commit.first_sequence_number, commit.last_sequence_number
                if is_first and last <= after:
                    self._ends.note(stream, last)
                    continue  # the stream ends there, or the next commit says what is wrong
                if begins > expected or (begins < expected and not is_first):
                    raise CorruptJournal(
                        f"{stream} has no commit that begins with sequence number {expected}; restore it"
                    )
                is_first, expected = False, last + 1
                page.append(commit)
                size += sum(len(bytes(event.data)) for event in commit.events)
                if size >= _PAGE_BYTES:
                    self._ends.note(stream, last)
                    yield page
                    page, size = [], 0
            if page:
                self._ends.note(stream, expected - 1)
                yield page

    async def _begin(self, stream: str, after: int) -> int:
        """The first sequence number to read from: of the commit that holds the next event, if it begins earlier."""
        if after <= 0 or self._ends.is_end(stream, after):
            return max(after, 0) + 1
        answer = await self._query(
            stream, "#number <= :number", after + 1, forward=False, limit=1, projection="#number", start=None
        )
        items = answer.get("Items", ())
        return number_of(items[0], "sequence-nr") if items else after + 1

    async def _items(self, stream: str, first: int) -> AsyncIterator[list[dict[str, Any]]]:
        start: Mapping[str, Any] | None = None
        while True:
            answer = await self._query(
                stream, "#number >= :number", first, forward=True, limit=_PAGE_ITEMS, projection=None, start=start
            )
            yield answer.get("Items", [])
            start = answer.get("LastEvaluatedKey")
            if not start:
                return

    async def _query(
        self,
        stream: str,
        which: str,
        number: int,
        *,
        forward: bool,
        limit: int,
        projection: str | None,
        start: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": f"#stream = :stream AND {which}",
            "ExpressionAttributeNames": {"#stream": "persistence-id", "#number": "sequence-nr"},
            "ExpressionAttributeValues": {":stream": {"S": stream}, ":number": {"N": str(number)}},
            "ConsistentRead": True,
            "ScanIndexForward": forward,
            "Limit": limit,
        }
        if projection is not None:
            request["ProjectionExpression"] = projection
        if start:
            request["ExclusiveStartKey"] = start
        with explained():
            return await self._client.call("Query", request)
