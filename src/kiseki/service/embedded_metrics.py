"""Metrics as log lines that CloudWatch reads (embedded metric format): what alarms need, without a collector.

Used by the processes of a service (setting `embedded_metrics`), the Lambda handler and `kiseki dr status`. A line has
one dimension, which is a kind of process or a function's name, and numbers: nothing personal, no label of a metric.
`EMBEDDED` documents what the processes write; docs/metrics.md says what to alarm on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

import msgspec

from kiseki.application.system import SystemClock
from kiseki.service.kinds import PARTS, Parts
from kiseki.service.settings import Settings

if TYPE_CHECKING:
    # A Lambda imports this module too, and has no use for the library.
    from prometheus_client.core import Metric

__all__ = [
    "EMBEDDED",
    "EmbeddedMetric",
    "EmbeddedMetrics",
    "EmbeddedWriter",
    "embedded_fields",
    "embedded_writer",
    "kind_of",
    "quantile",
]

_log = logging.getLogger(__name__)


class EmbeddedMetric(NamedTuple):
    """One metric: CloudWatch's name of its unit, and what it means."""

    unit: str
    help: str


EMBEDDED: Final[Mapping[str, EmbeddedMetric]] = {
    "ready": EmbeddedMetric("None", "1 when the process is ready, else 0."),
    "projection_lag_commits": EmbeddedMetric(
        "Count", "Commits that live read models have not passed yet; the one that is furthest behind."
    ),
    "projection_lag_seconds": EmbeddedMetric("Seconds", "Age of the oldest of these commits; 0 when there is none."),
    "parked_streams": EmbeddedMetric("Count", "Streams that live read models have parked now, in all."),
    "http_requests": EmbeddedMetric("Count", "Requests to the APIs since the line before; not to the management port."),
    "http_5xx": EmbeddedMetric("Count", "Of these, those that were answered with a status of 500 or above."),
    "http_p99_seconds": EmbeddedMetric(
        "Seconds",
        "99 of 100 of these took at most this long, as near as the buckets tell (10 at most); none, no value.",
    ),
    "audit_healthy": EmbeddedMetric("None", "1 while security events are recorded, else 0."),
    "audit_anchor_age_seconds": EmbeddedMetric("Seconds", "Since the heads of the audit log were anchored."),
    "rate_limit_shared": EmbeddedMetric("None", "1 while the shared store of rate limits answers, else 0."),
    "tls_expires_seconds": EmbeddedMetric("Seconds", "Until the TLS certificate of the process ends."),
}
"""What the processes of a service write. A line holds those that the process knows: only one with the updater measures
read models, only one with a certificate knows when it ends."""

_API: Final = frozenset({"command", "query"})
_LIVE: Final = {"state": "live"}
_SERVER_ERROR: Final = 500


def embedded_fields(
    namespace: str, dimensions: Mapping[str, str], values: Mapping[str, float], units: Mapping[str, str], now: datetime
) -> dict[str, Any]:
    """The fields of a line: its values, and what tells CloudWatch to make metrics of them. A unit is `Count` unless
    `units` says otherwise."""
    directive = {
        "Namespace": namespace,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": name, "Unit": units.get(name, "Count")} for name in values],
    }
    return {
        "_aws": {"Timestamp": int(now.timestamp() * 1000), "CloudWatchMetrics": [directive]},
        **dimensions,
        **values,
    }


def kind_of(parts: Parts) -> str:
    """The kind of a process, as the command of `kiseki` that starts it says; of one with other parts, those parts."""
    for kind, its_parts in PARTS.items():
        if its_parts == parts:
            return kind
    return "+".join(name for name, has in msgspec.structs.asdict(parts).items() if has)


def quantile(buckets: Sequence[tuple[float, float]], hundredths: int) -> float | None:
    """The value that this many hundredths of all observations do not exceed, from counts of a histogram.

    `buckets` are bounds, ascending and ending with infinity, each with how many observations are in its bucket alone.
    Within a bucket the observations are taken for evenly spread; above the last finite bound there is no telling, so
    that bound is the answer. None without observations.
    """
    total = sum(count for _, count in buckets)
    if total <= 0:
        return None
    passed = lower = 0.0
    for bound, count in buckets:
        if count > 0 and (passed + count) * 100 >= total * hundredths:
            if not isfinite(bound):
                return lower
            return min(bound, lower + (bound - lower) * (total * hundredths / 100 - passed) / count)
        passed += count
        lower = bound if isfinite(bound) else lower
    return lower


