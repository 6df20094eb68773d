"""Unit: what is in force, compared with a plan."""

from __future__ import annotations

import msgspec
import pytest

from kiseki.operations.scaling.compare import differences
from kiseki.operations.scaling.connections import Kind
from kiseki.operations.scaling.dynamodb import Commands
from kiseki.operations.scaling.in_force import ServiceInForce, TableInForce
from kiseki.operations.scaling.limits import Limit
from kiseki.operations.scaling.plan import ScalingPlan, Tasks, Wanted, plan
from kiseki.service.settings import Settings

SETTINGS = Settings(journal="dynamodb://shop?region=eu-west-1", read_model="postgresql://kiseki@db/kiseki")
API = ServiceInForce(
    kind="command-api",
    name="commands",
    desired=4,
    running=4,
    minimum=3,
    maximum=20,
    cpu=70.0,
    scale_out=60,
    scale_in=300,
)
UPDATER = ServiceInForce(kind="updater", name="updater", desired=1, running=1)
TABLE = TableInForce(table="journal", on_demand=True, maximum=2_000)


def made(commands: float | None = 1_000) -> ScalingPlan:
    kinds: tuple[Kind, ...] = ("command-api", "query-api")
    return plan(
        SETTINGS,
        Wanted(
            tasks=(
                *(Tasks(kind=kind, minimum=3, maximum=20) for kind in kinds),
                Tasks(kind="updater", minimum=1, maximum=2),
            ),
            projections=1,
            limits={"": Limit(1_000, 3, "as given")},
            commands=None if commands is None else Commands(per_second=commands),
        ),
    )


def test_what_is_as_planned_is_no_difference() -> None:
    assert differences(made(), (API, UPDATER), (TABLE,)) == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"maximum": 40}, "commands runs 3 to 40 tasks, and 3 to 20 are planned"),
        ({"minimum": 1}, "commands runs 1 to 20 tasks"),
        ({"cpu": 50.0}, "aims at 50 % CPU, out after 60 s, in after 300 s; planned are 70 %, 60 s and 300 s"),
        ({"scale_out": 300}, "out after 300 s"),
        ({"scale_in": 60}, "in after 60 s"),
        ({"cpu": None, "scale_out": None, "scale_in": None}, "follows no target of CPU"),
        ({"minimum": None, "maximum": None, "cpu": None}, "Application Auto Scaling knows no target"),
        ({"running": 3}, "runs 3 of 4 tasks"),
    ],
)
def test_each_difference_of_an_api_is_one_finding(changed: dict[str, float | None], said: str) -> None:
    (finding,) = differences(made(), (msgspec.structs.replace(API, **changed),), ())
    assert said in finding.problem


@pytest.mark.parametrize(("desired", "found"), [(0, 1), (1, 0), (2, 0), (3, 1)])
def test_an_updater_has_as_many_tasks_as_planned_and_needs_no_policy(desired: int, found: int) -> None:
    service = msgspec.structs.replace(UPDATER, desired=desired, running=desired)
    assert len(differences(made(), (service,), ())) == found


def test_a_service_that_nobody_planned_is_a_finding() -> None:
    (finding,) = differences(made(), (ServiceInForce(kind="serve", name="all", desired=1, running=1),), ())
    assert finding.problem == "all runs, and no task is planned"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TableInForce(table="journal", on_demand=True, maximum=1_999), "its on-demand maximum is 1999"),
        (TableInForce(table="journal", on_demand=False, maximum=100), "what is provisioned is 100"),
        (TableInForce(table="claims", on_demand=True, maximum=None), "without bound"),
    ],
)
def test_tables_bear_what_is_planned_and_have_a_maximum(table: TableInForce, said: str) -> None:
    (finding,) = differences(made(), (), (table,))
    assert said in finding.problem


def test_without_an_expected_rate_any_maximum_will_do() -> None:
    assert differences(made(commands=None), (), (TableInForce(table="journal", on_demand=True, maximum=1),)) == ()
