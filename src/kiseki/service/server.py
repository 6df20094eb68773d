"""`HttpServer`: one uvicorn on sockets that this process bound itself. Used by the composition root and the supervisor.

uvicorn's own server loop, signal handling and start-up are not used: shutdown needs each step by itself, several
servers share one event loop, and a port that is in use must be one clear line before anything runs.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from kiseki.kernel.errors import KisekiError
from kiseki.service.protocol import ConnectionLimits, GuardedProtocol
from kiseki.service.serving import Serving

__all__ = ["CannotListen", "HttpServer", "bind", "bind_private"]

_BACKLOG: Final = 2_048
_YOUNG: Final = 1.0
"""Seconds in which an accepted connection that has not sent its request yet is waited for at shutdown."""
_POLL: Final = 0.02


class CannotListen(KisekiError):
    """A port can't be used. The message says which, why, and what to do."""

    code = "CANNOT_LISTEN"


def bind(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. `setting` names the setting of the port. Port 0 takes any free one. Raises CannotListen."""
    what = f"{host} port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as problem:
        raise CannotListen(
            f"can't listen on {what}: {host!r} is no address of this machine; change `host`"
        ) from problem
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as problem:
        bound.close()
        if problem.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"can't listen on {what}: the port is in use; stop what uses it or change `{setting}`"
            ) from problem
        if problem.errno in (errno.EACCES, errno.EPERM):
            raise CannotListen(
                f"can't listen on {what}: not permitted; ports below 1024 need a privilege, change `{setting}`"
            ) from problem
        raise CannotListen(f"can't listen on {what}: {problem.strerror}; change `host` or `{setting}`") from problem
    bound.setblocking(False)
    return bound


def bind_private(path: Path) -> socket.socket:
    """A listening Unix socket; whoever may enter its directory may connect. Raises CannotListen."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # What is left of a process that died would be in the way.
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        bound.listen(_BACKLOG)
    except OSError as problem:
        bound.close()
        raise CannotListen(f"can't listen on {path}: {problem.strerror}") from problem
    bound.setblocking(False)
    return bound


class HttpServer:
    """Serves one ASGI app on one listening socket."""

    def __init__(
        self,
        app: Callable[..., Any],
        listener: socket.socket,
        *,
        serving: Serving,
        limits: ConnectionLimits,
        keep_alive: float,
    ) -> None:
        self._listener = listener
        self._serving = serving
        self._limits = limits
        self._state = ServerState()
        self._config = Config(
            app,
            http=GuardedProtocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            workers=1,
            # uvicorn types it as whole seconds and hands it to `call_later`.
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type]
        )
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on, 0 for a Unix socket."""
        return 0 if self._listener.family == socket.AF_UNIX else int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Begins to accept connections."""
        self._config.load()
        self._sweeper = asyncio.create_task(self._serving.sweep_forever(), name="deadlines")
        loop = asyncio.get_running_loop()
        # A duplicate: the loop closes what it listens on, and `unbind` still has to empty the queue.
        listener = self._listener.dup()
        if listener.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._protocol, sock=listener, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(self._protocol, sock=listener, backlog=_BACKLOG)

    async def unbind(self) -> None:
        """Stops accepting. What the kernel had accepted already is still served: a socket that closes with
        connections in its queue would reset them."""
        self._serving.unbind()
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._take_queued()
        self._listener.close()

    async def requests_done(self) -> None:
        """Returns when every accepted request is answered."""
        loop = asyncio.get_running_loop()
        while True:
            await self._serving.idle()
            now = loop.time()
            if not any(self._expected(connection, now) for connection in self._connections()):
                return
            await asyncio.sleep(_POLL)

    async def stop(self) -> None:
        """Closes all connections."""
        for connection in self._connections():
            connection.shutdown()
        await asyncio.sleep(0)
        for connection in self._connections():
            if not connection.transport.is_closing():
                connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def close(self) -> None:
        """Ends at once, for a server without a drain."""
        await self.unbind()
        await self.stop()

    def _protocol(self) -> GuardedProtocol:
        return GuardedProtocol(self._config, self._state, serving=self._serving, limits=self._limits)

    def _connections(self) -> list[GuardedProtocol]:
        return [c for c in self._state.connections if isinstance(c, GuardedProtocol)]

    @staticmethod
    def _expected(connection: GuardedProtocol, now: float) -> bool:
        """Whether a request may still be on its way: the connection was just accepted, or has sent a part of one."""
        if connection.transport.is_closing():
            return False
        return not connection.idle or (connection.requests == 0 and now - connection.opened < _YOUNG)

    async def _take_queued(self) -> None:
        loop = asyncio.get_running_loop()
        for accepted in _queued(self._listener):
            await loop.connect_accepted_socket(self._protocol, accepted)


def _queued(listener: socket.socket) -> Iterable[socket.socket]:
    while True:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Out of descriptors, or the peer has gone: the rest of the queue can't be saved.
            return
        accepted.setblocking(False)
        yield accepted
