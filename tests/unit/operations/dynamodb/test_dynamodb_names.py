"""Names of tables in alarms, policies and runs: what is renamed for a restored table, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from kiseki.clients.dynamodb_address import DynamoDbAddress
from kiseki.clients.dynamodb_generations import generation_address, is_generation
from kiseki.operations.dynamodb.alarms import _named, _renamed
from kiseki.operations.dynamodb.restored import _renamed_policy
from kiseki.operations.dynamodb.runs import _run_of

OLD, NEW = "shop-journal", "shop-r20261124T162217Z-1844f9-journal"


def test_an_alarm_over_several_metrics_is_renamed_inside() -> None:
    def metric(table: str) -> dict[str, Any]:
        dimensions = [{"Name": "TableName", "Value": table}, {"Name": "Operation", "Value": OLD}]
        return {"Id": "m1", "MetricStat": {"Metric": {"Namespace": "AWS/DynamoDB", "Dimensions": dimensions}}}

    alarm = {"AlarmName": "x", "Metrics": [metric(OLD), metric("other"), {"Id": "e1", "Expression": "m1 / 2"}]}
    assert _named(alarm) == {OLD, "other"}
    assert _renamed(alarm, OLD, NEW)["Metrics"] == [metric(NEW), metric("other"), {"Id": "e1", "Expression": "m1 / 2"}]


def test_a_policy_names_the_new_table_and_its_indexes() -> None:
    arn = f"arn:aws:dynamodb:eu-west-1:1:table/{OLD}"
    statement = {"Principal": {"AWS": f"arn:aws:iam::1:role/{OLD}"}, "Resource": [arn, f"{arn}/index/*", f"{arn}-2"]}
    renamed = _renamed_policy({"Statement": [statement]}, OLD, NEW)["Statement"][0]
    new = f"arn:aws:dynamodb:eu-west-1:1:table/{NEW}"
    assert renamed == {**statement, "Resource": [new, f"{new}/index/*", f"{arn}-2"]}


@pytest.mark.parametrize(
    ("table", "run"),
    [
        (NEW, "r20261124T162217Z-1844f9"),
        ("shop-verify-20261124T162217Z-1844f9-claims", "verify-20261124T162217Z-1844f9"),
        ("shop-journal", None),
        ("shop-r20261124T162217Z-1844f9-leases", None),
        ("shop-r2-journal", None),
        ("other-r20261124T162217Z-1844f9-journal", None),
        ("shop-a-r20261124T162217Z-1844f9-journal", None),
    ],
)
def test_only_tables_of_runs_are_remains(table: str, run: str | None) -> None:
    assert _run_of(table, "shop") == run


def test_only_what_a_restore_made_is_a_generation() -> None:
    first = DynamoDbAddress("shop", "eu-west-1")
    assert not is_generation(first)
    assert generation_address(first, "") == first
    restored = generation_address(first, "r20261124T162217Z-1844f9")
    assert is_generation(restored)
    assert restored.table("journal") == NEW
