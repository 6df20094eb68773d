"""The simulator judged on plain SQLite: it finds lost commits where they exist, and only there."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from .harness import assert_complete, run_under_shim
from .records import Operation, Trace, choose_cuts, load_trace
from .replay import POWER_CUTS, Image, Mode, images
from .workload import DATABASE, payload

WORKLOAD = Path(__file__).with_name("workload.py")
CUTS = 210
SEED = 20240229


@dataclass(frozen=True)
class Verdict:
    """What one image lost, and what SQLite says about it."""

    lost: frozenset[str]
    integrity: str


def record_workload(
    tmp_path: Path,
    shim: Path,
    journal_mode: str,
    synchronous: str,
    *,
    commits: int = 30,
) -> Trace:
    """Two processes of three threads; half the threads where they only wait for one lock."""
    directory, trace_path = tmp_path / "data", tmp_path / "trace"
    directory.mkdir()
    threads = 3 if journal_mode == "WAL" else 1
    counts = ["2", str(threads), str(commits)]
    argv = [sys.executable, str(WORKLOAD), str(directory), journal_mode, synchronous, *counts]
    run_under_shim(argv, directory, trace_path, os.environ, shim=shim)
    trace = load_trace(trace_path)
    assert_complete(trace, directory)
    return trace


def judge(image: Image, directory: Path) -> Verdict:
    image.write_to(directory)
    try:
        # The check itself need not survive a power cut.
        with closing(sqlite3.connect(directory / DATABASE)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            (integrity,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rows'").fetchone()
            rows = dict(connection.execute("SELECT name, payload FROM rows")) if table else {}
    except sqlite3.DatabaseError as error:
        integrity, rows = str(error), {}
    finally:
        shutil.rmtree(directory)
    lost = {name for name in image.acknowledged if rows.get(name) != payload(name)}
    return Verdict(frozenset(lost), integrity)


def verdicts(trace: Trace, mode: Mode, tmp_path: Path) -> list[Verdict]:
    cuts = choose_cuts(trace, CUTS, seed=SEED)
    assert len(cuts) == CUTS
    return [judge(image, tmp_path / "image") for image in images(trace, cuts, mode, SEED)]


@pytest.mark.parametrize(("journal_mode", "synchronous"), [("WAL", "FULL"), ("DELETE", "EXTRA")])
def test_full_sync_keeps_every_acknowledged_row(
    journal_mode: str,
    synchronous: str,
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    trace = record_workload(tmp_path, powercut_shim, journal_mode, synchronous)
    if journal_mode == "WAL":
        assert_checkpointed(trace)
    for mode in POWER_CUTS:
        for verdict in verdicts(trace, mode, tmp_path):
            assert verdict == Verdict(frozenset(), "ok"), mode


def assert_checkpointed(trace: Trace) -> None:
    """The trace holds what is hard: checkpoints, a log that starts again, several processes."""
    seen = Counter((record.operation, record.path) for record in trace.records)
    log = [record for record in trace.records if record.path == f"{DATABASE}-wal"]
    log_writes = [record for record in log if record.operation is Operation.WRITE]
    log_starts = [record for record in log_writes if record.offset == 0]
    assert seen[Operation.SYNC_END, DATABASE] >= 5, "checkpoints sync the database"
    assert seen[Operation.WRITE, DATABASE] >= 50, "checkpoints write pages to the database"
    assert seen[Operation.TRUNCATE, f"{DATABASE}-wal"] >= 1, "the log is truncated"
    assert len(log_starts) >= 5, "the log is written from its start again and again"
    assert seen[Operation.SYNC_END, "."] >= 1, "the directory is synced for a new log"
    assert len({record.process for record in trace.records}) == 3
    assert len({record.thread for record in trace.records}) >= 9


@pytest.mark.parametrize(
    ("journal_mode", "synchronous"),
    [
        ("WAL", "NORMAL"),
        # FULL does not sync the directory after the rollback journal is deleted; EXTRA exists for
        # that (https://www.sqlite.org/pragma.html#pragma_synchronous).
        ("DELETE", "FULL"),
    ],
)
def test_weaker_sync_loses_acknowledged_rows(
    journal_mode: str,
    synchronous: str,
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    trace = record_workload(tmp_path, powercut_shim, journal_mode, synchronous)
    for mode in POWER_CUTS:
        found = verdicts(trace, mode, tmp_path)
        assert any(verdict.lost for verdict in found), mode
        assert all(verdict.integrity == "ok" for verdict in found), mode


def test_no_sync_loses_rows_and_corrupts_and_a_mere_kill_does_neither(
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    """A checkpoint without syncs frees the log early; reordered and torn writes show it."""
    trace = record_workload(tmp_path, powercut_shim, "WAL", "OFF")
    found = {mode: verdicts(trace, mode, tmp_path) for mode in Mode}
    assert all(any(verdict.lost for verdict in found[mode]) for mode in POWER_CUTS)
    for mode in (Mode.SUBSET, Mode.TORN):
        assert any(verdict.integrity != "ok" for verdict in found[mode]), mode
    assert all(verdict == Verdict(frozenset(), "ok") for verdict in found[Mode.KEEP])


def test_a_second_run_starts_from_what_the_first_left(tmp_path: Path, powercut_shim: Path) -> None:
    """A crash, a recovery, another crash: the image of a cut is the base of the next trace."""
    first = record_workload(tmp_path, powercut_shim, "WAL", "FULL", commits=15)
    (image,) = images(first, [len(first) * 2 // 3], Mode.TORN, SEED)
    recovered = tmp_path / "recovered"
    image.write_to(recovered)
    script = tmp_path / "second.py"
    script.write_text(
        "import os, sqlite3, sys\n"
        "os.chdir(sys.argv[1])\n"
        f"connection = sqlite3.connect({DATABASE!r}, isolation_level=None)\n"
        "connection.execute('PRAGMA synchronous=FULL')\n"
        "acknowledgements = os.open('ACK', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for number in range(60):\n"
        "    connection.execute('INSERT INTO rows VALUES (?, ?)', (f's{number}', f's{number}/'))\n"
        "    os.write(acknowledgements, f's{number}\\n'.encode())\n"
    )
    trace_path = tmp_path / "second-trace"
    run_under_shim(
        [sys.executable, str(script), str(recovered)],
        recovered,
        trace_path,
        os.environ,
        shim=powercut_shim,
    )
    second = load_trace(trace_path)
    assert_complete(second, recovered)
    for mode in POWER_CUTS:
        for again in images(second, choose_cuts(second, 60, seed=SEED), mode, SEED):
            again.write_to(tmp_path / "image")
            with closing(sqlite3.connect(tmp_path / "image" / DATABASE)) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                names = {name for (name,) in connection.execute("SELECT name FROM rows")}
            shutil.rmtree(tmp_path / "image")
            assert names.issuperset([*image.acknowledged, *again.acknowledged])
