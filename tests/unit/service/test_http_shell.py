"""Unit: the HTTP shell and the APIs, called as raw ASGI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from kiseki.graphql.answers import Answer
from kiseki.graphql.endpoint import GraphQLRequest
from kiseki.kernel.errors import Unavailable
from kiseki.service.development import DevelopmentIdentity
from kiseki.service.http import api_app
from kiseki.service.serving import Serving
from kiseki.service.shell import ACCEPTED, HttpLimits, Shell
from tests.support import gate

Fields = Sequence[tuple[bytes, bytes]]

LIMITS = HttpLimits(body=1_000, uri=200, headers=2_000, read_timeout=10, request_timeout=20)
HOST = (b"host", b"localhost:18080")
JSON = (b"content-type", b"application/json")
GRAPHQL_RESPONSE = (b"accept", b"application/graphql-response+json")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECURITY = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Endpoint:
    """Stands in for GraphQL: remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[GraphQLRequest] = []
        self.act: Callable[[], Any] = lambda: None

    async def handle(self, request: GraphQLRequest) -> Answer:
        self.requests.append(request)
        outcome = self.act()
        if asyncio.iscoroutine(outcome):
            await outcome
        return Answer(200, ((b"content-type", b"application/json; charset=utf-8"),), b'{"data":{}}')


class Telemetry:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def http(self, api: str, status: int, seconds: float) -> None:
        self.seen.append((api, status))


class Ids:
    def new_id(self) -> str:
        return "01J00000000000000000000009"


class Api:
    """One API of the development (or another) profile, and what surrounds it."""

    def __init__(self, *, development: bool = True) -> None:
        self.endpoint = Endpoint()
        self.telemetry = Telemetry()
        self.serving = Serving(time.monotonic)
        self.app: Shell = api_app(
            "command",
            endpoint=self.endpoint,
            sdl="type Query { health: String! }\n",
            gate=gate(DevelopmentIdentity(actor="actor", roles=frozenset({"user"}))),
            development=development,
            serving=self.serving,
            limits=LIMITS,
            ids=Ids(),
            telemetry=self.telemetry,
        )

    async def __call__(
        self,
        method: str = "POST",
        path: str = "/api/graphql",
        headers: Fields = (HOST, JSON),
        body: bytes | Sequence[bytes] | None = b"{}",
        *,
        query: bytes = b"",
        peer: str = "127.0.0.1",
        http_version: str = "1.1",
        extra: dict[str, Any] | None = None,
    ) -> Response:
        """Sends a request. A body in parts has no length; None is a body that never ends."""
        fields = list(headers)
        if isinstance(body, bytes):
            fields.append((b"content-length", str(len(body)).encode()))
            parts = [body]
        else:
            fields.append((b"transfer-encoding", b"chunked"))
            parts = list(body or ())
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "path": path,
            "query_string": query,
            "headers": fields,
            "client": (peer, 4711),
            "http_version": http_version,
            "scheme": "http",
            **(extra or {}),
        }
        remaining = [*parts]

        async def receive() -> dict[str, Any]:
            if not remaining:
                if body is None:
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}
            part = remaining.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(remaining) or body is None}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = sent[0]
        names = [name.decode() for name, _ in start["headers"]]
        assert len(names) == len(set(names)), f"a header was sent twice: {names}"
        return Response(
            start["status"],
            {name.decode(): value.decode() for name, value in start["headers"]},
            b"".join(message["body"] for message in sent[1:]),
        )


def assert_problem(response: Response, status: int, code: str) -> None:
    assert response.status == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json["status"] == status
    assert response.json["code"] == code
    assert len(response.json["traceId"]) == 32
    for name, wanted in SECURITY.items():
        assert response.headers[name] == wanted
    assert "server" not in response.headers
    assert response.headers["content-length"] == str(len(response.body))


