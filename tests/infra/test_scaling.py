"""What `kiseki scale` plans with, unless told otherwise, is what the infrastructure sets up, under the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kiseki.cli.main import run
from tests.infra.support import TERRAFORM

VARIABLES = (TERRAFORM / "modules" / "compute" / "variables.tf").read_text("utf-8")


def variable(name: str) -> str:
    return VARIABLES.split(f'variable "{name}"')[1].split("\nvariable ")[0]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KISEKI_JOURNAL", "dynamodb://shop?region=eu-west-1")
    monkeypatch.setenv("KISEKI_READ_MODEL", "postgresql://kiseki@database/kiseki")
    assert run(["scale", "plan", "--limit", "5000", "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_ranges_of_tasks(plan: dict[str, list[dict[str, object]]]) -> None:
    found = re.findall(r"(\S+) += \{ minimum = (\d+), maximum = (\d+) \}", variable("scaling"))
    planned = {one["kind"]: (one["minimum"], one["maximum"]) for one in plan["tasks"]}
    assert {kind: planned[kind] for kind, _, _ in found} == {kind: (int(low), int(high)) for kind, low, high in found}
    assert len(found) == 2
    (updaters,) = re.findall(r"contains\(\[([\d, ]+)\], var.updater_tasks\)", variable("updater_tasks"))
    low, high = map(int, updaters.split(", "))
    assert planned["updater"] == (low, high)


def test_the_target(plan: dict[str, object]) -> None:
    target = dict(re.findall(r"(\w+) += optional\(number, (\d+)\)", variable("scaling_target")))
    cpu, out, back = (int(target[name]) for name in ("cpu", "scale_out_cooldown", "scale_in_cooldown"))
    assert plan["policy"] == {"cpu": cpu, "scaleOut": out, "scaleIn": back}


def test_services_have_the_names_that_are_asked_for_and_the_metric_is_the_one_that_is_read() -> None:
    module = TERRAFORM / "modules" / "compute"
    assert (
        "service_names    = { for process in local.services : process => process }" in (module / "main.tf").read_text()
    )
    assert "ECSServiceAverageCPUUtilization" in (module / "services.tf").read_text()
