"""What checks infra/ can fail: it refuses what the AWS provider would refuse, and says so clearly."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.infra.support import SCHEMA, run, tools
from tools.infra.setup import NotInstalled, fetched

VERSIONS = """
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "%s"
    }
  }
}
"""
GOOD = """
data "aws_availability_zones" "here" {}

data "aws_caller_identity" "current" {}

provider "aws" {
  region = "eu-west-1"

  default_tags {
    tags = { project = "kiseki" }
  }
}

resource "aws_vpc" "this" {
  cidr_block = "10.0.0.0/16"
}

resource "aws_subnet" "this" {
  count = 2

  vpc_id            = aws_vpc.this.id
  cidr_block        = cidrsubnet(aws_vpc.this.cidr_block, 8, count.index)
  availability_zone = data.aws_availability_zones.here.names[count.index]
  tags              = { account = data.aws_caller_identity.current.account_id }
}

resource "aws_security_group" "this" {
  vpc_id = aws_vpc.this.id

  ingress {
    from_port   = 443
    to_port     = 443
    protocol    = "tcp"
    cidr_blocks = aws_subnet.this[*].cidr_block
  }
}

resource "aws_wafv2_web_acl" "this" {
  name  = "this"
  scope = "REGIONAL"

  default_action {
    allow {}
  }

  rule {
    name     = "not-two-of-them"
    priority = 1

    action {
      block {}
    }

    statement {
      not_statement {
        statement {
          or_statement {
            statement {
              geo_match_statement {
                country_codes = ["JP"]
              }
            }
            statement {
              label_match_statement {
                scope = "LABEL"
                key   = "known"
              }
            }
          }
        }
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "rule"
      sampled_requests_enabled   = true
    }
  }

  visibility_config {
    cloudwatch_metrics_enabled = true
    metric_name                = "this"
    sampled_requests_enabled   = true
  }
}

output "arn" {
  description = "Of the network."
  value       = aws_vpc.this.arn
}
"""
PASSING = """
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["a", "b"] }
  }
}

run "planned" {
  command = plan

  assert {
    condition     = aws_subnet.this[1].cidr_block == "10.0.1.0/24"
    error_message = "The second network follows the first."
  }
}

run "applied" {
  assert {
    condition     = output.arn != ""
    error_message = "The network has a name."
  }
}
"""
FAILING = """
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["a", "b"] }
  }
}