async def test_a_good_request_reaches_the_endpoint_with_all_it_brought() -> None:
    api = Api()
    response = await api(
        headers=[
            HOST,
            JSON,
            (b"idempotency-key", b"k-1"),
            (b"kiseki-consistency-token", b"t-1"),
            (b"traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
            (b"x-correlation-id", b"order-7"),
        ],
        body='{"query":"漢字"}'.encode(),
    )
    assert (response.status, response.body) == (200, b'{"data":{}}')
    assert response.headers["x-correlation-id"] == "order-7"
    (request,) = api.endpoint.requests
    assert request.body == '{"query":"漢字"}'.encode()
    assert (request.trace_id, request.correlation_id) == (TRACE, "order-7")
    assert (request.idempotency_key, request.consistency_token) == ("k-1", "t-1")
    assert not request.graphql_response
    assert request.principal.roles == {"user"}
    assert api.telemetry.seen == [("command", 200)]
    assert api.serving.in_flight == 0


async def test_every_answer_has_the_security_headers() -> None:
    api = Api()
    for response in (
        await api(),
        await api("GET", "/api/health"),
        await api("GET", "/missing"),
        await api("PUT"),
        await api("GET", "/api/graphql/schema"),
    ):
        for name, wanted in SECURITY.items():
            assert response.headers[name] == wanted
        assert "server" not in response.headers


async def test_without_a_correlation_id_there_is_a_new_one() -> None:
    assert (await Api()()).headers["x-correlation-id"] == "01J00000000000000000000009"


async def test_the_client_that_asks_for_graphql_response_json_gets_errors_in_it() -> None:
    api = Api()
    response = await api(headers=[HOST, (b"content-type", b"text/plain"), GRAPHQL_RESPONSE])
    assert response.status == 415
    assert response.headers["content-type"] == "application/graphql-response+json; charset=utf-8"
    assert response.json["errors"][0]["extensions"]["code"] == "UNSUPPORTED_MEDIA_TYPE"
    await api(headers=[HOST, JSON, GRAPHQL_RESPONSE])
    assert api.endpoint.requests[0].graphql_response


async def test_problems_of_graphql_requests_carry_errors_and_others_do_not() -> None:
    api = Api()
    refused = (await api("PUT")).json
    assert refused["errors"][0]["extensions"] == {
        "type": "ValidationError",
        "code": "METHOD_NOT_ALLOWED",
        "traceId": refused["traceId"],
    }
    assert "errors" not in (await api("GET", "/missing")).json


# The order of refusals: each request is wrong in this way and in all later ones.

UNKNOWN_TYPE = (b"content-type", b"text/plain")
BAD_TOKEN = (b"authorization", b"Bearer abc")
HUGE = (b"x-huge", b"x" * 3_000)
IMPOSSIBLE = (b"accept", b"text/html")


@pytest.mark.parametrize(
    ("method", "query", "headers", "status", "code"),
    [
        ("PUT", b"x" * 300, [HUGE, BAD_TOKEN, UNKNOWN_TYPE, IMPOSSIBLE], 405, "METHOD_NOT_ALLOWED"),
        ("POST", b"x" * 300, [HUGE, BAD_TOKEN, UNKNOWN_TYPE, IMPOSSIBLE], 414, "URI_TOO_LONG"),
        ("POST", b"", [HUGE, BAD_TOKEN, UNKNOWN_TYPE, IMPOSSIBLE], 431, "HEADERS_TOO_LARGE"),
        ("POST", b"", [BAD_TOKEN, UNKNOWN_TYPE, IMPOSSIBLE], 401, "UNAUTHENTICATED"),
        ("POST", b"", [UNKNOWN_TYPE, IMPOSSIBLE], 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", b"", [JSON, IMPOSSIBLE], 406, "NOT_ACCEPTABLE"),
        ("POST", b"", [JSON], 413, "BODY_TOO_LARGE"),
    ],
)
async def test_refusals_come_in_the_order_of_the_contract(
    method: str, query: bytes, headers: Fields, status: int, code: str
) -> None:
    api = Api()
    response = await api(method, headers=[HOST, *headers], query=query, body=b"x" * 1_001)
    assert_problem(response, status, code)
    assert api.endpoint.requests == []
    assert api.telemetry.seen == [("command", status)]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
async def test_other_methods_are_refused_with_what_is_allowed(method: str) -> None:
    assert (await Api()(method)).headers["allow"] == "GET, HEAD, POST"
    response = await Api(development=False)(method)
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "POST"


async def test_get_is_refused_without_the_development_profile() -> None:
    response = await Api(development=False)("GET", query=b"query=mutation{x}")
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("path", ["/api/playground", "/api/playground/playground.js"])
async def test_conveniences_are_only_there_in_development(path: str) -> None:
    assert (await Api()("GET", path)).status == 200
    assert_problem(await Api(development=False)("GET", path), 404, "NOT_FOUND")


async def test_the_playground_is_a_page_with_its_own_policy() -> None:
    for path in ("/api/graphql", "/api/playground"):
        response = await Api()("GET", path)
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"
    assert_problem(await Api()("GET", "/api/playground/../http.py"), 404, "NOT_FOUND")


async def test_the_schema_is_for_administrators_in_production() -> None:
    assert_problem(await Api(development=False)("GET", "/api/graphql/schema"), 403, "FORBIDDEN")
    assert_problem(await Api(development=False)("GET", "/api/graphql/schema", peer="192.0.2.1"), 401, "UNAUTHENTICATED")


async def test_the_schema_is_text_for_who_may_see_it() -> None:
    response = await Api()("GET", "/api/graphql/schema")
    assert response.body == b"type Query { health: String! }\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert_problem(await Api()("GET", "/api/graphql/schema", peer="192.0.2.1"), 401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([(b"host", b"example.com")], 'Bearer realm="kiseki"'),
        ([HOST, (b"x-forwarded-for", b"127.0.0.1")], 'Bearer realm="kiseki"'),
        ([HOST, BAD_TOKEN], 'Bearer realm="kiseki", error="invalid_token"'),
    ],
)
async def test_a_request_of_nobody_is_refused_before_its_body_is_read(headers: Fields, challenge: str) -> None:
    response = await asyncio.wait_for(Api()(headers=[*headers, JSON, (b"content-length", b"10")], body=None), 8)
    assert_problem(response, 401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"] == challenge


@pytest.mark.parametrize("values", [[b"Bearer"], [b"Bearer a", b"Bearer a"], [b""]])
async def test_a_malformed_authorization_is_a_bad_request(values: Sequence[bytes]) -> None:
    response = await Api()(headers=[HOST, JSON, *((b"authorization", value) for value in values)])
    assert_problem(response, 400, "INVALID_AUTHORIZATION")
    assert response.headers["www-authenticate"] == 'Bearer realm="kiseki", error="invalid_request"'


@pytest.mark.parametrize("hosts", [[], [b"localhost", b"localhost"], [b"localhost", b"example.com"]])
async def test_a_request_has_exactly_one_host(hosts: Sequence[bytes]) -> None:
    response = await Api()(headers=[*((b"host", host) for host in hosts), JSON])
    assert_problem(response, 400, "INVALID_HOST")


@pytest.mark.parametrize("name", [b"content-type", b"idempotency-key", b"kiseki-consistency-token"])
async def test_fields_that_decide_may_be_sent_once_only(name: bytes) -> None:
    assert_problem(await Api()(headers=[HOST, (name, b"a"), (name, b"a")]), 400, "REPEATED_HEADER")


async def test_compressed_bodies_are_refused() -> None:
    response = await Api()(headers=[HOST, JSON, (b"content-encoding", b"gzip")])
    assert_problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")


async def test_paths_are_compared_as_they_are_sent() -> None:
    for path in ("/api/graphql/", "//api/graphql", "/api/%67raphql", "/API/graphql", "/api/graphql;x"):
        assert_problem(await Api()(path=path), 404, "NOT_FOUND")


# Bodies


async def test_a_declared_length_over_the_limit_is_refused_without_reading() -> None:
    response = await Api()(headers=[HOST, JSON, (b"content-length", b"1001")], body=[b""])
    assert_problem(response, 413, "BODY_TOO_LARGE")
    assert response.headers["connection"] == "close"


async def test_an_undeclared_length_is_counted_while_it_arrives() -> None:
    api = Api()
    assert_problem(await api(body=[b"x" * 500] * 3), 413, "BODY_TOO_LARGE")
    assert (await api(body=[b"x" * 500] * 2)).status == 200
    assert api.endpoint.requests[0].body == b"x" * 1_000


async def test_a_body_that_does_not_arrive_in_time_gets_408() -> None:
    api = Api()
    asking = asyncio.create_task(api(body=None))
    await asyncio.sleep(0)
    (ticket,) = api.serving._tickets
    ticket.deadline = 0
    api.serving.sweep()
    response = await asking
    assert_problem(response, 408, "REQUEST_TIMEOUT")
    assert response.headers["connection"] == "close"


async def test_a_client_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()
    with pytest.raises(IndexError):  # nothing was sent
        await api(body=[])
    assert api.endpoint.requests == []
    assert api.telemetry.seen == [("command", 499)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# What goes wrong inside


async def test_a_request_that_takes_too_long_is_given_up_with_503() -> None:
    api = Api()
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    api.endpoint.act = forever
    asking = asyncio.create_task(api())
    await asyncio.sleep(0.01)
    (ticket,) = api.serving._tickets
    assert ticket.deadline > time.monotonic() + LIMITS.read_timeout
    ticket.deadline = 0
    api.serving.sweep()
    response = await asking
    assert_problem(response, 503, "TIMEOUT")
    assert response.headers["retry-after"] == "1"
    assert cancelled.is_set()
    assert api.serving.in_flight == 0


async def test_an_unexpected_error_is_500_with_a_trace_id_that_the_log_has(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()

    def fail() -> None:
        raise RuntimeError("SELECT secret FROM /etc/passwd")

    api.endpoint.act = fail
    response = await api()
    assert_problem(response, 500, "INTERNAL")
    assert b"secret" not in response.body
    assert b"Traceback" not in response.body
    assert "RuntimeError" in caplog.text


async def test_what_is_unavailable_is_503_with_retry_after() -> None:
    api = Api()

    def fail() -> None:
        raise Unavailable("the key store is away", retry_after=7)

    api.endpoint.act = fail
    response = await api()
    assert_problem(response, 503, "UNAVAILABLE")
    assert response.headers["retry-after"] == "7"
    assert b"key store" not in response.body


# Shutdown


async def test_while_draining_answers_ask_for_the_end_of_the_connection() -> None:
    api = Api()
    assert "connection" not in (await api()).headers
    api.serving.draining = True
    response = await api()
    assert (response.status, response.headers["connection"]) == (200, "close")
    health = await api("GET", "/api/health")
    assert (health.status, health.json) == (503, {"status": "draining"})


async def test_after_unbinding_only_connections_that_were_just_accepted_are_served() -> None:
    api = Api()
    api.serving.unbind()
    refused = await api()
    assert_problem(refused, 503, "SHUTTING_DOWN")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    assert (await api(extra={ACCEPTED: True})).status == 200


async def test_head_is_answered_like_get() -> None:
    assert (await Api()("HEAD", "/api/health")).status == 200
    assert (await Api()("GET", "/api/health")).json == {"status": "ok"}
    assert_problem(await Api()("POST", "/api/health"), 405, "METHOD_NOT_ALLOWED")
