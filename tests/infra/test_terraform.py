"""infra/terraform is formatted, valid by the AWS provider's schema, documented, and passes its own tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.support import TERRAFORM, folders, name, tools, with_tests

DECLARED = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)
PASSED = re.compile(r"Success! ([1-9]\d*) passed, 0 failed")


def declarations() -> Iterator[tuple[str, str, str]]:
    """Variables and outputs: what it is, where, and its content."""
    for path in sorted(TERRAFORM.rglob("*.tf")):
        for kind, called, content in DECLARED.findall(path.read_text(encoding="utf-8")):
            yield kind, f"{path.relative_to(TERRAFORM)}: {called}", content


@pytest.mark.usefixtures("infra_tools")
def test_everything_is_formatted() -> None:
    said = tools("fmt", TERRAFORM)
    assert said.code == 0, said.output


@pytest.mark.usefixtures("infra_tools")
@pytest.mark.parametrize("folder", folders(), ids=name)
def test_a_folder_is_valid(folder: Path) -> None:
    said = tools("validate", folder)
    assert said.code == 0, said.text
    assert "The configuration is valid." in said.text
    assert "Warning" not in said.text


@pytest.mark.usefixtures("infra_tools")
@pytest.mark.parametrize("folder", with_tests(), ids=name)
def test_a_folder_passes_its_own_tests(folder: Path) -> None:
    said = tools("test", folder)
    assert said.code == 0, said.text
    assert PASSED.search(said.text), said.text


def test_every_variable_has_a_type_and_all_is_described() -> None:
    lacking = [
        f"{where} ({wanted})"
        for kind, where, content in declarations()
        for wanted in (("type", "description") if kind == "variable" else ("description",))
        if not re.search(rf"^  {wanted} += ", content, re.MULTILINE)
    ]
    assert not lacking


@pytest.mark.parametrize("folder", folders(), ids=name)
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    first = (folder / "main.tf").read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# \S.{20,}", first)


@pytest.mark.parametrize("folder", folders(), ids=name)
def test_a_folder_pins_what_it_was_checked_with(folder: Path) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.tf"))
    wanted = "= 6.66.0" if "environments" in folder.parts else "~> 6.60"
    assert re.search(rf'^ +version += "{re.escape(wanted)}"', text, re.MULTILINE)
    assert re.search(r'^ +required_version += ">= 1\.11', text, re.MULTILINE)


def test_policies_are_written_where_a_test_can_read_them() -> None:
    documents = [path for path in TERRAFORM.rglob("*.tf") if '"aws_iam_policy_document"' in path.read_text("utf-8")]
    assert not documents, "jsonencode says the same and can be read out of a plan"
