"""A LedgerStore in a DynamoDB table: `<prefix>-erasures`, key `ledger` + `number`.

The prefix is to be another one than that of the stores, so that no backup or recovery of theirs takes this table back
too. Recovery points of its own are welcome here: nothing in it is personal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import msgspec

from kiseki.clients.dynamodb import (
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbClient,
    DynamoDbRefused,
    DynamoDbUnavailable,
)
from kiseki.clients.dynamodb_tables import Key, TableSpec, create_tables
from kiseki.clients.errors import NotMigrated
from kiseki.security.erasure.lines import LedgerBroken, Line, Mark
from kiseki.security.erasure.store import LedgerUnavailable

__all__ = ["ERASURES_TABLE", "DynamoDbLedgerStore"]

ERASURES_TABLE: Final = TableSpec(name="erasures", hash_key=Key("ledger"), range_key=Key("number", "N"))
_LEDGER: Final = {"S": "erasures"}
_MARKS: Final = {"ledger": {"S": "mark"}, "number": {"N": "0"}}
_line_of: Final = msgspec.json.Decoder(Line).decode
_mark_of: Final = msgspec.json.Decoder(Mark).decode


class DynamoDbLedgerStore:
    """Keeps the ledger in DynamoDB. Belongs to one event loop."""

    def __init__(self, client: DynamoDbClient) -> None:
        """`open` is the way in. The store closes the client."""
        self._client = client
        self._table = client.address.table(ERASURES_TABLE.name)

    @classmethod
    async def open(cls, address: DynamoDbAddress, *, connections: int = 4) -> Self:
        """The ledger on the address's table. Asks nothing; methods raise NotMigrated when there is no table."""
        return cls(DynamoDbClient(address, connections=connections))

    @staticmethod
    async def migrate(address: DynamoDbAddress) -> list[str]:
        """Makes the table when it is not there; the names of those made. Raises as `create_tables`."""
        client = DynamoDbClient(address)
        try:
            return await create_tables(client, [ERASURES_TABLE])
        finally:
            await client.close()

    async def last(self) -> Line | None:
        """As LedgerStore."""
        found = await self._query(0, {"ScanIndexForward": False, "Limit": 1})
        return _read(found["Items"][0]) if found["Items"] else None

    async def add(self, line: Line) -> bool:
        """As LedgerStore. The line before has to be there, and lines are never deleted."""
        if line.number > 1 and not await self.lines(line.number - 2, 1):
            return False
        text = msgspec.json.encode(line).decode()
        request = {
            "TableName": self._table,
            "Item": {"ledger": _LEDGER, "number": {"N": str(line.number)}, "line": {"S": text}},
            "ConditionExpression": "attribute_not_exists(#ledger)",
            "ExpressionAttributeNames": {"#ledger": "ledger"},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            await self._call("PutItem", request)
        except ConditionFailed as problem:
            # It may be our own write, whose answer was lost: no other line has the same MAC at the same time.
            return problem.item is not None and problem.item.get("line") == {"S": text}
        return True

    async def lines(self, after: int, limit: int) -> Sequence[Line]:
        """As LedgerStore."""
        found: list[Line] = []
        more: dict[str, Any] = {"Limit": limit}
        while True:
            answer = await self._query(after, more)
            found += [_read(item) for item in answer["Items"]]
            if len(found) >= limit or "LastEvaluatedKey" not in answer:
                return found[:limit]
            more["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def mark(self) -> Mark | None:
        """As LedgerStore."""
        answer = await self._call("GetItem", {"TableName": self._table, "Key": _MARKS, "ConsistentRead": True})
        try:
            return _mark_of(answer["Item"]["mark"]["S"]) if answer.get("Item") else None
        except (KeyError, TypeError, msgspec.DecodeError):
            return None

    async def set_mark(self, mark: Mark) -> None:
        """As LedgerStore."""
        item = {**_MARKS, "mark": {"S": msgspec.json.encode(mark).decode()}}
        await self._call("PutItem", {"TableName": self._table, "Item": item})

    async def close(self) -> None:
        """As LedgerStore."""
        await self._client.close()

    async def _query(self, after: int, more: Mapping[str, Any]) -> dict[str, Any]:
        request = {
            "TableName": self._table,
            "ConsistentRead": True,
            "KeyConditionExpression": "#ledger = :ledger AND #number > :after",
            "ExpressionAttributeNames": {"#ledger": "ledger", "#number": "number"},
            "ExpressionAttributeValues": {":ledger": _LEDGER, ":after": {"N": str(after)}},
            **more,
        }
        return await self._call("Query", request)

    async def _call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.call(operation, request)
        except DynamoDbUnavailable as problem:
            raise LedgerUnavailable(f"the ledger of erasures: {problem}", retry_after=problem.retry_after) from problem
        except DynamoDbRefused as problem:
            if problem.kind == "ResourceNotFoundException":
                raise NotMigrated(f"there is no DynamoDB table {self._table}; run `kiseki migrate`") from problem
            raise LedgerUnavailable(f"the ledger of erasures: {problem}") from problem


def _read(item: Mapping[str, Any]) -> Line:
    try:
        return _line_of(item["line"]["S"])
    except (KeyError, TypeError, msgspec.DecodeError):
        raise LedgerBroken("the ledger of erasures holds what is no line: restore it from its own copy") from None
