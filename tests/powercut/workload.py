"""The program under test of the self-test: rows in plain SQLite, acknowledged one by one.

    workload.py DIRECTORY JOURNAL_MODE SYNCHRONOUS PROCESSES THREADS COMMITS

Every thread has a connection of its own. It commits one to three rows at a time and after the
commit writes their names to the ACK file, with one write for each. A small ``wal_autocheckpoint``,
and a thread that now and then truncates the WAL, put checkpoints and restarts of the log between
the commits.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

DATABASE = "rows.db"


def payload(name: str) -> str:
    """A content that can be recomputed, of different lengths: pages split and chains grow."""
    return f"{name}/" * (1 + sum(name.encode()) * 7 % 150)


def connect(directory: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / DATABASE, timeout=30, isolation_level=None)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint=15")
    return connection


def append_rows(directory: Path, synchronous: str, prefix: str, commits: int) -> None:
    acknowledgements = os.open(directory / "ACK", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with closing(connect(directory, synchronous)) as connection:
        for commit in range(commits):
            names = [f"{prefix}-{commit}-{row}" for row in range(1 + commit % 3)]
            connection.execute("BEGIN IMMEDIATE")
            rows = [(name, payload(name)) for name in names]
            connection.executemany("INSERT INTO rows VALUES (?, ?)", rows)
            connection.execute("COMMIT")
            for name in names:
                os.write(acknowledgements, f"{name}\n".encode())
    os.close(acknowledgements)


def truncate_now_and_then(directory: Path, synchronous: str, done: threading.Event) -> None:
    with closing(connect(directory, synchronous)) as connection:
        while not done.wait(0.02):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def run_worker(directory: Path, synchronous: str, process: int, threads: int, commits: int) -> None:
    done = threading.Event()
    checkpointer = threading.Thread(
        target=truncate_now_and_then,
        args=(directory, synchronous, done),
    )
    checkpointer.start()
    writers = [
        threading.Thread(
            target=append_rows,
            args=(directory, synchronous, f"{process}-{thread}", commits),
        )
        for thread in range(threads)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    checkpointer.join()


def main(arguments: list[str]) -> int:
    directory, journal_mode, synchronous = Path(arguments[0]), arguments[1], arguments[2]
    processes, threads, commits = (int(argument) for argument in arguments[3:6])
    if len(arguments) > 6:
        run_worker(directory, synchronous, int(arguments[6]), threads, commits)
        return 0
    with closing(connect(directory, synchronous)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS rows (name TEXT PRIMARY KEY, payload TEXT NOT NULL)",
        )
        argv = [sys.executable, __file__, *arguments]
        workers = [subprocess.Popen([*argv, str(process)]) for process in range(processes)]
        status = max(worker.wait() for worker in workers)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Alone: no reader keeps the log from restarting.
        append_rows(directory, synchronous, "end", commits)
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
