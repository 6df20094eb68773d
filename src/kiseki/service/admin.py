"""`AdminPages`: `GET /api/admin/<name>` on the query API, lists for programs of administrators, a page at a time.

Each asks a query of the application, with everything that goes for queries: roles, limits, consistency tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from kiseki.graphql.answers import JSON, Answer
from kiseki.graphql.endpoint import GraphQLEndpoint, GraphQLRequest
from kiseki.graphql.pages import page_document
from kiseki.kernel.ports import AccessPolicy, Auditor
from kiseki.query.query import Query
from kiseki.service.gate import Gate, event_of, with_fields
from kiseki.service.shell import Exchange, Handler

__all__ = ["AdminPages"]

_PREFIX: Final = "/api/admin/"
_FIRST: Final = 100
_PASSING: Final = frozenset({"STALE", "TOO_MANY_WAITERS", "READ_MODEL_BUILDING", "UNAVAILABLE"})
"""Codes of what may be otherwise a moment later."""


class AdminPages:
    """The admin pages of an application, by name."""

    def __init__(
        self, pages: Mapping[str, Query], *, endpoint: GraphQLEndpoint, access: AccessPolicy, auditor: Auditor
    ) -> None:
        self._pages = pages
        self._endpoint = endpoint
        self._access = access
        self._auditor = auditor

    def routes(self, gate: Gate) -> dict[str, Handler]:
        """What answers each path."""
        return {f"{_PREFIX}{name}": self._page(name, query, gate) for name, query in self._pages.items()}

    def _page(self, name: str, query: Query, gate: Gate) -> Handler:
        document = page_document(self._endpoint.schema, query.name)
        operation = f"GET {_PREFIX}{name}"

        async def get(exchange: Exchange) -> Answer:
            admitted = await gate.admit(exchange)
            if isinstance(admitted, Answer):
                return admitted
            if not self._access.allows(admitted.principal, query.name):
                return gate.forbid(exchange, admitted, operation)
            variables = _variables(exchange.query)
            if variables is None:
                return exchange.refuse(
                    400, "INVALID_QUERY", "the query string may have `first`, a whole number, and `after`, each once"
                )
            # Whoever sees personal data of many at once is recorded before it is shown.
            await self._auditor.record(event_of(admitted, f"admin.{name}", "done", exchange, operation))
            answer = await self._endpoint.handle(
                GraphQLRequest(
                    body=msgspec.json.encode({"query": document, "variables": variables}),
                    principal=admitted.principal,
                    address=admitted.address,
                    charge=lambda units: gate.charge(exchange, admitted, units),
                    trace_id=exchange.trace_id,
                    correlation_id=exchange.correlation_id,
                    consistency_token=_token(exchange),
                )
            )
            return with_fields(_listed(name, answer, variables["first"], exchange), admitted.fields)

        return get


def _token(exchange: Exchange) -> str | None:
    token = exchange.head.consistency_token
    return None if token is None else token.decode("latin-1")


def _variables(query: bytes) -> dict[str, Any] | None:
    """`first` and `after` of a query string; None when it is anything else."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=2, errors="strict"
        )
    except ValueError:
        return None
    given = dict(pairs)
    if len(given) != len(pairs) or not given.keys() <= {"first", "after"}:
        return None
    first = given.get("first", str(_FIRST))
    if not (first.isascii() and first.isdigit() and len(first) <= 9):
        return None
    return {"first": int(first), **({"after": given["after"]} if "after" in given else {})}


def _listed(name: str, answer: Answer, first: int, exchange: Exchange) -> Answer:
    """`{"<name>": […], "next": …}`: the items, and what `after` is for the next page, null on the last one."""
    if answer.status != 200:
        return answer
    body = msgspec.json.decode(answer.body)
    if body.get("errors"):
        error = body["errors"][0]
        code = error["extensions"]["code"]
        if code in _PASSING:
            return exchange.refuse(503, code, error["message"], (b"retry-after", b"1"))
        return exchange.refuse(500 if code == "INTERNAL" else 400, code, error["message"])
    items = body["data"]["page"]
    following = items[-1]["id"] if len(items) == first else None
    headers = tuple(field for field in answer.headers if field[0] != b"content-type")
    return Answer(200, ((b"content-type", JSON), *headers), msgspec.json.encode({name: items, "next": following}))
