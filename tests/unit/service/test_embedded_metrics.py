"""Unit and property: metrics as lines for CloudWatch say what the process exposes, and nothing twice."""

from __future__ import annotations

import asyncio
import io
import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric

from kiseki.service.embedded_metrics import EMBEDDED, EmbeddedMetrics, EmbeddedWriter, kind_of, quantile
from kiseki.service.kinds import PARTS, Parts
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.metrics_merge import MergedMetrics

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOUNDS = (0.01, 0.1, 1.0, math.inf)


def embedded(kind: str = "serve") -> EmbeddedMetrics:
    return EmbeddedMetrics(namespace="kiseki-test", process=kind)


def line(of: EmbeddedMetrics, metrics: Metrics | MergedMetrics) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(of.line(metrics.families(), NOW))
    return read


def test_a_line_names_what_it_holds_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.measured = [
        Sample("kiseki_projection_lag_commits", ("users", "1", "live"), 3.0),
        Sample("kiseki_projection_lag_commits", ("people", "1", "live"), 5.0),
        Sample("kiseki_projection_lag_commits", ("people", "2", "building"), 1_000.0),
        Sample("kiseki_projection_lag_seconds", ("users", "1", "live"), 0.5),
        Sample("kiseki_projection_parked_streams", ("users", "1", "live"), 1.0),
        Sample("kiseki_projection_parked_streams", ("people", "1", "live"), 2.0),
        Sample("kiseki_projection_parked_streams", ("people", "2", "building"), 7.0),
    ]
    metrics.add_gauges(
        lambda: [
            Sample("kiseki_ready", (), 1.0),
            Sample("kiseki_audit_healthy", (), 1.0),
            Sample("kiseki_audit_anchor_age_seconds", (), 12.5),
            Sample("kiseki_rate_limit_shared", (), 0.0),
            Sample("kiseki_tls_expires_seconds", (), 86_400.0),
        ]
    )
    metrics.http("command", 200, 0.004)
    metrics.http("query", 503, 0.004)
    metrics.http("management", 503, 9.0)
    found = line(embedded(), metrics)
    (directive,) = found.pop("_aws")["CloudWatchMetrics"]
    assert directive["Namespace"] == "kiseki-test"
    assert directive["Dimensions"] == [["process"]]
    assert {each["Name"]: each["Unit"] for each in directive["Metrics"]} == {
        name: about.unit for name, about in EMBEDDED.items()
    }
    assert 0.0025 < found.pop("http_p99_seconds") <= 0.005
    assert found == {
        "process": "serve",
        "ready": 1.0,
        "projection_lag_commits": 5.0,
        "projection_lag_seconds": 0.5,
        "parked_streams": 3.0,
        "http_requests": 2.0,
        "http_5xx": 1.0,
        "audit_healthy": 1.0,
        "audit_anchor_age_seconds": 12.5,
        "rate_limit_shared": 0.0,
        "tls_expires_seconds": 86_400.0,
    }


def test_its_time_is_in_milliseconds() -> None:
    assert line(embedded(), Metrics())["_aws"]["Timestamp"] == NOW.timestamp() * 1000


def test_what_a_process_does_not_know_is_not_in_the_line() -> None:
    found = line(embedded("updater"), Metrics())
    assert set(found) == {"_aws", "process"}


def test_without_requests_since_the_line_before_there_is_no_p99() -> None:
    metrics, of = Metrics(), embedded()
    metrics.http("query", 200, 0.3)
    assert "http_p99_seconds" in line(of, metrics)
    found = line(of, metrics)
    assert (found["http_requests"], found["http_5xx"]) == (0, 0)
    assert "http_p99_seconds" not in found


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(("command", "query")), st.integers(200, 599)), max_size=8), max_size=5)
)
def test_the_lines_add_up_to_the_counts(rounds: Sequence[Sequence[tuple[str, int]]]) -> None:
    metrics, of = Metrics(), embedded()
    told: Counter[str] = Counter()
    for requests in rounds:
        for api, status in requests:
            metrics.http(api, status, 0.1)
        found = line(of, metrics)
        told.update({name: int(found.get(name, 0)) for name in ("http_requests", "http_5xx")})
    statuses = [status for requests in rounds for _, status in requests]
    assert told["http_requests"] == len(statuses)
    assert told["http_5xx"] == sum(status >= 500 for status in statuses)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=300), st.integers(1, 100))
