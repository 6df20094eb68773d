"""Starts kiseki as users do, as a process of its own, and waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.client import Client, ConnectionLost

START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Service:
    """`kiseki serve` on a data directory; the same ports at every start."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        kind: str = "serve",
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.environment = dict(environment or {})
        self.command_port, self.query_port, self.management_port = free_ports(3)
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.kind = kind
        self._arguments = arguments
        self._cwd = cwd or Path(__file__).parents[2]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, without waiting."""
        ports = {"command": self.command_port, "query": self.query_port, "management": self.management_port}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KISEKI_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "kiseki", self.kind, "--data-dir", str(self.data_dir)),
                    *(part for name, port in ports.items() for part in (f"--{name}-port", str(port))),
                    *self._arguments,
                ],
                env={**environment, **self.environment},
                cwd=self._cwd,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Waits until the management port says so. Raises AssertionError with the log when the process ended."""
        async with asyncio.timeout(START_SECONDS), Client(self.management_port) as client:
            while True:
                assert self.process is not None
                assert self.process.poll() is None, self.log.read_text(encoding="utf-8")[-4_000:]
                try:
                    if (await client.request("GET", "/ready")).status == 200:
                        return
                except ConnectionLost:
                    pass
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the process and everything it started."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code once it has ended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
