"""`Shell`: the pure ASGI app around every route: what is refused before a handler runs, and what every answer has.

Used by the command API, the query API and the management port. The order of its checks is that of the wire contract.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from kiseki.graphql.answers import Answer, problem, request_problem
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, IdSource
from kiseki.service.cors import Cors
from kiseki.service.heads import Head, read_head
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.logging import RequestIds, request_ids
from kiseki.service.media import negotiate
from kiseki.service.responses import HSTS, Receive, Scope, Send, send_answer
from kiseki.service.serving import Serving, Ticket

__all__ = [
    "ACCEPTED",
    "AUTHORITY",
    "BEHIND",
    "ClientGone",
    "Exchange",
    "HttpLimits",
    "HttpTelemetry",
    "Route",
    "Shell",
    "Uncounted",
]

_log = logging.getLogger(__name__)

ACCEPTED: Final = "kiseki.accepted"
"""In the scope of a request that began before unbinding, or is the first of a connection that was accepted before: it
is still served."""

BEHIND: Final = "kiseki.behind"
"""In the scope: the requests that came behind this one on its connection and wait for their turn."""

AUTHORITY: Final = "kiseki.authority"
"""In the scope of a request whose target is absolute (`GET http://host/path`): the host that it names."""

_SECURE: Final = (HSTS,)
_LATE: Final = "the request took too long and was given up; it may or may not have had an effect"


class HttpTelemetry(Protocol):
    """What the HTTP shell reports about itself."""

    def http(self, api: str, status: int, seconds: float) -> None:
        """A request ended; status 499 when the client went away."""
        ...


class Uncounted:
    """Telemetry that goes nowhere."""

    def http(self, api: str, status: int, seconds: float) -> None: ...


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds."""

    body: int
    uri: int
    headers: int
    read_timeout: float
    request_timeout: float


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Exchange:
    """One request while it is being answered."""

    __slots__ = (
        "_limits",
        "_serving",
        "correlation_id",
        "head",
        "is_graphql",
        "method",
        "path",
        "peer",
        "query",
        "read",
        "receive",
        "ticket",
        "trace_id",
    )

    def __init__(self, scope: Scope, receive: Receive, ids: IdSource, serving: Serving, limits: HttpLimits) -> None:
        head = read_head(scope["headers"])
        self.head: Head = head
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("latin-1")
        self.query: bytes = scope["query_string"]
        self.peer: Any = scope.get("client")
        self.trace_id = head.trace_id()
        self.correlation_id = head.correlation_id(ids)
        self.receive = receive
        self.is_graphql = False
        """Whether errors carry GraphQL's `errors` member."""
        self.read = not head.chunked and head.content_length in (None, b"0")
        """Whether the whole body has been read."""
        self.ticket: Ticket = serving.enter(limits.read_timeout)
        self._serving = serving
        self._limits = limits

    async def body(self) -> bytes | Answer:
        """The request's body, or the refusal when it is over the limit. Raises ClientGone."""
        limit = self._limits.body
        declared = self.head.declared_length()
        if declared is not None and declared > limit:
            return self.too_large()
        message = await self.receive()
        if message["type"] != "http.request":
            raise ClientGone
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            parts = [body]
            size = len(body)
            while message.get("more_body", False):
                message = await self.receive()
                if message["type"] != "http.request":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    return self.too_large()
                parts.append(part)
            body = b"".join(parts)
        if len(body) > limit:
            return self.too_large()
        self.read = True
        self._serving.extend(self.ticket, self._limits.request_timeout)
        return body

    def too_large(self) -> Answer:
        """413."""
        return self.refuse(413, "BODY_TOO_LARGE", f"the body is larger than {self._limits.body} bytes")

    def refuse(self, status: int, code: str, detail: str, *headers: tuple[bytes, bytes]) -> Answer:
        """A refusal, in the form that this kind of request has."""
        if self.is_graphql:
            return request_problem(
                status,
                code,
                detail,
                self.trace_id,
                graphql_response=negotiate(self.head.accept) is True,
                headers=headers,
            )
        return problem(status, code, detail, self.trace_id, headers=headers)

    def must_close(self) -> bool:
        """Whether the connection can't be used again, because an unwanted body may be on its way.

        A short body of a known length is read past by the server, which bounds the time for it.
        """
        if self.read:
            return False
        declared = self.head.declared_length()
        return self.head.chunked or self.head.expects_continue or declared is None or declared > self._limits.body


Handler = Callable[[Exchange], Awaitable[Answer]]


