"""`plan`: how far a service may scale out, and whether what is behind it takes that. Asks nobody.

Used by `kiseki scale plan`, and by `kiseki scale show`, which compares it with what is in force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Final

import msgspec

from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.connections import Kind, Opened, connections_of, servers_of
from kiseki.operations.scaling.dynamodb import NEW_TABLE, TABLE_QUOTA, Commands, Writes, writes_of
from kiseki.operations.scaling.limits import Limit, smallest_memory
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, store_urls

__all__ = [
    "Finding",
    "Policy",
    "Rate",
    "ScalingPlan",
    "ServerShare",
    "ServerTotal",
    "Tasks",
    "TooMuch",
    "Wanted",
    "plan",
]

_API_KINDS: Final[Mapping[str, Kind]] = {"commands": "command-api", "queries": "query-api"}


class TooMuch(OperationFailed):
    """The plan does not fit, or what is in force is not as planned. The message says what, and what to change."""

    code = "SCALING_TOO_MUCH"


class Tasks(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How many processes of a kind run: tasks of a service, or environments of a Lambda."""

    kind: Kind
    minimum: int
    maximum: int


class Policy(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Target tracking of an ECS service."""

    cpu: float = 70.0
    """Percent of CPU that is aimed at."""
    scale_out: int = 60
    """Seconds between two steps up."""
    scale_in: int = 300
    """Seconds between two steps down."""


class Rate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is expected of an API at the busiest time, and what a task of it does."""

    what: str
    """`commands` or `queries`."""
    per_second: float
    per_task: float
    """A second, at 100 % CPU: as measured."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is asked of a plan, besides the settings."""

    tasks: tuple[Tasks, ...]
    policy: Policy = Policy()
    surge: float = 2.0
    """By how much tasks are more during a deployment: 2 for blue-green, and for rolling with 200 % at most."""
    others: int = 10
    """Connections of those who are no task: people, backups, monitoring."""
    projections: int
    """Of the application."""
    limits: Mapping[str, Limit]
    """By server; "" for all that are not named."""
    commands: Commands | None = None
    rates: tuple[Rate, ...] = ()
    write_maximum: int | None = None
    """Units of writing per second that a table may use (on-demand maximum)."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What does not fit: what is too much, and what to change."""

    name: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class ServerShare(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one kind of process has of a server's connections."""

    kind: Kind
    tasks: int
    """At most, with those of a deployment."""
    each: int
    opened: tuple[Opened, ...]
    connections: int
    """Of all its tasks."""


class ServerTotal(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The connections to one PostgreSQL server, at most."""

    server: str
    shares: tuple[ServerShare, ...]
    others: int
    needed: int
    """With those of others."""
    limit: int | None
    """max_connections; None where none was named."""
    reserved: int
    """Of the limit, what an ordinary account can't have."""
    source: str
    room: int | None
    """What is left of the limit; below 0 when it is too much."""


class NeededTasks(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How many tasks a rate needs at the CPU that is aimed at."""

    kind: Kind
    what: str
    per_second: float
    tasks: int


class ScalingPlan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A plan, checked."""

    tasks: tuple[Tasks, ...]
    policy: Policy
    surge: float
    servers: tuple[ServerTotal, ...]
    needed_tasks: tuple[NeededTasks, ...]
    writes: tuple[Writes, ...]
    write_maximum: int | None
    findings: tuple[Finding, ...]


def plan(settings: Settings, wanted: Wanted) -> ScalingPlan:
    """The plan of these settings. Raises SettingsError, StoreUrlInvalid, and OperationFailed for what is no plan."""
    for one in wanted.tasks:
        if not 0 <= one.minimum <= one.maximum:
            raise OperationFailed(f"{one.kind}: from {one.minimum} to {one.maximum} tasks is no range")
    embedded = [one.setting for one in store_urls(settings) if one.embedded]
    if embedded and sum(one.maximum for one in wanted.tasks if one.kind != "migrate") > 1:
        raise OperationFailed(
            f"{', '.join(embedded)}: in files of one machine, which tasks on others can't use; set "
            f"KISEKI_{embedded[0].upper()} to the store that all of them share"
        )
    servers = tuple(_total(settings, wanted, server) for server in servers_of(settings))
    unknown = sorted(set(wanted.limits) - {"", *(one.server for one in servers)})
    if unknown:
        known = ", ".join(one.server for one in servers) or "none"
        raise OperationFailed(f"--limit names {unknown[0]!r}, but the servers of the settings are: {known}")
    needed = tuple(_needed(rate, wanted) for rate in wanted.rates)
    on_dynamodb = {one.setting for one in store_urls(settings)[:2] if one.kind is StoreKind.DYNAMODB}
    writes: Sequence[Writes] = ()
    if wanted.commands is not None and on_dynamodb:
        tables = {"keys"} if "keys" in on_dynamodb else set()
        tables |= {"journal", "journal/by-slice", "claims"} if "journal" in on_dynamodb else set()
        writes = [one for one in writes_of(wanted.commands) if one.table in tables]
    findings = [
        *(_connection_finding(one, wanted) for one in servers),
        *(_task_finding(one, wanted) for one in needed),
        *(_write_finding(one, wanted) for one in writes),
    ]
    return ScalingPlan(
        tasks=wanted.tasks,
        policy=wanted.policy,
        surge=wanted.surge,
        servers=servers,
        needed_tasks=needed,
        writes=tuple(writes),
        write_maximum=wanted.write_maximum,
        findings=tuple(one for one in findings if one is not None),
    )


def require_none(findings: Sequence[Finding]) -> None:
    """Raises TooMuch with the first of the findings, and how many more there are."""
    if findings:
        more = f" ({len(findings) - 1} more above)" if len(findings) > 1 else ""
        raise TooMuch(f"{findings[0]}{more}")


def _total(settings: Settings, wanted: Wanted, server: str) -> ServerTotal:
    shares = []
    for one in wanted.tasks:
        opened = connections_of(settings, one.kind, projections=wanted.projections)
        here = tuple(each for each in opened if each.server == server and each.at_most)
        # Of `migrate` one runs at a time, whatever is deployed.
        tasks = one.maximum if one.kind == "migrate" else ceil(one.maximum * wanted.surge)
        if here and tasks:
            each = sum(each.at_most for each in here)
            shares.append(ServerShare(kind=one.kind, tasks=tasks, each=each, opened=here, connections=tasks * each))
    needed = sum(one.connections for one in shares) + wanted.others
    limit = wanted.limits.get(server, wanted.limits.get(""))
    return ServerTotal(
        server=server,
        shares=tuple(shares),
        others=wanted.others,
        needed=needed,
        limit=None if limit is None else limit.connections,
        reserved=0 if limit is None else limit.reserved,
        source="" if limit is None else limit.source,
        room=None if limit is None else limit.connections - limit.reserved - needed,
    )


def _connection_finding(total: ServerTotal, wanted: Wanted) -> Finding | None:
    if total.limit is None or total.room is None:
        return Finding(
            name="database limit",
            problem=f"up to {total.needed} connections to {total.server}, and it is not known how many it takes",
            remedy="name it with --limit: its max_connections, or its class such as db.r6g.large",
        )
    room = total.room
    if room >= 0:
        return None
    remedies = []
    if total.shares:
        most = max(total.shares, key=lambda one: one.connections)
        largest = max((one for one in most.opened if one.setting), key=lambda one: one.at_most, default=None)
        fewer = largest.at_most - ceil(-room / most.tasks) if largest is not None else 0
        if largest is not None and fewer >= 1:
            remedies.append(f"lower {largest.setting} by {largest.at_most - fewer} for {most.kind}")
        tasks = floor((most.connections + room) / most.each / wanted.surge)
        if tasks >= 1:
            remedies.append(f"let at most {tasks} tasks of {most.kind} run")
    memory = smallest_memory(total.needed + total.reserved)
    takes = f"a server that takes {total.needed + total.reserved}"
    remedies.append(f"use {takes} (on RDS {memory} GiB of memory)" if memory is not None else f"use {takes}")
    return Finding(
        name="database connections",
        problem=(
            f"up to {total.needed} connections to {total.server}, {-room} more than the "
            f"{total.limit - total.reserved} that it has for them ({total.limit}, {total.reserved} reserved; "
            f"{total.source})"
        ),
        remedy=", or ".join(remedies),
    )


def _needed(rate: Rate, wanted: Wanted) -> NeededTasks:
    at_target = rate.per_task * wanted.policy.cpu / 100
    return NeededTasks(
        kind=_API_KINDS[rate.what],
        what=rate.what,
        per_second=rate.per_second,
        tasks=ceil(rate.per_second / at_target),
    )


def _task_finding(needed: NeededTasks, wanted: Wanted) -> Finding | None:
    running = next((one for one in wanted.tasks if one.kind == needed.kind), None)
    if running is None or running.maximum >= needed.tasks:
        return None
    return Finding(
        name="tasks",
        problem=(
            f"{needed.per_second:g} {needed.what}/s need {needed.tasks} tasks of {needed.kind} at "
            f"{wanted.policy.cpu:g} % CPU, and at most {running.maximum} run"
        ),
        remedy=f"let {needed.tasks} run, or give a task more CPU",
    )


def _write_finding(writes: Writes, wanted: Wanted) -> Finding | None:
    if wanted.write_maximum is not None and writes.units > wanted.write_maximum:
        return Finding(
            name="dynamodb maximum",
            problem=(
                f"{writes.table} has to write {writes.units} units/s ({writes.formula}), and its on-demand maximum is "
                f"{wanted.write_maximum}: DynamoDB would refuse the rest"
            ),
            remedy=f"raise the maximum to at least {writes.units}",
        )
    if writes.units > TABLE_QUOTA:
        return Finding(
            name="dynamodb quota",
            problem=f"{writes.table} has to write {writes.units} units/s, above the account's quota of {TABLE_QUOTA}",
            remedy="have AWS raise the quota of on-demand tables first",
        )
    return None


def warm_up(plan: ScalingPlan) -> tuple[Writes, ...]:
    """What a new table does not take at once: it has to be warmed up, or its load has to grow slowly."""
    return tuple(one for one in plan.writes if one.units > NEW_TABLE)
