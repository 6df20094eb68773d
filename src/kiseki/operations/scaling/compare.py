"""Whether what is in force is what a plan says. Used by `kiseki scale show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kiseki.operations.scaling.in_force import ServiceInForce, TableInForce
from kiseki.operations.scaling.plan import Finding, Policy, ScalingPlan, Tasks

__all__ = ["differences"]

_OWNER = "the infrastructure owns it: change it there, or plan with what is in force"


def differences(
    plan: ScalingPlan, services: Sequence[ServiceInForce], tables: Sequence[TableInForce]
) -> tuple[Finding, ...]:
    """What differs from the plan, and what would not bear it."""
    planned = {one.kind: one for one in plan.tasks}
    return (
        *(finding for one in services for finding in _service(one, planned.get(one.kind), plan.policy)),
        *_tables(plan, tables),
    )


def _service(service: ServiceInForce, tasks: Tasks | None, policy: Policy) -> Iterator[Finding]:
    if tasks is None:
        yield Finding(name="tasks in force", problem=f"{service.name} runs, and no task is planned", remedy=_OWNER)
    elif service.minimum is None or service.maximum is None:
        # A service that is no API runs as many tasks as it was told; an API that does may not bear its load.
        if service.kind.endswith("-api") and tasks.minimum != tasks.maximum:
            yield Finding(
                name="tasks in force",
                problem=f"{service.name} is not scaled: Application Auto Scaling knows no target for it",
                remedy=_OWNER,
            )
        elif not tasks.minimum <= service.desired <= tasks.maximum:
            yield Finding(
                name="tasks in force",
                problem=f"{service.name} has to run {service.desired} tasks, and {tasks.minimum} to {tasks.maximum} "
                "are planned",
                remedy=_OWNER,
            )
    else:
        if (service.minimum, service.maximum) != (tasks.minimum, tasks.maximum):
            yield Finding(
                name="tasks in force",
                problem=f"{service.name} runs {service.minimum} to {service.maximum} tasks, and {tasks.minimum} to "
                f"{tasks.maximum} are planned",
                remedy=_OWNER,
            )
        in_force = (service.cpu, service.scale_out, service.scale_in)
        if service.minimum != service.maximum and in_force != (policy.cpu, policy.scale_out, policy.scale_in):
            found = (
                "follows no target of CPU"
                if service.cpu is None
                else f"aims at {service.cpu:g} % CPU, out after {service.scale_out} s, in after {service.scale_in} s"
            )
            yield Finding(
                name="policy in force",
                problem=f"{service.name} {found}; planned are {policy.cpu:g} %, {policy.scale_out} s and "
                f"{policy.scale_in} s",
                remedy=_OWNER,
            )
    if service.running < service.desired:
        yield Finding(
            name="running tasks",
            problem=f"{service.name} runs {service.running} of {service.desired} tasks",
            remedy="look at its events in ECS",
        )


def _tables(plan: ScalingPlan, tables: Sequence[TableInForce]) -> Iterator[Finding]:
    needed = {one.table: one for one in plan.writes}
    for table in tables:
        if table.maximum is None:
            yield Finding(
                name="dynamodb maximum in force",
                problem=f"{table.table} has no on-demand maximum: a mistake could cost without bound",
                remedy=_OWNER,
            )
            continue
        writes = needed.get(table.table)
        if writes is not None and table.maximum < writes.units:
            kind = "its on-demand maximum" if table.on_demand else "what is provisioned"
            yield Finding(
                name="dynamodb maximum in force",
                problem=f"{table.table} has to write {writes.units} units/s, and {kind} is {table.maximum}: DynamoDB "
                "would refuse the rest",
                remedy=f"raise it to at least {writes.units}",
            )
