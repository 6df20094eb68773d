"""The command line of the benchmarks: `python -m benchmarks whole-path`, `security`, `journals`, and `rolling`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.baseline_environment import CACHE, baseline_digest
from benchmarks.errors import BenchmarkError
from benchmarks.figures import summarise
from benchmarks.machine import Machine
from benchmarks.processes import Cores
from benchmarks.report import print_table, write_json
from benchmarks.whole_path import REFERENCES, TARGETS, Effort, measure

WARM_UP_SECONDS = 1.0
SLICE_WARM_UP_SECONDS = 0.2
SLICE_TURNS = 2
MOST_TIMES = 4
TABLE_WIDTH = 120
SMOKE = Effort(rounds=1, warm_up_seconds=0.2, seconds=1.0, connections=8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 only when every operation and every check has succeeded."""
    options = _parser().parse_args(arguments)
    if options.benchmark == "journals":
        return _journals(options)
    if options.benchmark == "security":
        return _security(options)
    if options.benchmark == "rolling":
        return _rolling(options)
    effort = SMOKE
    if not options.smoke:
        effort = Effort(
            rounds=options.rounds,
            warm_up_seconds=WARM_UP_SECONDS,
            seconds=options.seconds,
            connections=options.connections,
        )
    names = [name for name in TARGETS if name in options.only]
    cores = Cores.choose()
    try:
        CACHE.mkdir(exist_ok=True)
        machine = Machine.observe(CACHE)
        measured = measure(names, effort, cores)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summaries = summarise(measured, REFERENCES)
    print_table(summaries, machine=machine, cores=cores, effort=effort, console=Console(width=TABLE_WIDTH))
    if options.json is not None:
        write_json(
            options.json,
            measured=measured,
            summaries=summaries,
            machine=machine,
            cores=cores,
            effort=effort,
            baseline=baseline_digest(),
        )
    return 0


def _journals(options: argparse.Namespace) -> int:
    # Here: it needs the libraries and servers of every store, which the whole path does not.
    from benchmarks.journals import measure as measure_journals
    from benchmarks.journals import print_journals

    try:
        found = measure_journals(options.seconds, options.rounds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_journals(found, Console(width=TABLE_WIDTH))
    return 0


def _rolling(options: argparse.Namespace) -> int:
    # Here: it imports the product and the servers of the tests.
    from benchmarks.rolling import RollingEffort, measure_rolling, print_rolling

    effort = RollingEffort(rounds=options.rounds, connections=options.connections, drain_delay=options.drain_delay)
    try:
        runs = measure_rolling(effort)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_rolling(runs, effort, Console(width=TABLE_WIDTH))
    problems = [problem for run in runs for problem in run.problems]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _security(options: argparse.Namespace) -> int:
    # Here: it imports the product, which the whole path only starts.
    from benchmarks.security import SecurityEffort, measure_security, print_security, too_slow

    effort = SecurityEffort(
        rounds=options.rounds,
        most_rounds=MOST_TIMES * options.rounds,
        turns=SLICE_TURNS,
        warm_up_seconds=SLICE_WARM_UP_SECONDS,
        seconds=options.seconds,
    )
    if options.smoke:
        effort = SecurityEffort(rounds=1, most_rounds=1, turns=1, warm_up_seconds=0.1, seconds=0.3, callers=(8,))
    try:
        figures = measure_security(effort, Cores.choose(), more=not options.only_on)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_security(figures, effort, Console(width=TABLE_WIDTH))
    problems = [] if options.smoke else too_slow(figures)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    journals = benchmarks.add_parser("journals", help="durable appends of every store, next to its raw driver")
    journals.add_argument("--rounds", type=_positive_int, default=3, help="of every store, in turn (%(default)s)")
    journals.add_argument("--seconds", type=_positive, default=2.0, help="measured in a round (%(default)s)")
    security = benchmarks.add_parser("security", help="the whole path with security on, next to off; fails below 0.75")
    security.add_argument(
        "--rounds", type=_positive_int, default=4, help="four slices of every case each (%(default)s)"
    )
    security.add_argument("--seconds", type=_positive, default=0.5, help="measured in a slice (%(default)s)")
    security.add_argument("--only-on", action="store_true", help="without the lines for TLS and Redis")
    security.add_argument("--smoke", action="store_true", help="one short slice of each: does everything work?")
    rolling = benchmarks.add_parser("rolling", help="replaces command APIs under load; fails when a request does")
    rolling.add_argument("--rounds", type=_positive_int, default=8, help="each replaces two processes (%(default)s)")
    rolling.add_argument("--connections", type=_positive_int, default=48, help="kept alive (%(default)s)")
    rolling.add_argument("--drain-delay", type=_positive, default=1.0, help="of each process (%(default)s)")
    whole_path = benchmarks.add_parser("whole-path", help="commands from HTTP to durable commit to read model")
    whole_path.add_argument("--rounds", type=_positive_int, default=5, help="of every server, in turn (%(default)s)")
    whole_path.add_argument("--seconds", type=_positive, default=5.0, help="measured in a round (%(default)s)")
    whole_path.add_argument("--connections", type=_positive_int, default=64, help="kept alive (%(default)s)")
    whole_path.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), help="servers to measure")
    whole_path.add_argument("--json", type=Path, metavar="PATH", help="write machine, medians and all rounds here")
    whole_path.add_argument("--smoke", action="store_true", help="one short round: does everything work?")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwind, so that servers are stopped too
    sys.exit(main())
