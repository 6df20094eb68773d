"""Statistics of the measurements: percentiles within a round, medians and ratios over rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Round:
    """What one server did in one round; latencies in milliseconds, processor use as a share of one core."""

    operations_per_second: float
    p50_ms: float
    p99_ms: float
    operations: int
    creates: int
    renames: int
    load_cpu: float
    server_cpu: float | None
    catch_up_seconds: float | None

    @property
    def operations_per_cpu_second(self) -> float | None:
        """Speed per processor time, whatever others took of the core; None if that is not known."""
        return self.operations_per_second / self.server_cpu if self.server_cpu else None


@dataclass(frozen=True, slots=True)
class Figure:
    """What one server did in one slice of a run; latencies in milliseconds."""

    operations_per_second: float
    p50_ms: float
    p99_ms: float
    operations_per_cpu_second: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds of one server, and its speed relative to others."""

    operations_per_second: float
    slowest_round: float
    fastest_round: float
    p50_ms: float
    p99_ms: float
    load_cpu: float
    server_cpu: float | None
    operations_per_cpu_second: float | None
    catch_up_seconds: float | None
    ratios: Mapping[str, float]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order; share lies in (0, 1]."""
    if not ordered:
        raise ValueError("no values")
    return ordered[math.ceil(share * len(ordered)) - 1]


def ratio(rounds: Sequence[Round], others: Sequence[Round]) -> float:
    """The median of the speed ratios of rounds that ran next to each other."""
    return median(
        one.operations_per_second / other.operations_per_second for one, other in zip(rounds, others, strict=True)
    )


def ratios(figures: Sequence[Figure], others: Sequence[Figure]) -> list[float]:
    """The speed ratios of slices that ran next to each other."""
    return [one.operations_per_second / other.operations_per_second for one, other in zip(figures, others, strict=True)]


def figure_ratio(figures: Sequence[Figure], others: Sequence[Figure]) -> float:
    """Their median."""
    return median(ratios(figures, others))


def median_between(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of all such values lies with 95 % confidence, by order statistics (normal approximation)."""
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half) - 1)
    return ordered[low], ordered[max(low, high)]


def summarise(measured: Mapping[str, Sequence[Round]], references: Sequence[str]) -> dict[str, Summary]:
    """A summary for every server, with ratios to those references that were measured too."""
    return {
        name: Summary(
            operations_per_second=median(r.operations_per_second for r in rounds),
            slowest_round=min(r.operations_per_second for r in rounds),
            fastest_round=max(r.operations_per_second for r in rounds),
            p50_ms=median(r.p50_ms for r in rounds),
            p99_ms=median(r.p99_ms for r in rounds),
            load_cpu=median(r.load_cpu for r in rounds),
            server_cpu=_median_or_none([r.server_cpu for r in rounds]),
            operations_per_cpu_second=_median_or_none([r.operations_per_cpu_second for r in rounds]),
            catch_up_seconds=_median_or_none([r.catch_up_seconds for r in rounds]),
            ratios={reference: ratio(rounds, measured[reference]) for reference in references if reference in measured},
        )
        for name, rounds in measured.items()
    }


def _median_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
