"""`GuardedProtocol`: uvicorn's HTTP/1.1 protocol with what no server of its kind brings: bounds on time and size of a
request that is not complete yet, and refusals that look like all others. Used by `kiseki.service.server`, one for each
connection.

Built on the internals of the uvicorn version that the package pins; the integration tests show that it holds.
"""

from __future__ import annotations

import asyncio
import os
import re
import urllib.parse
from typing import Any, Final, NoReturn, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kiseki.graphql.answers import problem
from kiseki.kernel.ports import AuditEvent, Auditor
from kiseki.service.admission import Admission, Seat
from kiseki.service.responses import CLOSE, HSTS, SECURITY_HEADERS
from kiseki.service.serving import Serving
from kiseki.service.shell import ACCEPTED, AUTHORITY, BEHIND

__all__ = ["ConnectionLimits", "GuardedProtocol", "Guards"]

_FRAMING_BYTES: Final = 1_048_576
"""What a request may send beside its head and its body: chunk sizes, chunk extensions, trailers."""

_LINGER: Final = 2.0
"""Seconds for which a refused client may go on sending."""
_SLICE: Final = 65_536
_QUIET: Final = 0.1
"""Seconds without anything from a refused client after which it is taken to have stopped."""

# RFC 9110, 9.1. The parser knows some forty methods and stops at the first letter of any other.
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_LONGEST_METHOD: Final = 32
_COMMON: Final = (b"POST ", b"GET ")
_PARSED: Final = frozenset({b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PRI", b"PUT", b"TRACE"})
_UNUSED_METHOD: Final = b"UNLINK"
"""What the parser is given in place of a method that it does not know; no route has either."""
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)

_MALFORMED: Final = (400, "MALFORMED_REQUEST", "this is not a valid HTTP/1.1 request")
_SUSPECT: Final = frozenset({400, 501, 505})
"""Refusals of what no honest client sends."""
_LONG_URI: Final = (414, "URI_TOO_LONG", "the URI is too long")


class ConnectionLimits:
    """What holds for one connection. Times in seconds, sizes in bytes."""

    __slots__ = ("head_bytes", "idle", "read_timeout", "uri_bytes", "write_timeout")

    def __init__(
        self,
        *,
        head_bytes: int,
        read_timeout: float,
        idle: float,
        uri_bytes: int | None = None,
        write_timeout: float = 30.0,
    ) -> None:
        self.head_bytes: Final = head_bytes
        """Where reading stops while the head of a request is not complete; the app refuses more exactly."""
        self.read_timeout: Final = read_timeout
        """For the head of a request, and again for its body."""
        self.idle: Final = idle
        """For a connection that has not sent anything yet."""
        self.uri_bytes: Final = head_bytes // 2 if uri_bytes is None else uri_bytes
        """Above this it is the target of a request that makes its head too large."""
        self.write_timeout: Final = write_timeout
        """For a client that does not read what it has asked for."""


class Guards:
    """What the connections of one server share."""

    __slots__ = ("admission", "api", "auditor", "headers", "limits", "secure_headers", "serving")

    def __init__(
        self,
        *,
        serving: Serving,
        limits: ConnectionLimits,
        hsts: bool = False,
        admission: Admission | None = None,
        auditor: Auditor | None = None,
        api: str = "",
    ) -> None:
        self.serving: Final = serving
        self.limits: Final = limits
        self.admission: Final = admission
        self.auditor: Final = auditor
        self.api: Final = api
        self.secure_headers: Final = (*SECURITY_HEADERS, HSTS)
        self.headers: Final = self.secure_headers if hsts else SECURITY_HEADERS


class _Refused(Exception):
    """Raised inside the parser, which turns it into an error of its own: `verdict` says what it was."""


class _Cycle(RequestResponseCycle):
    """One request and its answer."""

    security_headers: tuple[tuple[bytes, bytes], ...] = SECURITY_HEADERS

    async def send_500_response(self) -> None:
        """For an app that answered nothing at all; in place of uvicorn's plain answer."""
        answer = problem(500, "INTERNAL", "something went wrong inside", os.urandom(16).hex())
        headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode()), *self.security_headers, CLOSE]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": answer.body, "more_body": False})


