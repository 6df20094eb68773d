"""The sizes that the cost page counts with are those of the environments."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.infra.planned import Planned, planned
from tools.aws_costs import SIZES, Size

pytestmark = pytest.mark.usefixtures("infra_tools")

SERVICES = {"command-api": "command API", "query-api": "query API", "updater": "updater"}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_the_page_counts_what_is_made(size: Size) -> None:
    plan = planned(size.name, package=None)
    assert dict(size.tasks) == tasks(plan)
    endpoints = [one for one in plan.of("aws_vpc_endpoint") if one.values["vpc_endpoint_type"] == "Interface"]
    assert len(endpoints) == size.endpoints
    assert size.zones == len([one for one in plan.of("aws_subnet") if ".public" in one.address])
    assert len(plan.of("aws_nat_gateway")) == size.nat_gateways
    (database,) = plan.of("aws_db_instance")
    assert size.database == f"RDS {database.values['instance_class']}"
    assert size.database_nodes == (2 if database.values["multi_az"] else 1)
    assert size.database_storage == database.values["allocated_storage"]
    (cache,) = plan.of("aws_elasticache_replication_group")
    assert size.cache == f"Valkey {cache.values['node_type']}"
    assert size.cache_nodes == cache.values["num_cache_clusters"]
    assert size.keys == len(plan.of("aws_kms_key"))
    # RDS makes the secret of its administrator.
    assert size.secrets == len(plan.of("aws_secretsmanager_secret")) + 1
    (firewall,) = plan.of("aws_wafv2_web_acl")
    assert size.firewall_rules == len(firewall.values["rule"])
    assert size.private_zones == len(plan.of("aws_route53_zone"))
    (cluster,) = plan.of("aws_ecs_cluster")
    services = len(plan.of("aws_ecs_service"))
    assert cluster.values["setting"] == [{"name": "containerInsights", "value": "enabled"}]
    assert size.insights == 8 + services * (11 + 6)
    assert size.alarms == alarm_metrics(plan)
    assert size.spot == any(
        each["capacity_provider"] == "FARGATE_SPOT"
        for service in plan.of("aws_ecs_service")
        for each in service.values["capacity_provider_strategy"]
    )


def tasks(plan: Planned) -> dict[str, tuple[int, float, float]]:
    running = {process: plan.system["scaling"][process]["minimum"] for process in SERVICES}
    sizes = {
        str(one.index): (int(one.values["cpu"]) / 1_024, int(one.values["memory"]) / 1_024)
        for one in plan.of("aws_ecs_task_definition")
    }
    return {name: (running[process], *sizes[process]) for process, name in SERVICES.items()}


def alarm_metrics(plan: Planned) -> int:
    """AWS counts each metric that an alarm looks at, and one for an alarm on a single metric."""
    counted = Counter[str]()
    for alarm in plan.of("aws_cloudwatch_metric_alarm"):
        queried = [query for query in alarm.values["metric_query"] or () if query["metric"]]
        counted[alarm.address] = len(queried) or 1
    return counted.total()
