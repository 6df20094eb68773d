"""The command and query APIs as pure ASGI apps. Used by the composition root, one app for each API.

`POST /api/graphql` is the hot path: the gate, media types, size, then one plain call to the GraphQL endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from kiseki.graphql.answers import JSON, Answer
from kiseki.graphql.endpoint import GraphQLRequest
from kiseki.kernel.ports import Auditor, IdSource
from kiseki.service.admin import AdminPages
from kiseki.service.cors import Cors
from kiseki.service.gate import Gate, with_fields
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.media import accepts_json, negotiate
from kiseki.service.playground import Api, Asset, Playground
from kiseki.service.responses import Page
from kiseki.service.serving import Serving
from kiseki.service.shell import Exchange, HttpLimits, HttpTelemetry, Route, Shell

__all__ = ["Endpoint", "api_app"]

GRAPHQL: Final = "/api/graphql"
_TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)


class Endpoint(Protocol):
    """What answers GraphQL documents."""

    async def handle(self, request: GraphQLRequest) -> Answer:
        """The answer to an authenticated request."""
        ...


def api_app(
    api: Api,
    *,
    endpoint: Endpoint,
    sdl: str,
    gate: Gate,
    development: bool,
    admin: AdminPages | None = None,
    serving: Serving,
    limits: HttpLimits,
    ids: IdSource,
    telemetry: HttpTelemetry,
    hosts: Hosts = ANY_HOST,
    cors: Cors | None = None,
    hsts: bool = False,
    auditor: Auditor | None = None,
    peers: Callable[[str | None], bool] | None = None,
    client: Callable[[str | None, Sequence[bytes]], str] | None = None,
) -> Shell:
    """The ASGI app of one API. `development` adds the playground."""
    graphql = _GraphQL(endpoint, gate)
    schema = _Schema(sdl, gate, for_all=development)
    routes = {
        GRAPHQL: Route({"POST": graphql.post}, graphql=True),
        "/api/graphql/schema": Route({"GET": schema.get}),
        "/api/health": Route({"GET": _Health(serving).get}, any_host=True),
    }
    prefixes = {}
    if admin is not None:
        routes |= {path: Route({"GET": handler}) for path, handler in admin.routes(gate).items()}
    if development:
        pages = _Pages(api, Playground())
        routes[GRAPHQL] = Route({"POST": graphql.post, "GET": pages.page}, graphql=True)
        routes["/api/playground"] = Route({"GET": pages.page})
        prefixes[_Pages.ASSETS] = Route({"GET": pages.asset})
    return Shell(
        api,
        routes=routes,
        prefixes=prefixes,
        serving=serving,
        limits=limits,
        ids=ids,
        telemetry=telemetry,
        hosts=hosts,
        cors=cors,
        hsts=hsts,
        auditor=auditor,
        peers=peers,
        client=client,
    )


class _GraphQL:
    """POST /api/graphql."""

    def __init__(self, endpoint: Endpoint, gate: Gate) -> None:
        self._endpoint = endpoint
        self._gate = gate

    async def post(self, exchange: Exchange) -> Answer:
        admitted = await self._gate.admit(exchange)
        if isinstance(admitted, Answer):
            return admitted
        head = exchange.head
        if not accepts_json(head.content_type) or head.content_encoding not in (None, b"identity"):
            return exchange.refuse(415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")
        graphql_response = negotiate(head.accept)
        if graphql_response is None:
            return exchange.refuse(
                406, "NOT_ACCEPTABLE", "answers are application/json or application/graphql-response+json"
            )
        body = await exchange.body()
        if isinstance(body, Answer):
            return body
        answer = await self._endpoint.handle(
            GraphQLRequest(
                body=body,
                principal=admitted.principal,
                address=admitted.address,
                charge=partial(self._gate.charge, exchange, admitted),
                trace_id=exchange.trace_id,
                correlation_id=exchange.correlation_id,
                graphql_response=graphql_response,
                idempotency_key=_text(head.idempotency_key),
                consistency_token=_text(head.consistency_token),
            )
        )
        return with_fields(answer, admitted.fields)


class _Health:
    """GET /api/health: whether this API takes requests. What it depends on is the management port's business."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def get(self, _exchange: Exchange) -> Answer:
        draining = self._serving.draining
        body = msgspec.json.encode({"status": "draining" if draining else "ok"})
        return Answer(503 if draining else 200, ((b"content-type", JSON),), body)


class _Schema:
    """GET /api/graphql/schema: the schema as text, for administrators; in the development profile for all."""

    def __init__(self, sdl: str, gate: Gate, *, for_all: bool) -> None:
        self._sdl = sdl.encode()
        self._gate = gate
        self._for_all = for_all

    async def get(self, exchange: Exchange) -> Answer:
        admitted = await self._gate.admit(exchange)
        if isinstance(admitted, Answer):
            return admitted
        if not self._for_all and "admin" not in admitted.principal.roles:
            return self._gate.forbid(exchange, admitted, "schema")
        return Answer(200, (*_TEXT, *admitted.fields), self._sdl)


class _Pages:
    """The playground, in the development profile."""

    ASSETS: Final = "/api/playground/"

    def __init__(self, api: Api, playground: Playground) -> None:
        self._api = api
        self._playground = playground

    async def page(self, _exchange: Exchange) -> Answer:
        return _page(self._playground.page(self._api))

    async def asset(self, exchange: Exchange) -> Answer:
        asset = self._playground.asset(exchange.path.removeprefix(self.ASSETS))
        return exchange.refuse(404, "NOT_FOUND", "there is nothing here") if asset is None else _page(asset)


def _page(asset: Asset) -> Page:
    return Page(
        200,
        (
            (b"content-type", asset.content_type.encode()),
            (b"content-security-policy", asset.content_security_policy.encode()),
        ),
        asset.body,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