def test_a_quantile_is_in_the_bucket_of_the_observation_it_estimates(values: list[float], hundredths: int) -> None:
    counts = Counter(bisect_left(BOUNDS, value) for value in values)
    told = quantile([(bound, counts[place]) for place, bound in enumerate(BOUNDS)], hundredths)
    exact = sorted(values)[-(-len(values) * hundredths // 100) - 1]
    place = bisect_left(BOUNDS, exact)
    assert told is not None
    assert (0.0, *BOUNDS)[place] <= told <= min(BOUNDS[place], BOUNDS[-2])


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.integers(1, 99))
def test_a_greater_quantile_is_never_less(counts: list[int], hundredths: int) -> None:
    buckets = list(zip(BOUNDS, counts, strict=True))
    less, more = quantile(buckets, hundredths), quantile(buckets, hundredths + 1)
    assert (less is None) == (more is None) == (sum(counts) == 0)
    assert less is None or more is None or less <= more


def test_the_worst_of_several_processes_is_told() -> None:
    merged, of = MergedMetrics(), embedded()
    for name, healthy, age, seconds in (("worker-1", 1.0, 7.0, 50.0), ("worker-2", 0.0, 3.0, 60.0)):
        metrics = Metrics()
        metrics.http("command", 500, 0.2)
        metrics.measured = [
            Sample("kiseki_audit_healthy", (), healthy),
            Sample("kiseki_rate_limit_shared", (), 1.0),
            Sample("kiseki_audit_anchor_age_seconds", (), age),
            Sample("kiseki_tls_expires_seconds", (), seconds),
        ]
        merged.update(name, 1, metrics.expose().decode())
    found = line(of, merged)
    assert (found["audit_healthy"], found["rate_limit_shared"], found["http_5xx"]) == (0.0, 1.0, 2.0)
    assert (found["audit_anchor_age_seconds"], found["tls_expires_seconds"]) == (7.0, 50.0)
    assert 0.1 < found["http_p99_seconds"] <= 0.25
    merged.ended("worker-2")
    assert line(of, merged)["http_5xx"] == 0  # it was counted before


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_a_process_is_called_as_the_command_that_starts_it(kind: str) -> None:
    assert kind_of(PARTS[kind]) == kind


def test_other_parts_are_named() -> None:
    assert kind_of(Parts(command=True, updater=True)) == "command+updater"


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


async def test_lines_come_again_and_again_and_a_last_one_at_the_end() -> None:
    output, metrics = io.StringIO(), Metrics()

    async def families() -> Iterable[Metric]:
        return metrics.families()

    metrics.add_gauges(lambda: [Sample("kiseki_audit_healthy", (), 0.0)])
    writer = EmbeddedWriter(embedded(), families, every=0.01, now=lambda: NOW, output=output)
    metrics.http("query", 200, 0.1)
    while output.getvalue().count("\n") < 3:
        await asyncio.sleep(0.005)
    metrics.http("query", 500, 0.1)
    await writer.close()
    lines = [json.loads(text) for text in output.getvalue().splitlines()]
    assert sum(each.get("http_5xx", 0) for each in lines) == 1
    assert sum(each.get("http_requests", 0) for each in lines) == 2
    assert all(each["audit_healthy"] == 0.0 for each in lines[:-1])
    assert "audit_healthy" not in lines[-1]  # it was closed by then, which is no failure


async def test_an_output_that_is_gone_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0

    async def families() -> Iterable[Metric]:
        nonlocal tries
        tries += 1
        return ()

    writer = EmbeddedWriter(embedded(), families, every=0.005, now=lambda: NOW, output=Closed())
    while tries < 3:
        await asyncio.sleep(0.005)
    await writer.close()
    assert [record.getMessage() for record in caplog.records] == [
        "embedded metrics can't be written: [Errno 32] Broken pipe"
    ]
