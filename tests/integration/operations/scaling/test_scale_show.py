"""Integration: `kiseki scale show` beside an emulator of ECS, RDS and DynamoDB and a real PostgreSQL.

Labelled: not seen on AWS. No emulator that runs here knows Application Auto Scaling, so its answers are written here;
the service model of AWS's own library checks them, and what it is asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session
from aiohttp import web
from botocore.session import get_session as get_models
from botocore.validate import ParamValidator

from kiseki.cli.main import run
from tests.servers.emulator import REGION
from tests.servers.postgres import PostgresServer

POLICY = {
    "PolicyARN": "arn:aws:autoscaling:eu-west-1:1:scalingPolicy:1",
    "PolicyName": "cpu",
    "ServiceNamespace": "ecs",
    "ResourceId": "service/x/command-api",
    "ScalableDimension": "ecs:service:DesiredCount",
    "PolicyType": "TargetTrackingScaling",
    "CreationTime": 1_700_000_000,
    "TargetTrackingScalingPolicyConfiguration": {
        "TargetValue": 70.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"},
        "ScaleOutCooldown": 60,
        "ScaleInCooldown": 300,
    },
}
BY_REQUESTS = {
    **POLICY,
    "PolicyName": "requests",
    "TargetTrackingScalingPolicyConfiguration": {
        "TargetValue": 1_000.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "ALBRequestCountPerTarget"},
    },
}


class ApplicationAutoScaling:
    """Answers for services by name: from how many tasks to how many, and the policies."""

    def __init__(self) -> None:
        self.limits = {"command-api": (3, 20), "query-api": (3, 20)}
        self.policies: list[dict[str, Any]] = [BY_REQUESTS, POLICY]
        self.asked: list[str] = []
        self.refuses = False
        self._model: Any = get_models().get_service_model("application-autoscaling")

    async def answer(self, request: web.BaseRequest) -> web.Response:
        name = request.headers["x-amz-target"].partition(".")[2]
        operation = self._model.operation_model(name)
        asked = json.loads(await request.read())
        assert not ParamValidator().validate(asked, operation.input_shape).has_errors()
        self.asked.append(name)
        if self.refuses:
            body: dict[str, Any] = {"__type": "AccessDeniedException", "Message": "not authorized"}
            return web.json_response(body, status=400, content_type="application/x-amz-json-1.1")
        if name == "DescribeScalableTargets":
            (identity,) = asked["ResourceIds"]
            found = self.limits.get(identity.rpartition("/")[2])
            body = {"ScalableTargets": [] if found is None else [self._target(identity, *found)]}
        else:
            assert name == "DescribeScalingPolicies"
            scaled = asked["ResourceId"].rpartition("/")[2] in self.limits
            body = {"ScalingPolicies": self.policies if scaled else []}
        assert not ParamValidator().validate(body, operation.output_shape).has_errors()
        return web.json_response(body, content_type="application/x-amz-json-1.1")

    def _target(self, identity: str, low: int, high: int) -> dict[str, Any]:
        return {
            "ServiceNamespace": "ecs",
            "ResourceId": identity,
            "ScalableDimension": "ecs:service:DesiredCount",
            "MinCapacity": low,
            "MaxCapacity": high,
            "RoleARN": "arn:aws:iam::1:role/scaling",
            "CreationTime": 1_700_000_000,
        }


@asynccontextmanager
async def served(scaling: ApplicationAutoScaling) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(scaling.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Account:
    """A prefix of this test's own: cluster, services, tables and an RDS instance that is the real PostgreSQL."""

    def __init__(self, endpoint: str, prefix: str, server: PostgresServer) -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.server = server
        self._session: Any = get_session()

    async def make(self, *, tasks: int = 3, write_maximum: int | None = 2_000, max_connections: str = "300") -> None:
        async with self.client("ecs") as ecs:
            await ecs.create_cluster(clusterName=self.prefix)
            container = {"name": "a", "image": "b", "memory": 128}
            await ecs.register_task_definition(family="f", containerDefinitions=[container])
            for name, count in {"command-api": tasks, "query-api": tasks, "updater": 1}.items():
                await ecs.create_service(cluster=self.prefix, serviceName=name, taskDefinition="f", desiredCount=count)
        async with self.client("dynamodb") as dynamodb:
            maximum = {} if write_maximum is None else {"MaxWriteRequestUnits": write_maximum}
            for name in ("journal", "claims", "keys"):
                await dynamodb.create_table(
                    TableName=f"{self.prefix}-{name}",
                    AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
                    KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
                    BillingMode="PAY_PER_REQUEST",
                    OnDemandThroughput=maximum or {"MaxReadRequestUnits": 5},
                )
        async with self.client("rds") as rds:
            await rds.create_db_parameter_group(
                DBParameterGroupName=self.prefix, DBParameterGroupFamily="postgres16", Description="of a test"
            )
            parameter = {
                "ParameterName": "max_connections",
                "ParameterValue": max_connections,
                "ApplyMethod": "pending-reboot",
            }
            await rds.modify_db_parameter_group(DBParameterGroupName=self.prefix, Parameters=[parameter])
            await rds.create_db_instance(
                DBInstanceIdentifier=self.prefix,
                DBInstanceClass="db.r6g.large",
                Engine="postgres",
                Port=self.server.port,
                MasterUsername="kiseki",
                MasterUserPassword="not-used-here",
                AllocatedStorage=20,
                DBParameterGroupName=self.prefix,
            )

    def client(self, service: str) -> Any:
        return self._session.create_client(service, region_name=REGION, endpoint_url=self.endpoint)