run "planned" {
  command = plan

  assert {
    condition     = length(aws_subnet.this) == 3
    error_message = "There are three networks."
  }
}
"""
TABLE = """
resource "aws_dynamodb_table" "this" {
  name     = "events"
  hash_key = "id"
  %s

  attribute {
    name = "id"
    type = "S"
  }
}
"""
REFUSED = {
    "unknown type": (
        'resource "aws_dynamo_table" "this" {}',
        'does not support resource type "aws_dynamo_table"',
    ),
    "unknown data source": (
        'data "aws_vpc_of_mine" "this" {}',
        'does not support data source "aws_vpc_of_mine"',
    ),
    "unknown argument": (TABLE % 'capacity = "on-demand"', 'An argument named "capacity" is not expected here'),
    "missing argument": (
        'resource "aws_kms_alias" "this" {}',
        'The argument "target_key_id" is required, but no definition was found',
    ),
    "wrong type": (TABLE % "tags = [1]", 'Inappropriate value for attribute "tags": map of string required'),
    "unknown block": (TABLE % "recovery {}", 'Blocks of type "recovery" are not expected here'),
    "a block twice": (
        TABLE % "point_in_time_recovery {\n enabled = true\n}\npoint_in_time_recovery {\n enabled = true\n}",
        'No more than 1 "point_in_time_recovery" blocks are allowed',
    ),
    "missing block": (
        'resource "aws_lb_listener" "this" {\n load_balancer_arn = "x"\n}',
        "Insufficient default_action blocks",
    ),
    "missing argument of a block": (
        TABLE % "point_in_time_recovery {}",
        'The argument "enabled" is required, but no definition was found',
    ),
    "unknown attribute": (
        (TABLE % "") + 'output "x" {\n value = aws_dynamodb_table.this.address\n}',
        'This object has no argument, nested block, or exported attribute named "address"',
    ),
    "unknown attribute of a data source": (
        'data "aws_region" "here" {}\noutput "x" {\n value = data.aws_region.here.zone\n}',
        'has no argument, nested block, or exported attribute named "zone"',
    ),
    "a computed attribute given": (TABLE % 'arn = "x"', '"arn" can\'t be given: it is what AWS answers'),
    "a version of what is not given": (
        'resource "aws_secretsmanager_secret_version" "this" {\n secret_id = "x"\n secret_string_wo_version = 1\n}',
        '"secret_string_wo" and "secret_string_wo_version" have to be given together',
    ),
    "unknown argument of the provider": (
        'provider "aws" {\n zone = "x"\n}\ndata "aws_region" "here" {}',
        'An argument named "zone" is not expected here',
    ),
    "undeclared": ('output "x" {\n value = aws_vpc.this.id\n}', "has not been declared in the root module"),
}


def written(folder: Path, main: str, *, version: str = "~> 6.60", test: str = "") -> Path:
    (folder / "versions.tf").write_text(VERSIONS.lstrip() % version, encoding="utf-8")
    (folder / "main.tf").write_text(main.lstrip(), encoding="utf-8")
    if test:
        (folder / "tests").mkdir()
        (folder / "tests" / "own.tftest.hcl").write_text(test.lstrip(), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("infra_tools")
def test_a_good_folder_is_valid_formatted_and_passes_its_tests(tmp_path: Path) -> None:
    folder = written(tmp_path, GOOD, test=PASSING)
    for command, answer in (("fmt", ""), ("validate", "The configuration is valid."), ("test", "2 passed, 0 failed")):
        said = tools(command, folder)
        assert (said.code, answer in said.text) == (0, True), said.text
    assert sorted(path.name for path in folder.iterdir()) == ["main.tf", "tests", "versions.tf"]


@pytest.mark.usefixtures("infra_tools")
@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_refused(mistake: str, tmp_path: Path) -> None:
    main, message = REFUSED[mistake]
    said = tools("validate", written(tmp_path, main))
    assert said.code == 1
    assert message in said.text


@pytest.mark.usefixtures("infra_tools")
def test_a_version_that_the_schema_is_not_of_is_refused(tmp_path: Path) -> None:
    said = tools("validate", written(tmp_path, GOOD, version="~> 5.0"))
    assert said.code == 1
    assert "no available releases match the given constraints" in said.text


@pytest.mark.usefixtures("infra_tools")
def test_a_test_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    said = tools("test", written(tmp_path, GOOD, test=FAILING))
    assert said.code == 1
    assert "There are three networks." in said.text


@pytest.mark.usefixtures("infra_tools")
def test_what_is_not_formatted_is_refused(tmp_path: Path) -> None:
    said = tools("fmt", written(tmp_path, GOOD.replace("count = 2", "count=2")))
    assert said.code != 0
    assert "+ count = 2" in said.text


@pytest.mark.usefixtures("infra_tools")
def test_a_plan_knows_what_is_given_and_not_what_aws_would_say(tmp_path: Path) -> None:
    said = tools("plan", written(tmp_path, GOOD))
    assert said.code == 0, said.text
    changes = {change["address"]: change["change"] for change in json.loads(said.output)["resource_changes"]}
    second = changes["aws_subnet.this[1]"]
    assert second["after"]["cidr_block"] == "10.0.1.0/24"
    assert second["after"]["availability_zone"] == "eu-west-1b"
    assert second["after_unknown"]["vpc_id"] is True
    assert changes["aws_vpc.this"]["after_unknown"]["arn"] is True


@pytest.mark.usefixtures("infra_tools")
def test_without_a_mock_nothing_is_applied(tmp_path: Path) -> None:
    said = tools("test", written(tmp_path, GOOD, test='run "applied" {}\n'))
    assert said.code == 1
    assert 'use mock_provider "aws" {}' in said.text


@pytest.mark.usefixtures("infra_tools")
def test_a_folder_without_terraform_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing", Path(__file__)):
        assert tools("validate", folder).text == f"kiseki: {folder} is no folder with *.tf in it"


def test_another_python_is_told_which_one_it_takes() -> None:
    program = "import runpy, sys; sys.modules['grpc'] = None; runpy.run_module('tools.infra', run_name='__main__')"
    said = run([sys.executable, "-c", program])
    assert said.code == 1
    assert said.text.startswith("kiseki: grpc is not here; `make .venv-infra/.ready`")


def test_the_schema_is_whole() -> None:
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert len(schema["resources"]) > 1700
    assert len(schema["data"]) > 650
    service = schema["resources"]["aws_ecs_service"]
    assert service["attributes"]["name"] == {"type": "string", "flags": "r"}
    assert service["attributes"]["cluster"]["flags"] == "oc"
    assert service["blocks"]["capacity_provider_strategy"]["nesting"] == "set"
    configuration = service["blocks"]["network_configuration"]
    assert configuration["max"] == 1
    assert configuration["block"]["attributes"]["subnets"] == {"type": ["set", "string"], "flags": "r"}
    assert schema["provider"]["attributes"]["allowed_account_ids"]["type"] == ["set", "string"]
    endpoint = schema["resources"]["aws_db_instance"]["attributes"]["listener_endpoint"]
    assert endpoint["type"][1][1]["port"] == "number"


def test_without_npm_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match=r"needs npm \(of Node.js\).*apt install npm"):
        fetched(tmp_path)


def test_an_npm_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, "printf 'npm error code E7\nnpm error no such registry\n' >&2; exit 7")
    with pytest.raises(NotInstalled, match=r"could not fetch .*: no such registry$"):
        fetched(tmp_path)


def test_another_package_than_the_pinned_one_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, "echo other > cdktn-provider-aws-25.7.0.tgz")
    with pytest.raises(NotInstalled, match="its SHA-512 differs"):
        fetched(tmp_path)
    assert not list(tmp_path.glob("*.tgz"))


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
