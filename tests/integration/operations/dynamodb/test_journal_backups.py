"""Backups of a journal on DynamoDB (the emulator): made under load, compared event by event, restored beside the live
tables with all that a restore of AWS forgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kiseki.clients.aws_json import AwsJsonClient, AwsRefused
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_tables import create_tables
from kiseki.journal.dynamodb.schema import TABLES
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.alarms import opened_alarms
from kiseki.operations.dynamodb.calls import Tables, opened_tables
from kiseki.operations.dynamodb.described import DescribedTables, describe, read_described
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from kiseki.operations.errors import BackupMissing
from tests.integration.journal.dynamodb_parts import append, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import (
    Between,
    Load,
    commits_of,
    folder_in,
    held,
    manifest_of,
)


def backups_of(address: DynamoDbAddress) -> DynamoDbJournalBackups:
    return DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)


async def test_a_copy_under_load_has_the_claims_of_its_commits(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    """Between the copies of the two tables values change hands; afterwards each is held by whom the journal says."""
    backups = backups_of(address)
    load = Load(address)
    changed: list[int] = []

    async def busy(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup" and request["TableName"] == address.table("journal"):
            changed.append(load.commits)
            await load.more(60)

    between.hooks.append(busy)
    folder = folder_in(tmp_path)
    async with load.running():
        await load.more(40)
        manifest = manifest_of(await backups.make(folder, nothing))
        await load.more(40)
    assert changed
    async with opened(address) as live, backups.opened(folder, manifest) as restored:
        mine, theirs = await commits_of(restored), await commits_of(live)
        assert all(theirs[stream][: len(commits)] == commits for stream, commits in mine.items())
        kept = {commit for commits in mine.values() for commit in commits}
        assert 100 <= len(kept) < load.commits
        assert await held(restored) == load.held_after(kept)
        assert await held(restored) != await held(live)
    async with opened_tables(address) as tables:
        assert not [name for name in await tables.names() if f"{address.prefix}-verify" in name]


async def test_point_in_time_recovery_is_switched_on(address: DynamoDbAddress, tmp_path: Path) -> None:
    said: list[str] = []
    folder = folder_in(tmp_path)
    made = await backups_of(address).make(folder, said.append)
    assert f"switching point-in-time recovery of {address.table('journal')} on" in said
    said.clear()
    await backups_of(address).make(folder_in(tmp_path), said.append)
    assert not [line for line in said if "point-in-time" in line]
    assert made.contents is None
    assert made.references.keys() == {"journal", "claims"}


async def test_a_restored_journal_has_all_that_a_restore_forgets(address: DynamoDbAddress, tmp_path: Path) -> None:
    await _furnish(address)
    backups = backups_of(address)
    async with opened(address) as live:
        await append(live, "user-a", 0)
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing))
    kept = await read_described(folder)
    journal = kept.of("journal")
    assert journal.tags == {"team": "shop"}
    assert all((journal.recovery, journal.protected, journal.policy, journal.stream == "NEW_IMAGE"))
    assert journal.maximum == {"MaxReadRequestUnits": 100, "MaxWriteRequestUnits": 50}
    assert kept.of("claims").time_to_live == "expires-at"
    assert [alarm["AlarmName"] for alarm in journal.alarms or ()] == [f"{address.table('journal')}-throttled"]

    staged = await backups.stage(folder, manifest, nothing)
    target = staged._staged.address
    async with opened_tables(address) as tables:
        there = await describe(tables, target, "journal", nothing)
        assert _neutral(there, target) == _neutral(kept, address)
    async with opened_tables(target) as theirs:
        assert await create_tables(theirs.client, TABLES) == []
    await staged.discard()
    await staged.discard()
    async with opened_tables(address) as tables, opened_alarms(address) as alarms:
        assert not [name for name in await tables.names() if name.startswith(target.prefix)]
        assert (await alarms.of([target.table("journal")]))[target.table("journal")] == []


async def test_what_a_copy_forgets_is_gone_in_aws(address: DynamoDbAddress, tmp_path: Path) -> None:
    backups = backups_of(address)
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing))
    await backups.forget(manifest)
    await backups.forget(manifest)
    async with opened_tables(address) as tables:
        answer = await tables.call("ListBackups", {"TableName": address.table("journal")})
        assert answer["BackupSummaries"] == []
    with pytest.raises(BackupMissing, match="AWS has no such backup"):
        async with backups.opened(folder, manifest):
            pass


async def test_alarms_that_may_not_be_read_do_not_keep_from_a_backup(
    address: DynamoDbAddress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refused(*_: object) -> None:
        raise AwsRefused("monitoring in eu-west-1: DescribeAlarms: AccessDenied", kind="AccessDenied")

    said: list[str] = []
    folder = folder_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(AwsJsonClient, "call", refused)
        manifest = manifest_of(await backups_of(address).make(folder, said.append))
    assert any("cloudwatch:DescribeAlarms" in line for line in said)
    assert (await read_described(folder)).of("journal").alarms is None
    switched = await (await backups_of(address).stage(folder, manifest, nothing)).switch()
    assert any("alarms" in line and "could not be read" in line for line in switched.left)


async def _furnish(address: DynamoDbAddress) -> None:
    """Gives the live tables all that infrastructure might."""
    async with opened_tables(address) as tables:
        for name in ("journal", "claims", "snapshots"):
            await _furnish_table(tables, address.table(name))
        table = address.table("journal")
        maximum = {"MaxReadRequestUnits": 100, "MaxWriteRequestUnits": 50}
        await tables.call("UpdateTable", {"TableName": table, "OnDemandThroughput": maximum})
    async with opened_alarms(address) as alarms:
        await alarms.put(
            {
                "AlarmName": f"{table}-throttled",
                "Namespace": "AWS/DynamoDB",
                "MetricName": "WriteThrottleEvents",
                "Dimensions": [{"Name": "TableName", "Value": table}],
                "Statistic": "Sum",
                "Period": 60,
                "EvaluationPeriods": 1,
                "Threshold": 1.0,
                "ComparisonOperator": "GreaterThanThreshold",
                "AlarmActions": ["arn:aws:sns:eu-west-1:000000000000:on-call"],
            },
            old=table,
            new=table,
            generation="",
        )


async def _furnish_table(tables: Tables, table: str) -> None:
    arn = (await tables.must_describe(table))["TableArn"]
    await tables.call("TagResource", {"ResourceArn": arn, "Tags": [{"Key": "team", "Value": "shop"}]})
    await tables.call("UpdateTable", {"TableName": table, "DeletionProtectionEnabled": True})
    await tables.call(
        "UpdateContinuousBackups",
        {"TableName": table, "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}},
    )
    allow = {
        "Sid": "Readers",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::000000000000:root"},
        "Action": ["dynamodb:GetItem"],
        "Resource": arn,
    }
    policy = msgspec.json.encode({"Version": "2012-10-17", "Statement": [allow]}).decode()
    await tables.call("PutResourcePolicy", {"ResourceArn": arn, "Policy": policy})


def _neutral(described: DescribedTables, address: DynamoDbAddress) -> object:
    """A description without the prefix of its tables."""
    return msgspec.json.decode(msgspec.json.encode(described).replace(address.prefix.encode() + b"-", b"shop-"))
