"""One source of names: what the infrastructure makes and says is what the code reads, in every environment.

The plans are whole ones, with the AWS provider's schema; whatever the code reads is asked of the code itself.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kiseki.clients.dynamodb_generations import OPERATIONS_TABLE
from kiseki.clients.dynamodb_tables import TableSpec
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.dynamodb.schema import TABLES as JOURNAL_TABLES
from kiseki.journal.lease.dynamodb import LEASES_TABLE
from kiseki.operations.postgres.roles import wanted_databases
from kiseki.security.dynamodb_key_items import KEYS_TABLE
from kiseki.security.erasure.dynamodb_ledger import ERASURES_TABLE
from kiseki.security.identity.dynamodb_revocations import REVOCATIONS_TABLE
from kiseki.security.secrets.reference import SecretReference
from kiseki.service.checks import findings
from kiseki.service.kinds import PARTS
from kiseki.service.lambda_parts import prepare
from kiseki.service.settings import ENVIRONMENT_PREFIX, Settings
from kiseki.service.settings_sources import load_settings
from tests.infra.planned import ENVIRONMENTS, REGION, Planned, Resource, planned
from tests.infra.support import ROOT
from tools.aws_settings import settings_files

pytestmark = pytest.mark.usefixtures("infra_tools")

TABLES = {
    spec.name: spec
    for spec in (*JOURNAL_TABLES, KEYS_TABLE, REVOCATIONS_TABLE, OPERATIONS_TABLE, ERASURES_TABLE, LEASES_TABLE)
}
SERVICES = ("command-api", "query-api", "updater")
TASKS = (*SERVICES, "migrate", "backup")


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def plan(request: pytest.FixtureRequest) -> Planned:
    return planned(request.param)


@pytest.fixture
def written(plan: Planned, tmp_path: Path) -> Path:
    """The settings files of the environment, in a folder."""
    for process, text in settings_files(plan.outputs).items():
        (tmp_path / f"{process}.toml").write_text(text, encoding="utf-8")
    return tmp_path


def settings_of(folder: Path, process: str) -> Settings:
    return load_settings(options={}, environ={}, directory=folder, config=folder / f"{process}.toml")


def container(plan: Planned, process: str) -> Mapping[str, Any]:
    (task,) = (one for one in plan.of("aws_ecs_task_definition") if one.index == process)
    (definition,) = json.loads(task.values["container_definitions"])
    assert isinstance(definition, dict)
    return definition


def environment(plan: Planned, process: str) -> Mapping[str, str]:
    return {one["name"]: one["value"] for one in container(plan, process)["environment"]}


# Settings


@pytest.mark.parametrize("process", SERVICES)
def test_production_starts_with_the_settings_file_of_every_service(written: Path, process: str) -> None:
    settings = settings_of(written, process)
    assert not settings.development
    assert not findings(settings, {}, PARTS[process])


@pytest.mark.parametrize("process", ["migrate", "backup"])
def test_the_settings_of_tasks_are_safe_too(written: Path, process: str) -> None:
    about_apis = {"authentication", "transport", "hosts", "rate_store", "management_host"}
    assert {one.name for one in findings(settings_of(written, process), {}, PARTS["updater"])} <= about_apis


def test_the_function_takes_its_environment(plan: Planned, tmp_path: Path) -> None:
    (function,) = plan.of("aws_lambda_function")
    variables = function.values["environment"][0]["variables"]
    parts = prepare(variables, tmp_path)
    assert parts.settings.profile == "production"
    assert parts.settings.metrics_namespace == plan.system["name"]
    handler = function.values["handler"]
    module, _, name = handler.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("process", TASKS)
def test_the_settings_file_is_what_the_task_gets(plan: Planned, written: Path, process: str) -> None:
    given = {name: value for name, value in environment(plan, process).items() if name.startswith(ENVIRONMENT_PREFIX)}
    from_environment = load_settings(options={}, environ=given, directory=written, config=None)
    assert settings_of(written, process).model_dump() == from_environment.model_dump()
    assert given.keys() <= {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("process", TASKS)
def test_nothing_that_a_task_is_told_is_a_secret(plan: Planned, process: str) -> None:
    for name, value in environment(plan, process).items():
        if any(word in name for word in ("SECRET", "PASSWORD", "RATE_STORE", "AUDIT_KEY")):
            assert value.startswith("aws-sm://"), name
    assert "secrets" not in container(plan, process)


def test_the_tool_that_writes_the_files_can_be_run(plan: Planned, tmp_path: Path) -> None:
    folder = tmp_path / "settings"
    command = [sys.executable, str(ROOT / "tools" / "aws_settings.py"), str(folder)]
    done = subprocess.run(
        command, input=json.dumps(plan.outputs), capture_output=True, check=True, encoding="utf-8", timeout=30
    )
    assert done.stdout.splitlines() == [f"written: {folder / one}.toml" for one in sorted([*TASKS, "updater-function"])]
    for bad in ("{}", "no JSON", '{"system": {"value": 1}}'):
        done = subprocess.run(command, input=bad, capture_output=True, check=False, encoding="utf-8", timeout=30)
        assert done.returncode == 1
        assert done.stderr.startswith("kiseki: ")
        assert len(done.stderr.splitlines()) == 1
    assert "usage:" in subprocess.run([*command[:-1], "--help"], capture_output=True, check=False, text=True).stderr


@pytest.mark.parametrize("process", TASKS)
def test_the_command_of_a_task_is_one_of_the_program(plan: Planned, process: str) -> None:
    assert container(plan, process)["command"][0] == process


def test_an_application_of_ones_own_is_served_by_all(tmp_path: Path) -> None:
    plan = planned("staging", application="kiseki.users:app")
    for process in SERVICES:
        assert container(plan, process)["command"] == [process, "--app", "kiseki.users:app"]
    (function,) = plan.of("aws_lambda_function")
    variables = function.values["environment"][0]["variables"]
    assert variables["KISEKI_APP"] == "kiseki.users:app"
    assert prepare(variables, tmp_path)
    assert "app =" not in settings_files(plan.outputs)["updater-function"]


def test_what_is_scheduled_is_a_command(plan: Planned) -> None:
    scheduled = {}
    for schedule in plan.of("aws_scheduler_schedule"):
        told = json.loads(schedule.values["target"][0]["input"])
        (override,) = told["containerOverrides"]
        scheduled[schedule.index] = " ".join(override["command"])
    assert scheduled == {
        "create": "backup create",
        "prune": "backup prune",
        "status": "dr status --embedded-metrics",
        "audit": "audit verify",
        "journal": "journal verify",
    }
    for command in scheduled.values():
        done = subprocess.run(
            [sys.executable, "-m", "kiseki", *command.split(), "--help"], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, command


# Tables


def attributes(spec: TableSpec) -> dict[str, str]:
    keys = [
        spec.hash_key,
        spec.range_key,
        *(key for index in spec.indexes for key in (index.hash_key, index.range_key)),
    ]
    return {key.name: key.type for key in keys if key is not None}


def test_every_table_of_the_code_is_made_and_no_other(plan: Planned) -> None:
    made = {one.values["name"] for one in plan.of("aws_dynamodb_table")}
    prefix = plan.system["name"]
    assert made == {f"{prefix}-{name}" for name in TABLES if name != LEASES_TABLE.name}
    assert set(plan.system["tables"].values()) == made


@pytest.mark.parametrize("name", [name for name in TABLES if name != LEASES_TABLE.name])
def test_a_table_is_what_the_code_says(plan: Planned, name: str) -> None:
    (made,) = (one for one in plan.of("aws_dynamodb_table") if one.index == name)
    same_table(made, TABLES[name])
    assert made.values["deletion_protection_enabled"]
    assert made.values["server_side_encryption"][0]["enabled"]


def same_table(made: Resource, spec: TableSpec) -> None:
    values = made.values
    assert values["hash_key"] == spec.hash_key.name
    assert values["range_key"] == (spec.range_key.name if spec.range_key else None)
    assert {one["name"]: one["type"] for one in values["attribute"]} == attributes(spec)
    assert values["billing_mode"] == "PAY_PER_REQUEST"
    streams = values["stream_view_type"] if values["stream_enabled"] else None
    assert streams == spec.stream
    lives = [one["attribute_name"] for one in values["ttl"] if one["enabled"]]
    assert lives == ([spec.time_to_live] if spec.time_to_live else [])
    indexes = {one["name"]: one for one in values["global_secondary_index"]}
    assert indexes.keys() == {index.name for index in spec.indexes}
    for index in spec.indexes:
        one = indexes[index.name]
        assert one["hash_key"] == index.hash_key.name
        assert one["range_key"] == (index.range_key.name if index.range_key else None)
        assert one["projection_type"] == index.projection


def test_two_regions_get_a_lease_as_the_code_says_and_replicate_with_both_images() -> None:
    plan = planned("production", nat="per-zone", recovery_region="eu-west-1", lease_region="eu-north-1")
    (lease,) = (one for one in plan.of("aws_dynamodb_table") if ".leases" in one.address)
    same_table(lease, LEASES_TABLE)
    assert lease.values["name"] == f"{plan.system['name']}-{LEASES_TABLE.name}"
    assert lease.values["region"] == "eu-north-1"
    (journal,) = (one for one in plan.of("aws_dynamodb_table") if one.index == "journal")
    assert journal.values["stream_view_type"] == "NEW_AND_OLD_IMAGES"
    assert [one["region_name"] for one in journal.values["replica"]] == ["eu-west-1"]
    files = settings_files(plan.outputs)
    assert 'lease = "dynamodb://kiseki-production?region=eu-north-1"' in files["command-api"]


def test_copies_end_when_the_erased_were_promised(plan: Planned) -> None:
    days = {
        one.index: [each["recovery_period_in_days"] for each in one.values["point_in_time_recovery"] if each["enabled"]]
        for one in plan.of("aws_dynamodb_table")
    }
    assert days["keys"] == days["revocations"] == [7]
    assert days["erasures"] == []
    assert days["journal"] == days["claims"] == days["snapshots"] == [35]
    (selection,) = plan.of("aws_backup_selection")
    copied = {arn.rpartition("/")[2].removeprefix(f"{plan.system['name']}-") for arn in selection.values["resources"]}
    assert copied == {"journal", "claims", "snapshots"}
    (database,) = plan.of("aws_db_instance")
    assert 1 <= database.values["backup_retention_period"] <= 7


# Ports and times


def test_ports_are_those_of_the_code(plan: Planned, written: Path) -> None:
    defaults = {name: Settings.model_fields[name].default for name in ("command_port", "query_port", "management_port")}
    told = settings_of(written, "command-api")
    assert {name: getattr(told, name) for name in defaults} == defaults
    for process, own in (("command-api", "command_port"), ("query-api", "query_port")):
        mapped = {one["containerPort"] for one in container(plan, process)["portMappings"]}
        assert mapped == {defaults[own], defaults["management_port"]}
        groups = [one for one in plan.of("aws_lb_target_group") if str(one.index).startswith(process)]
        assert len(groups) == 2
        for group in groups:
            assert group.values["port"] == defaults[own]
            assert group.values["health_check"][0]["port"] == str(defaults["management_port"])
            assert group.values["health_check"][0]["path"] == "/ready?scope=local"


def test_a_task_has_as_long_to_end_as_it_may_take(plan: Planned, written: Path) -> None:
    for process in SERVICES:
        settings = settings_of(written, process)
        assert container(plan, process)["stopTimeout"] == settings.termination_grace
    told = settings_of(written, "command-api")
    for group in plan.of("aws_lb_target_group"):
        assert float(group.values["deregistration_delay"]) == told.drain_delay
    (balancer,) = plan.of("aws_lb")
    assert balancer.values["idle_timeout"] < told.keep_alive
    assert balancer.values["idle_timeout"] > told.request_timeout


def test_only_the_balancer_is_believed_about_who_asks(plan: Planned, written: Path) -> None:
    public = {one.values["cidr_block"] for one in plan.of("aws_subnet") if ".public" in one.address}
    assert set(settings_of(written, "command-api").trusted_proxies) == public


def test_a_host_name_is_one_that_the_balancer_forwards(plan: Planned, written: Path) -> None:
    forwarded = {
        name
        for rule in plan.of("aws_lb_listener_rule")
        for condition in rule.values["condition"]
        for header in condition["host_header"]
        for name in header["values"]
    }
    told = {name for api in ("command-api", "query-api") for name in settings_of(written, api).hosts}
    assert told == forwarded


def test_the_database_takes_the_connections_of_all_tasks(plan: Planned, written: Path) -> None:
    scaling = plan.system["scaling"]
    tasks = [f"--tasks={kind}={one['minimum']}-{one['maximum']}" for kind, one in scaling.items() if kind != "lambda"]
    (journal,) = (one for one in plan.of("aws_dynamodb_table") if one.index == "journal")
    writes = journal.values["on_demand_throughput"][0]["max_write_request_units"]
    command = [
        *(sys.executable, "-m", "kiseki", "scale", "plan", *tasks, f"--tasks=lambda={scaling['lambda']['maximum']}"),
        *(f"--config={written / 'updater.toml'}", f"--limit={plan.system['database']['limit']}"),
        *(f"--write-maximum={writes}", "--commands=100", "--commands-per-task=100"),
    ]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("it fits\n")


# Databases, secrets, metrics


def test_roles_may_sign_in_as_the_users_of_the_settings(plan: Planned) -> None:
    for process in TASKS:
        urls = {name: value for name, value in environment(plan, process).items() if value.startswith("postgresql://")}
        wanted = {one.role for one in wanted_databases(urls, _unasked)}
        policy = plan.system["policies"][process]
        for role in wanted:
            assert f"/{role}" in policy, f"{process} may not sign in as {role}"


def test_the_administrator_signs_in_with_the_secret_of_rds(plan: Planned) -> None:
    asked: list[str] = []

    def passwords(reference: str) -> Any:
        asked.append(reference)
        return object()

    address = PostgresAddress.parse(plan.system["database"]["admin_url"], schema="public", passwords=passwords)
    assert address.label == f"{plan.system['database']['host']}:5432/postgres"
    reference = SecretReference.parse(asked[0])
    assert reference.kind == "aws-sm"
    assert reference.name.startswith("arn:aws:secretsmanager:")
    assert reference.field == "password"
    policies = plan.system["policies"]
    assert [process for process, policy in policies.items() if reference.name in policy] == ["operator"]


def _unasked(reference: str) -> Any:
    raise AssertionError(reference)


def test_every_secret_of_the_settings_is_made(plan: Planned, written: Path) -> None:
    made = {one.values["name"] for one in plan.of("aws_secretsmanager_secret")}
    told = {
        value.removeprefix("aws-sm://").partition("?")[0]
        for process in TASKS
        for value in environment(plan, process).values()
        if value.startswith("aws-sm://")
    }
    assert told == made
    assert {one.partition("/")[0] for one in made} == {plan.system["name"]}


def test_metrics_are_of_the_namespace_that_alarms_look_at(plan: Planned) -> None:
    name = plan.system["name"]
    namespaces = {
        namespace
        for alarm in plan.of("aws_cloudwatch_metric_alarm")
        for namespace in [
            alarm.values.get("namespace"),
            *(each["namespace"] for query in alarm.values["metric_query"] or () for each in query["metric"]),
        ]
        if namespace
    }
    assert name in namespaces
    for process in (*SERVICES, "backup"):
        assert environment(plan, process)["KISEKI_METRICS_NAMESPACE"] == name
    for process in SERVICES:
        assert float(environment(plan, process)["KISEKI_EMBEDDED_METRICS"]) > 0
    assert {one for one in namespaces if not one.startswith(("AWS/", "ECS/"))} == {name}


def test_alarms_that_roll_back_exist(plan: Planned) -> None:
    made = {one.values["alarm_name"] for one in plan.of("aws_cloudwatch_metric_alarm")}
    for service in plan.of("aws_ecs_service"):
        (watched,) = service.values["alarms"]
        assert watched["enable"]
        assert watched["rollback"]
        assert set(watched["alarm_names"]) <= made


def test_logs_go_where_the_roles_may_write(plan: Planned) -> None:
    groups = {one.values["name"] for one in plan.of("aws_cloudwatch_log_group")}
    for process in TASKS:
        options = container(plan, process)["logConfiguration"]["options"]
        assert options["awslogs-group"] in groups
        assert options["awslogs-region"] == REGION
