"""Bodies and statuses of answers: problem+json before execution (RFC 9457), GraphQL after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from kiseki.graphql.errors import error_body
from kiseki.kernel.shapes import FieldError

__all__ = ["GRAPHQL_RESPONSE", "JSON", "PROBLEM", "Answer", "graphql_answer", "problem", "request_problem"]

JSON: Final = b"application/json; charset=utf-8"
PROBLEM: Final = b"application/problem+json"
GRAPHQL_RESPONSE: Final = b"application/graphql-response+json; charset=utf-8"

# Names that newer RFCs gave; http.HTTPStatus of Python 3.11 still has the old ones (RFC 9110).
_TITLES: Final = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


class Answer(msgspec.Struct, frozen=True):
    """What goes back: status, headers beside the ones every response has, and the body."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def problem(
    status: int,
    code: str,
    detail: str,
    trace_id: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    members: Mapping[str, Any] | None = None,
) -> Answer:
    """A problem document. `code` is stable; `detail` is one line for a person."""
    body = {
        "type": "about:blank",
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "traceId": trace_id,
        **(members or {}),
    }
    return Answer(status, ((b"content-type", PROBLEM), *headers), msgspec.json.encode(body))


def request_problem(
    status: int,
    code: str,
    detail: str,
    trace_id: str,
    *,
    graphql_response: bool,
    kind: str = "ValidationError",
    fields: Sequence[FieldError] = (),
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Answer:
    """A problem with a GraphQL request: a problem document that also carries GraphQL's `errors`, so that ordinary
    clients can read it, or only those when the client asked for `application/graphql-response+json`."""
    entries = list(errors) or [error_body(kind, code, detail, trace_id, fields)]
    if graphql_response:
        return Answer(status, ((b"content-type", GRAPHQL_RESPONSE), *headers), msgspec.json.encode({"errors": entries}))
    return problem(status, code, detail, trace_id, headers=headers, members={"errors": entries})


def graphql_answer(
    status: int, body: Mapping[str, Any], *, graphql_response: bool, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    """The answer to a document that executed."""
    content_type = GRAPHQL_RESPONSE if graphql_response else JSON
    return Answer(status, ((b"content-type", content_type), *headers), msgspec.json.encode(body))
