"""Alarms of CloudWatch on tables: finding those that name a table, and making the same for another one.

Used by the drivers of DynamoDB. Composite alarms name other alarms, not tables, and are left to the operator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kiseki.clients.aws_json import AwsJsonClient, AwsRefused
from kiseki.clients.dynamodb_address import DynamoDbAddress
from kiseki.operations.errors import OperationFailed

__all__ = ["Alarms", "opened_alarms"]

_SETTABLE: Final = (
    "ActionsEnabled",
    "AlarmActions",
    "AlarmDescription",
    "AlarmName",
    "ComparisonOperator",
    "DatapointsToAlarm",
    "Dimensions",
    "EvaluateLowSampleCountPercentile",
    "EvaluationPeriods",
    "ExtendedStatistic",
    "InsufficientDataActions",
    "MetricName",
    "Metrics",
    "Namespace",
    "OKActions",
    "Period",
    "Statistic",
    "Threshold",
    "ThresholdMetricId",
    "TreatMissingData",
    "Unit",
)
"""What PutMetricAlarm takes of what DescribeAlarms gives."""


class Alarms:
    """The metric alarms of one account and region."""

    def __init__(self, client: AwsJsonClient) -> None:
        self._client = client

    async def of(self, tables: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """By table, the alarms whose dimensions name it, as PutMetricAlarm takes them.

        Raises OperationFailed, AwsUnavailable.
        """
        found: dict[str, list[dict[str, Any]]] = {table: [] for table in tables}
        request: dict[str, Any] = {"AlarmTypes": ["MetricAlarm"]}
        while True:
            answer = await self._call("DescribeAlarms", request)
            for alarm in answer.get("MetricAlarms", ()):
                kept = {name: alarm[name] for name in _SETTABLE if alarm.get(name) not in (None, [], "")}
                for table in _named(alarm) & found.keys():
                    found[table].append(kept)
            if not answer.get("NextToken"):
                return found
            request["NextToken"] = answer["NextToken"]

    async def put(self, alarm: Mapping[str, Any], *, old: str, new: str, generation: str) -> str:
        """Makes the alarm of a table for another one; its name. The old one stays. Raises as `of`."""
        made = _renamed(dict(alarm), old, new)
        name = str(alarm["AlarmName"])
        made["AlarmName"] = name.replace(old, new) if old in name else f"{name}-{generation}"
        await self._call("PutMetricAlarm", made)
        return str(made["AlarmName"])

    async def remove(self, table: str) -> None:
        """Removes the alarms that name a table. Raises as `of`."""
        names = [alarm["AlarmName"] for alarm in (await self.of([table]))[table]]
        if names:
            await self._call("DeleteAlarms", {"AlarmNames": names})

    async def _call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.call(operation, request)
        except AwsRefused as problem:
            if problem.kind in ("AccessDenied", "AccessDeniedException"):
                raise OperationFailed(f"this account may not do cloudwatch:{operation}; allow it") from problem
            raise OperationFailed(str(problem)) from problem


@asynccontextmanager
async def opened_alarms(address: DynamoDbAddress) -> AsyncIterator[Alarms]:
    """For the time of a piece of work."""
    client = AwsJsonClient(
        service="monitoring",
        target="GraniteServiceVersion20100801",
        region=address.region,
        # An endpoint of its own is that of an emulator, which has all services.
        endpoint=address.endpoint,
        connections=4,
        content_type="application/x-amz-json-1.0",
    )
    try:
        yield Alarms(client)
    finally:
        await client.close()


def _named(value: Any) -> set[str]:
    """The tables that an alarm names, also within expressions over several metrics."""
    if isinstance(value, list):
        return set().union(*map(_named, value))
    if not isinstance(value, dict):
        return set()
    if value.get("Name") == "TableName" and isinstance(value.get("Value"), str):
        return {value["Value"]}
    return set().union(*map(_named, value.values()))


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, list):
        return [_renamed(each, old, new) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get("Name") == "TableName" and value.get("Value") == old:
        return {**value, "Value": new}
    return {name: _renamed(each, old, new) for name, each in value.items()}
