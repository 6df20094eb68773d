"""`MergedMetrics`: one exposition from those of several processes. Used by the supervisor of `--workers`.

Counters and histograms are summed and never go down: what a process had counted before it died stays in the sum.
Gauges are summed, but for those of which the worst counts (`_LEAST`, `_MOST`). What describes a process itself
(`process_…`, `python_…`) is kept apart with a label `process`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["MergedMetrics"]

_OWN: Final = ("process_", "python_")
_INFO: Final = ("_info",)
_LEAST: Final = frozenset({"kiseki_audit_healthy", "kiseki_rate_limit_shared", "kiseki_tls_expires_seconds"})
"""Gauges of which the least of all processes is told: all is well only if it is in each."""
_MOST: Final = frozenset({"kiseki_audit_anchor_age_seconds"})


class _Key(NamedTuple):
    family: str
    sample: str
    labels: tuple[tuple[str, str], ...]


class _Read(NamedTuple):
    about: dict[str, tuple[str, str]]
    values: dict[_Key, float]


class MergedMetrics:
    """Keeps the last exposition of each process, by name and by incarnation (a restarted process is a new one)."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, _Read]] = {}
        self._ended: dict[_Key, float] = {}
        self._ended_about: dict[str, tuple[str, str]] = {}

    def update(self, process: str, incarnation: int, text: str) -> None:
        """Takes a process's exposition. Raises ValueError when it is not Prometheus text."""
        read = _read(text)
        before = self._last.get(process)
        if before is not None and before[0] != incarnation:
            self._keep(before[1])
        self._last[process] = (incarnation, read)

    def ended(self, process: str) -> None:
        """Takes note that a process is gone: its counts stay, its gauges go."""
        before = self._last.pop(process, None)
        if before is not None:
            self._keep(before[1])

    def expose(self) -> bytes:
        """The sum as Prometheus text."""
        registry = CollectorRegistry()
        registry.register(_Sum(self))
        return generate_latest(registry)

    def families(self) -> Iterator[Metric]:
        """The sums, family by family."""
        about = dict(self._ended_about)
        sums: dict[_Key, float] = dict(self._ended)
        for process, (_, read) in self._last.items():
            about.update(read.about)
            for key, value in read.values.items():
                if key.family.startswith(_OWN):
                    sums[key._replace(labels=(*key.labels, ("process", process)))] = value
                elif key.family.endswith(_INFO):
                    sums[key] = value
                elif key.family in _LEAST:
                    sums[key] = min(value, sums.get(key, value))
                elif key.family in _MOST:
                    sums[key] = max(value, sums.get(key, value))
                else:
                    sums[key] = sums.get(key, 0.0) + value
        samples: dict[str, list[tuple[_Key, float]]] = {}
        for key, value in sums.items():
            samples.setdefault(key.family, []).append((key, value))
        for family, (kind, text) in about.items():
            if family in samples:
                metric = Metric(family, text, kind)
                for key, value in samples[family]:
                    metric.add_sample(key.sample, dict(key.labels), value)
                yield metric

    def _keep(self, read: _Read) -> None:
        self._ended_about.update(read.about)
        for key, value in read.values.items():
            if read.about[key.family][0] in ("counter", "histogram") and not key.family.startswith(_OWN):
                self._ended[key] = self._ended.get(key, 0.0) + value


class _Sum(Collector):
    def __init__(self, merged: MergedMetrics) -> None:
        self._merged = merged

    def collect(self) -> Iterator[Metric]:
        return self._merged.families()


def _read(text: str) -> _Read:
    about: dict[str, tuple[str, str]] = {}
    values: dict[_Key, float] = {}
    for family in text_string_to_metric_families(text):
        about[family.name] = (family.type, family.documentation)
        for sample in family.samples:
            values[_Key(family.name, sample.name, tuple(sorted(sample.labels.items())))] = sample.value
    return _Read(about, values)
