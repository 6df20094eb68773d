"""`rendered`: the policies of the roles and keys as Terraform makes them, read out of a test run of the module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tests.infra.support import TERRAFORM, tools

__all__ = ["DATA_KEY", "MASTER_KEY", "Rendered", "rendered"]

DATA_KEY: Final = "arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-00000000da1a"
MASTER_KEY: Final = "arn:aws:kms:eu-west-1:000000000000:key/mrk-00000000000000000000000000000000"
"""What stands for them in the test run."""

_RUN: Final = "one_region"


class Rendered(NamedTuple):
    """Documents, by process and by key."""

    policies: Mapping[str, Mapping[str, Any]]
    key_policies: Mapping[str, Mapping[str, Any]]
    trust: Mapping[str, Mapping[str, Any]]
    """Who may take a role, by its name."""
    operators: Mapping[str, Any]
    """What people may do."""

    def about(self, *, data_key: str, master_key: str) -> Rendered:
        """The same for other keys."""

        def named(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
            text = json.dumps(documents).replace(DATA_KEY, data_key).replace(MASTER_KEY, master_key)
            return dict(json.loads(text))

        return Rendered(named(self.policies), named(self.key_policies), self.trust, self.operators)


def rendered() -> Rendered:
    """Runs Terraform."""
    said = tools("test", TERRAFORM / "modules" / "security", "-filter=tests/policies.tftest.hcl", "-json", "-verbose")
    assert said.code == 0, said.text
    for line in said.output.splitlines():
        told = json.loads(line)
        if told["type"] == "test_state" and told["@testrun"] == _RUN:
            outputs, resources = told["test_state"]["outputs"], told["test_state"]["root_module"]["resources"]
            roles = [each["values"] for each in resources if each["type"] == "aws_iam_role"]
            return Rendered(
                _read(outputs["policies"]["value"]),
                _read(outputs["key_policies"]["value"]),
                _read({role["name"]: role["assume_role_policy"] for role in roles}),
                json.loads(outputs["operators_policy"]["value"]),
            )
    raise AssertionError(f"Terraform showed no state of the run {_RUN}")


def _read(documents: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    return {name: json.loads(text) for name, text in documents.items()}
