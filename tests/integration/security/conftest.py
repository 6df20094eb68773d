"""Data directories, and processes that use their keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("key_process.py")


class KeyProcess:
    """Another process with a Protector on the same files."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def answers(self, last: str = "done") -> list[str]:
        """The lines up to the one that says it is done."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            if line.rstrip() == last:
                return lines
            if line.strip():
                lines.append(line.rstrip())
        raise AssertionError(f"the process ended: {lines}")

    def ask(self, order: str) -> list[str]:
        self.send(order)
        return self.answers()

    def kill(self) -> None:
        """SIGKILL: nothing of the process runs any more."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start() -> Iterator[Callable[[Path], KeyProcess]]:
    """Starts processes; all are ended with the test."""
    processes: list[KeyProcess] = []

    def start_one(directory: Path) -> KeyProcess:
        processes.append(KeyProcess(directory))
        return processes[-1]

    yield start_one
    for each in processes:
        each.kill()
        each.process.communicate()
