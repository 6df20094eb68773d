"""Unit: metrics, their text, and the sum over processes."""

from __future__ import annotations

import inspect

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from kiseki.kernel.ports import Telemetry
from kiseki.service.metrics import METRICS, Metrics, Sample
from kiseki.service.metrics_merge import MergedMetrics


def read(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float | None:
    return read(text).get((name, tuple(sorted(labels.items()))))


def report_everything(metrics: Metrics) -> None:
    metrics.command("createUserAccount", "accepted", 0.002)
    metrics.decided("createUserAccount", 0.0001)
    metrics.conflict("UserAccount")
    metrics.appended(2, 0.003)
    metrics.append_failed("UNAVAILABLE")
    metrics.group_committed(7, 0.004)
    metrics.loaded("UserAccount", 3, cached=False, from_snapshot=True)
    metrics.snapshot("UserAccount", "saved")
    metrics.evicted(4)
    metrics.upcast("UserAccountCreated", 1)
    metrics.projected("user_accounts", 5, 0.005)
    metrics.parked("user_accounts", "UNKNOWN_EVENT")
    metrics.projection_retry("user_accounts", "UNAVAILABLE")
    metrics.query("getUserAccount", "ok", 0.006)
    metrics.http("command", 200, 0.007)


def test_all_that_is_reported_is_counted_under_documented_names() -> None:
    metrics = Metrics()
    report_everything(metrics)
    text = metrics.expose()
    assert value(text, "kiseki_commands_total", command="createUserAccount", outcome="accepted") == 1
    assert value(text, "kiseki_command_seconds_count", command="createUserAccount") == 1
    assert value(text, "kiseki_command_seconds_bucket", command="createUserAccount", le="0.001") == 0
    assert value(text, "kiseki_command_seconds_bucket", command="createUserAccount", le="0.0025") == 1
    assert value(text, "kiseki_command_seconds_bucket", command="createUserAccount", le="+Inf") == 1
    assert value(text, "kiseki_command_seconds_sum", command="createUserAccount") == 0.002
    assert value(text, "kiseki_events_total") == 2
    assert value(text, "kiseki_commits_total") == 1
    assert value(text, "kiseki_group_commit_size_bucket", le="4.0") == 0
    assert value(text, "kiseki_group_commit_size_bucket", le="8.0") == 1
    assert value(text, "kiseki_loads_total", aggregate_type="UserAccount", source="snapshot") == 1
    assert value(text, "kiseki_loaded_events_total", aggregate_type="UserAccount") == 3
    assert value(text, "kiseki_cache_evictions_total") == 4
    assert value(text, "kiseki_projected_events_total", projection="user_accounts") == 5
    assert value(text, "kiseki_parkings_total", projection="user_accounts", code="UNKNOWN_EVENT") == 1
    assert value(text, "kiseki_http_requests_total", api="command", status="200") == 1


def test_every_counter_and_histogram_is_fed() -> None:
    metrics = Metrics()
    report_everything(metrics)
    named = {name for name, _ in read(metrics.expose())}
    for name, about in METRICS.items():
        if about.kind == "counter":
            assert name in named
        if about.kind == "histogram":
            assert f"{name}_sum" in named


def test_it_is_the_whole_telemetry_port() -> None:
    for name, wanted in inspect.getmembers(Telemetry, inspect.isfunction):
        if not name.startswith("_"):
            given = getattr(Metrics, name)
            assert list(inspect.signature(given).parameters) == list(inspect.signature(wanted).parameters)


def test_names_carry_their_unit() -> None:
    for name, about in METRICS.items():
        assert name.startswith("kiseki_")
        assert name.endswith("_total") == (about.kind == "counter")
        assert about.help.endswith(".")
        if about.kind == "histogram":
            assert name.endswith(("_seconds", "_size"))


def test_the_global_registry_is_not_used() -> None:
    Metrics().command("a", "accepted", 1)
    assert not any(family.name.startswith("kiseki") for family in REGISTRY.collect())


def test_gauges_are_read_when_somebody_looks() -> None:
    metrics = Metrics()
    flying = [3.0]
    metrics.add_gauges(lambda: [Sample("kiseki_http_requests_in_flight", ("command",), flying[0])])
    metrics.measured = [Sample("kiseki_projection_lag_commits", ("user_accounts",), 9)]
    assert value(metrics.expose(), "kiseki_http_requests_in_flight", api="command") == 3
    flying[0] = 4.0
    text = metrics.expose()
    assert value(text, "kiseki_http_requests_in_flight", api="command") == 4
    assert value(text, "kiseki_projection_lag_commits", projection="user_accounts") == 9


# Over several processes


def exposition(commands: int, *, flying: float = 0) -> str:
    metrics = Metrics()
    for _ in range(commands):
        metrics.command("a", "accepted", 0.2)
    metrics.add_gauges(lambda: [Sample("kiseki_http_requests_in_flight", ("command",), flying)])
    return metrics.expose().decode()


def commands(merged: MergedMetrics) -> float | None:
    return value(merged.expose(), "kiseki_commands_total", command="a", outcome="accepted")


def test_counts_of_processes_are_summed() -> None:
    merged = MergedMetrics()
    merged.update("worker-1", 0, exposition(2, flying=1))
    merged.update("worker-2", 0, exposition(3, flying=4))
    text = merged.expose()
    assert commands(merged) == 5
    assert value(text, "kiseki_command_seconds_bucket", command="a", le="0.25") == 5
    assert value(text, "kiseki_command_seconds_sum", command="a") == pytest.approx(1.0)
    assert value(text, "kiseki_http_requests_in_flight", api="command") == 5


def test_what_describes_a_process_is_kept_apart() -> None:
    merged = MergedMetrics()
    merged.update("worker-1", 0, exposition(1))
    merged.update("worker-2", 0, exposition(1))
    names = {key for key in read(merged.expose()) if key[0] == "process_resident_memory_bytes"}
    assert {dict(labels)["process"] for _, labels in names} == {"worker-1", "worker-2"}
    built = [count for (name, _), count in read(merged.expose()).items() if name == "kiseki_build_info"]
    assert built == [1]


def test_counts_never_go_down_when_a_process_dies() -> None:
    merged = MergedMetrics()
    merged.update("worker-1", 0, exposition(5, flying=2))
    merged.update("worker-1", 1, exposition(1))
    assert commands(merged) == 6
    merged.update("worker-1", 1, exposition(2))
    assert commands(merged) == 7
    merged.ended("worker-1")
    assert commands(merged) == 7
    assert value(merged.expose(), "kiseki_http_requests_in_flight", api="command") is None
