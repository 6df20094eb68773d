"""What alarms and the mapping of the function look at is what the code writes: a name that drifts would stay silent."""

from __future__ import annotations

import pkgutil
import re
from datetime import timedelta
from pathlib import Path

import pytest

from kiseki.operations.dr import ages
from kiseki.service.embedded_metrics import EMBEDDED
from kiseki.service.kinds import PARTS
from kiseki.service.lambda_records import Counts
from kiseki.service.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "infra" / "terraform" / "modules"
OBSERVABILITY = MODULES / "observability"
UPDATER = MODULES / "updater"
ALARMS = (OBSERVABILITY / "alarms.tf").read_text("utf-8")
DASHBOARD = (OBSERVABILITY / "dashboard.tf").read_text("utf-8")


def listed(name: str) -> list[str]:
    """The strings of a list of metrics.tf."""
    (items,) = re.findall(
        rf"^    {name} = \[\n(.*?)^    \]", (OBSERVABILITY / "metrics.tf").read_text("utf-8"), re.M | re.S
    )
    return re.findall(r'"([^"]+)"', items)


def default(file: Path, variable: str) -> str:
    (value,) = re.findall(
        rf'^variable "{variable}" {{\n.*?^  default +=? ?(\S+)$', file.read_text("utf-8"), re.M | re.S
    )[:1]
    return str(value)


def test_the_names_are_those_of_the_code() -> None:
    assert listed("process") == list(EMBEDDED)
    assert listed("ages") == list(ages.AGES)
    assert listed("function") == list(Counts.__struct_fields__)


@pytest.mark.parametrize("metric", EMBEDDED)
def test_every_metric_of_a_process_is_looked_at(metric: str) -> None:
    assert f"local.own.{metric}" in ALARMS + DASHBOARD


def test_processes_are_called_as_they_call_themselves() -> None:
    named = set(re.findall(r'process = "([^"]+)"|"process", "([^"]+)"', ALARMS + DASHBOARD))
    assert {first or second for first, second in named} <= {*PARTS, "dr-status"}
    (services,) = re.findall(
        r"setsubtract\(keys\(var\.services\), \[([^]]*)\]", (OBSERVABILITY / "variables.tf").read_text("utf-8")
    )
    assert set(re.findall(r'"([^"]+)"', services)) == PARTS.keys() - {"serve"}


@pytest.mark.parametrize(
    ("threshold", "limit"),
    [("backup_age", ages._BACKUP), ("protection_age", ages._PROTECTION), ("drill_age", ages._DRILL)],
)
def test_ages_ring_when_the_command_says_look(threshold: str, limit: timedelta) -> None:
    variables = (OBSERVABILITY / "variables.tf").read_text("utf-8")
    assert re.findall(rf"{threshold}_seconds += optional\(number, (\d+)\)", variables) == [
        f"{limit.total_seconds():.0f}"
    ]


def test_every_page_that_an_alarm_names_is_there() -> None:
    pages = set(re.findall(r"docs/[\w/-]+\.md", ALARMS))
    assert pages
    assert all((ROOT / page).is_file() for page in pages)


def test_settings_of_the_modules_exist() -> None:
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}
    texts = [path.read_text("utf-8") for module in (OBSERVABILITY, UPDATER) for path in module.glob("*.tf")]
    assert set(re.findall(rf"{ENVIRONMENT_PREFIX}[A-Z_]+", "\n".join(texts))) <= known


def test_the_function_has_a_handler() -> None:
    (handler,) = re.findall(r'handler += "([\w.]+)"', (UPDATER / "main.tf").read_text("utf-8"))
    assert callable(pkgutil.resolve_name(handler))


def test_the_mapping_is_as_the_page_says() -> None:
    page = (ROOT / "docs" / "stores.md").read_text("utf-8")
    age = int(default(UPDATER / "variables.tf", "maximum_record_age_seconds"))
    assert f"({age:,} seconds)" in page
    assert default(UPDATER / "variables.tf", "maximum_retry_attempts") == "-1"
    assert 'starting_position = "TRIM_HORIZON"' in (UPDATER / "main.tf").read_text("utf-8")
