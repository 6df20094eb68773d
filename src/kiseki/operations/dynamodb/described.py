"""What a table is besides its items: all that a restore of AWS forgets, kept in `tables.json` beside a backup.

Used by the drivers of DynamoDB.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec

from kiseki.clients.aws_json import AwsUnavailable
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import StorePart
from kiseki.operations.backup.port import Progress
from kiseki.operations.dynamodb.alarms import opened_alarms
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.dynamodb.fence import is_fence, policy_of
from kiseki.operations.dynamodb.parts import PARTS
from kiseki.operations.errors import BackupDamaged, OperationFailed

__all__ = ["TABLES_FILE", "DescribedTable", "DescribedTables", "describe", "read_described", "write_described"]

TABLES_FILE: Final = "tables.json"
_ON: Final = ("ENABLED", "ENABLING")


class DescribedTable(msgspec.Struct, frozen=True, kw_only=True):
    """One table."""

    name: str
    """Without the prefix."""
    table: str
    stream: str | None = None
    """What its stream of changes holds; None when it has none."""
    recovery: bool = False
    """Whether point-in-time recovery is on."""
    recovery_days: int | None = None
    time_to_live: str | None = None
    """The attribute."""
    tags: dict[str, str] = {}
    protected: bool = False
    """From deletion."""
    billing: str = "PAY_PER_REQUEST"
    provisioned: dict[str, int] | None = None
    maximum: dict[str, int] | None = None
    """Units for each second, at most, when it is paid by request."""
    table_class: str = "STANDARD"
    key: str | None = None
    """The KMS key, where it is not AWS's own."""
    indexes: tuple[str, ...] = ()
    policy: dict[str, Any] | None = None
    stream_policy: dict[str, Any] | None = None
    replicas: tuple[str, ...] = ()
    """Regions that have a replica."""
    alarms: tuple[dict[str, Any], ...] | None = None
    """None when they could not be read."""


class DescribedTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a part."""

    part: StorePart
    tables: tuple[DescribedTable, ...]

    def of(self, name: str) -> DescribedTable:
        """The description of a table. Raises BackupDamaged."""
        for each in self.tables:
            if each.name == name:
                return each
        raise BackupDamaged(f"{TABLES_FILE} says nothing of the table {name}; use another backup")


_decode: Final = msgspec.json.Decoder(DescribedTables).decode


async def describe(tables: Tables, live: DynamoDbAddress, part: StorePart, progress: Progress) -> DescribedTables:
    """Describes the live tables of a part. Raises OperationFailed, Unavailable."""
    names = {name: live.table(name) for name in PARTS[part]}
    alarms: dict[str, list[dict[str, Any]]] | None = None
    async with opened_alarms(live) as all_alarms:
        try:
            alarms = await all_alarms.of([*names.values()])
        except (OperationFailed, AwsUnavailable) as problem:
            progress(f"alarms are not in this backup: {problem}")
    found = [await _described(tables, name, table, alarms) for name, table in names.items()]
    return DescribedTables(part=part, tables=tuple(found))


async def write_described(described: DescribedTables, folder: Path) -> None:
    """Writes the file, readable by people."""
    data = msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n"
    await asyncio.to_thread((folder / TABLES_FILE).write_bytes, data)


async def read_described(folder: Path) -> DescribedTables:
    """Reads the file. Raises BackupDamaged."""
    try:
        return _decode(await asyncio.to_thread((folder / TABLES_FILE).read_bytes))
    except (OSError, msgspec.DecodeError) as problem:
        raise BackupDamaged(f"{TABLES_FILE} of the backup can't be read; use another backup") from problem


async def _described(
    tables: Tables, name: str, table: str, alarms: dict[str, list[dict[str, Any]]] | None
) -> DescribedTable:
    about = await tables.must_describe(table)
    arn = about["TableArn"]
    recovery = (await tables.call("DescribeContinuousBackups", {"TableName": table}))["ContinuousBackupsDescription"]
    point_in_time = recovery.get("PointInTimeRecoveryDescription") or {}
    expiry = (await tables.call("DescribeTimeToLive", {"TableName": table}))["TimeToLiveDescription"]
    stream = about.get("StreamSpecification") or {}
    sse = about.get("SSEDescription") or {}
    billing = (about.get("BillingModeSummary") or {}).get("BillingMode", "PROVISIONED")
    units = about.get("ProvisionedThroughput") or {}
    maximum = {name: value for name, value in (about.get("OnDemandThroughput") or {}).items() if value > 0}
    return DescribedTable(
        name=name,
        table=table,
        stream=stream.get("StreamViewType") if stream.get("StreamEnabled") else None,
        recovery=point_in_time.get("PointInTimeRecoveryStatus") in _ON,
        recovery_days=point_in_time.get("RecoveryPeriodInDays"),
        time_to_live=expiry.get("AttributeName") if expiry.get("TimeToLiveStatus") in _ON else None,
        tags=await _tags(tables, arn),
        protected=bool(about.get("DeletionProtectionEnabled")),
        billing=billing,
        provisioned={kind: int(units[kind]) for kind in ("ReadCapacityUnits", "WriteCapacityUnits")}
        if billing == "PROVISIONED"
        else None,
        maximum=maximum or None,
        table_class=(about.get("TableClassSummary") or {}).get("TableClass", "STANDARD"),
        key=sse.get("KMSMasterKeyArn") if sse.get("SSEType") == "KMS" else None,
        indexes=tuple(each["IndexName"] for each in about.get("GlobalSecondaryIndexes") or ()),
        policy=_without_fence(await policy_of(tables, arn)),
        stream_policy=await _stream_policy(tables, about) if stream.get("StreamEnabled") else None,
        replicas=tuple(each["RegionName"] for each in about.get("Replicas") or ()),
        alarms=None if alarms is None else tuple(alarms[table]),
    )


async def _stream_policy(tables: Tables, about: dict[str, Any]) -> dict[str, Any] | None:
    """The policy of the table's stream: as good as always none, and not everywhere can be asked for it."""
    try:
        return await policy_of(tables, about["LatestStreamArn"])
    except OperationFailed:
        return None


async def _tags(tables: Tables, arn: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    request = {"ResourceArn": arn}
    while True:
        answer = await tables.call("ListTagsOfResource", request)
        # What AWS itself puts there, such as of stacks, can't be put back.
        tags.update({tag["Key"]: tag["Value"] for tag in answer.get("Tags", ()) if not tag["Key"].startswith("aws:")})
        if not answer.get("NextToken"):
            return tags
        request["NextToken"] = answer["NextToken"]


def _without_fence(policy: dict[str, Any] | None) -> dict[str, Any] | None:
    if policy is None or not isinstance(policy.get("Statement"), list):
        return policy
    statements = [each for each in policy["Statement"] if not is_fence(each)]
    return {**policy, "Statement": statements} if statements else None
