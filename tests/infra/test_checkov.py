"""checkov finds nothing in infra/, and every check that is passed over says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.infra.support import PYTHON, ROOT, run

INFRA = ROOT / "infra"
SKIP = re.compile(r"checkov:skip=(\S+?):? *(.*)$", re.MULTILINE)
UNENCRYPTED = """
resource "aws_db_instance" "this" {
  instance_class      = "db.t4g.small"
  storage_encrypted   = false
  publicly_accessible = true
}
"""


def checkov(folder: Path) -> list[dict[str, Any]]:
    """A report for each kind of file that there was something of."""
    said = run(
        [
            *(PYTHON, PYTHON.with_name("checkov"), "--directory", folder),
            *("--framework", "terraform", "dockerfile", "secrets"),
            *("--skip-download", "--compact", "--output", "json"),
        ]
    )
    try:
        found = json.loads(said.output)
    except ValueError:
        pytest.fail(f"checkov said: {said.text[-2000:]}")
    return found if isinstance(found, list) else [found]


def failures(reports: list[dict[str, Any]]) -> list[str]:
    """What is wrong, and what checkov could not read and so has not looked at; Terraform's own tests are not meant."""
    unread = [
        f"not read: {file}"
        for report in reports
        for file in report.get("results", {}).get("parsing_errors", ())
        if not file.endswith(".tftest.hcl")
    ]
    return unread + sorted(
        f"{check['check_id']} {check['file_path']} {check['resource']}: {check['check_name']}"
        for report in reports
        for check in report.get("results", {}).get("failed_checks", ())
    )


@pytest.mark.usefixtures("infra_tools")
def test_checkov_finds_nothing() -> None:
    reports = checkov(INFRA)
    found = failures(reports)
    assert not found, "\n".join(found)
    assert sum(report["summary"]["passed"] for report in reports if report["check_type"] == "terraform") > 100


@pytest.mark.usefixtures("infra_tools")
def test_checkov_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text(UNENCRYPTED, encoding="utf-8")
    found = " ".join(failures(checkov(tmp_path)))
    assert "CKV_AWS_16" in found
    assert "CKV_AWS_17" in found


def test_every_check_that_is_passed_over_says_why() -> None:
    silent = [
        f"{path.relative_to(ROOT)}: {check}"
        for path in sorted(INFRA.rglob("*"))
        if path.is_file() and path.suffix in {".tf", ".yaml", ".yml", ""}
        for check, reason in SKIP.findall(path.read_text(encoding="utf-8"))
        if len(reason.split()) < 3
    ]
    assert not silent
