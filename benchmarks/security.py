"""What security costs on the whole path: the same load on kiseki without it and with it, side by side in one run.

All servers of a round run at the same time and are loaded in short slices, one after the other, there and back
(A B, B A), so that whatever else the machine does meets all of them alike. A ratio is that of two slices of one
turn; what is reported is the median over all turns.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count, product
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.baseline_environment import CACHE
from benchmarks.check import check
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, figure_ratio, median_between, ratios
from benchmarks.load import LoadResult, Plan
from benchmarks.processes import Cores, pinned, running
from benchmarks.secured_targets import SecuredTarget, secured, unsecured
from benchmarks.security_proof import prove_off, prove_on
from benchmarks.whole_path import catch_up, run_load
from benchmarks.workload import Name
from tests.servers.redis import NoRedis, RedisServer

OFF = "off"
ON = "on"
WITH_TLS = "on, TLS 1.3"
WITH_REDIS = "on, limits in Redis"
KINDS = ("commands", "queries")
CALLERS = (16, 64)
LEAST_RATIO = 0.75
"""Security may cost a quarter of the operations per second, and no more."""
ACCOUNTS_ASKED_FOR = 1_000
NAMES_OF_A_SLICE = 1_000_000

Case = tuple[str, str, int]
"""A server, commands or queries, and how many callers."""


@dataclass(frozen=True)
class SecurityEffort:
    """How long and how often each case is measured: so many turns there and as many back in each round."""

    rounds: int
    most_rounds: int
    turns: int
    warm_up_seconds: float
    seconds: float
    callers: Sequence[int] = CALLERS


@dataclass
class _Running:
    """A server of a round, and what it has acknowledged."""

    name: str
    secured: SecuredTarget
    pid: int
    folder: Path
    creates: int = 0
    accounts: dict[str, Name] = field(default_factory=dict)


def measure_security(effort: SecurityEffort, cores: Cores, *, more: bool = True) -> dict[Case, list[Figure]]:
    """The figures of each case, turn by turn; `more` adds the servers that are for information only.

    On a busy machine ratios scatter, so while it is open on which side of the bound one of them lies there are further
    rounds. Raises BenchmarkError when any operation or check fails.
    """
    figures: dict[Case, list[Figure]] = {}
    for number in range(1, effort.most_rounds + 1):
        if number > effort.rounds and not is_open(figures):
            break
        print(f"round {number} of {max(number, effort.rounds)}", file=sys.stderr)
        _round(figures, effort, cores, more=more)
    return figures


def _round(figures: dict[Case, list[Figure]], effort: SecurityEffort, cores: Cores, *, more: bool) -> None:
    with ExitStack() as stack:
        servers = _start(stack, cores, subjects=max(effort.callers), more=more)
        for server in servers:
            _prove(server)
        slices = count(1)
        for kind, callers in product(KINDS, effort.callers):
            for turn in (servers, servers[::-1]) * effort.turns:
                for server in turn:
                    figure = _slice(server, kind, callers, effort, cores, first_name=next(slices))
                    figures.setdefault((server.name, kind, callers), []).append(figure)
        for server in servers:
            _check(server)
            _prove_audited(server)


def _start(stack: ExitStack, cores: Cores, *, subjects: int, more: bool) -> list[_Running]:
    makers: dict[str, Callable[[Path], SecuredTarget]] = {OFF: unsecured, ON: partial(secured, subjects=subjects)}
    if more:
        makers[WITH_TLS] = partial(secured, subjects=subjects, tls=True)
        try:
            with pinned(cores.load):
                redis = stack.enter_context(RedisServer())
        except NoRedis as problem:
            print(f"without Redis: {problem}", file=sys.stderr)
        else:
            makers[WITH_REDIS] = partial(secured, subjects=subjects, redis_url=redis.url)
    servers = []
    CACHE.mkdir(exist_ok=True)
    for name, make in makers.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=CACHE))).absolute()
        made = make(folder)
        pid = stack.enter_context(
            running(
                name,
                arguments=made.target.arguments,
                environment=made.target.environment,
                ready_url=made.target.ready_url,
                folder=folder,
                core=cores.server,
            )
        )
        servers.append(_Running(name, made, pid, folder))
    return servers


def _prove(server: _Running) -> None:
    target = server.secured.target
    assert target.query is not None
    for endpoint in (target.command, target.query):
        try:
            (prove_on if server.secured.tokens else prove_off)(endpoint)
        except BenchmarkError as error:
            raise BenchmarkError(f"{server.name}: {error}") from error


def _prove_audited(server: _Running) -> None:
    """What was refused when it was proved that security is on has to be in the audit log, and there is no other."""
    written = b"".join(file.read_bytes() for file in server.folder.rglob("audit/**/*") if file.is_file())
    if (b"authentication.refused" in written) != bool(server.secured.tokens):
        raise BenchmarkError(f"{server.name}: it is not what is to be measured: its audit log is not as it should be")


def _slice(
    server: _Running, kind: str, callers: int, effort: SecurityEffort, cores: Cores, *, first_name: int
) -> Figure:
    target = server.secured.target
    endpoint = target.command
    accounts: tuple[str, ...] = ()
    if kind == "queries":
        assert target.query is not None
        endpoint = target.query
        accounts = tuple(sorted(server.accounts)[:ACCOUNTS_ASKED_FOR])
    plan = Plan(
        endpoint=endpoint,
        server_pid=server.pid,
        connections=callers,
        warm_up_seconds=effort.warm_up_seconds,
        seconds=effort.seconds,
        tokens=server.secured.tokens,
        accounts=accounts,
        first_name=first_name * NAMES_OF_A_SLICE,
    )
    try:
        result = run_load(plan, cores.load)
        if target.lag is not None:
            catch_up(target.lag)
    except BenchmarkError as error:
        raise BenchmarkError(f"{server.name}, {kind}, {callers} callers: {error}") from error
    server.creates += result.acknowledged_creates
    server.accounts |= result.accounts
    return _figure(result, effort.seconds)


def _figure(result: LoadResult, seconds: float) -> Figure:
    speed = result.operations / seconds
    return Figure(
        operations_per_second=speed,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        operations_per_cpu_second=speed / result.server_cpu if result.server_cpu else None,
    )


def _check(server: _Running) -> None:
    query = server.secured.target.query
    assert query is not None
    try:
        check(query, creates=server.creates, acknowledged=server.accounts)
    except BenchmarkError as error:
        raise BenchmarkError(f"{server.name}: {error}") from error


def is_open(figures: Mapping[Case, Sequence[Figure]]) -> bool:
    """Whether a ratio that counts may as well be on the other side of the bound, by 95 % confidence of its median."""
    for (name, kind, callers), on in figures.items():
        if name == ON:
            low, high = median_between(ratios(on, figures[OFF, kind, callers]))
            if low < LEAST_RATIO <= high:
                return True
    return False


def too_slow(figures: Mapping[Case, Sequence[Figure]]) -> list[str]:
    """One line for each kind and number of callers for which security costs too much."""
    found = []
    for (name, kind, callers), secured_figures in figures.items():
        if name == ON:
            kept = figure_ratio(secured_figures, figures[OFF, kind, callers])
            if kept < LEAST_RATIO:
                found.append(
                    f"{kind} with {callers} callers: {kept:.2f} of the speed without security, not {LEAST_RATIO}"
                )
    return found


def print_security(figures: Mapping[Case, Sequence[Figure]], effort: SecurityEffort, console: Console) -> None:
    """One line for each case with security, next to the same case without."""
    table = Table(
        title="The whole path with security off and on", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in ("security", "load"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "callers",
        "ops/s\noff",
        "ops/s\non",
        "on/off",
        "95 %",
        "p50 ms\noff",
        "p50 ms\non",
        "p99 ms\noff",
        "p99 ms\non",
        "on/off by\nCPU second",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, kind, callers), on in figures.items():
        if name == OFF:
            continue
        off = figures[OFF, kind, callers]
        each = ratios(on, off)
        by_cpu = [
            one.operations_per_cpu_second / other.operations_per_cpu_second
            for one, other in zip(on, off, strict=True)
            if one.operations_per_cpu_second and other.operations_per_cpu_second
        ]
        table.add_row(
            name,
            kind,
            str(callers),
            *(f"{median(f.operations_per_second for f in some):,.0f}" for some in (off, on)),
            f"{figure_ratio(on, off):.2f}",
            "-".join(f"{bound:.2f}" for bound in median_between(each)),
            *(f"{median(f.p50_ms for f in some):.1f}" for some in (off, on)),
            *(f"{median(f.p99_ms for f in some):.1f}" for some in (off, on)),
            f"{median(by_cpu):.2f}" if by_cpu else "",
        )
    console.print(table)
    console.print(
        f"Medians over {2 * effort.turns * effort.rounds} x {effort.seconds:g} s, slices of all servers side by side, "
        f"there and back. Ratios are of neighbours. "
        f"The line `{ON}` has to keep {LEAST_RATIO} of the speed; the others are for information."
    )
