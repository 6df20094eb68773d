"""Environments differ in values alone: what one asks for, the others ask for in the same words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.infra.planned import ENVIRONMENTS
from tests.infra.support import TERRAFORM

OF_PRODUCTION = {
    "recovery_region",
    "lease_region",
    "database_replica",
    "database_admin_password",
    "database_admin_password_version",
    "backup_lock",
}
DIFFERENT = {"budget_dollars": "default", "audit_anchors": "description"}
"""Variables of which this line may differ."""


def variables(environment: str) -> Mapping[str, str]:
    """The text of each variable."""
    text = (TERRAFORM / "environments" / environment / "variables.tf").read_text(encoding="utf-8")
    return dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))


def without(text: str, line: str | None) -> list[str]:
    return [each for each in text.splitlines() if line is None or not each.strip().startswith(line)]


def test_what_is_asked_for_is_the_same_everywhere() -> None:
    first, *others = (variables(environment) for environment in ENVIRONMENTS)
    for other in others:
        assert first.keys() == other.keys() - OF_PRODUCTION
        for name, text in first.items():
            assert without(text, DIFFERENT.get(name)) == without(other[name], DIFFERENT.get(name)), name


def test_every_variable_is_handed_on_and_every_example_is_of_one() -> None:
    for environment in ENVIRONMENTS:
        folder = TERRAFORM / "environments" / environment
        main = (folder / "main.tf").read_text(encoding="utf-8")
        assert {f"var.{name}" for name in variables(environment)} == set(re.findall(r"var\.\w+", main))
        example = (folder / "terraform.tfvars.example").read_text(encoding="utf-8")
        assert set(re.findall(r"^(?:# )?(\w+) +=", example, re.MULTILINE)) <= variables(environment).keys()
