"""What AWS says is in force: tasks and policies of ECS, the class of an RDS instance, maxima of DynamoDB tables.

Used by `kiseki scale show`. Only reads; needs the extra `kiseki[aws]`, and the actions that its page lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.connections import Kind
from kiseki.operations.scaling.limits import class_memory, rds_connections

__all__ = ["AwsScaling", "InstanceInForce", "ServiceInForce", "TableInForce"]

_CPU: Final = "ECSServiceAverageCPUUtilization"
_OF_SERVICES: Final = {"ServiceNamespace": "ecs", "ScalableDimension": "ecs:service:DesiredCount"}
_FORMULA: Final = re.compile(r"LEAST\(\{DBInstanceClassMemory/9531392\},\s*5000\)")
_CONFIG: Final = AioConfig(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})


class ServiceInForce(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An ECS service. What Application Auto Scaling does not say is None."""

    kind: Kind
    name: str
    desired: int
    running: int
    minimum: int | None = None
    maximum: int | None = None
    cpu: float | None = None
    """Percent that is aimed at."""
    scale_out: int | None = None
    """Seconds."""
    scale_in: int | None = None
    """Seconds."""


class InstanceInForce(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An RDS instance."""

    name: str
    server: str
    """Host and port."""
    instance_class: str
    max_connections: int | None
    """As its parameter group says; None where that is a formula which is not known here."""


class TableInForce(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A DynamoDB table, or an index of one."""

    table: str
    """Without the prefix, as in a plan."""
    on_demand: bool
    maximum: int | None
    """Units of writing per second: the on-demand maximum, or what is provisioned; None where there is none."""


class AwsScaling:
    """Asks AWS in one region, with the keys that every AWS tool finds."""

    def __init__(self, region: str, *, dynamodb_endpoint: str | None = None) -> None:
        """`dynamodb_endpoint`: scheme, host and port where that is not AWS's own."""
        self._region = region
        self._endpoints = {"dynamodb": dynamodb_endpoint}
        self._session: Any = get_session()

    async def services(self, cluster: str, names: Mapping[Kind, str]) -> tuple[ServiceInForce, ...]:
        """The ECS services of a cluster that have these names. Raises OperationFailed, also for one that is missing."""
        described = await self._ask(
            "ecs", "describe_services", f"the cluster {cluster}", cluster=cluster, services=list(names.values())
        )
        there = {one["serviceName"]: one for one in described["services"] if one.get("status") != "INACTIVE"}
        missing = [name for name in names.values() if name not in there]
        if missing:
            raise OperationFailed(
                f"the cluster {cluster} has no service {missing[0]}; name it with --cluster and --service KIND=NAME"
            )
        return tuple([await self._service(kind, there[name], cluster) for kind, name in names.items()])

    async def _service(self, kind: Kind, service: Mapping[str, Any], cluster: str) -> ServiceInForce:
        name = service["serviceName"]
        identity = f"service/{cluster}/{name}"
        targets = await self._ask(
            "application-autoscaling",
            "describe_scalable_targets",
            f"the limits of {name}",
            ResourceIds=[identity],
            **_OF_SERVICES,
        )
        policies = await self._ask(
            "application-autoscaling",
            "describe_scaling_policies",
            f"the policies of {name}",
            ResourceId=identity,
            **_OF_SERVICES,
        )
        limits: Mapping[str, Any] = next(iter(targets["ScalableTargets"]), {})
        tracking = [one.get("TargetTrackingScalingPolicyConfiguration", {}) for one in policies["ScalingPolicies"]]
        of_cpu = (
            one for one in tracking if one.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType") == _CPU
        )
        policy: Mapping[str, Any] = next(of_cpu, {})
        return ServiceInForce(
            kind=kind,
            name=name,
            desired=service["desiredCount"],
            running=service["runningCount"],
            minimum=limits.get("MinCapacity"),
            maximum=limits.get("MaxCapacity"),
            cpu=policy.get("TargetValue"),
            scale_out=policy.get("ScaleOutCooldown"),
            scale_in=policy.get("ScaleInCooldown"),
        )

    async def instance(self, name: str) -> InstanceInForce:
        """An RDS instance and its max_connections. Raises OperationFailed."""
        what = f"the RDS instance {name}"
        (instance,) = (await self._ask("rds", "describe_db_instances", what, DBInstanceIdentifier=name))["DBInstances"]
        size = instance["DBInstanceClass"]
        endpoint = instance.get("Endpoint", {})
        value = await self._max_connections(instance["DBParameterGroups"][0]["DBParameterGroupName"])
        connections = None
        if value.isdecimal():
            connections = int(value)
        elif _FORMULA.fullmatch(value):
            connections = rds_connections(class_memory(size))
        return InstanceInForce(
            name=name,
            server=f"{endpoint.get('Address', '')}:{endpoint.get('Port', 5432)}",
            instance_class=size,
            max_connections=connections,
        )

    async def _max_connections(self, group: str) -> str:
        more: dict[str, str] = {}
        while True:
            answer = await self._ask(
                "rds", "describe_db_parameters", f"the parameter group {group}", DBParameterGroupName=group, **more
            )
            for one in answer["Parameters"]:
                if one["ParameterName"] == "max_connections":
                    return str(one.get("ParameterValue", ""))
            if not answer.get("Marker"):
                return ""
            more = {"Marker": answer["Marker"]}

    async def tables(self, prefix: str, names: tuple[str, ...]) -> tuple[TableInForce, ...]:
        """The tables `<prefix>-<name>` and their indexes. Raises OperationFailed."""
        found: list[TableInForce] = []
        for name in names:
            full = f"{prefix}-{name}"
            table = (await self._ask("dynamodb", "describe_table", f"the table {full}", TableName=full))["Table"]
            on_demand = table.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST"
            found.append(_table(name, table, on_demand=on_demand))
            found += [
                _table(f"{name}/{index['IndexName']}", index, on_demand=on_demand)
                for index in table.get("GlobalSecondaryIndexes", ())
            ]
        return tuple(found)

    async def _ask(self, service: str, operation: str, what: str, **arguments: object) -> Any:
        try:
            async with self._session.create_client(
                service, region_name=self._region, endpoint_url=self._endpoints.get(service), config=_CONFIG
            ) as client:
                return await getattr(client, operation)(**arguments)
        except ClientError as problem:
            raise OperationFailed(f"{what} can't be read: {self._refusal(service, problem)}") from problem
        except NoCredentialsError as problem:
            raise OperationFailed(
                f"{what} can't be read: no AWS credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from problem
        except (BotoCoreError, OSError) as problem:
            raise OperationFailed(f"{what} can't be read: {' '.join(str(problem).split())}") from problem

    def _refusal(self, service: str, problem: ClientError) -> str:
        error = problem.response.get("Error", {})
        code = error.get("Code", "refused")
        if "NotFound" in code:
            return f"there is none of that name in {self._region}"
        if "AccessDenied" in code:
            return f"the account needs the action {service}:{problem.operation_name}"
        return f"{service} says {code}: {' '.join(error.get('Message', '').split())}"


def _table(name: str, described: Mapping[str, Any], *, on_demand: bool) -> TableInForce:
    if on_demand:
        # -1 is how a maximum that was taken away is shown.
        maximum = described.get("OnDemandThroughput", {}).get("MaxWriteRequestUnits", -1)
    else:
        maximum = described.get("ProvisionedThroughput", {}).get("WriteCapacityUnits", 0)
    return TableInForce(table=name, on_demand=on_demand, maximum=None if maximum < 0 else maximum)