class _SlicedCycle(_Cycle):
    """One over TLS. uvloop passes on what is written at once, however much it is, and does not say that the client does
    not read it; it says so only when more follows."""

    async def send(self, message: Any) -> None:
        body = message.get("body", b"")
        if len(body) <= _SLICE:
            await super().send(message)
            return
        more = message.get("more_body", False)
        for start in range(0, len(body), _SLICE):
            end = start + _SLICE
            await super().send(
                {"type": "http.response.body", "body": body[start:end], "more_body": more or end < len(body)}
            )


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A connection that sends nothing is closed after the idle time; a head that does not arrive in time gets 408, one
    that is too large 431, or 414 when it is its target. The app does the same for bodies; a body that goes on after
    its answer is cut, and so is a client that does not read its answers.
    """

    def __init__(self, config: Config, server_state: ServerState, *, guards: Guards, seat: Seat | None = None) -> None:
        super().__init__(config=config, server_state=server_state, app_state={})
        self._guards = guards
        self._serving = guards.serving
        self._limits = guards.limits
        self._seat = seat
        self._headers = guards.headers
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_message = False
        self._head_complete = False
        self._head_bytes = 0
        self._begun = False
        self._framing_bytes = 0
        self._overtime = False
        self._refused = False
        self._verdict: tuple[int, str, str] | None = None
        self._heard = False
        """Whether a refused client has gone on sending."""
        self._held = b""
        """The first bytes of a request whose method is not complete yet."""
        self._waiting = False
        """Whether the timer runs for those."""
        self._coding: bytes | None = None
        """The Transfer-Encoding of this request, empty when it came more than once."""
        self._foreign: str | None = None
        """The method of this request, when the parser does not know it."""
        self.requests = 0
        """How many requests have begun on this connection."""
        self.opened = self.loop.time()

    @property
    def idle(self) -> bool:
        """Whether it has no request that is being sent or answered."""
        if self._refused:
            return True
        return not self._in_message and (self.cycle is None or self.cycle.response_complete)

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        return int(self.transport.get_write_buffer_size())

    def give_up(self) -> None:
        """Refuses a request whose head has not come in full, for a server that ends."""
        if self._in_message and not self._head_complete and not self._refused:
            self._refuse(408, "REQUEST_TIMEOUT", "the request did not arrive before the service ended")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.scheme == "https":
            self._headers = self._guards.secure_headers
            transport.set_write_buffer_limits(high=_SLICE)
        admission = self._guards.admission
        if admission is not None and self._seat is None:
            self._seat = admission.enter(self.client[0] if self.client else None)
            if self._seat is None:
                self._turn_away()
                return
        self._arm(self._limits.idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._read()
        if self._seat is not None:
            self._seat.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._heard = True
            return
        self._begun = False
        self._framing_bytes += len(data)
        if self._held or (not self._in_message and not data.startswith(_COMMON)):
            known = self._known(data)
            if known is None:
                if self._timer is None or not self._waiting:
                    self._disarm()
                    self._waiting = True
                    self._arm(self._limits.read_timeout)
                return
            if not known:
                return
            data = known
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An upgrade that is asked for is passed over (RFC 9110, 7.8).
            pass
        except httptools.HttpParserError:
            self._refuse(*(self._verdict or _MALFORMED))
            return
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
                if len(self.url) > self._limits.uri_bytes:
                    self._refuse(*_LONG_URI)
                else:
                    self._refuse(431, "HEADERS_TOO_LARGE", "the head of the request is too large")
                return
        if self._timer is None:
            self._arm(self._limits.read_timeout)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_message = True
        self._head_complete = False
        self._head_bytes = 0
        self._begun = True
        self._framing_bytes = 0
        self._overtime = False
        self._disarm()
        self._waiting = False
        self._coding = None
        scope = cast("dict[str, Any]", self.scope)
        if not self._serving.unbound or self.requests == 0:
            scope[ACCEPTED] = True
        scope[BEHIND] = self.pipeline
        self.requests += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields after the head are trailers, which nothing here reads (RFC 9110, 6.5.1): they are not kept.
        if self._head_complete:
            return
        name = name.lower()
        if name == b"transfer-encoding":
            self._coding = value.strip().lower() if self._coding is None else b""
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """As uvicorn's, with a target and a version that are read strictly, and a cycle of ours."""
        self._disarm()
        version = self.parser.get_http_version()
        self._read_head(version)
        self._head_complete = True
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        cycle = (_Cycle if self.scheme == "http" else _SlicedCycle)(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.security_headers = self._headers
        earlier, self.cycle = self.cycle, cycle
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_message_complete(self) -> None:
        self._in_message = False
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._read()
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._unread()

    def _read_head(self, version: str) -> None:
        """Fills in the scope from what the head says. Raises _Refused, with the verdict set."""
        url = self.url
        scope = cast("dict[str, Any]", self.scope)
        if version not in ("1.1", "1.0"):
            self._judge(505, "HTTP_VERSION", "this is a server for HTTP/1.1")
        if version == "1.0":
            scope["http_version"] = version
            if self._coding is not None:
                # RFC 9112, 6.1: HTTP/1.0 has no transfer codings, so that a proxy may have seen another end.
                self._judge(400, "MALFORMED_REQUEST", "a request of HTTP/1.0 can't have a Transfer-Encoding")
        elif self._coding not in (None, b"chunked"):
            self._judge(501, "UNKNOWN_TRANSFER_CODING", "a body may be chunked and nothing else (RFC 9112)")
        if len(url) > self._limits.uri_bytes:
            self._judge(*_LONG_URI)
        scope["method"], self._foreign = self._foreign or self.parser.get_method().decode("ascii"), None
        if url[:1] == b"/" and b"#" not in url:
            path, _, query = url.partition(b"?")
        else:
            match = _ABSOLUTE.fullmatch(url)
            if match is None:
                self._judge(400, "MALFORMED_REQUEST", "the target of the request is not a path or an http URI")
            scope[AUTHORITY] = match[1]
            path, query = match[2] or b"/", match[3] or b""
        scope["raw_path"] = path
        scope["path"] = urllib.parse.unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii")
        scope["query_string"] = query

    def _judge(self, status: int, code: str, detail: str) -> NoReturn:
        self._verdict = (status, code, detail)
        raise _Refused

    def _known(self, data: bytes) -> bytes | None:
        """What to parse at the start of a request; None while its method is not complete.

        A method that the parser does not know is exchanged for one that no route has, and put back when the head is
        read: so such a request is checked like any other and answered 405.
        """
        # Empty lines before a request (RFC 9112, 2.2) are no part of it, and buy no time.
        data = (self._held + data).lstrip(b"\r\n")
        if not data:
            return b""
        method, space, rest = data[: _LONGEST_METHOD + 1].partition(b" ")
        if not _METHOD.fullmatch(method):
            self._held = b""
            return data
        if not space:
            if not self._held:
                self._in_message, self._head_complete = True, False
                self._unset_keepalive_if_required()
            self._held = data
            return None
        self._held = b""
        # A tunnel to a host is no request for a path; the parser sees to it that it gets none.
        if method in _PARSED or (method == b"CONNECT" and rest[:1] != b"/"):
            return data
        self._foreign = method.decode("ascii")
        return _UNUSED_METHOD + data[len(method) :]

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
            self._close()
        elif not self._head_complete:
            self._refuse(408, "REQUEST_TIMEOUT", "the request did not arrive in time")
        elif self._overtime or self.cycle.response_complete:
            self.transport.abort()
        else:
            # The app has the same limit and answers 408; this is for the case that it does not.
            self._overtime = True
            self._arm(self._limits.read_timeout)

    def _unread(self) -> None:
        """From here on the client has a limited time to read what it was sent."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_timeout, self.transport.abort)

    def _read(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _close(self) -> None:
        self.transport.close()
        self._unread()

    def _turn_away(self) -> None:
        """For a connection that is one too many."""
        self._refused = True
        self._say(503, "TOO_MANY_CONNECTIONS", "too many connections; try again", ((b"retry-after", b"5"),))
        self._close()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._disarm()
        in_body = self._in_message and self._head_complete
        self._in_message = False
        if self.transport.is_closing():
            return
        if status in _SUSPECT and self._guards.auditor is not None:
            self._guards.auditor.note(
                AuditEvent(
                    kind="request.refused",
                    outcome="refused",
                    address=self.client[0] if self.client else None,
                    api=self._guards.api or None,
                    code=code,
                )
            )
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
        self._say(status, code, detail)
        # The client may still be sending. Closing now would reset the connection, and it would never see the answer;
        # so only this direction ends, and what comes is thrown away for a while.
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._timer = self.loop.call_later(_LINGER, self.transport.abort)
        else:
            # TLS ends in both directions at once: it is kept until the client has stopped sending.
            self._heard = False
            self._timer = self.loop.call_later(_QUIET, self._linger, self.loop.time() + _LINGER)

    def _linger(self, until: float) -> None:
        if self._heard and self.loop.time() < until:
            self._heard = False
            self._timer = self.loop.call_later(_QUIET, self._linger, until)
        elif self._heard:
            self.transport.abort()
        else:
            self._close()

    def _say(self, status: int, code: str, detail: str, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        answer = problem(status, code, detail, os.urandom(16).hex(), headers=extra)
        headers = (
            *answer.headers,
            (b"content-length", str(len(answer.body)).encode()),
            *self._headers,
            CLOSE,
        )
        fields = b"".join(b"%s: %s\r\n" % field for field in headers)
        self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + answer.body)
