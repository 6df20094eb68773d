"""`Metrics`: what the core loops and the HTTP shell report, as Prometheus reads it. Used by the composition root.

Counting happens in plain dictionaries, because a locked counter for every step of a command would cost more than the
step; prometheus-client turns them into its text when somebody looks. `METRICS` documents every name and unit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kiseki._version import __version__

__all__ = ["CONTENT_TYPE", "METRICS", "MetricDocumentation", "Metrics", "Sample"]

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


class MetricDocumentation(NamedTuple):
    """One metric: its kind (counter, gauge, histogram), its labels and what it means, with its unit."""

    kind: str
    labels: tuple[str, ...]
    help: str


METRICS: Final[Mapping[str, MetricDocumentation]] = {
    "kiseki_commands_total": MetricDocumentation(
        "counter", ("command", "outcome"), "Commands by how they ended: accepted, unchanged, rejected, an error code."
    ),
    "kiseki_command_seconds": MetricDocumentation(
        "histogram", ("command",), "Seconds from a typed command to its durable end."
    ),
    "kiseki_decide_seconds": MetricDocumentation("histogram", ("command",), "Seconds in one run of decide and evolve."),
    "kiseki_conflicts_total": MetricDocumentation(
        "counter", ("aggregate_type",), "Appends that met a stream that had moved."
    ),
    "kiseki_commits_total": MetricDocumentation("counter", (), "Commits made durable by commands."),
    "kiseki_events_total": MetricDocumentation("counter", (), "Events made durable by commands."),
    "kiseki_append_seconds": MetricDocumentation("histogram", (), "Seconds until a commit was durable."),
    "kiseki_append_failures_total": MetricDocumentation(
        "counter", ("code",), "Commits that did not become durable, by error code."
    ),
    "kiseki_group_commit_seconds": MetricDocumentation("histogram", (), "Seconds of one durable write."),
    "kiseki_group_commit_size": MetricDocumentation("histogram", (), "Commits carried by one durable write."),
    "kiseki_loads_total": MetricDocumentation(
        "counter", ("aggregate_type", "source"), "States found in the cache, or rebuilt from a snapshot or the journal."
    ),
    "kiseki_loaded_events_total": MetricDocumentation("counter", ("aggregate_type",), "Events read to rebuild states."),
    "kiseki_snapshots_total": MetricDocumentation(
        "counter", ("aggregate_type", "outcome"), "Snapshots saved, failed, or found unreadable."
    ),
    "kiseki_cache_evictions_total": MetricDocumentation("counter", (), "States that left the cache."),
    "kiseki_upcasts_total": MetricDocumentation(
        "counter", ("event", "version"), "Events of an old version that were read."
    ),
    "kiseki_projected_events_total": MetricDocumentation("counter", ("projection",), "Events applied to a read model."),
    "kiseki_projection_page_seconds": MetricDocumentation(
        "histogram", ("projection",), "Seconds to apply one page to a read model."
    ),
    "kiseki_parkings_total": MetricDocumentation(
        "counter", ("projection", "code"), "Streams that were parked, by error code."
    ),
    "kiseki_projection_retries_total": MetricDocumentation(
        "counter", ("projection", "code"), "Applying failed for a passing reason and was tried again."
    ),
    "kiseki_queries_total": MetricDocumentation("counter", ("query", "outcome"), "Queries: ok, or an error code."),
    "kiseki_query_seconds": MetricDocumentation("histogram", ("query",), "Seconds to answer a query, waits included."),
    "kiseki_http_requests_total": MetricDocumentation(
        "counter", ("api", "status"), "HTTP requests by status; 499 is a client that went away."
    ),
    "kiseki_http_request_seconds": MetricDocumentation("histogram", ("api",), "Seconds to answer an HTTP request."),
    "kiseki_http_requests_in_flight": MetricDocumentation("gauge", ("api",), "HTTP requests being answered."),
    "kiseki_http_connections": MetricDocumentation("gauge", ("api",), "Open HTTP connections."),
    "kiseki_projection_lag_commits": MetricDocumentation(
        "gauge",
        ("projection", "version", "state"),
        "Commits of the journal that a build of a projection has not passed yet.",
    ),
    "kiseki_projection_lag_seconds": MetricDocumentation(
        "gauge", ("projection", "version", "state"), "Age in seconds of the oldest of these commits; 0 when none."
    ),
    "kiseki_projection_parked_streams": MetricDocumentation(
        "gauge", ("projection", "version", "state"), "Streams that are parked now."
    ),
    "kiseki_rate_limit_checks": MetricDocumentation(
        "gauge", ("limit", "outcome"), "Checks of a rate limit since the start: allowed or refused."
    ),
    "kiseki_rate_limit_keys": MetricDocumentation("gauge", ("limit",), "Addresses or subjects that are counted now."),
    "kiseki_rate_limit_shared": MetricDocumentation("gauge", (), "1 while the shared store of rate limits answers."),
    "kiseki_audit_records": MetricDocumentation(
        "gauge", ("outcome",), "Security events since the start: written, coalesced, dropped, refused; or waiting now."
    ),
    "kiseki_audit_healthy": MetricDocumentation("gauge", (), "1 while security events are recorded."),
    "kiseki_audit_anchor_age_seconds": MetricDocumentation(
        "gauge", (), "Seconds since the heads of the audit log were anchored."
    ),
    "kiseki_tls_expires_seconds": MetricDocumentation("gauge", (), "Seconds until the TLS certificate ends."),
    "kiseki_http_connections_refused": MetricDocumentation(
        "gauge", ("api",), "Connections that were turned away since the start, for there were too many."
    ),
    "kiseki_ready": MetricDocumentation("gauge", (), "1 when this process is ready, else 0."),
    "kiseki_build_info": MetricDocumentation("gauge", ("version",), "Always 1; the label names the version."),
}

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Sample(NamedTuple):
    """A gauge's value now."""

    name: str
    labels: tuple[str, ...]
    value: float


