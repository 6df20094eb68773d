"""S11, header fields: the same ones on every answer of the API ports, each once, whatever it answers and whoever made it
(a handler, the shell, or the server that could not even read the request); nothing that names the software; and no
origin may call unless it is listed."""

# ruff: noqa: E501  # a request is one line

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.servers.production import Production

SECURITY: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HSTS: Final = {"strict-transport-security": "max-age=31536000"}
TELLING: Final = (
    "server",
    "x-powered-by",
    "via",
    "x-aspnet-version",
    "x-runtime",
    "x-generator",
    "set-cookie",
    "public-key-pins",
    "x-xss-protection",
    "expect-ct",
)
GOOD: Final = json.dumps({"query": "{ __typename }"}).encode()
ORIGIN: Final = "https://console.example.com"


class Raw(NamedTuple):
    """An answer with its fields as they were sent."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def one(self, name: str) -> str | None:
        """The value of a field that is there at most once."""
        values = [value for known, value in self.fields if known == name]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


def parsed(received: bytes) -> Raw:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Raw(int(first.split(" ")[1]), fields, body)


def parsed_problem(answer: Raw) -> int:
    """The status that a problem says it has."""
    return int(json.loads(answer.body)["status"])


def has_the_headers(answer: Raw, *, tls: bool = True) -> None:
    for name, value in {**SECURITY, **(HSTS if tls else {})}.items():
        assert answer.one(name) == value, (answer.status, name)
    if not tls:
        assert answer.one("strict-transport-security") is None
    for name in TELLING:
        assert answer.one(name) is None, name
    shown = json.dumps(answer.fields).lower()
    for software in ("uvicorn", "python", "kiseki/", "httptools", "openssl", "graphql-core"):
        assert software not in shown
    content = answer.one("content-type")
    assert (content is None) == (answer.status == 204)
    assert content is None or content.startswith(("application/", "text/plain;"))


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("headers")
    with Production(folder, RATE_LIMIT_ADDRESS=100_000, RATE_LIMIT=150, TRUSTED_PROXIES="127.0.0.1/32") as running:
        yield running


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """One origin may call."""
    with Production(tmp_path_factory.mktemp("origins"), CORS_ORIGINS=ORIGIN) as running:
        yield running


class Kind(NamedTuple):
    """A request as it is sent, and the status that it gets. `%ADMIN%` and `%USER%` stand for their tokens."""

    name: str
    status: int
    line: str
    fields: str = ""
    body: bytes = b""
    api: str = "command"
    length: bool = True


def posted(
    name: str, status: int, body: bytes = GOOD, fields: str = "Authorization: Bearer %ADMIN%", **more: object
) -> Kind:
    media = "" if "content-type" in fields.lower() else "Content-Type: application/json\n"
    return Kind(name, status, "POST /api/graphql", media + fields, body, **more)  # type: ignore[arg-type]


ADMIN: Final = "Authorization: Bearer %ADMIN%"
USER: Final = "Authorization: Bearer %USER%"
KINDS: Final = (
    posted("an answer", 200),
    posted("an answer of the query API", 200, api="query"),
    posted("an error of a field", 200, json.dumps({"query": 'mutation { createUserAccount(input: {firstName: "", lastName: "", emailAddress: ""}) { id } }'}).encode()),
    posted("graphql-response", 200, fields=ADMIN + "\nAccept: application/graphql-response+json"),
    Kind("health", 200, "GET /api/health"),
    Kind("health, HEAD", 200, "HEAD /api/health"),
    Kind("health for any host", 200, "GET /api/health", "Host: 10.0.0.1"),
    Kind("schema", 200, "GET /api/graphql/schema", ADMIN),
    Kind("schema, HEAD", 200, "HEAD /api/graphql/schema", ADMIN),
    Kind("admin page", 200, "GET /api/admin/users", ADMIN, api="query"),
    Kind("admin page, HEAD", 200, "HEAD /api/admin/users", ADMIN, api="query"),
    posted("not JSON", 400, b"{"),
    posted("malformed Authorization", 400, fields="Authorization: Bearer"),
    posted("bad consistency token", 400, fields=ADMIN + "\nKiseki-Consistency-Token: x"),
    Kind("bad query string", 400, "GET /api/admin/users?x=y", ADMIN, api="query"),
    posted("another host", 400, fields=ADMIN + "\nHost: evil.example"),
    posted("no credentials", 401, fields="X-A: b"),
    posted("a bad token", 401, fields="Authorization: Bearer x.y.z"),
    Kind("no credentials, HEAD", 401, "HEAD /api/graphql/schema"),
    Kind("no right", 403, "GET /api/graphql/schema", USER),
    posted("no right to a field", 403, b'{"query":"{ getUserAccounts { id } }"}', USER, api="query"),
    Kind("nothing there", 404, "GET /nothing"),
    Kind("nothing there, HEAD", 404, "HEAD /nothing"),
    Kind("nothing there, POST", 404, "POST /nothing", body=b"x"),
    Kind("no playground", 404, "GET /api/playground"),
    Kind("no metrics", 404, "GET /metrics"),
    *(Kind(f"method {method}", 405, f"{method} /api/graphql") for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")),
    Kind("preflight without origins", 405, "OPTIONS /api/graphql", f"Origin: {ORIGIN}\nAccess-Control-Request-Method: POST"),
    posted("not acceptable", 406, fields=ADMIN + "\nAccept: text/html"),
    posted("too slow", 408, b"{", ADMIN + "\nContent-Length: 100", length=False),
    posted("too large", 413, b" " * 70_000),
    posted("too large by its word", 413, b"", ADMIN + "\nContent-Length: 99999999", length=False),
    Kind("target too long", 414, "POST /api/graphql?" + "a" * 4_000),
    posted("another media type", 415, fields=ADMIN + "\nContent-Type: text/plain"),
    posted("an invalid document", 422, b'{"query":"{ nothing }"}'),
    posted("introspection", 422, b'{"query":"{ __schema { types { name } } }"}'),
    posted("too dear", 429, b'{"query":"{' + b" ".join(b"a%d: getUserAccounts(first: 1000) { id }" % n for n in range(20)) + b'}"}', fields="Authorization: Bearer %ADMIN%\nX-Forwarded-For: 198.51.100.9", api="query"),
    posted("too many aliases", 422, b'{"query":"{' + b" ".join(b"a%d: __typename" % n for n in range(40)) + b'}"}'),
    posted("headers too large", 431, fields=ADMIN + "\nX-A: " + "a" * 20_000),
    # What the server refuses before there is a request
    Kind("no HTTP", 400, "\x00\x01"),
    Kind("garbage in the method", 400, "GE\x00T /api/health"),
    Kind("space before a colon", 400, "GET /api/health", "X-A : b"),
    Kind("folded", 400, "GET /api/health", "X-A: b\n c"),
    Kind("two lengths", 400, "POST /api/graphql", "Content-Length: 1\nContent-Length: 2", b"x", length=False),
    Kind("length and chunks", 400, "POST /api/graphql", "Content-Length: 1\nTransfer-Encoding: chunked", b"0\r\n\r\n", length=False),
    Kind("two hosts", 400, "GET /api/graphql/schema", "Host: localhost\nHost: localhost"),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_kind_of_answer_has_them(production: Production, kind: Kind) -> None:
    fields = kind.fields.replace("%ADMIN%", production.tokens.admin(kind.name)).replace(
        "%USER%", production.tokens.user()
    )
    lines = [f"{kind.line} HTTP/1.1", *(part for part in fields.split("\n") if part)]
    if "host:" not in fields.lower():
        lines.insert(1, "Host: localhost")
    if kind.length:
        lines.append(f"Content-Length: {len(kind.body)}")
    lines.append("Connection: close")
    received = await production.raw(kind.api, "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + kind.body)
    answer = parsed(received)
    assert answer.status == kind.status, received[:500]
    has_the_headers(answer)
    if kind.line.startswith("HEAD"):
        assert answer.body == b""
        if answer.status == 200:
            assert int(answer.one("content-length") or 0) > 0
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]
    if answer.status >= 400:
        assert answer.one("content-type") == "application/problem+json"
        assert answer.body == b"" or parsed_problem(answer) == kind.status
    if answer.status == 405:
        assert answer.one("allow")
    if answer.status == 429:
        assert answer.one("retry-after")


async def test_the_management_port_has_them_too(production: Production) -> None:
    for line in (
        "GET /ready",
        "GET /alive",
        "GET /startup",
        "GET /metrics",
        "HEAD /ready",
        "POST /ready",
        "GET /nothing",
        "OPTIONS /ready",
        "\x00",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", production.service.management_port)
        writer.write(f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            received = await reader.read()
        writer.close()
        has_the_headers(parsed(received), tls=False)


async def test_errors_of_the_inside_and_of_a_service_that_goes_away_have_them(tmp_path: Path) -> None:
    """500 and 503."""
    service = Production(tmp_path / "p", DRAIN_DELAY=5, CORS_ORIGINS=ORIGIN)
    service.service.start()
    try:
        await service.service.ready()
        (model,) = (service.data / "read-models").glob("user_accounts.*.sqlite")
        with closing(sqlite3.connect(model)) as connection:
            (table,) = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%accounts'"
            ).fetchone()
            connection.execute(f'DROP TABLE "{table}"')
            connection.commit()
        get = f"GET /api/admin/users HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{ADMIN}\r\n\r\n"
        answer = parsed(await service.raw("query", get.replace("%ADMIN%", service.tokens.admin()).encode()))
        assert answer.status in (500, 503)
        has_the_headers(answer)
        assert b"accounts" not in answer.body
        assert b"sql" not in answer.body.lower()
        service.signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while (
                answer := parsed(await service.raw("query", b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            ).status != 503:
                await asyncio.sleep(0.02)
        has_the_headers(answer)
        assert answer.one("connection") == "close"
    finally:
        service.kill()


def sent(method: str, path: str = "/api/graphql", **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode()


async def test_without_a_list_no_origin_may_call(production: Production) -> None:
    for origin in (ORIGIN, "null", "https://localhost", f"https://localhost:{production.port('command')}"):
        for request in (
            sent(
                "OPTIONS",
                Origin=origin,
                Access_Control_Request_Method="POST",
                Access_Control_Request_Headers="authorization",
            ),
            sent("GET", "/api/health", Origin=origin),
            sent("GET", "/api/graphql/schema", Origin=origin, Authorization=f"Bearer {production.tokens.admin()}"),
        ):
            answer = parsed(await production.raw("command", request))
            assert not [name for name, _ in answer.fields if name.startswith("access-control-")]


ALLOWED: Final = "authorization, content-type"


async def test_a_listed_origin_may_call(opened: Production) -> None:
    for api in ("command", "query"):
        answer = parsed(
            await opened.raw(
                api,
                sent(
                    "OPTIONS",
                    Origin=ORIGIN,
                    Access_Control_Request_Method="POST",
                    Access_Control_Request_Headers=ALLOWED,
                ),
            )
        )
        assert answer.status == 204
        assert answer.one("access-control-allow-origin") == ORIGIN
        assert answer.one("access-control-allow-methods") == "POST"
        assert set(ALLOWED.split(", ")) <= set((answer.one("access-control-allow-headers") or "").split(", "))
        assert answer.one("access-control-allow-credentials") is None
        assert answer.one("vary") == "Origin"
        has_the_headers(answer)
        for status, token in ((200, opened.tokens.admin()), (401, "x.y.z")):
            answer = parsed(
                await opened.raw(
                    api, sent("GET", "/api/graphql/schema", Origin=ORIGIN, Authorization=f"Bearer {token}")
                )
            )
            assert (answer.status, answer.one("access-control-allow-origin")) == (status, ORIGIN)
            assert answer.one("access-control-allow-credentials") is None
            assert "www-authenticate" in (answer.one("access-control-expose-headers") or "")
            has_the_headers(answer)


NEARLY: Final = (
    "null", "https://console.example.com.evil.example", "https://evil.example", "http://console.example.com", "https://console.example.com:8443",
    "https://CONSOLE.example.com", "https://console.example.com/", "https://evil.example/https://console.example.com", "*", "https://console.example.com https://evil.example",
    "https://xconsole.example.com", "https://console-example.com", "https://console.example.com.", "https://user@console.example.com", "file://", "https://localhost",
)  # fmt: skip


@pytest.mark.parametrize("origin", NEARLY)
async def test_no_other_origin_may_call(opened: Production, origin: str) -> None:
    answer = parsed(await opened.raw("command", sent("OPTIONS", Origin=origin, Access_Control_Request_Method="POST")))
    assert answer.status == 403
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]
    has_the_headers(answer)
    answer = parsed(
        await opened.raw(
            "command",
            sent("GET", "/api/graphql/schema", Origin=origin, Authorization=f"Bearer {opened.tokens.admin()}"),
        )
    )
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]
    assert answer.one("vary") == "Origin"


async def test_a_preflight_asks_for_what_there_is(opened: Production) -> None:
    for wrong in (
        {"Access_Control_Request_Method": "DELETE"},
        {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-forwarded-for"},
        {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization, x-admin"},
        {"Access_Control_Request_Method": "post"},
        {"Access_Control_Request_Method": "*"},
    ):
        answer = parsed(await opened.raw("command", sent("OPTIONS", Origin=ORIGIN, **wrong)))
        assert answer.status == 403, wrong
        assert answer.one("access-control-allow-methods") is None


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "null",
        "https://*.example.com",
        "https://Console.example.com",
        "https://console.example.com/",
        "console.example.com",
        "https://console.example.com:443",
    ],
)
def test_origins_that_no_browser_sends_are_no_setting(tmp_path: Path, origins: str) -> None:
    done = Production(tmp_path, CORS_ORIGINS=origins).kiseki(
        "serve", "--command-port", "0", "--query-port", "0", "--management-port", "0"
    )
    assert done.returncode != 0
    assert "cors_origins" in done.stderr
