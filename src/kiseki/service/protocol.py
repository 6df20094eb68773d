"""`GuardedProtocol`: uvicorn's HTTP/1.1 protocol with what no server of its kind brings: bounds on time and size of a
request that is not complete yet. Used by `kiseki.service.server`, one for each connection.

Built on the internals of the uvicorn version that the package pins; the integration tests show that it holds.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from kiseki.graphql.answers import problem
from kiseki.service.responses import CLOSE, SECURITY_HEADERS
from kiseki.service.serving import Serving
from kiseki.service.shell import ACCEPTED

__all__ = ["ConnectionLimits", "GuardedProtocol"]

_FRAMING_BYTES: Final = 1_048_576
"""What a request may send beside its head and its body: chunk sizes, chunk extensions, trailers."""

_LINGER: Final = 2.0
"""Seconds for which a refused client may go on sending."""


class ConnectionLimits:
    """What holds for one connection. Times in seconds, sizes in bytes."""

    __slots__ = ("head_bytes", "idle", "read_timeout")

    def __init__(self, *, head_bytes: int, read_timeout: float, idle: float) -> None:
        self.head_bytes: Final = head_bytes
        """Where reading stops while the head of a request is not complete; the app refuses more exactly."""
        self.read_timeout: Final = read_timeout
        """For the head of a request, and again for its body."""
        self.idle: Final = idle
        """For a connection that has not sent anything yet."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A connection that sends nothing is closed after the idle time; a head that does not arrive in time gets 408, one
    that is too large 431. The app does the same for bodies; a body that goes on after its answer is cut.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        *,
        serving: Serving,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state={})
        self._serving = serving
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._in_message = False
        self._head_complete = False
        self._head_bytes = 0
        self._begun = False
        self._framing_bytes = 0
        self._overtime = False
        self._refused = False
        self.requests = 0
        """How many requests have begun on this connection."""
        self.opened = self.loop.time()

    @property
    def idle(self) -> bool:
        """Whether it has no request that is being sent or answered."""
        if self._refused:
            return True
        return not self._in_message and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self._limits.idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._begun = False
        self._framing_bytes += len(data)
        super().data_received(data)
        if not self._in_message:
            return
        # Part of a request is here. Once armed, the timer is not moved by more parts: a byte now and then buys nothing.
        # The piece of data in which it began may hold earlier requests too; its size is bounded by the event loop.
        if self._head_complete:
            if self._framing_bytes > _FRAMING_BYTES:
                self._refuse(431, "HEADERS_TOO_LARGE", "the chunks or trailers of the request are too large")
                return
        elif not self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(431, "HEADERS_TOO_LARGE", "the head of the request is too large")
                return
        if self._timer is None:
            self._arm(self._limits.read_timeout)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        self._head_complete = False
        self._head_bytes = 0
        self._begun = True
        self._framing_bytes = 0
        self._overtime = False
        self._disarm()
        if self._serving.unbound and self.requests == 0:
            cast("dict[str, Any]", self.scope)[ACCEPTED] = True
        self.requests += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields after the head are trailers, which nothing here reads (RFC 9110, 6.5.1): they are not kept.
        if not self._head_complete:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._head_complete = True
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._disarm()
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is asked for is passed over (RFC 9110, 7.8). Anyone can ask, so it is nothing to warn of."""

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP; in place of uvicorn's plain answer."""
        self._refuse(400, "MALFORMED_REQUEST", "this is not a valid HTTP/1.1 request")

    def _arm(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self._in_message:
            self.transport.close()
        elif not self._head_complete:
            self._refuse(408, "REQUEST_TIMEOUT", "the request did not arrive in time")
        elif self._overtime or self.cycle.response_complete:
            self.transport.abort()
        else:
            # The app has the same limit and answers 408; this is for the case that it does not.
            self._overtime = True
            self._arm(self._limits.read_timeout)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._disarm()
        in_body = self._in_message and self._head_complete
        self._in_message = False
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if not in_body or self.pipeline:
                # An earlier request of this connection is being answered; an answer to this one would look like its.
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            # It is the body of the very request that the app waits for: to the app the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        answer = problem(status, code, detail, os.urandom(16).hex())
        headers = (
            *answer.headers,
            (b"content-length", str(len(answer.body)).encode()),
            *SECURITY_HEADERS,
            CLOSE,
        )
        fields = b"".join(b"%s: %s\r\n" % field for field in headers)
        self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + answer.body)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        # The client may still be sending. Closing now would reset the connection, and it would never see the answer;
        # so only this direction ends, and what comes is thrown away for a while.
        self._refused = True
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER, self.transport.abort)
