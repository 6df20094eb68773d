"""Unit: which origins a browser may call from."""

from __future__ import annotations

import pytest

from kiseki.service.cors import Cors, InvalidOrigin

CONSOLE = b"https://console.example.com"
STRANGERS = [
    b"https://evil.example",
    b"http://console.example.com",
    b"https://console.example.com:444",
    b"https://console.example.com.evil.example",
    b"https://evilconsole.example.com",
    b"https://CONSOLE.example.com",
    b"https://console.example.com/",
    b"null",
    b"*",
    b"",
    b"file://",
    b"https://console.example.com, https://evil.example",
    b"\xff",
]


@pytest.fixture
def cors() -> Cors:
    return Cors(["https://console.example.com", "http://localhost:3000", "https://[::1]:8443"])


def test_a_listed_origin_is_named_and_nothing_else_is_allowed(cors: Cors) -> None:
    headers = dict(cors.headers(CONSOLE))
    assert headers[b"access-control-allow-origin"] == CONSOLE
    assert headers[b"vary"] == b"Origin"
    assert b"access-control-allow-credentials" not in headers
    assert b"kiseki-consistency-token" in headers[b"access-control-expose-headers"]


@pytest.mark.parametrize("origin", [*STRANGERS, None])
def test_no_other_origin_is_named(cors: Cors, origin: bytes | None) -> None:
    assert cors.headers(origin) == ((b"vary", b"Origin"),)


def test_a_preflight_is_answered(cors: Cors) -> None:
    answer = cors.preflight(CONSOLE, b"POST", b"content-type,Authorization, Idempotency-Key", b"GET, HEAD, POST")
    assert answer is not None
    assert answer.status == 204
    headers = dict(answer.headers)
    assert headers[b"access-control-allow-methods"] == b"GET, HEAD, POST"
    assert b"authorization" in headers[b"access-control-allow-headers"]
    assert b"*" not in b"".join(headers.values())


@pytest.mark.parametrize("origin", STRANGERS)
def test_a_preflight_of_another_origin_is_refused(cors: Cors, origin: bytes) -> None:
    assert cors.preflight(origin, b"POST", None, b"POST") is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (b"DELETE", None),
        (b"post", None),
        (b"", None),
        (b"POST,", None),
        (b"POST", b"x-evil"),
        (b"POST", b"authorization, cookie"),
        (b"POST", b"*"),
    ],
)
def test_a_preflight_for_what_is_not_used_is_refused(cors: Cors, method: bytes, headers: bytes | None) -> None:
    assert cors.preflight(CONSOLE, method, headers, b"GET, HEAD, POST") is None


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "https://",
        "console.example.com",
        "https://console.example.com/",
        "https://console.example.com/path",
        "https://Console.example.com",
        "https://console.example.com:443",
        "http://console.example.com:80",
        "https://user@console.example.com",
        "https://*.example.com",
        "ftp://console.example.com",
        "https://a,https://b",
        "https://太郎.jp",
        "https://a b",
        "https://a?b",
        "https://a#b",
    ],
)
def test_a_list_with_what_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(InvalidOrigin, match="`cors_origins` has"):
        Cors([origin])
