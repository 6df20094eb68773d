"""Unit: content types and content negotiation."""

from __future__ import annotations

import time

import pytest

from kiseki.service.media import accepts_json, negotiate


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json ;charset="UTF-8"',
        b"application/json;charset=utf8",
        b"application/json;",
    ],
)
def test_json_in_utf_8_is_accepted(value: bytes) -> None:
    assert accepts_json(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"text/plain",
        b"application/graphql",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/jsonx",
        b"application/json; charset=latin-1",
        b"application/json; charset=utf-16",
        b"application/json; profile=x",
        b"application/json, text/plain",
        b"application/json text",
        b"application/\xff",
    ],
)
def test_anything_else_is_not(value: bytes | None) -> None:
    assert not accepts_json(value)


@pytest.mark.parametrize(
    ("accept", "graphql_response"),
    [
        (None, False),
        (b"", False),
        (b"*/*", False),
        (b"application/*", False),
        (b"application/json", False),
        (b"text/html, */*;q=0.1", False),
        (b"application/graphql-response+json", True),
        (b"APPLICATION/GraphQL-Response+JSON; charset=utf-8", True),
        (b"application/json, application/graphql-response+json", True),
        (b"application/graphql-response+json, application/json;q=0.9", True),
        (b"application/graphql-response+json;q=0.5, application/json;q=0.9", False),
        (b"application/json;q=0, */*", True),
        (b"text/html", None),
        (b"application/problem+json", None),
        (b"application/json;q=0", None),
        (b"*/*;q=0", None),
        (b"application/json;q=2", None),
        (b"nonsense", None),
    ],
)
def test_negotiation(accept: bytes | None, graphql_response: bool | None) -> None:
    assert negotiate(accept) is graphql_response


@pytest.mark.parametrize("filling", [b";  ", b"; \t", b" ;", b'; a="', b"; a=b", b",", b" , "])
def test_hostile_values_cost_no_time(filling: bytes) -> None:
    value = b"application/json" + filling * 5_000 + b"/"
    started = time.perf_counter()
    accepts_json(value)
    negotiate(value)
    assert time.perf_counter() - started < 0.5
