"""Starts and stops the measured servers, each in its own process group and pinned to one core."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError

READY_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.02
FOREIGN_SETTINGS = ("KISEKI_", "BASELINE_")
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cores:
    """Which core the server gets and which the load generator gets; None is unpinned."""

    server: int | None
    load: int | None

    @classmethod
    def choose(cls) -> "Cores":
        """Two different cores where the system has them and can pin."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(server=None, load=None)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return cls(server=None, load=None)
        return cls(server=cores[0], load=cores[1])


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Child processes started within inherit the core and stay on it."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_ports(number: int) -> list[int]:
    """Loopback ports that nobody listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def running(
    name: str,
    *,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    ready_url: str,
    folder: Path,
    core: int | None,
) -> Iterator[int]:
    """The server's process id, from ready to stopped; raises BenchmarkError with the end of its log if it is not."""
    log = folder / "server.log"
    with log.open("wb") as output, pinned(core):
        try:
            process = subprocess.Popen(
                list(arguments),
                cwd=REPOSITORY,
                env={**_own_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchmarkError(f"{name} cannot be started: {error}") from error
    try:
        _wait_until_ready(name, process, ready_url, log)
        yield process.pid
        if process.poll() is not None:
            raise BenchmarkError(f"{name} ended under load with code {process.returncode}: {_end_of(log)}")
    finally:
        _stop(process)


def cpu_seconds(pid: int) -> float | None:
    """The processor time that the process has used, or None where the system does not tell (proc(5))."""
    try:
        statistics = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    user, system = statistics.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _own_environment() -> dict[str, str]:
    """This process's environment without settings that would change what is measured."""
    return {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_SETTINGS)}


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"{name} did not start (code {process.returncode}): {_end_of(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise BenchmarkError(f"{name} was not ready within {READY_TIMEOUT_SECONDS:.0f} s: {_end_of(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # whatever of its group is left
    except ProcessLookupError:
        pass
    process.wait()


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "its log is empty"
