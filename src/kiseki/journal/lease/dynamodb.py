"""A LeaseStore in DynamoDB: one item of the table `<prefix>-leases` in the witness region.

The table must be of one region, never a global table: replicas of those take changes without comparing them.
"""

from __future__ import annotations

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
from kiseki.journal.lease.folder import read_record
from kiseki.journal.lease.port import LeaseRecord, LeaseUnavailable

__all__ = ["LEASES_TABLE", "DynamoDbLeaseStore"]

LEASES_TABLE: Final = TableSpec(name="leases", hash_key=Key("lease"))
_KEY: Final = {"lease": {"S": "writer"}}


class DynamoDbLeaseStore:
    """Keeps the record in DynamoDB. Belongs to one event loop."""

    def __init__(self, client: DynamoDbClient) -> None:
        """`open` is the way in. The store closes the client."""
        self._client = client
        self._table = client.address.table(LEASES_TABLE.name)

    @classmethod
    async def open(cls, address: DynamoDbAddress, *, timeout: float = 5.0) -> Self:  # noqa: ASYNC109  # of each call
        """The lease in the address's table. Asks nothing yet."""
        return cls(DynamoDbClient(address, connections=4, attempt_timeout=timeout / 2, deadline=timeout))

    @staticmethod
    async def migrate(address: DynamoDbAddress) -> list[str]:
        """Makes the table when it is not there; a line for it. Raises as `create_tables`."""
        client = DynamoDbClient(address)
        try:
            return [f"made or expanded the table {name}" for name in await create_tables(client, [LEASES_TABLE])]
        finally:
            await client.close()

    @property
    def label(self) -> str:
        """As LeaseStore."""
        return f"the DynamoDB table {self._table} in {self._client.address.region}"

    async def read(self) -> LeaseRecord | None:
        """As LeaseStore: a consistent read."""
        answer = await self._call("GetItem", {"TableName": self._table, "Key": _KEY, "ConsistentRead": True})
        item = answer.get("Item")
        return None if not item else read_record(item.get("record", {}).get("S", ""), self.label)

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        """As LeaseStore."""
        text = msgspec.json.encode(after).decode()
        request: dict[str, Any] = {
            "TableName": self._table,
            "Item": {**_KEY, "version": {"N": str(after.version)}, "record": {"S": text}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if before is None:
            request |= {"ConditionExpression": "attribute_not_exists(#lease)"}
            request |= {"ExpressionAttributeNames": {"#lease": "lease"}}
        else:
            request |= {"ConditionExpression": "#version = :before"}
            request |= {"ExpressionAttributeNames": {"#version": "version"}}
            request |= {"ExpressionAttributeValues": {":before": {"N": str(before.version)}}}
        try:
            await self._call("PutItem", request)
        except ConditionFailed as problem:
            # It may be our own, whose answer was lost, sent again by the client: its stamp says so.
            return problem.item is not None and problem.item.get("record") == {"S": text}
        return True

    async def close(self) -> None:
        """As LeaseStore."""
        await self._client.close()

    async def _call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.call(operation, request)
        except DynamoDbUnavailable as problem:
            raise LeaseUnavailable(f"the lease: {problem}", retry_after=problem.retry_after) from problem
        except DynamoDbRefused as problem:
            if problem.kind == "ResourceNotFoundException":
                raise LeaseUnavailable(f"there is no DynamoDB table {self._table}; run `kiseki migrate`") from problem
            raise LeaseUnavailable(f"the lease: {problem}") from problem
