"""All that the benchmarks know of kiseki's command line, settings and metrics."""

import sys
import urllib.request
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.processes import free_ports
from benchmarks.target import Target
from benchmarks.workload import Endpoint

LAG_METRIC = "kiseki_projection_lag_commits"
ENVIRONMENT = {
    "KISEKI_LOG_LEVEL": "warning",
}


def kiseki(folder: Path) -> Target:
    """`kiseki serve` on embedded stores: both APIs and the updater in one process."""
    command_port, query_port, management_port = free_ports(3)
    management = f"http://127.0.0.1:{management_port}"
    return Target(
        arguments=(
            *(sys.executable, "-m", "kiseki", "serve", "--data-dir", str(folder / "data")),
            *("--command-port", str(command_port)),
            *("--query-port", str(query_port)),
            *("--management-port", str(management_port)),
        ),
        environment=ENVIRONMENT,
        ready_url=f"{management}/ready",
        command=Endpoint(command_port),
        query=Endpoint(query_port),
        lag=lambda: lag_at(f"{management}/metrics"),
    )


def lag_at(url: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as response:
        return lag_in(response.read().decode())


def lag_in(metrics: str) -> float:
    """The commits that all projections together are behind, from a Prometheus page."""
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith((f"{LAG_METRIC} ", f"{LAG_METRIC}{{"))
    ]
    if not values:
        raise BenchmarkError(f"kiseki's metrics hold no {LAG_METRIC}")
    return sum(values)