Labels = tuple[str, ...]


class _Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class _Histograms(dict[Labels, _Histogram]):
    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        self._bounds = bounds

    def __missing__(self, labels: Labels) -> _Histogram:
        made = self[labels] = _Histogram(self._bounds)
        return made


class Metrics:
    """Implements the kernel's Telemetry port and the HTTP shell's. One per process.

    `group_committed` may be called from a store's writer thread; all else is called on the event loop.
    """

    def __init__(self) -> None:
        self._counters: dict[str, defaultdict[Labels, float]] = {
            name: defaultdict(float) for name, about in METRICS.items() if about.kind == "counter"
        }
        self._histograms: dict[str, _Histograms] = {
            name: _Histograms(_SIZES if name.endswith("_size") else _SECONDS)
            for name, about in METRICS.items()
            if about.kind == "histogram"
        }
        for name in ("kiseki_commits_total", "kiseki_events_total", "kiseki_cache_evictions_total"):
            self._counters[name][()] = 0.0
        self._gauges: list[Callable[[], Sequence[Sample]]] = []
        self.measured: Sequence[Sample] = ()
        """Gauges that have to be asked for; whoever serves `/metrics` puts them here before `expose`."""
        self._registry = CollectorRegistry()
        self._registry.register(_Families(self))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def add_gauges(self, read: Callable[[], Sequence[Sample]]) -> None:
        """Adds gauges that are read when somebody looks."""
        self._gauges.append(read)

    def expose(self) -> bytes:
        """Everything as Prometheus text, version 0.0.4."""
        return generate_latest(self._registry)

    def families(self) -> Iterator[Metric]:
        """Everything that has a value, as prometheus-client's families."""
        for name, values in self._counters.items():
            about = METRICS[name]
            counter = CounterMetricFamily(name.removesuffix("_total"), about.help, labels=about.labels)
            for labels, value in list(values.items()):
                counter.add_metric(labels, value)
            yield counter
        for name, histograms in self._histograms.items():
            about = METRICS[name]
            histogram = HistogramMetricFamily(name, about.help, labels=about.labels)
            for labels, kept in list(histograms.items()):
                bounds = [*(str(bound) for bound in kept.bounds), "+Inf"]
                cumulated = list(accumulate(kept.counts))
                histogram.add_metric(labels, list(zip(bounds, cumulated, strict=True)), kept.sum)
            yield histogram
        yield from self._gauge_families()

    def _gauge_families(self) -> Iterator[Metric]:
        samples = [Sample("kiseki_build_info", (__version__,), 1.0), *self.measured]
        for read in self._gauges:
            samples.extend(read())
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in samples:
            about = METRICS[name]
            if name not in families:
                families[name] = GaugeMetricFamily(name, about.help, labels=about.labels)
            families[name].add_metric(labels, value)
        yield from families.values()

    # The HTTP shell's port.

    def http(self, api: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._counters["kiseki_http_requests_total"][(api, str(status))] += 1
        self._histograms["kiseki_http_request_seconds"][(api,)].observe(seconds)

    # The kernel's Telemetry port, in its order.

    def command(self, name: str, outcome: str, seconds: float) -> None:
        self._counters["kiseki_commands_total"][(name, outcome)] += 1
        self._histograms["kiseki_command_seconds"][(name,)].observe(seconds)

    def decided(self, name: str, seconds: float) -> None:
        self._histograms["kiseki_decide_seconds"][(name,)].observe(seconds)

    def conflict(self, aggregate_type: str) -> None:
        self._counters["kiseki_conflicts_total"][(aggregate_type,)] += 1

    def appended(self, events: int, seconds: float) -> None:
        self._counters["kiseki_commits_total"][()] += 1
        self._counters["kiseki_events_total"][()] += events
        self._histograms["kiseki_append_seconds"][()].observe(seconds)

    def append_failed(self, code: str) -> None:
        self._counters["kiseki_append_failures_total"][(code,)] += 1

    def group_committed(self, commits: int, seconds: float) -> None:
        self._histograms["kiseki_group_commit_seconds"][()].observe(seconds)
        self._histograms["kiseki_group_commit_size"][()].observe(commits)

    def loaded(self, aggregate_type: str, events: int, *, cached: bool, from_snapshot: bool) -> None:
        source = "cache" if cached else "snapshot" if from_snapshot else "journal"
        self._counters["kiseki_loads_total"][(aggregate_type, source)] += 1
        if events:
            self._counters["kiseki_loaded_events_total"][(aggregate_type,)] += events

    def snapshot(self, aggregate_type: str, outcome: str) -> None:
        self._counters["kiseki_snapshots_total"][(aggregate_type, outcome)] += 1

    def evicted(self, states: int) -> None:
        self._counters["kiseki_cache_evictions_total"][()] += states

    def upcast(self, type_name: str, version: int) -> None:
        self._counters["kiseki_upcasts_total"][(type_name, str(version))] += 1

    def projected(self, projection: str, events: int, seconds: float) -> None:
        self._counters["kiseki_projected_events_total"][(projection,)] += events
        self._histograms["kiseki_projection_page_seconds"][(projection,)].observe(seconds)

    def parked(self, projection: str, code: str) -> None:
        self._counters["kiseki_parkings_total"][(projection, code)] += 1

    def projection_retry(self, projection: str, code: str) -> None:
        self._counters["kiseki_projection_retries_total"][(projection, code)] += 1

    def query(self, name: str, outcome: str, seconds: float) -> None:
        self._counters["kiseki_queries_total"][(name, outcome)] += 1
        self._histograms["kiseki_query_seconds"][(name,)].observe(seconds)


class _Families(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families()
