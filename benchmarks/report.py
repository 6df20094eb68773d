"""The result of a run: a table for people and JSON for everything else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Round, Summary
from benchmarks.machine import Machine
from benchmarks.processes import Cores
from benchmarks.whole_path import REFERENCES, Effort


def print_table(
    summaries: Mapping[str, Summary], *, machine: Machine, cores: Cores, effort: Effort, console: Console
) -> None:
    """Medians over the rounds, one line for each server."""
    references = [name for name in REFERENCES if name in summaries]
    table = Table(
        title="Durable commands, half creates and half renames", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("server", no_wrap=True)
    versus = ["\n".join(["vs", *reference.split("-")]) for reference in references]
    for heading in (
        "ops/s",
        "range",
        "p50 ms",
        "p99 ms",
        *versus,
        "catch-up\ns",
        "server\nCPU",
        "ops per\nCPU second",
        "load\nCPU",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        table.add_row(
            name,
            f"{summary.operations_per_second:,.0f}",
            f"{summary.slowest_round:,.0f}-{summary.fastest_round:,.0f}",
            f"{summary.p50_ms:.1f}",
            f"{summary.p99_ms:.1f}",
            *(f"{summary.ratios[reference]:.2f}" for reference in references),
            "" if summary.catch_up_seconds is None else f"{summary.catch_up_seconds:.2f}",
            "" if summary.server_cpu is None else f"{summary.server_cpu:.0%}",
            "" if summary.operations_per_cpu_second is None else f"{summary.operations_per_cpu_second:,.0f}",
            f"{summary.load_cpu:.0%}",
        )
    console.print(table)
    console.print(
        f"Medians over {effort.rounds} x {effort.seconds:g} s, interleaved, {effort.connections} connections. "
        "Ratios are of rounds side by side."
    )
    pinned = "server and load each on a core of its own" if cores.server is not None else "not pinned to cores"
    console.print(
        f"{machine.python}, {machine.cores} × {machine.processor}, {pinned}, "
        f"{machine.disk_syncs_per_second:,.0f} disk syncs/s, load average before {machine.load_average}."
    )


def write_json(
    path: Path,
    *,
    measured: Mapping[str, Sequence[Round]],
    summaries: Mapping[str, Summary],
    machine: Machine,
    cores: Cores,
    effort: Effort,
    baseline: str,
) -> None:
    """Machine, settings, medians and every round."""
    result = {
        "benchmark": "whole-path",
        "machine": asdict(machine),
        "cores": asdict(cores),
        "effort": asdict(effort),
        "baseline": baseline,
        "medians": {name: asdict(summary) for name, summary in summaries.items()},
        "rounds": {name: [asdict(r) for r in rounds] for name, rounds in measured.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
