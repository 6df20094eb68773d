"""Restoring tables of AWS under other names, and putting back what such a restore forgets.

Used by the drivers of DynamoDB. A restored table has the items, the indexes and the way it is paid for; stream, TTL,
point-in-time recovery, tags, protection from deletion, policies and alarms it has not.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CreateBackup.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from kiseki.clients.aws_json import AwsUnavailable
from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbRefused
from kiseki.operations.backup.port import Progress, nothing
from kiseki.operations.dynamodb.alarms import opened_alarms
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.dynamodb.described import DescribedTable
from kiseki.operations.errors import OperationFailed

__all__ = ["TableSource", "put_back", "remove_tables", "restore_tables", "switch_recovery_on", "switch_streams_on"]

_RESTORES: Final = 24 * 3600.0
"""Seconds that a restore may take: AWS gives no promise, and large tables take hours."""
_CHANGES: Final = 900.0
_TOLD_EVERY: Final = 30.0


class TableSource(NamedTuple):
    """What a table is restored from: a backup, or another table as it was at a second."""

    name: str
    """Without the prefix."""
    backup: str | None
    """Its ARN."""
    table: str = ""
    at: datetime | None = None


async def restore_tables(
    tables: Tables,
    sources: Sequence[TableSource],
    target: DynamoDbAddress,
    *,
    like: dict[str, DescribedTable],
    progress: Progress,
) -> None:
    """Restores tables under the names of another address, and waits until they can be used.

    Raises OperationFailed, BackupMissing, DynamoDbUnavailable.
    """
    for source in sources:
        await _begin(tables, source, target.table(source.name), like[source.name])
    shown = _Shown(progress)
    await asyncio.gather(*(_ready(tables, source.name, target, shown) for source in sources))


async def switch_streams_on(tables: Tables, target: DynamoDbAddress, like: Mapping[str, DescribedTable]) -> None:
    """Gives restored tables the streams of changes that the described ones have. Raises as `restore_tables`."""
    for name, described in like.items():
        if described.stream is not None:
            view = {"StreamEnabled": True, "StreamViewType": described.stream}
            await _change(tables, target.table(name), {"StreamSpecification": view})


async def put_back(tables: Tables, described: DescribedTable, table: str, generation: str) -> list[str]:
    """Gives a restored table all that the described one had; a line for each thing that could not be put back.

    Raises OperationFailed, DynamoDbUnavailable.
    """
    about = await tables.must_describe(table)
    arn = about["TableArn"]
    if described.maximum and about.get("OnDemandThroughput") != described.maximum:
        await _change(tables, table, {"OnDemandThroughput": described.maximum})
    if (about.get("TableClassSummary") or {}).get("TableClass", "STANDARD") != described.table_class:
        await _change(tables, table, {"TableClass": described.table_class})
    if described.time_to_live is not None:
        await _put_time_to_live(tables, table, described.time_to_live)
    if described.recovery:
        await switch_recovery_on(tables, table, described.recovery_days)
    if described.tags:
        tags = [{"Key": key, "Value": value} for key, value in described.tags.items()]
        await tables.call("TagResource", {"ResourceArn": arn, "Tags": tags})
    if described.policy is not None:
        await _put_policy(tables, arn, described.policy, described.table, table)
    left = []
    if described.stream_policy is not None:
        stream = (await tables.must_describe(table))["LatestStreamArn"]
        left.append(f"the stream of {described.table} had a policy of its own; give it to {stream} too")
    left += await _put_alarms(described, table, tables.address, generation)
    if described.billing == "PROVISIONED":
        left.append(f"{described.table} was paid by provisioned units; put its auto scaling on {table} too")
    if described.replicas:
        left.append(f"{described.table} had replicas in {', '.join(described.replicas)}; make those of {table}")
    if described.protected:
        await _change(tables, table, {"DeletionProtectionEnabled": True})
    return left


async def switch_recovery_on(tables: Tables, table: str, days: int | None) -> None:
    """Switches point-in-time recovery on; `days` that it goes back, AWS's 35 when None."""
    recovery: dict[str, Any] = {"PointInTimeRecoveryEnabled": True}
    if days is not None:
        recovery["RecoveryPeriodInDays"] = days
    await tables.call("UpdateContinuousBackups", {"TableName": table, "PointInTimeRecoverySpecification": recovery})


