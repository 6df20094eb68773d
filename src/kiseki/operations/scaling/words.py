"""A plan as text for people. Used by `kiseki scale plan` and `kiseki scale show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it needs the library of AWS, and a plan does not
    from kiseki.operations.scaling.in_force import InstanceInForce, ServiceInForce, TableInForce
from kiseki.operations.scaling.plan import Finding, ScalingPlan, ServerTotal, warm_up

__all__ = ["finding_lines", "in_force_lines", "plan_lines"]


def plan_lines(plan: ScalingPlan) -> Iterator[str]:
    """Line by line."""
    policy = plan.policy
    yield (
        f"tasks, at {policy.cpu:g} % CPU (out after {policy.scale_out} s, in after {policy.scale_in} s), "
        f"× {plan.surge:g} while a release is deployed"
    )
    for one in plan.tasks:
        yield f"  {one.kind:<12} {one.minimum}–{one.maximum}"
    for needed in plan.needed_tasks:
        yield f"  {needed.per_second:g} {needed.what}/s need {needed.tasks} tasks of {needed.kind}"
    for server in plan.servers:
        yield from _server_lines(server)
    if plan.writes:
        maximum = "" if plan.write_maximum is None else f" (maximum {plan.write_maximum})"
        yield f"units of writing on DynamoDB, a second{maximum}"
        for writes in plan.writes:
            yield f"  {writes.table:<16} {writes.units:>6}  {writes.formula}"
        for writes in warm_up(plan):
            yield f"  {writes.table}: a new table takes less at once; warm it up to {writes.units} before it is used"


def in_force_lines(
    services: Sequence[ServiceInForce], instance: InstanceInForce | None, tables: Sequence[TableInForce]
) -> Iterator[str]:
    """What AWS says, line by line."""
    for one in services:
        scaled = "not scaled"
        if one.minimum is not None and one.maximum is not None:
            scaled = f"scaled from {one.minimum} to {one.maximum}"
        if one.cpu is not None:
            scaled += f" at {one.cpu:g} % CPU, out after {one.scale_out} s, in after {one.scale_in} s"
        yield f"  {one.name:<24} {one.running} of {one.desired} tasks run; {scaled}"
    if instance is not None:
        takes = "not known" if instance.max_connections is None else instance.max_connections
        yield f"  {instance.name:<24} {instance.instance_class}, max_connections {takes}"
    for table in tables:
        kind = "on-demand, maximum" if table.on_demand else "provisioned,"
        yield f"  {table.table:<24} {kind} {'none' if table.maximum is None else table.maximum} units of writing/s"


def finding_lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    """What does not fit, with what to change."""
    for finding in findings:
        yield f"{finding.name}: {finding.problem}"
        yield f"    {finding.remedy}"
    yield f"{len(findings)} finding{'s' if len(findings) != 1 else ''}" if findings else "it fits"


def _server_lines(server: ServerTotal) -> Iterator[str]:
    yield f"connections to {server.server}, at most"
    for share in server.shares:
        uses = ", ".join(f"{one.application.removeprefix('kiseki').strip(' -')} {one.at_most}" for one in share.opened)
        yield f"  {share.kind:<12} {share.connections:>5}  {share.tasks} × {share.each} ({uses})"
    yield f"  {'others':<12} {server.others:>5}"
    if server.limit is None or server.room is None:
        yield f"  {'needed':<12} {server.needed:>5}"
    else:
        yield (
            f"  {'needed':<12} {server.needed:>5}  of {server.limit - server.reserved}: {server.limit} "
            f"({server.source}) without {server.reserved} reserved; room for {server.room}"
        )
