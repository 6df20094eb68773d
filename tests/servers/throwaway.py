"""`ThrowawayServer`: one server process on loopback with a folder of its own, both gone at the end; the servers of this
folder that are one process each are made of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.servers.processes import clean_environment, die_with_parent, free_port

__all__ = ["ThrowawayServer"]


class ThrowawayServer(ABC):
    """A server that is started on entering, on the same port each time, and ended and removed on leaving.

    `refused` is what it raises when it does not start, `called` what its messages call it, `start_seconds` how long it
    may take, and `orphaned` the signal it gets when the process of the tests is gone.
    """

    refused: ClassVar[type[RuntimeError]]
    called: ClassVar[str] = "the server"
    start_seconds: ClassVar[float] = 30.0
    orphaned: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, prefix: str, port: int | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.launch()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def launch(self) -> None:
        """Starts it and waits until it is ready. Raises `refused`."""

    def run(
        self, command: Sequence[str | Path], ready: Callable[[], bool], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts the command and asks `ready` until it says yes. Raises `refused`, with the end of the log."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=clean_environment(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=die_with_parent(self.orphaned),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self.refused(f"{self.called} did not start:\n{self.log_tail()}")
            if ready():
                return
            time.sleep(0.02)
        raise self.refused(f"{self.called} was not ready after {self.start_seconds:g} s:\n{self.log_tail()}")

    def halt(self) -> None:
        """Kills it: connections are cut, and what it held in memory is lost."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Stops it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # A process that was told to stop is stopped, with all its threads, only a moment later.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Lets it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes what it kept."""
        self.halt()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""
