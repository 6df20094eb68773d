"""What an environment plans, as if AWS had said all names and ARNs already."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.infra.support import TERRAFORM, tools

ENVIRONMENTS: Final = ("development", "staging", "production")
ACCOUNT: Final = "123456789012"
REGION: Final = "eu-central-1"

_VALUES: Final[Mapping[str, object]] = {
    "account_id": ACCOUNT,
    "region": REGION,
    "domain": "shop.example.com",
    "zone_id": "Z0123456789ABCDEFGHIJ",
    "identity": {"issuer": "https://id.example.com/", "audience": "shop"},
    "alarm_emails": ["operations@example.com"],
    "image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/kiseki@sha256:{'0' * 64}",
    "rate_store_password": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "package": {"key": "kiseki-1.zip"},
}


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource of a plan."""

    address: str
    kind: str
    index: str | int | None
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The resources and the outputs of one environment."""

    resources: tuple[Resource, ...]
    outputs: Mapping[str, Any]
    """As `terraform output -json` would print them."""

    @property
    def system(self) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.outputs["system"]["value"]
        return value

    def of(self, kind: str) -> tuple[Resource, ...]:
        return tuple(one for one in self.resources if one.kind == kind)


def arguments(**changed: object) -> list[str]:
    """`-var` for each variable of an environment; `changed` in place of those here, None for none at all."""
    values = {**_VALUES, **changed}
    given = {name: value for name, value in values.items() if value is not None}
    return [
        f"-var={name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in sorted(given.items())
    ]


@functools.cache
def planned(environment: str, **changed: object) -> Planned:
    """The plan of one environment, made once in this process."""
    said = tools("answered", TERRAFORM / "environments" / environment, *arguments(**changed))
    assert said.code == 0, said.text[-3_000:]
    plan = json.loads(said.output)["planned_values"]
    return Planned(resources=tuple(_resources(plan["root_module"])), outputs=plan["outputs"])


def _resources(module: Mapping[str, Any]) -> Iterator[Resource]:
    for one in module.get("resources", ()):
        yield Resource(address=one["address"], kind=one["type"], index=one.get("index"), values=one["values"])
    for child in module.get("child_modules", ()):
        yield from _resources(child)