class Route(msgspec.Struct, frozen=True):
    """What answers a path: one handler for each method; HEAD is answered like GET."""

    methods: Mapping[str, Handler]
    graphql: bool = False
    any_host: bool = False
    """Whether it is answered for hosts outside the list: balancers ask for health by address."""

    @property
    def allow(self) -> bytes:
        """The value of `Allow`."""
        names = set(self.methods)
        if "GET" in names:
            names.add("HEAD")
        return ", ".join(sorted(names)).encode()


class Shell:
    """Finds the route, refuses what can be refused early, and turns everything that is raised into an answer.

    `any_host` leaves out the check of Host; what is wrong on one of the `probes` is logged by health, once. `hosts` are
    the names that are answered for. Without `cors`, pages of other origins can call nothing. `hsts` sends HSTS even if
    this connection has no TLS, for a service behind a proxy that has; over TLS it is always sent. `peers` says which
    TCP peers may ask, but for health; None lets all. `client` gives a client's address behind a proxy, for what is
    recorded.
    """

    def __init__(
        self,
        name: str,
        *,
        routes: Mapping[str, Route],
        prefixes: Mapping[str, Route] | None = None,
        serving: Serving,
        limits: HttpLimits,
        ids: IdSource,
        telemetry: HttpTelemetry,
        any_host: bool = False,
        probes: Collection[str] = (),
        hosts: Hosts = ANY_HOST,
        cors: Cors | None = None,
        hsts: bool = False,
        auditor: Auditor | None = None,
        peers: Callable[[str | None], bool] | None = None,
        client: Callable[[str | None, Sequence[bytes]], str] | None = None,
    ) -> None:
        self.name = name
        self.serving = serving
        self._routes = routes
        self._prefixes = tuple((prefixes or {}).items())
        self._limits = limits
        self._ids = ids
        self._telemetry = telemetry
        self._any_host = any_host
        self._probes = probes
        self._hosts = hosts
        self._cors = cors
        self._hsts = hsts
        self._auditor = auditor
        self._peers = peers
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        started = time.monotonic()
        exchange = Exchange(scope, receive, self._ids, self.serving, self._limits)
        request_ids.set(RequestIds(exchange.trace_id, exchange.correlation_id))
        status = 499
        try:
            answer = await self._answer(exchange, scope)
            status = answer.status
            self.serving.extend(exchange.ticket, self._limits.request_timeout)
            if status >= 400 and exchange.path not in self._probes:
                self._log_refusal(exchange, answer)
            await self._send(exchange, answer, send, scope)
        except ClientGone:
            _log.info("the client went away before its request was complete")
        except asyncio.CancelledError:
            if not exchange.ticket.late:
                raise
            # The client does not read its answer. Returning without a complete one makes uvicorn close the connection.
            _log.info("the client did not take its answer in time")
        finally:
            self.serving.leave(exchange.ticket)
            self._telemetry.http(self.name, status, time.monotonic() - started)

    async def _answer(self, exchange: Exchange, scope: Scope) -> Answer:
        try:
            early = self._early(exchange, scope)
            if isinstance(early, Answer):
                return early
            return await early(exchange)
        except asyncio.CancelledError:
            if not exchange.ticket.late:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            if exchange.read:
                _log.error("a request was given up after %g s", self._limits.request_timeout)
                return exchange.refuse(503, "TIMEOUT", _LATE, (b"retry-after", b"1"))
            return exchange.refuse(408, "REQUEST_TIMEOUT", "the request did not arrive in time")
        except ClientGone:
            raise
        except Unavailable as problem:
            _log.warning("unavailable: %s", problem)
            return exchange.refuse(
                503,
                "UNAVAILABLE",
                "the service can't answer now; try again",
                (b"retry-after", str(problem.retry_after).encode()),
            )
        except Exception:  # noqa: BLE001  # whatever it is, the client gets an answer and the log the cause
            _log.exception("a request failed")
            return exchange.refuse(500, "INTERNAL", "something went wrong inside; the trace id finds it in the log")

    def _early(self, exchange: Exchange, scope: Scope) -> Handler | Answer:
        """The handler of a request, or why it has none."""
        head = exchange.head
        route = self._route(exchange.path)
        exchange.is_graphql = route is not None and route.graphql
        if self.serving.unbound and ACCEPTED not in scope:
            return exchange.refuse(503, "SHUTTING_DOWN", "the service is shutting down", (b"retry-after", b"1"))
        if self._peers is not None and not (route is not None and route.any_host):
            peer = exchange.peer[0] if exchange.peer else None
            if not self._peers(peer):
                return self._suspect(exchange, 403, "FORBIDDEN_PEER", "this service is asked through its proxy alone")
        if not self._any_host:
            misdirected = self._misdirected(head, route, scope)
            if misdirected is not None:
                return self._suspect(exchange, 400, "INVALID_HOST", misdirected)
        handler = None
        if route is not None:
            handler = route.methods.get("GET" if exchange.method == "HEAD" else exchange.method)
            if handler is None:
                if exchange.method == "OPTIONS" and head.origin is not None and head.asked_method is not None:
                    return self._preflight(exchange, route, head.origin, head.asked_method)
                return exchange.refuse(
                    405, "METHOD_NOT_ALLOWED", f"{exchange.method} is not possible here", (b"allow", route.allow)
                )
        if len(exchange.path) + len(exchange.query) > self._limits.uri:
            return exchange.refuse(414, "URI_TOO_LONG", f"the URI is longer than {self._limits.uri} bytes")
        if head.bytes > self._limits.headers:
            return exchange.refuse(
                431, "HEADERS_TOO_LARGE", f"the header fields are larger than {self._limits.headers} bytes"
            )
        if head.unknown_coding:
            return self._suspect(
                exchange, 501, "UNKNOWN_TRANSFER_CODING", "a body may be chunked and nothing else (RFC 9112)"
            )
        if head.repeated is not None:
            return self._suspect(exchange, 400, "REPEATED_HEADER", f"the header {head.repeated} may be sent once only")
        if handler is None:
            return exchange.refuse(404, "NOT_FOUND", "there is nothing here")
        return handler

    def _misdirected(self, head: Head, route: Route | None, scope: Scope) -> str | None:
        """What is wrong with the host that a request is for; None when it is answered."""
        if head.repeated == "host":
            return "a request has exactly one Host header"
        exempt = not self._hosts.listed or (route is not None and route.any_host)
        if head.host is None:
            if scope["http_version"] == "1.0" and exempt and AUTHORITY not in scope:
                return None
            return "a request has exactly one Host header"
        host = self._hosts.read(head.host)
        if host is None:
            return "the Host header is not a host and a port"
        if AUTHORITY in scope and self._hosts.read(scope[AUTHORITY]) != host:
            return "the target names another host than the Host header"
        return None if exempt or self._hosts.allow(host) else "this service does not answer for that host"

    def _preflight(self, exchange: Exchange, route: Route, origin: bytes, method: bytes) -> Answer:
        if self._cors is not None:
            answer = self._cors.preflight(origin, method, exchange.head.asked_headers, route.allow)
            return answer or exchange.refuse(403, "ORIGIN_NOT_ALLOWED", "this origin, method or header is not allowed")
        return exchange.refuse(
            405, "METHOD_NOT_ALLOWED", f"{exchange.method} is not possible here", (b"allow", route.allow)
        )

    def _address(self, exchange: Exchange) -> str | None:
        peer: str | None = exchange.peer[0] if exchange.peer else None
        return peer if self._client is None else self._client(peer, exchange.head.forwarded_for)

    def _suspect(self, exchange: Exchange, status: int, code: str, detail: str) -> Answer:
        """Refuses what no honest client sends, and records it."""
        if self._auditor is not None:
            self._auditor.note(
                AuditEvent(
                    kind="request.refused",
                    outcome="refused",
                    address=self._address(exchange),
                    api=self.name,
                    code=code,
                    trace_id=exchange.trace_id,
                )
            )
        return exchange.refuse(status, code, detail)

    def _route(self, path: str) -> Route | None:
        route = self._routes.get(path)
        if route is None:
            for prefix, candidate in self._prefixes:
                if path.startswith(prefix):
                    return candidate
        return route

    async def _send(self, exchange: Exchange, answer: Answer, send: Send, scope: Scope) -> None:
        secure = self._hsts or scope["scheme"] == "https"
        must_close = exchange.must_close()
        # RFC 9112, 9.6: after an answer that closes no further one may come, so the last of several that came says so.
        leaving = self.serving.draining and not (scope.get(BEHIND) and (not self.serving.unbound or ACCEPTED in scope))
        extra: tuple[tuple[bytes, bytes], ...] = _SECURE if secure else ()
        if self._cors is not None:
            extra += self._cors.headers(exchange.head.origin)
        await send_answer(
            send,
            answer,
            correlation_id=exchange.correlation_id,
            extra=extra,
            close=must_close or leaving or answer.status == 408,
            unread=exchange.receive if must_close and answer.status != 408 else None,
        )

    def _log_refusal(self, exchange: Exchange, answer: Answer) -> None:
        level = logging.WARNING if answer.status >= 500 else logging.INFO
        _log.log(
            level,
            "answered %d",
            answer.status,
            extra={"api": self.name, "method": exchange.method[:16], "status": answer.status},
        )
