"""Unit: the arithmetic of a scaling plan, and that what does not fit is found."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.connections import Kind, Opened, connections_of, servers_of
from kiseki.operations.scaling.dynamodb import Commands, writes_of
from kiseki.operations.scaling.limits import Limit
from kiseki.operations.scaling.plan import Policy, Rate, ScalingPlan, Tasks, TooMuch, Wanted, plan, require_none
from kiseki.service.settings import Settings
from kiseki.service.store_urls import store_urls

DATABASE = "db.example:5432"
AWS = Settings(
    journal="dynamodb://shop?region=eu-west-1",
    read_model=f"postgresql://kiseki@{DATABASE}/kiseki",
)
POSTGRES = Settings(journal=f"postgresql://kiseki@{DATABASE}/kiseki")

KINDS = st.sampled_from(["command-api", "query-api", "updater", "lambda"])
TASKS = st.builds(
    lambda kind, low, more: Tasks(kind=kind, minimum=low, maximum=low + more), KINDS, *[st.integers(0, 30)] * 2
)


def planned(
    settings: Settings = AWS, *tasks: Tasks, limit: int | None = 1_000, reserved: int = 3, **more: object
) -> ScalingPlan:
    limits = {} if limit is None else {"": Limit(limit, reserved, "as given")}
    return plan(settings, Wanted(tasks=tasks, projections=1, limits=limits, **more))  # type: ignore[arg-type]


def apis(maximum: int, *kinds: Kind) -> list[Tasks]:
    return [Tasks(kind=kind, minimum=1, maximum=maximum) for kind in kinds or ("command-api", "query-api")]


@given(
    st.sampled_from([AWS, POSTGRES]),
    st.lists(TASKS, max_size=4, unique_by=lambda one: one.kind),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.integers(0, 50),
    st.integers(1, 3_000),
)
def test_a_plan_fits_exactly_when_all_pools_of_all_tasks_do(
    settings: Settings, tasks: list[Tasks], surge: float, others: int, limit: int
) -> None:
    made = planned(settings, *tasks, surge=surge, others=others, limit=limit)
    (server,) = made.servers
    needed = others + sum(
        one.at_most * ceil(task.maximum * surge)
        for task in tasks
        for one in connections_of(settings, task.kind, projections=1)
    )
    assert server.needed == needed
    assert server.room == limit - 3 - needed
    assert bool(made.findings) == (needed > limit - 3)


@given(st.integers(1, 200), st.integers(1, 2_000))
def test_what_a_finding_proposes_fits(maximum: int, limit: int) -> None:
    made = planned(AWS, *apis(maximum, "query-api"), limit=limit)
    if not made.findings:
        return
    (finding,) = made.findings
    words = finding.remedy.split()
    if "let at most" in finding.remedy:
        fewer = int(words[words.index("most") + 1])
        assert 1 <= fewer < maximum
        assert not planned(AWS, *apis(fewer, "query-api"), limit=limit).findings
    if finding.remedy.startswith("lower read_model_connections"):
        by = int(words[words.index("by") + 1])
        smaller = AWS.model_copy(update={"read_model_connections": AWS.read_model_connections - by})
        assert not planned(smaller, *apis(maximum, "query-api"), limit=limit).findings
    takes = int(words[words.index("takes") + 1])
    assert not planned(AWS, *apis(maximum, "query-api"), limit=takes).findings
    assert planned(AWS, *apis(maximum, "query-api"), limit=takes - 1).findings


def test_one_migration_runs_at_a_time_whatever_is_deployed() -> None:
    (server,) = planned(AWS, Tasks(kind="migrate", minimum=0, maximum=1), others=0).servers
    (share,) = server.shares
    assert share.tasks == 1


def test_workers_multiply_the_pools_and_one_updater_is_beside_them() -> None:
    one = connections_of(POSTGRES, "serve", projections=1)
    four = connections_of(POSTGRES.model_copy(update={"workers": 4}), "serve", projections=1)
    alone = connections_of(POSTGRES, "command-api", projections=1)
    assert sum(each.at_most for each in alone) < sum(each.at_most for each in one)

    def queries(opened: Sequence[Opened]) -> int:
        return sum(each.at_most for each in opened if each.application == "kiseki queries")

    assert (queries(one), queries(four)) == (8, 32)


def test_a_server_of_which_no_limit_is_known_is_a_finding_and_not_a_guess() -> None:
    (finding,) = planned(AWS, *apis(3), limit=None).findings
    assert "not known" in finding.problem
    assert "--limit" in finding.remedy


def test_servers_are_told_apart_by_host_and_port_and_count_each_for_itself() -> None:
    settings = Settings(
        journal="postgresql://kiseki@one/kiseki",
        read_model="postgresql://kiseki:secret@two:6000/kiseki",
        keys="postgresql:///kiseki?host=/run/postgresql&port=7000",
    )
    assert sorted(servers_of(settings)) == ["/run/postgresql:7000", "one:5432", "two:6000"]
    made = plan(
        settings,
        Wanted(
            tasks=tuple(apis(20)),
            projections=1,
            limits={"one:5432": Limit(10_000, 3, "as given"), "": Limit(20, 3, "as given")},
        ),
    )
    assert [one.server for one in made.servers if (one.room or 0) < 0] == ["two:6000", "/run/postgresql:7000"]
    assert len(made.findings) == 2
    assert "secret" not in repr(made)


def test_a_limit_of_a_server_that_is_not_used_is_refused() -> None:
    with pytest.raises(OperationFailed, match=r"names 'x:1', but the servers of the settings are: db.example:5432"):
        plan(AWS, Wanted(tasks=(), projections=1, limits={"x:1": Limit(5, 3, "as given")}))


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (5, 3)])
def test_what_is_no_range_is_refused(low: int, high: int) -> None:
    with pytest.raises(OperationFailed, match="no range"):
        planned(AWS, Tasks(kind="updater", minimum=low, maximum=high))


def test_files_of_one_machine_bear_one_process_and_no_plan_of_several() -> None:
    embedded = Settings()
    assert all(one.embedded for one in store_urls(embedded))
    alone = (Tasks(kind="serve", minimum=1, maximum=1), Tasks(kind="migrate", minimum=0, maximum=1))
    assert not planned(embedded, *alone).findings
    with pytest.raises(OperationFailed, match=r"files of one machine.*KISEKI_JOURNAL"):
        planned(embedded, *apis(3))


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e4), st.floats(10, 95), st.integers(1, 40))
def test_tasks_suffice_for_a_rate_at_the_cpu_that_is_aimed_at(
    per_second: float, per_task: float, cpu: float, maximum: int
) -> None:
    made = planned(
        AWS,
        *apis(maximum, "command-api"),
        limit=1_000_000,
        policy=Policy(cpu=cpu),
        rates=(Rate(what="commands", per_second=per_second, per_task=per_task),),
    )
    (needed,) = made.needed_tasks
    each = per_task * cpu / 100
    assert needed.tasks * each >= per_second * (1 - 1e-9)
    assert (needed.tasks - 1) * each < per_second * (1 + 1e-9)
    assert bool(made.findings) == (needed.tasks > maximum)


@given(st.floats(0, 1e5), st.integers(1, 409_600), st.floats(0, 20))
def test_writes_grow_with_what_is_written(rate: float, size: int, claims: float) -> None:
    writes = {one.table: one.units for one in writes_of(Commands(per_second=rate, commit_bytes=size, claims=claims))}
    assert writes["journal"] == ceil(rate * ceil(size / 1_024) * 2)
    assert writes["claims"] >= writes["keys"] * 2 - 2
    assert writes["journal/by-slice"] == writes["keys"] == ceil(rate)


def test_what_dynamodb_would_refuse_is_found_before_it_does() -> None:
    enough = planned(AWS, *apis(3), commands=Commands(per_second=1_000), write_maximum=4_000)
    assert not enough.findings
    small = planned(AWS, *apis(3), commands=Commands(per_second=1_001), write_maximum=4_000)
    assert [one.name for one in small.findings] == ["dynamodb maximum"]
    assert small.findings[0].remedy == "raise the maximum to at least 4004"
    quota = planned(AWS, *apis(3), commands=Commands(per_second=11_000))
    assert [one.name for one in quota.findings] == ["dynamodb quota"]


def test_only_tables_that_are_on_dynamodb_are_counted() -> None:
    keys_elsewhere = AWS.model_copy(update={"keys": f"postgresql://kiseki@{DATABASE}/kiseki"})
    made = planned(keys_elsewhere, *apis(3), commands=Commands(per_second=1))
    assert [one.table for one in made.writes] == ["journal", "journal/by-slice", "claims"]
    assert not planned(POSTGRES, *apis(3), commands=Commands(per_second=1)).writes


def test_findings_end_as_one_line() -> None:
    made = planned(AWS, *apis(20), limit=20, commands=Commands(per_second=1_000), write_maximum=1)
    with pytest.raises(TooMuch) as told:
        require_none(made.findings)
    assert "\n" not in str(told.value)
    assert str(told.value).endswith(f"({len(made.findings) - 1} more above)")
    require_none(())
