"""Failover between DynamoDB regions. Labelled: not seen on AWS. Nothing that runs here replicates tables, so the test
copies items as replication would; what AWS is asked to do to a group is compared with the documented requests.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from aiohttp import web

from kiseki.application.system import SystemClock
from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import START
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.dr import dynamodb as replication_module
from kiseki.operations.dr.dynamodb import DynamoDbReplication, SharedTables
from kiseki.operations.dr.replication import FailoverRefused
from kiseki.testing.journal_conformance import claimed, encoded, metadata
from tests.integration.clients.fake_dynamodb import FakeDynamoDb

HERE, THERE = "eu-central-1", "eu-west-1"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "test")


class Group:
    """How AWS describes the tables of one group, and what it was asked to change."""

    def __init__(self, *, status: str = "ACTIVE", looks: int = 2) -> None:
        self.status = status
        self.looks = looks
        self.updates: list[dict[str, Any]] = []

    async def answer(self, request: web.BaseRequest) -> web.Response:
        body = json.loads(await request.read())
        operation = request.headers["x-amz-target"].partition(".")[2]
        if operation == "UpdateTable":
            self.updates.append(body)
            return web.json_response({})
        assert operation == "DescribeTable"
        gone = any(update["TableName"] == body["TableName"] for update in self.updates)
        if gone and self.looks:
            self.looks -= 1  # it takes a while
            gone = False
        regions = [] if gone else [HERE, THERE]
        replicas = [{"RegionName": region, "ReplicaStatus": self.status} for region in regions]
        return web.json_response({"Table": {"TableStatus": "ACTIVE", "Replicas": replicas}})


def shared(region: str, endpoint: str, prefix: str = "shop") -> SharedTables:
    address = DynamoDbAddress(prefix, region, endpoint)
    return SharedTables(address, (address.table("journal"), address.table("claims")), (address.table("claims"),))


async def test_this_regions_tables_leave_their_group_and_nothing_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication_module, "_LOOK", 0.01)
    group = Group()
    async with FakeDynamoDb() as fake:
        fake.afterwards = group.answer
        replication = DynamoDbReplication(shared(THERE, fake.endpoint), shared(HERE, fake.endpoint))
        await replication.check()
        assert "stay replicated" in await replication.promote(clean=True)
        assert group.updates == []
        await replication.promote(clean=False)
        assert await replication.promoted()
        await replication.promote(clean=False)
        await replication.close()
    leaves = {"Disassociate": {"RegionName": HERE, "DisassociationMode": "WAIT_FOR_REPLICATION"}}
    assert group.updates == [
        {"TableName": "shop-journal", "ReplicaUpdates": [leaves]},
        {"TableName": "shop-claims", "ReplicaUpdates": [leaves]},
    ]


async def test_tables_that_are_no_replicas_are_refused() -> None:
    group = Group(status="UPDATING")
    async with FakeDynamoDb() as fake:
        fake.afterwards = group.answer
        replication = DynamoDbReplication(shared(THERE, fake.endpoint), shared(HERE, fake.endpoint))
        with pytest.raises(FailoverRefused, match="is UPDATING; wait"):
            await replication.check()
        await replication.close()
        elsewhere = DynamoDbReplication(shared("us-east-1", fake.endpoint), shared(HERE, fake.endpoint))
        with pytest.raises(FailoverRefused, match="no replica of the one in us-east-1"):
            await elsewhere.check()
        await elsewhere.close()


async def test_what_was_not_replicated_is_found(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication_module, "_FOLLOWS", 1.0)
    monkeypatch.setattr(replication_module, "_LOOK", 0.1)
    prefix = f"test-{secrets.token_hex(6)}"
    ours, theirs = shared(THERE, aws_endpoint, prefix), shared(HERE, aws_endpoint, prefix)
    for tables in (ours, theirs):
        await DynamoDbJournal.migrate(tables.address)
    journal = await DynamoDbJournal.open(ours.address, clock=SystemClock(), telemetry=NoTelemetry())
    now = SystemClock().now()
    for number in range(5):
        about = metadata(f"c{number}", at=now)
        await journal.append("Thing-1", number, [encoded(f"e{number}")], metadata=about, claims=claimed(f"v{number}"))
    await journal.close()
    replication = DynamoDbReplication(ours, theirs)
    with pytest.raises(FailoverRefused, match="the stream Thing-1"):
        await replication.verify(START)
    await replicate(ours, theirs, ours.tables[0])
    with pytest.raises(FailoverRefused, match=f"the items of {prefix}-claims"):
        await replication.verify(START)
    await replicate(ours, theirs, ours.tables[1])
    assert (await replication.verify(START)).commits == 5
    await replication.close()


async def replicate(source: SharedTables, target: SharedTables, table: str) -> None:
    """As AWS does, marks and all."""
    reading, writing = DynamoDbClient(source.address), DynamoDbClient(target.address)
    for item in (await reading.call("Scan", {"TableName": table, "ConsistentRead": True}))["Items"]:
        marked = {**item, "aws:rep:updateregion": {"S": source.address.region}}
        await writing.call("PutItem", {"TableName": table, "Item": marked})
    await reading.close()
    await writing.close()
