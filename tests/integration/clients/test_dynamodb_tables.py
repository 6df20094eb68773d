"""Making, expanding and checking DynamoDB tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient, DynamoDbUnavailable
from kiseki.clients.dynamodb_tables import IndexSpec, Key, TableDiffers, TableSpec, check_tables, create_tables
from kiseki.clients.errors import NotMigrated
from tests.integration.clients.fake_dynamodb import FakeDynamoDb, error, ok

INDEX = IndexSpec(name="by-slice", hash_key=Key("slice", "N"), range_key=Key("at"))
OTHER_INDEX = IndexSpec(name="by-time", hash_key=Key("at"), projection="ALL")
PLAIN = TableSpec(name="things", hash_key=Key("id"), range_key=Key("number", "N"))
FULL = TableSpec(
    name="things",
    hash_key=Key("id"),
    range_key=Key("number", "N"),
    indexes=(INDEX, OTHER_INDEX),
    stream="NEW_IMAGE",
    time_to_live="ends",
)


async def described(client: DynamoDbClient) -> Mapping[str, Any]:
    table: Mapping[str, Any] = (await client.call("DescribeTable", {"TableName": client.address.table("things")}))[
        "Table"
    ]
    return table


async def test_a_table_is_made_as_specified(client: DynamoDbClient) -> None:
    name = client.address.table("things")
    with pytest.raises(NotMigrated, match=f"there is no DynamoDB table {name}; run `kiseki migrate`"):
        await check_tables(client, [FULL])
    assert await create_tables(client, [FULL]) == [name]
    await check_tables(client, [FULL])
    table = await described(client)
    assert table["KeySchema"] == [
        {"AttributeName": "id", "KeyType": "HASH"},
        {"AttributeName": "number", "KeyType": "RANGE"},
    ]
    assert {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]} == {
        "id": "S",
        "number": "N",
        "slice": "N",
        "at": "S",
    }
    assert {each["IndexName"]: each["Projection"]["ProjectionType"] for each in table["GlobalSecondaryIndexes"]} == {
        "by-slice": "KEYS_ONLY",
        "by-time": "ALL",
    }
    assert table["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert not table.get("DeletionProtectionEnabled"), "an emulator's"
    ttl = await client.call("DescribeTimeToLive", {"TableName": name})
    assert ttl["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ends"}


async def test_again_changes_nothing(client: DynamoDbClient) -> None:
    await create_tables(client, [FULL])
    before = await described(client)
    assert await create_tables(client, [FULL]) == []
    assert await described(client) == before


async def test_an_older_table_is_expanded_and_never_reduced(client: DynamoDbClient) -> None:
    name = client.address.table("things")
    await create_tables(client, [PLAIN])
    await client.call("PutItem", {"TableName": name, "Item": {"id": {"S": "a"}, "number": {"N": "1"}}})
    with pytest.raises(NotMigrated, match="lacks the index by-slice, the index by-time, the stream, the time to live;"):
        await check_tables(client, [FULL])
    assert await create_tables(client, [FULL]) == [name]
    await check_tables(client, [FULL])
    assert await create_tables(client, [PLAIN]) == []
    await check_tables(client, [FULL, PLAIN])
    assert (await client.call("Scan", {"TableName": name}))["Count"] == 1


async def test_several_tables_and_several_processes(client: DynamoDbClient) -> None:
    specs = [FULL, TableSpec(name="others", hash_key=Key("id"))]
    other = DynamoDbClient(client.address)
    await asyncio.gather(*(create_tables(each, specs) for each in (client, other, client)))
    await check_tables(client, specs)
    await other.close()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"hash_key": Key("name")}, r"has the key name \(S\) \+ number \(N\) and should have id \(S\) \+ number \(N\)"),
        ({"range_key": Key("number", "S")}, r"has the key id \(S\) \+ number \(S\)"),
        ({"range_key": None}, r"has the key id \(S\) and should"),
        ({"stream": "KEYS_ONLY"}, "holds KEYS_ONLY and should hold NEW_IMAGE"),
        ({"time_to_live": "other"}, "lets items go by another attribute than ends"),
        ({"indexes": (msgspec.structs.replace(INDEX, range_key=None),)}, "the index by-slice of the DynamoDB table"),
        (
            {"indexes": (msgspec.structs.replace(OTHER_INDEX, projection="KEYS_ONLY"),)},
            "holds KEYS_ONLY and should hold",
        ),
    ],
    ids=["hash", "type", "range", "stream", "time to live", "index", "projection"],
)
async def test_another_table_is_not_touched(client: DynamoDbClient, there: dict[str, Any], words: str) -> None:
    await create_tables(client, [msgspec.structs.replace(PLAIN, **there)])
    before = await described(client)
    with pytest.raises(TableDiffers, match=words):
        await check_tables(client, [FULL])
    with pytest.raises(TableDiffers, match=words):
        await create_tables(client, [FULL])
    if "time_to_live" not in there:
        assert await described(client) == before


async def test_richer_indexes_and_streams_will_do(client: DynamoDbClient) -> None:
    richer = msgspec.structs.replace(
        FULL, indexes=(msgspec.structs.replace(INDEX, projection="ALL"), OTHER_INDEX), stream="NEW_AND_OLD_IMAGES"
    )
    await create_tables(client, [richer])
    await check_tables(client, [FULL])
    assert await create_tables(client, [FULL]) == []


TABLE = {
    "TableName": "k-things",
    "TableStatus": "ACTIVE",
    "KeySchema": [{"AttributeName": "number", "KeyType": "RANGE"}, {"AttributeName": "id", "KeyType": "HASH"}],
    "AttributeDefinitions": [
        {"AttributeName": "number", "AttributeType": "N"},
        {"AttributeName": "id", "AttributeType": "S"},
    ],
}
MISSING = error("ResourceNotFoundException")


def state(status: str, **more: Any) -> Any:
    return ok({"Table": {**TABLE, "TableStatus": status, **more}})


@pytest.fixture
async def at_fake(fake: FakeDynamoDb, aws_keys: None) -> AsyncIterator[DynamoDbClient]:
    opened = DynamoDbClient(DynamoDbAddress(prefix="k", region="eu-west-1", endpoint=fake.endpoint))
    yield opened
    await opened.close()


async def test_a_table_in_the_making_is_waited_for(fake: FakeDynamoDb, at_fake: DynamoDbClient) -> None:
    index = {"IndexName": "x", "KeySchema": [], "Projection": {}}
    fake.answers = [
        MISSING,
        error("ResourceInUseException"),
        MISSING,
        state("CREATING"),
        state("ACTIVE", GlobalSecondaryIndexes=[{**index, "IndexStatus": "CREATING"}]),
        state("ACTIVE"),
    ]
    assert await create_tables(at_fake, [PLAIN]) == ["k-things"]
    assert [operation.partition(".")[2] for operation, _ in fake.requests] == [
        "DescribeTable",
        "CreateTable",
        *["DescribeTable"] * 4,
    ]


async def test_a_table_that_is_never_ready_is_told_of(fake: FakeDynamoDb, at_fake: DynamoDbClient) -> None:
    fake.afterwards = state("UPDATING")
    with pytest.raises(
        DynamoDbUnavailable, match=r"k-things is still updating after 0.2 s; run `kiseki migrate` again"
    ):
        await create_tables(at_fake, [PLAIN], patience=0.2)


async def test_a_table_on_its_way_out_is_none(fake: FakeDynamoDb, at_fake: DynamoDbClient) -> None:
    fake.afterwards = state("DELETING")
    with pytest.raises(NotMigrated):
        await check_tables(at_fake, [PLAIN])


async def test_tables_elsewhere_than_on_loopback_are_protected(fake: FakeDynamoDb, at_fake: DynamoDbClient) -> None:
    fake.answers = [MISSING, ok({}), state("ACTIVE")]
    at_fake.address = msgspec.structs.replace(at_fake.address, endpoint="https://vpce.example.com")
    await create_tables(at_fake, [PLAIN])
    assert fake.requests[1][1]["DeletionProtectionEnabled"] is True
