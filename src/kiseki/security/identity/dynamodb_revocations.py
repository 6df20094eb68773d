"""A RevocationStore in a DynamoDB table: `<prefix>-revocations`, key `issuer` + `subject`.

Made by the composition root. Items go by the table's time to live when they concern no token any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Final, Self

from kiseki.clients.dynamodb import (
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbClient,
    DynamoDbRefused,
    DynamoDbUnavailable,
)
from kiseki.clients.dynamodb_tables import Key, TableSpec, create_tables
from kiseki.clients.errors import NotMigrated
from kiseki.security.identity.revocations import MAX_REVOCATIONS, RevocationsUnavailable, Revoked, too_many

__all__ = ["REVOCATIONS_TABLE", "DynamoDbRevocations"]

REVOCATIONS_TABLE: Final = TableSpec(
    name="revocations", hash_key=Key("issuer"), range_key=Key("subject"), time_to_live="forget-at"
)


class DynamoDbRevocations:
    """Keeps revocations in DynamoDB. Belongs to one event loop."""

    def __init__(self, client: DynamoDbClient) -> None:
        """`open` is the way in. The store closes the client."""
        self._client = client
        self._table = client.address.table(REVOCATIONS_TABLE.name)

    @classmethod
    async def open(cls, address: DynamoDbAddress, *, connections: int = 2) -> Self:
        """The store on the address's table. Asks nothing; methods raise NotMigrated when there is no table."""
        return cls(DynamoDbClient(address, connections=connections))

    @staticmethod
    async def migrate(address: DynamoDbAddress) -> list[str]:
        """Makes the table when it is not there; the names of those made. Raises as `create_tables`."""
        client = DynamoDbClient(address)
        try:
            return await create_tables(client, [REVOCATIONS_TABLE])
        finally:
            await client.close()

    async def revoke(self, issuer: str, subject: str, *, at: float, forget_before: float) -> None:
        """As RevocationStore."""
        if len(await self.load(forget_before)) >= MAX_REVOCATIONS:
            raise too_many()
        request = {
            "TableName": self._table,
            "Item": {
                "issuer": {"S": issuer},
                "subject": {"S": subject},
                "until": {"N": repr(at)},
                "forget-at": {"N": str(ceil(2 * at - forget_before))},
            },
            "ConditionExpression": "attribute_not_exists(#until) OR #until < :at",
            "ExpressionAttributeNames": {"#until": "until"},
            "ExpressionAttributeValues": {":at": {"N": repr(at)}},
        }
        try:
            await self._call("PutItem", request)
        except ConditionFailed:
            pass  # a later revocation is there

    async def load(self, after: float) -> Revoked:
        """As RevocationStore."""
        revoked: dict[tuple[str, str], float] = {}
        request: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": True,
            "FilterExpression": "#until > :after",
            "ExpressionAttributeNames": {"#until": "until"},
            "ExpressionAttributeValues": {":after": {"N": repr(after)}},
        }
        while True:
            answer = await self._call("Scan", request)
            try:
                for item in answer["Items"]:
                    revoked[item["issuer"]["S"], item["subject"]["S"]] = float(item["until"]["N"])
            except (KeyError, TypeError, ValueError) as problem:
                raise RevocationsUnavailable(f"an item of the revocations {self._table} is damaged") from problem
            if "LastEvaluatedKey" not in answer:
                return revoked
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def close(self) -> None:
        """As RevocationStore."""
        await self._client.close()

    async def _call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.call(operation, request)
        except DynamoDbUnavailable as problem:
            raise RevocationsUnavailable(f"the revocations: {problem}", retry_after=problem.retry_after) from problem
        except DynamoDbRefused as problem:
            if problem.kind == "ResourceNotFoundException":
                raise NotMigrated(f"there is no DynamoDB table {self._table}; run `kiseki migrate`") from problem
            raise RevocationsUnavailable(f"the revocations: {problem}") from problem
