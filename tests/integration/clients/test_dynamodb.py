"""The DynamoDB client against something that keeps items."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbClient, DynamoDbRefused, TransactionCanceled
from kiseki.clients.dynamodb_tables import Key, TableSpec, create_tables

THINGS = TableSpec(name="things", hash_key=Key("id"), stream="NEW_IMAGE")


@pytest.fixture
async def things(client: DynamoDbClient) -> str:
    (name,) = await create_tables(client, [THINGS])
    return name


def put(table: str, name: str, value: bytes = b"") -> dict[str, Any]:
    return {
        "TableName": table,
        "Item": {"id": {"S": name}, "value": {"B": base64.b64encode(value).decode()}},
        "ConditionExpression": "attribute_not_exists(id)",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


async def test_items_come_back_as_they_were_put(client: DynamoDbClient, things: str) -> None:
    value = bytes(range(256)) * 1000
    await client.call("PutItem", put(things, "\u3042 \U0001f600", value))
    answer = await client.call("GetItem", {"TableName": things, "Key": {"id": {"S": "\u3042 \U0001f600"}}})
    assert base64.b64decode(answer["Item"]["value"]["B"]) == value


async def test_of_many_who_put_one_item_one_wins_and_all_see_it(client: DynamoDbClient, things: str) -> None:
    async def try_to(value: bytes) -> dict[str, Any] | None:
        try:
            await client.call("PutItem", put(things, "a", value))
        except ConditionFailed as problem:
            return problem.item
        return None

    found = await asyncio.gather(*(try_to(str(number).encode()) for number in range(100)))
    (winner,) = (str(number) for number, item in enumerate(found) if item is None)
    kept = {"id": {"S": "a"}, "value": {"B": base64.b64encode(winner.encode()).decode()}}
    assert [item for item in found if item is not None] == [kept] * 99


async def test_a_transaction_is_all_or_nothing(client: DynamoDbClient, things: str) -> None:
    await client.call("PutItem", put(things, "a"))
    with pytest.raises(TransactionCanceled) as caught:
        await client.call(
            "TransactWriteItems", {"TransactItems": [{"Put": put(things, "b")}, {"Put": put(things, "a")}]}
        )
    assert [(reason.code, reason.item is None) for reason in caught.value.reasons] == [
        ("None", True),
        ("ConditionalCheckFailed", False),
    ]
    assert (await client.call("Scan", {"TableName": things}))["Count"] == 1


async def test_a_stream_is_read(client: DynamoDbClient, things: str) -> None:
    await client.call("PutItem", put(things, "a"))
    table = (await client.call("DescribeTable", {"TableName": things}))["Table"]
    arn = {"StreamArn": table["LatestStreamArn"]}
    (shard,) = (await client.call_streams("DescribeStream", arn))["StreamDescription"]["Shards"]
    start = {**arn, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
    iterator = (await client.call_streams("GetShardIterator", start))["ShardIterator"]
    (record,) = (await client.call_streams("GetRecords", {"ShardIterator": iterator}))["Records"]
    assert record["dynamodb"]["NewImage"]["id"] == {"S": "a"}


async def test_a_table_that_is_not_there(client: DynamoDbClient) -> None:
    with pytest.raises(DynamoDbRefused) as caught:
        await client.call("GetItem", {"TableName": client.address.table("none"), "Key": {"id": {"S": "secret"}}})
    assert caught.value.kind == "ResourceNotFoundException"
    assert "secret" not in str(caught.value)
