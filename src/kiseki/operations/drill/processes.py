"""The processes of a drill: kiseki as users start it, in an environment of its own, and the probe apart from it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.operations.errors import OperationFailed

__all__ = ["DrillProcess", "Ports", "free_ports", "probe_changes", "run_kiseki", "until_ready"]

_START_SECONDS: Final = 600.0
_POLL: Final = 0.1


class Ports(NamedTuple):
    """Where the system under the drill listens; the same before and after."""

    command: int
    query: int
    management: int


def free_ports() -> Ports:
    """Three that nothing listens on."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return Ports(*(each.getsockname()[1] for each in sockets))
    finally:
        for each in sockets:
            each.close()


class DrillProcess:
    """One process, and everything that it starts, in a group of its own."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command = command
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("KISEKI_")}
        self._environment |= environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def output(self) -> asyncio.StreamReader:
        """What it prints."""
        assert self._process is not None  # noqa: S101  # started
        assert self._process.stdout is not None  # noqa: S101  # a pipe
        return self._process.stdout

    async def start(self, *, piped: bool = False) -> None:
        """Starts it; what it prints goes into the log, or with `piped` to `output`."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if piped else log,
                stderr=log,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """SIGKILL to all of it; again is fine."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await self._process.wait()

    async def end(self) -> None:
        """SIGTERM, and waits."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    def refuse_ended(self) -> None:
        """Raises OperationFailed with the end of the log when it is not running any more."""
        if self._process is not None and self._process.returncode is not None:
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise OperationFailed(f"the drill's {self.name} ended: {' | '.join(tail) or 'it said nothing'}")


async def run_kiseki(arguments: Sequence[str], environment: Mapping[str, str], *, what: str) -> bytes:
    """Runs a command of kiseki to its end; what it printed. Raises OperationFailed with its own last line."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KISEKI_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kiseki", *arguments),
        env={**clean, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaint = await process.communicate()
    if process.returncode:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise OperationFailed(f"the drill could not {what}: {last[0].removeprefix('kiseki: ')}")
    return output


async def until_ready(port: int, process: DrillProcess) -> None:
    """Returns when a system says that it is ready. Raises OperationFailed when it ends, or takes ten minutes."""

    def ready() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await asyncio.to_thread(ready):
                process.refuse_ended()
                await asyncio.sleep(_POLL)
    except TimeoutError as problem:
        raise OperationFailed(f"the drill's {process.name} was not ready after {_START_SECONDS:g} s") from problem


async def probe_changes(probe: DrillProcess, *, up: bool) -> tuple[float, str]:
    """Waits until the probe says that the system is up, or down; when (time.monotonic()), and why."""
    while line := await probe.output.readline():
        change = json.loads(line)
        if change["up"] is up:
            return float(change["at"]), str(change["cause"])
    probe.refuse_ended()
    raise OperationFailed("the drill's probe ended")
