"""`HttpServer`: one uvicorn on sockets that this process bound itself. Used by the composition root and the supervisor.

uvicorn's own server loop, signal handling and start-up are not used: shutdown needs each step by itself, several
servers share one event loop, and a port that is in use must be one clear line before anything runs.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from uvicorn.config import Config
from uvicorn.server import ServerState

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Auditor
from kiseki.service.admission import Admission, Seat
from kiseki.service.handshakes import hold_back
from kiseki.service.protocol import ConnectionLimits, GuardedProtocol, Guards
from kiseki.service.serving import Serving

__all__ = ["CannotListen", "HttpServer", "ServerTls", "bind", "bind_private"]

_log = logging.getLogger(__name__)

_BACKLOG: Final = 2_048
_YOUNG: Final = 1.0
"""Seconds in which an accepted connection that has not sent its request yet is waited for at shutdown."""
_LAST_ANSWERS: Final = 1.5
"""Seconds before the end of the time for requests in which those that are not done are answered so."""
_POLL: Final = 0.02
_BATCH: Final = 64
"""How many connections are accepted in one turn of the event loop."""
_CLOSING: Final = 1.0
"""Seconds in which connections that are closed at the end may send what they still hold."""
_TLS_CLOSING: Final = 2.0
"""Seconds in which a client may answer the end of TLS."""
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 0.5
"""Seconds without accepting when descriptors have run out."""


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


class ServerTls(Protocol):
    """Where the server takes its certificate from."""

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        ...


class HttpServer:
    """Serves one ASGI app on one listening socket.

    With `tls` nothing but TLS is served on it, and each connection begins with the certificate of that moment; a
    handshake that takes longer than `handshake_timeout` seconds is cut. `hsts` is for a server behind a proxy that has
    TLS: its refusals carry HSTS too. `admission` bounds connections, half-open handshakes included.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        listener: socket.socket,
        *,
        serving: Serving,
        limits: ConnectionLimits,
        keep_alive: float,
        tls: ServerTls | None = None,
        handshake_timeout: float = 10.0,
        hsts: bool = False,
        admission: Admission | None = None,
        auditor: Auditor | None = None,
        api: str = "",
    ) -> None:
        self._listener = listener
        self._serving = serving
        self._guards = Guards(serving=serving, limits=limits, hsts=hsts, admission=admission, auditor=auditor, api=api)
        self._tls = tls
        self._handshake_timeout = handshake_timeout
        self._handshakes: dict[asyncio.Task[None], float] = {}
        """Connections whose TLS is not there yet, with the time at which they were accepted."""
        self._accepting: socket.socket | None = None
        self.failed_handshakes = 0
        """Connections that brought no TLS, or none that is accepted, since the start."""
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
        return len(self._state.connections) + len(self._handshakes)

    @property
    def refused(self) -> int:
        """How many connections were turned away, because there were too many."""
        return 0 if self._guards.admission is None else self._guards.admission.refused

    async def start(self) -> None:
        """Begins to accept connections."""
        self._config.load()
        self._sweeper = asyncio.create_task(self._serving.sweep_forever(), name="deadlines")
        loop = asyncio.get_running_loop()
        # A duplicate: the loop closes what it listens on, and `unbind` still has to empty the queue.
        listener = self._listener.dup()
        if self._tls is not None:
            listener.setblocking(False)
            self._accepting = listener
            loop.add_reader(listener.fileno(), self._accept)
        elif listener.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._protocol, sock=listener, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(self._protocol, sock=listener, backlog=_BACKLOG)

    async def unbind(self, handshakes: float = 0.0) -> None:
        """Stops accepting. What the kernel had accepted already is still served: a socket that closes with
        connections in its queue would reset them.

        `handshakes` are the seconds that connections get which are half open, while no further ones begin; for a socket
        on which nobody goes on to accept.
        """
        if handshakes and hold_back(self._listener):
            await asyncio.sleep(handshakes)
        self._serving.unbind()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._accepting is not None:
            asyncio.get_running_loop().remove_reader(self._accepting.fileno())
            self._accepting.close()
            self._accepting = None
        await self._take_queued()
        self._listener.close()

    async def requests_done(self, within: float = math.inf) -> None:
        """Returns when every accepted request is answered and every answer has been taken.

        In the last part of `within` seconds what is still going on is answered all the same: a request that is handled
        with 503, one that has not arrived in full with 408. Clients that do not take their answers are not waited for
        longer.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        # In this order: answers, the sweep of deadlines that brings them, and a moment for clients to take them.
        last = min(_LAST_ANSWERS, within / 2)
        if within < math.inf:
            self._serving.end_within(within - last)
        while self._busy(loop.time()):
            left = within - (loop.time() - begun)
            if left <= last / 2:
                for connection in self._connections():
                    connection.give_up()
            if left <= last / 4 and not self._serving.in_flight:
                if any(connection.unsent for connection in self._connections()):
                    _log.warning("clients that do not take their answers are not waited for any longer")
                return
            await asyncio.sleep(_POLL)

    def _busy(self, now: float) -> bool:
        return (
            self._serving.in_flight > 0
            or any(self._expected(connection, now) for connection in self._connections())
            or any(now - begun < _YOUNG for begun in self._handshakes.values())
        )

    async def stop(self, closing: float = _CLOSING) -> None:
        """Closes all connections: those that have ended properly, and after `closing` seconds whatever is left."""
        for handshake in tuple(self._handshakes):
            handshake.cancel()
        for connection in self._connections():
            connection.shutdown()
        await asyncio.sleep(0)
        for connection in self._connections():
            if not connection.transport.is_closing():
                connection.transport.abort()
        loop = asyncio.get_running_loop()
        until = loop.time() + closing
        while True:
            if not (self._handshakes or self._state.connections) or loop.time() >= until:
                break
            await asyncio.sleep(_POLL)
        for connection in self._connections():
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def close(self) -> None:
        """Ends at once, for a server without a drain."""
        await self.unbind()
        await self.stop()

    def _protocol(self) -> GuardedProtocol:
        return GuardedProtocol(self._config, self._state, guards=self._guards)

    def _accept(self) -> None:
        """Accepts what waits, for TLS: the event loop's own way counts a connection only after its handshake."""
        listener = self._accepting
        if listener is None:
            return
        for _ in range(_BATCH):
            try:
                accepted, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                if problem.errno not in _OUT_OF_DESCRIPTORS:
                    # accept(2): what is wrong with the connection that would have come is told here.
                    continue
                _log.error("no connection can be accepted now: %s", problem.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                loop.call_later(_PAUSE, self._accept_again)
                return
            self._begin_tls(accepted, peer)

    def _accept_again(self) -> None:
        if self._accepting is not None:
            asyncio.get_running_loop().add_reader(self._accepting.fileno(), self._accept)

    def _begin_tls(self, accepted: socket.socket, peer: Any) -> None:
        seat = None
        if self._guards.admission is not None:
            seat = self._guards.admission.enter(peer[0] if isinstance(peer, tuple) else None)
            if seat is None:
                # Without a handshake: that is the dear part, and what a flood is after.
                accepted.close()
                return
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._handshake(accepted, seat), name="TLS handshake")
        self._handshakes[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self._handshaken)

    def _handshaken(self, task: asyncio.Task[None]) -> None:
        del self._handshakes[task]

    async def _handshake(self, accepted: socket.socket, seat: Seat | None) -> None:
        tls = self._tls
        if tls is None:
            raise AssertionError("only a server with TLS begins it")
        made: list[GuardedProtocol] = []

        def protocol() -> GuardedProtocol:
            made.append(GuardedProtocol(self._config, self._state, guards=self._guards, seat=seat))
            return made[0]

        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol,
                accepted,
                ssl=tls.context,
                ssl_handshake_timeout=self._handshake_timeout,
                ssl_shutdown_timeout=_TLS_CLOSING,
            )
        except OSError as problem:
            # Anyone can send what is no TLS, so it is nothing to warn of. TimeoutError and SSLError are OSErrors.
            self.failed_handshakes += 1
            _log.debug("a TLS handshake failed: %s", type(problem).__name__)
        finally:
            if not made or made[0] not in self._state.connections:
                accepted.close()
                if seat is not None:
                    seat.leave()

    def _connections(self) -> list[GuardedProtocol]:
        return [c for c in self._state.connections if isinstance(c, GuardedProtocol)]

    @staticmethod
    def _expected(connection: GuardedProtocol, now: float) -> bool:
        """Whether a request may still be on its way: the connection was just accepted, or has sent a part of one; or an
        answer."""
        if connection.unsent:
            return True
        if connection.transport.is_closing():
            return False
        return not connection.idle or (connection.requests == 0 and now - connection.opened < _YOUNG)

    async def _take_queued(self) -> None:
        loop = asyncio.get_running_loop()
        for accepted, peer in _queued(self._listener):
            if self._tls is not None:
                self._begin_tls(accepted, peer)
                continue
            await loop.connect_accepted_socket(self._protocol, accepted)


def _queued(listener: socket.socket) -> Iterable[tuple[socket.socket, Any]]:
    while True:
        try:
            accepted, peer = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Out of descriptors, or the peer has gone: the rest of the queue can't be saved.
            return
        accepted.setblocking(False)
        yield accepted, peer
