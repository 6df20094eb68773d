"""Writes the tables of docs/aws-costs.md: what each part costs on AWS, idle and for each million commands.

usage: python tools/aws_costs.py           print the page
       python tools/aws_costs.py --write   write it into the page, between the two markers

Every figure is a price times a quantity, and both are here: change `PRICES` for another region, `SIZES` for another
size. Quantities of the infrastructure are compared with a plan of it (tests/infra/test_costs.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["MEASURED", "PAGE", "PRICES", "SIZES", "Line", "Size", "idle", "main", "page", "per_million", "written"]

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "aws-costs.md"
BEGIN: Final = "<!-- written by tools/aws_costs.py -->"
END: Final = "<!-- end -->"
HOURS: Final = 730
"""Of a month, as AWS counts."""

PRICES: Final[Mapping[str, tuple[float, str]]] = {
    "Fargate, ARM: vCPU": (0.03238, "hour"),
    "Fargate, ARM: memory": (0.00356, "GB-hour"),
    "load balancer": (0.0225, "hour"),
    "load balancer: capacity unit": (0.008, "LCU-hour"),
    "interface endpoint": (0.01, "hour and zone"),
    "interface endpoint: data": (0.01, "GB"),
    "NAT gateway": (0.045, "hour"),
    "public IPv4 address": (0.005, "hour"),
    "DynamoDB: write request units": (0.625, "million"),
    "DynamoDB: read request units": (0.125, "million"),
    "DynamoDB: storage": (0.25, "GB-month"),
    "DynamoDB: point-in-time recovery": (0.20, "GB-month"),
    "DynamoDB: looks at a stream": (0.20, "million"),
    "AWS Backup of DynamoDB": (0.10, "GB-month"),
    "RDS db.t4g.small": (0.032, "instance-hour"),
    "RDS db.t4g.medium": (0.065, "instance-hour"),
    "RDS db.r8g.large": (0.239, "instance-hour"),
    "RDS: gp3 storage": (0.115, "GB-month, each instance"),
    "Valkey cache.t4g.micro": (0.0128, "node-hour"),
    "Valkey cache.t4g.small": (0.0256, "node-hour"),
    "KMS key": (1.00, "month"),
    "KMS requests": (3.00, "million"),
    "secret": (0.40, "month"),
    "Lambda, ARM: time": (13.3334, "million GB-seconds"),
    "Lambda: requests": (0.20, "million"),
    "CloudWatch: logs taken in": (0.50, "GB"),
    "CloudWatch: metric": (0.30, "month"),
    "CloudWatch: metric of an alarm": (0.10, "month"),
    "CloudWatch: dashboard": (3.00, "month"),
    "Route 53: zone": (0.50, "month"),
    "WAF: access control list": (5.00, "month"),
    "WAF: rule": (1.00, "month"),
    "WAF: requests": (0.60, "million"),
    "between zones": (0.02, "GB, both ways"),
    "to the internet": (0.09, "GB"),
    "S3 storage": (0.023, "GB-month"),
}
"""US dollars of us-east-1 as listed, on demand, without free tiers, taxes and discounts."""


class _Measured(NamedTuple):
    """What one command does; measured with the shipped context on DynamoDB."""

    create_bytes: int = 780
    """Item of the journal with the first event of an account."""
    change_bytes: int = 673
    """The same of a later event."""
    key_bytes: int = 165
    """Item of the key of a person, made once for each."""
    claim_bytes: int = 334
    """Item that remembers an Idempotency-Key."""
    command_ms: float = 1.0
    """Processor time of the command API for one command, all checks of production on."""
    apply_ms: float = 0.2
    """Processor time of the updater for one commit in a batch."""
    request_bytes: int = 2_500
    """A request and its answer with all header fields, inside TLS."""


MEASURED: Final = _Measured()


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large an environment is when nobody uses it: the values of its folder in infra/terraform/environments."""

    name: str
    tasks: Mapping[str, tuple[int, float, float]]
    """Of each process: tasks, vCPU and GB of one."""
    endpoints: int
    """Interface endpoints."""
    zones: int
    nat_gateways: int
    database: str
    """The price of its class."""
    database_nodes: int
    database_storage: int
    """GB."""
    cache: str
    cache_nodes: int
    keys: int
    secrets: int
    metrics: int
    """That the processes write themselves."""
    insights: int
    """Metrics that Container Insights makes: 8 of the cluster, 11 of each service, 6 of each kind of task, about."""
    alarms: int
    """Metrics that alarms look at: AWS counts these."""
    firewall_rules: int
    private_zones: int = 1
    spot: bool = False
    """Whether tasks run on spare capacity."""