async def remove_tables(
    tables: Tables, address: DynamoDbAddress, names: Sequence[str], *, alarms: bool, progress: Progress = nothing
) -> None:
    """Deletes tables, and the alarms on them; again is fine. Alarms that can't be deleted are told: they name tables
    that are gone, and are no reason to fail, or to hide why this is done."""
    for name in names:
        await tables.remove(address.table(name))
    if not alarms:
        return
    async with opened_alarms(address) as all_alarms:
        for name in names:
            try:
                await all_alarms.remove(address.table(name))
            except (OperationFailed, AwsUnavailable) as problem:
                progress(f"alarms on {address.table(name)}, if it had any, are not deleted: {problem}")


class _Shown:
    """Shows how long it has been waited, now and then."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next = 0.0

    def __call__(self, seconds: float) -> None:
        if seconds >= self._next:
            self._next = seconds + _TOLD_EVERY
            self._progress(f"AWS restores the tables, {seconds:.0f} s" if seconds >= 1 else "AWS restores the tables")


async def _begin(tables: Tables, source: TableSource, target: str, like: DescribedTable) -> None:
    request: dict[str, Any] = {"TargetTableName": target}
    if like.key is not None:
        request["SSESpecificationOverride"] = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": like.key}
    if like.maximum:
        request["OnDemandThroughputOverride"] = like.maximum
    try:
        if source.backup is not None:
            await tables.call("RestoreTableFromBackup", {**request, "BackupArn": source.backup})
            return
        when = {"UseLatestRestorableTime": True} if source.at is None else {"RestoreDateTime": source.at.timestamp()}
        await tables.call("RestoreTableToPointInTime", {**request, "SourceTableName": source.table, **when})
    except DynamoDbRefused as problem:
        # Nobody else takes this name: an earlier try got through, and its answer was lost.
        if problem.kind == "TableAlreadyExistsException":
            return
        if problem.kind in ("InvalidRestoreTimeException", "PointInTimeRecoveryUnavailableException"):
            raise OperationFailed(
                f"{source.table} can't be restored to that time ({problem.kind}); see what its point-in-time recovery "
                "reaches back to"
            ) from problem
        raise


async def _ready(tables: Tables, name: str, target: DynamoDbAddress, shown: _Shown) -> None:
    await tables.active(target.table(name), _RESTORES, shown)


async def _change(tables: Tables, table: str, change: dict[str, Any]) -> None:
    """DynamoDB takes one change of a table at a time."""
    await tables.call("UpdateTable", {"TableName": table, **change})
    await tables.active(table, _CHANGES, lambda _: None)


async def _put_time_to_live(tables: Tables, table: str, attribute: str) -> None:
    found = (await tables.call("DescribeTimeToLive", {"TableName": table}))["TimeToLiveDescription"]
    if found.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") and found.get("AttributeName") == attribute:
        return
    wanted = {"Enabled": True, "AttributeName": attribute}
    await tables.call("UpdateTimeToLive", {"TableName": table, "TimeToLiveSpecification": wanted})


async def _put_policy(tables: Tables, arn: str, policy: dict[str, Any], old: str, new: str) -> None:
    await tables.call(
        "PutResourcePolicy", {"ResourceArn": arn, "Policy": json.dumps(_renamed_policy(policy, old, new))}
    )


def _renamed_policy(value: Any, old: str, new: str) -> Any:
    """A policy, or a part of one, that speaks of another table."""
    if isinstance(value, list):
        return [_renamed_policy(each, old, new) for each in value]
    if isinstance(value, dict):
        return {name: _renamed_policy(each, old, new) for name, each in value.items()}
    if isinstance(value, str) and ":table/" in value:
        before, _, rest = value.partition(":table/")
        name, slash, more = rest.partition("/")
        return f"{before}:table/{new if name == old else name}{slash}{more}"
    return value


async def _put_alarms(described: DescribedTable, table: str, address: DynamoDbAddress, generation: str) -> list[str]:
    if described.alarms is None:
        return [f"the alarms of {described.table} could not be read; make them for {table}"]
    left = []
    async with opened_alarms(address) as alarms:
        for alarm in described.alarms:
            try:
                await alarms.put(alarm, old=described.table, new=table, generation=generation)
            except (OperationFailed, AwsUnavailable) as problem:
                left.append(f"the alarm {alarm['AlarmName']} is not made for {table}: {problem}")
    return left