@pytest.fixture
def scaling() -> ApplicationAutoScaling:
    return ApplicationAutoScaling()


@pytest.fixture
async def autoscaling_url(scaling: ApplicationAutoScaling) -> AsyncIterator[str]:
    async with served(scaling) as url:
        yield url


@pytest.fixture
def account(
    aws_endpoint: str,
    autoscaling_url: str,
    postgres_server: PostgresServer,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Account:
    prefix = f"scale-{abs(hash(request.node.name)):x}"
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING": autoscaling_url,
        "KISEKI_JOURNAL": f"dynamodb://{prefix}?region={REGION}&endpoint={aws_endpoint}",
        "KISEKI_READ_MODEL": postgres_server.url(),
    }.items():
        monkeypatch.setenv(name, value)
    return Account(aws_endpoint, prefix, postgres_server)


Show = Callable[..., Any]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs the command beside the loop that plays AWS; exit code, standard output, standard error."""

    async def shown(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, ["scale", "show", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return shown


FITS = ("--tasks", "command-api=3-20", "--tasks", "query-api=3-6", "--commands", "400")


async def test_what_is_as_planned_is_shown_and_fits(
    account: Account, scaling: ApplicationAutoScaling, show: Show
) -> None:
    await account.make()
    scaling.limits["query-api"] = (3, 6)
    code, out, err = await show(*FITS, "--surge", "1", "--db-instance", account.prefix)
    assert (code, err) == (0, "")
    assert f"in force in {REGION}, cluster {account.prefix}" in out
    assert "3 of 3 tasks run; scaled from 3 to 20 at 70 % CPU, out after 60 s, in after 300 s" in out
    assert "1 of 1 tasks run; not scaled" in out
    assert "db.r6g.large, max_connections 300" in out
    assert "on-demand, maximum 2000 units of writing/s" in out
    assert "200 (in force, " in out  # the server's own word counts more than its parameter group
    assert out.endswith("it fits\n")
    assert account.server.password not in out


async def test_everything_that_differs_is_found_and_the_first_is_the_line(
    account: Account, scaling: ApplicationAutoScaling, show: Show
) -> None:
    await account.make(write_maximum=None)
    scaling.limits["command-api"] = (1, 5)
    scaling.policies = [BY_REQUESTS]
    code, out, err = await show("--json")
    assert code == 1
    assert err.count("\n") == 1
    shown = json.loads(out)
    names = [one["name"] for one in shown["findings"]]
    assert names.count("tasks in force") == 1
    assert names.count("policy in force") == 2
    assert names.count("dynamodb maximum in force") == 3
    assert names.count("database connections") == 1
    assert shown["services"][0]["minimum"] == 1
    assert shown["servers"][0]["maxConnections"] == 200
    assert shown["instance"] is None
    assert account.server.password not in out + err


async def test_a_server_that_is_not_reached_from_here_is_a_note_and_the_parameter_group_counts(
    account: Account, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    await account.make(max_connections="LEAST({DBInstanceClassMemory/9531392},5000)")
    wrong = account.server.url().replace(account.server.password, "wrong")
    monkeypatch.setenv("KISEKI_READ_MODEL", wrong)
    code, out, _ = await show("--db-instance", account.prefix)
    assert code == 0
    assert "note: " in out
    assert "can't be asked" in out
    assert "of 1617: 1622 (db.r6g.large) without 5 reserved" in out
    assert "wrong" not in out


async def test_it_only_describes(account: Account, scaling: ApplicationAutoScaling, show: Show) -> None:
    await account.make()
    await show("--db-instance", account.prefix)
    assert {name for name in scaling.asked if not name.startswith("Describe")} == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cluster", "nowhere"), "the cluster nowhere can't be read: there is none of that name in eu-west-1"),
        (("--service", "query-api=nothing"), "has no service nothing; name it with --cluster and --service KIND=NAME"),
        (("--db-instance", "nothing"), "the RDS instance nothing can't be read: there is none of that name"),
    ],
)
async def test_wrong_names_are_one_line(account: Account, show: Show, arguments: tuple[str, ...], said: str) -> None:
    await account.make()
    code, out, err = await show(*arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert said in err


async def test_an_instance_of_another_service_is_refused(
    account: Account, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    await account.make()
    monkeypatch.setenv("KISEKI_READ_MODEL", "postgresql://kiseki@127.0.0.1:1/kiseki")
    code, _, err = await show("--db-instance", account.prefix)
    assert code == 1
    assert f"is 127.0.0.1:{account.server.port}, and the servers of the settings are: 127.0.0.1:1" in err


async def test_an_action_that_is_not_allowed_is_named(
    account: Account, scaling: ApplicationAutoScaling, show: Show
) -> None:
    await account.make()
    scaling.refuses = True
    code, _, err = await show()
    assert code == 1
    assert "the account needs the action application-autoscaling:DescribeScalableTargets" in err
    assert err.count("\n") == 1


async def test_services_and_tables_that_are_left_out(account: Account, show: Show) -> None:
    await account.make()
    code, out, _ = await show("--service", "updater=", "--limit", "1000", "--json")
    assert [one["name"] for one in json.loads(out)["services"]] == ["command-api", "query-api"]
    assert code == 1