SIZES: Final = (
    Size(
        name="development",
        tasks={"command API": (1, 0.25, 1), "query API": (1, 0.25, 1), "updater": (1, 0.25, 1)},
        endpoints=7,
        zones=3,
        nat_gateways=0,
        database="RDS db.t4g.small",
        database_nodes=1,
        database_storage=20,
        cache="Valkey cache.t4g.micro",
        cache_nodes=1,
        keys=3,
        secrets=4,
        metrics=25,
        insights=59,
        alarms=85,
        firewall_rules=4,
        spot=True,
    ),
    Size(
        name="staging",
        tasks={"command API": (2, 0.5, 1), "query API": (2, 0.5, 1), "updater": (2, 0.5, 1)},
        endpoints=7,
        zones=3,
        nat_gateways=0,
        database="RDS db.t4g.medium",
        database_nodes=2,
        database_storage=20,
        cache="Valkey cache.t4g.micro",
        cache_nodes=2,
        keys=3,
        secrets=4,
        metrics=25,
        insights=59,
        alarms=88,
        firewall_rules=4,
    ),
    Size(
        name="production",
        tasks={"command API": (3, 1, 2), "query API": (3, 1, 2), "updater": (2, 1, 2)},
        endpoints=7,
        zones=3,
        nat_gateways=0,
        database="RDS db.r8g.large",
        database_nodes=2,
        database_storage=50,
        cache="Valkey cache.t4g.small",
        cache_nodes=2,
        keys=3,
        secrets=4,
        metrics=25,
        insights=59,
        alarms=89,
        firewall_rules=4,
    ),
)
"""The environments as they are in the repository: audit, rate-store, token and the database's master secret are the
secrets; data, master and the alarms' topic the keys."""
SPOT: Final = 0.3
"""What spare capacity costs of the price, about: AWS sets it by demand."""


class Line(NamedTuple):
    """One product: what it is, the quantities that are multiplied, the price, and US dollars."""

    what: str
    factors: Sequence[tuple[float, str]]
    price: str

    @property
    def dollars(self) -> float:
        """The price times all factors."""
        amount = PRICES[self.price][0]
        for factor, _ in self.factors:
            amount *= factor
        return amount

    @property
    def arithmetic(self) -> str:
        """The product for people."""
        factors = " × ".join(f"{_short(value)} {unit}".strip() for value, unit in self.factors)
        return f"{factors} × ${PRICES[self.price][0]:g}"


def idle(size: Size) -> Sequence[Line]:
    """What an environment costs a month before the first command."""
    lines = []
    spare = [(SPOT, "spare capacity")] if size.spot else []
    for process, (tasks, cpu, memory) in size.tasks.items():
        lines += [
            Line(
                f"{process}: processors",
                [(tasks, "tasks"), (cpu, "vCPU"), (HOURS, "h"), *spare],
                "Fargate, ARM: vCPU",
            ),
            Line(
                f"{process}: memory", [(tasks, "tasks"), (memory, "GB"), (HOURS, "h"), *spare], "Fargate, ARM: memory"
            ),
        ]
    lines += [
        Line("load balancer", [(HOURS, "h")], "load balancer"),
        Line("its public addresses", [(size.zones, "zones"), (HOURS, "h")], "public IPv4 address"),
        Line(
            "interface endpoints",
            [(size.endpoints, "endpoints"), (size.zones, "zones"), (HOURS, "h")],
            "interface endpoint",
        ),
    ]
    if size.nat_gateways:
        lines.append(Line("ways out to the internet", [(size.nat_gateways, "gateways"), (HOURS, "h")], "NAT gateway"))
    lines += [
        Line("read models", [(size.database_nodes, "instances"), (HOURS, "h")], size.database),
        Line(
            "their storage",
            [(size.database_nodes, "instances"), (size.database_storage, "GB")],
            "RDS: gp3 storage",
        ),
        Line(
            "looks at the journal's stream",
            [(4, "a second"), (4, "shards"), (HOURS * 0.0036, "M seconds")],
            "DynamoDB: looks at a stream",
        ),
        Line("counters of rate limits", [(size.cache_nodes, "nodes"), (HOURS, "h")], size.cache),
        Line("KMS keys", [(size.keys, "keys")], "KMS key"),
        Line("secrets", [(size.secrets, "secrets")], "secret"),
        Line("firewall", [(1, "list")], "WAF: access control list"),
        Line("its rules", [(size.firewall_rules, "rules")], "WAF: rule"),
        Line("metrics", [(size.metrics, "metrics")], "CloudWatch: metric"),
        Line("Container Insights, about", [(size.insights, "metrics")], "CloudWatch: metric"),
        Line("alarms", [(size.alarms, "metrics")], "CloudWatch: metric of an alarm"),
        Line("dashboard", [(1, "dashboard")], "CloudWatch: dashboard"),
        Line("names inside the network", [(size.private_zones, "zones")], "Route 53: zone"),
    ]
    return lines