class EmbeddedMetrics:
    """Turns what a process exposes into lines. Counts are those since the line before: their sum is the count."""

    def __init__(self, *, namespace: str, process: str) -> None:
        """`process` is the kind of the process."""
        self._namespace = namespace
        self._process = process
        self._before: dict[str | float, float] = {}

    def line(self, families: Iterable[Metric], now: datetime, *, last: bool = False) -> bytes:
        """One line, without its end. `now` is UTC. The `last` one has counts alone: what was closed in order, such as
        the audit log, would look broken."""
        found = {family.name: family for family in families}
        values = {**({} if last else _gauges(found)), **dict(self._requests(found))}
        units = {name: EMBEDDED[name].unit for name in values}
        return msgspec.json.encode(
            embedded_fields(self._namespace, {"process": self._process}, values, units, now), order="deterministic"
        )

    def _requests(self, found: Mapping[str, Metric]) -> Iterator[tuple[str, float]]:
        counts: dict[str, float] = {"http_requests": 0.0, "http_5xx": 0.0}
        below: dict[float, float] = {}
        for family in ("kiseki_http_requests", "kiseki_http_request_seconds"):
            for sample in found[family].samples if family in found else ():
                if sample.labels.get("api") not in _API:
                    continue
                if sample.name == "kiseki_http_requests_total":
                    counts["http_requests"] += sample.value
                    counts["http_5xx"] += sample.value * (int(sample.labels["status"]) >= _SERVER_ERROR)
                elif sample.name == "kiseki_http_request_seconds_bucket":
                    bound = float(sample.labels["le"])
                    below[bound] = below.get(bound, 0.0) + sample.value
        buckets = []
        under = 0.0
        for bound in sorted(below):
            buckets.append((bound, self._since(bound, below[bound] - under)))
            under = below[bound]
        if counts["http_requests"] or buckets:
            yield from [(name, self._since(name, count)) for name, count in counts.items()]
        slowest = quantile(buckets, 99)
        if slowest is not None:
            yield "http_p99_seconds", slowest

    def _since(self, what: str | float, count: float) -> float:
        before = self._before.get(what, 0.0)
        self._before[what] = count
        return count - before


_GAUGES: Final[Sequence[tuple[str, str, Callable[[list[float]], float], Mapping[str, str]]]] = (
    ("ready", "kiseki_ready", min, {}),
    ("projection_lag_commits", "kiseki_projection_lag_commits", max, _LIVE),
    ("projection_lag_seconds", "kiseki_projection_lag_seconds", max, _LIVE),
    ("parked_streams", "kiseki_projection_parked_streams", sum, _LIVE),
    ("audit_healthy", "kiseki_audit_healthy", min, {}),
    ("audit_anchor_age_seconds", "kiseki_audit_anchor_age_seconds", max, {}),
    ("rate_limit_shared", "kiseki_rate_limit_shared", min, {}),
    ("tls_expires_seconds", "kiseki_tls_expires_seconds", min, {}),
)
"""The name in a line, the gauge it comes from, how several values become one, and the labels that count."""


def _gauges(found: Mapping[str, Metric]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, source, combine, labels in _GAUGES:
        gauges = list(_values_of(found, source, source, labels))
        if gauges:
            values[name] = combine(gauges)
    return values


def _values_of(found: Mapping[str, Metric], family: str, name: str, labels: Mapping[str, str]) -> Iterator[float]:
    for sample in found[family].samples if family in found else ():
        if sample.name == name and labels.items() <= sample.labels.items() and isfinite(sample.value):
            yield sample.value


class EmbeddedWriter:
    """Writes a line again and again until it is closed, and then a last one, so that no count is lost."""

    def __init__(
        self,
        metrics: EmbeddedMetrics,
        families: Callable[[], Awaitable[Iterable[Metric]]],
        *,
        every: float,
        now: Callable[[], datetime],
        output: TextIO | None = None,
    ) -> None:
        """`every` is in seconds; `output` is standard output unless given."""
        self._metrics = metrics
        self._families = families
        self._every = every
        self._now = now
        self._output = output
        self._task = asyncio.create_task(self._repeat(), name="embedded metrics")
        self._broken = False

    async def close(self) -> None:
        """Writes the last line, and ends."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._write(last=True)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            await self._write()

    async def _write(self, *, last: bool = False) -> None:
        """A line that can't be written is no reason to end a service; it is said once."""
        try:
            line = self._metrics.line(await self._families(), self._now(), last=last)
            output = self._output or sys.stdout
            output.write(line.decode() + "\n")
            output.flush()
        except (OSError, ValueError) as problem:
            if not self._broken:
                _log.error("embedded metrics can't be written: %s", problem)
            self._broken = True
        else:
            self._broken = False


def embedded_writer(
    parts: Parts, settings: Settings, families: Callable[[], Awaitable[Iterable[Metric]]]
) -> EmbeddedWriter | None:
    """What writes the lines of a service's process, if it is to write any. On the event loop."""
    if not settings.embedded_metrics:
        return None
    metrics = EmbeddedMetrics(namespace=settings.metrics_namespace, process=kind_of(parts))
    return EmbeddedWriter(metrics, families, every=settings.embedded_metrics, now=SystemClock().now)
