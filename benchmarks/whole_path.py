"""The whole path of a command, HTTP to durable commit to read model, on servers taken in turn."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.baseline_environment import CACHE
from benchmarks.baseline_target import bare, ordinary, ordinary_cached
from benchmarks.check import check
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Round
from benchmarks.kiseki_target import kiseki
from benchmarks.load import ANSWER_TIMEOUT_SECONDS, LoadResult, Plan
from benchmarks.processes import POLL_SECONDS, REPOSITORY, Cores, pinned, running
from benchmarks.target import Target

TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "kiseki": kiseki,
    "ordinary": ordinary,
    "ordinary-cached": ordinary_cached,
    "bare": bare,
}
REFERENCES = ("ordinary", "ordinary-cached")
CATCH_UP_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Effort:
    """How long and how hard each server is measured."""

    rounds: int
    warm_up_seconds: float
    seconds: float
    connections: int


def measure(names: Sequence[str], effort: Effort, cores: Cores) -> dict[str, list[Round]]:
    """All rounds of the named servers, interleaved; raises BenchmarkError if any of them fails."""
    measured: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(1, effort.rounds + 1):
        for name in names:
            print(f"round {number} of {effort.rounds}: {name}", file=sys.stderr)
            try:
                measured[name].append(_round(name, effort, cores))
            except BenchmarkError as error:
                raise BenchmarkError(f"{name}, round {number}: {error}") from error
    return measured


def _round(name: str, effort: Effort, cores: Cores) -> Round:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=CACHE) as temporary:
        folder = Path(temporary)
        target = TARGETS[name](folder)
        with running(
            name,
            arguments=target.arguments,
            environment=target.environment,
            ready_url=target.ready_url,
            folder=folder,
            core=cores.server,
        ) as server_pid:
            result = _load(target, server_pid, effort, cores.load)
            catch_up_seconds = None if target.lag is None else catch_up(target.lag)
            if target.query is not None:
                check(target.query, creates=result.acknowledged_creates, acknowledged=result.accounts)
    return Round(
        operations_per_second=result.operations / effort.seconds,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        operations=result.operations,
        creates=result.creates,
        renames=result.renames,
        load_cpu=result.load_cpu,
        server_cpu=result.server_cpu,
        catch_up_seconds=catch_up_seconds,
    )


def _load(target: Target, server_pid: int, effort: Effort, core: int | None) -> LoadResult:
    plan = Plan(
        endpoint=target.command,
        server_pid=server_pid,
        connections=effort.connections,
        warm_up_seconds=effort.warm_up_seconds,
        seconds=effort.seconds,
    )
    return run_load(plan, core)


def run_load(plan: Plan, core: int | None) -> LoadResult:
    """Runs the load generator on a core; raises BenchmarkError unless every operation has succeeded."""
    limit = plan.warm_up_seconds + plan.seconds + 2 * ANSWER_TIMEOUT_SECONDS
    try:
        with pinned(core):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.load"],
                cwd=REPOSITORY,
                input=json.dumps(asdict(plan)),
                capture_output=True,
                text=True,
                timeout=limit,
                check=True,
            )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"the load generator did not end within {limit:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"the load generator failed: {str(error.stderr).strip()[-500:]}") from error
    result = LoadResult.from_json(done.stdout)
    if result.failures:
        raise BenchmarkError(f"{result.failures} operations failed: {'; '.join(result.messages)}")
    return result


def catch_up(lag: Callable[[], float]) -> float:
    """Seconds until the read model has applied everything."""
    start = time.monotonic()
    while (behind := lag()) > 0:
        if time.monotonic() - start > CATCH_UP_TIMEOUT_SECONDS:
            raise BenchmarkError(
                f"the read model is still {behind:.0f} events behind after {CATCH_UP_TIMEOUT_SECONDS} s"
            )
        time.sleep(POLL_SECONDS)
    return time.monotonic() - start