def per_million() -> Mapping[str, Sequence[Line]]:
    """What a million commands cost on top, by what the command is."""
    request = [
        Line("firewall", [(1, "M requests")], "WAF: requests"),
        Line(
            "load balancer, 1 GB an hour for a unit", [(_gigabytes(1.0), "LCU-hours")], "load balancer: capacity unit"
        ),
        Line(
            "processors of the command API, at 70 %",
            [(_hours(MEASURED.command_ms) / 0.7, "vCPU-hours")],
            "Fargate, ARM: vCPU",
        ),
        Line("between zones, two calls of three", [(_gigabytes(2 / 3), "GB")], "between zones"),
        Line("answers to the internet", [(_gigabytes(0.5), "GB")], "to the internet"),
    ]
    event = [
        Line("journal", [(1, "M units")], "DynamoDB: write request units"),
        Line("its index by slice", [(1, "M units")], "DynamoDB: write request units"),
    ]
    read_model = [
        Line(
            "processors of the updater, at 70 %",
            [(_hours(MEASURED.apply_ms) / 0.7, "vCPU-hours")],
            "Fargate, ARM: vCPU",
        )
    ]
    return {
        "a change of an account that is in memory": [*request, *event, *read_model],
        "a change of an account that nobody used for five minutes": [
            *request,
            Line("its snapshot, its newer events and its key", [(3, "M units")], "DynamoDB: read request units"),
            Line("unwrapping the key, in the command API", [(1, "M requests")], "KMS requests"),
            *event,
            Line("its key again, for the read model", [(1, "M units")], "DynamoDB: read request units"),
            Line("unwrapping it, in the updater", [(1, "M requests")], "KMS requests"),
            *read_model,
        ],
        "a new account": [
            *request,
            *event,
            Line("key of the person", [(1, "M units")], "DynamoDB: write request units"),
            Line("wrapping it", [(1, "M requests")], "KMS requests"),
            Line("its key again, for the read model", [(1, "M units")], "DynamoDB: read request units"),
            Line("unwrapping it, in the updater", [(1, "M requests")], "KMS requests"),
            *read_model,
        ],
        "a change with an Idempotency-Key": [
            *request,
            Line("journal, in a transaction", [(2, "M units")], "DynamoDB: write request units"),
            Line("its index by slice", [(1, "M units")], "DynamoDB: write request units"),
            Line("claim of the key, in it", [(2, "M units")], "DynamoDB: write request units"),
            *read_model,
        ],
    }


def kept_per_million() -> Sequence[Line]:
    """What the facts of a million changes cost a month for as long as they are kept."""
    gigabytes = (MEASURED.change_bytes + 150) * 1_000_000 / 1e9
    return [
        Line("journal and index", [(gigabytes, "GB")], "DynamoDB: storage"),
        Line("point-in-time recovery", [(gigabytes, "GB")], "DynamoDB: point-in-time recovery"),
        Line("one copy of AWS Backup", [(gigabytes, "GB")], "AWS Backup of DynamoDB"),
    ]


def function_per_million() -> Mapping[str, Sequence[Line]]:
    """The Lambda updater in place of the stand-alone one, for a million commits."""
    together = 100
    return {
        "one commit at a time": [
            Line("requests", [(1, "M")], "Lambda: requests"),
            Line("20 ms of 1 GB each", [(0.02, "M GB-seconds")], "Lambda, ARM: time"),
        ],
        f"{together} commits at a time": [
            Line("requests", [(1 / together, "M")], "Lambda: requests"),
            Line("60 ms of 1 GB each", [(0.06 / together, "M GB-seconds")], "Lambda, ARM: time"),
        ],
    }


def page() -> str:
    """The tables of the page, in Markdown."""
    parts = ["## A month before the first command", ""]
    for size in SIZES:
        parts += [f"### {size.name}", "", *_table(idle(size))]
    parts += ["## A million commands", ""]
    for what, lines in per_million().items():
        parts += [f"### A million times {what}", "", *_table(lines)]
    parts += [
        "### What they leave behind, each month that it is kept",
        "",
        *_table(kept_per_million()),
        "## The Lambda updater, a million commits",
        "",
    ]
    for what, lines in function_per_million().items():
        parts += [f"### {what.capitalize()}", "", *_table(lines)]
    parts += ["## Prices", "", "| price | US dollars | for |", "|---|---:|---|"]
    parts += [f"| {name} | {dollars:g} | {unit} |" for name, (dollars, unit) in PRICES.items()]
    return "\n".join(parts) + "\n"


def _table(lines: Sequence[Line]) -> list[str]:
    rows = [f"| {line.what} | {line.arithmetic} | {line.dollars:,.2f} |" for line in lines]
    total = sum(line.dollars for line in lines)
    return ["| part | arithmetic | US dollars |", "|---|---|---:|", *rows, f"| **together** | | **{total:,.2f}** |", ""]


def written(text: str) -> str:
    """The page with its tables made anew. Raises ValueError when it lacks the two markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{page()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


def _hours(milliseconds: float) -> float:
    return milliseconds * 1_000_000 / 1_000 / 3_600


def _gigabytes(share: float) -> float:
    return MEASURED.request_bytes * share * 1_000_000 / 1e9


def _short(value: float) -> str:
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
