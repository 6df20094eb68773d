"""What is done wrong ends with a clear error, before anything changes."""

from __future__ import annotations

import re

import pytest

from tests.infra.planned import ENVIRONMENTS, arguments
from tests.infra.support import TERRAFORM, tools

pytestmark = pytest.mark.usefixtures("infra_tools")

SYSTEM = TERRAFORM / "system"
KEPT = (
    *(
        f'module.journal.aws_dynamodb_table.this["{name}"]'
        for name in ("journal", "claims", "snapshots", "keys", "revocations", "operations", "erasures")
    ),
    "module.read_model.aws_db_instance.this",
    "module.backup.aws_backup_vault.this",
    'module.backup.aws_s3_bucket.this["backups"]',
    'module.backup.aws_s3_bucket.this["private"]',
    'module.updater.aws_s3_bucket.this["failures"]',
    "module.compute.aws_ecr_repository.this",
    'module.security.aws_secretsmanager_secret.this["audit"]',
    'module.security.aws_secretsmanager_secret.this["token"]',
    "module.security.aws_kms_key.data",
    "module.security.aws_kms_key.master",
)


def test_a_plan_that_would_replace_what_cannot_be_made_again_fails() -> None:
    said = tools("test", SYSTEM, "-test-directory=tests/refused")
    assert said.code == 1
    assert said.text.count('run "made"... pass') == 2
    refused = set(re.findall(r"Resource (\S+) has lifecycle\.prevent_destroy set", said.text))
    assert refused == set(KEPT)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("variable", ["account_id", "region", "domain", "identity", "alarm_emails"])
def test_a_missing_variable_is_named(environment: str, variable: str) -> None:
    said = tools("plan", TERRAFORM / "environments" / environment, *arguments(**{variable: None}))
    assert said.code == 1
    assert f'The root module input variable "{variable}" is not set, and has no default value' in said.text


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_credentials_of_another_account_are_refused_by_the_provider(environment: str) -> None:
    """The provider asks AWS who it is and refuses to plan for any account but these; there is no AWS here to ask."""
    text = (TERRAFORM / "environments" / environment / "terraform.tf").read_text(encoding="utf-8")
    assert "allowed_account_ids = [var.account_id]" in text
    assert re.search(r'version = "= 6\.\d+\.\d+"', text)
    assert "use_lockfile = true" in text


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("image", "kiseki:latest", "An image is named by its digest"),
        ("domain", "Shop.example.com.", "A domain is written in lower case"),
        ("test_cidrs", ["0.0.0.0/0"], "The test listener is not for everybody"),
        ("rate_store_password", "short", "The password has 32 to 128"),
        ("zone_id", None, "Set zone_id, so that a certificate can be made and proved, or certificate_arn"),
        ("region", "Frankfurt", "A region is written like eu-central-1"),
    ],
)
def test_a_wrong_value_is_refused(variable: str, value: object, problem: str) -> None:
    said = tools("plan", TERRAFORM / "environments" / "staging", *arguments(**{variable: value}))
    assert said.code == 1
    assert problem in said.text
