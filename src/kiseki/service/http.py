"""The command and query APIs as pure ASGI apps. Used by the composition root, one app for each API.

`POST /api/graphql` is the hot path: identity, media types, size, then one plain call to the GraphQL endpoint.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from kiseki.graphql.answers import JSON, Answer
from kiseki.graphql.endpoint import GraphQLRequest
from kiseki.kernel.ports import Identity, IdSource, Principal, Unauthenticated
from kiseki.service.media import accepts_json, negotiate
from kiseki.service.playground import Api, Asset, Playground
from kiseki.service.responses import Page
from kiseki.service.serving import Serving
from kiseki.service.shell import Exchange, HttpLimits, HttpTelemetry, Route, Shell

__all__ = ["Endpoint", "api_app"]

GRAPHQL: Final = "/api/graphql"
_TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)
_CHALLENGE: Final = b'Bearer realm="kiseki"'


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
    identity: Identity,
    development: bool,
    serving: Serving,
    limits: HttpLimits,
    ids: IdSource,
    telemetry: HttpTelemetry,
) -> Shell:
    """The ASGI app of one API. `development` adds the schema's text and the playground."""
    graphql = _GraphQL(endpoint, identity)
    routes = {
        GRAPHQL: Route({"POST": graphql.post}, graphql=True),
        "/api/health": Route({"GET": _Health(serving).get}),
    }
    prefixes = {}
    if development:
        pages = _Pages(api, Playground(), sdl, identity)
        routes[GRAPHQL] = Route({"POST": graphql.post, "GET": pages.page}, graphql=True)
        routes["/api/graphql/schema"] = Route({"GET": pages.schema})
        routes["/api/playground"] = Route({"GET": pages.page})
        prefixes[_Pages.ASSETS] = Route({"GET": pages.asset})
    return Shell(api, routes=routes, prefixes=prefixes, serving=serving, limits=limits, ids=ids, telemetry=telemetry)


class _GraphQL:
    """POST /api/graphql."""

    def __init__(self, endpoint: Endpoint, identity: Identity) -> None:
        self._endpoint = endpoint
        self._identity = identity

    async def post(self, exchange: Exchange) -> Answer:
        principal = await authenticate(self._identity, exchange)
        if isinstance(principal, Answer):
            return principal
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
        return await self._endpoint.handle(
            GraphQLRequest(
                body=body,
                principal=principal,
                trace_id=exchange.trace_id,
                correlation_id=exchange.correlation_id,
                graphql_response=graphql_response,
                idempotency_key=_text(head.idempotency_key),
                consistency_token=_text(head.consistency_token),
            )
        )


async def authenticate(identity: Identity, exchange: Exchange) -> Principal | Answer:
    """Who sent the request, or the refusal of RFC 6750."""
    try:
        return await identity.identify(exchange.head.credentials(exchange.peer))
    except Unauthenticated as refused:
        if refused.error == "invalid_request":
            return exchange.refuse(
                400,
                "INVALID_AUTHORIZATION",
                "the Authorization header is malformed",
                (b"www-authenticate", _CHALLENGE + b', error="invalid_request"'),
            )
        challenge = _CHALLENGE if refused.error is None else b'%s, error="%s"' % (_CHALLENGE, refused.error.encode())
        return exchange.refuse(401, refused.code, str(refused), (b"www-authenticate", challenge))


class _Health:
    """GET /api/health: whether this API takes requests. What it depends on is the management port's business."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def get(self, _exchange: Exchange) -> Answer:
        draining = self._serving.draining
        body = msgspec.json.encode({"status": "draining" if draining else "ok"})
        return Answer(503 if draining else 200, ((b"content-type", JSON),), body)


class _Pages:
    """The playground and the schema's text, in the development profile."""

    ASSETS: Final = "/api/playground/"

    def __init__(self, api: Api, playground: Playground, sdl: str, identity: Identity) -> None:
        self._api = api
        self._playground = playground
        self._sdl = sdl.encode()
        self._identity = identity

    async def page(self, _exchange: Exchange) -> Answer:
        return _page(self._playground.page(self._api))

    async def asset(self, exchange: Exchange) -> Answer:
        asset = self._playground.asset(exchange.path.removeprefix(self.ASSETS))
        return exchange.refuse(404, "NOT_FOUND", "there is nothing here") if asset is None else _page(asset)

    async def schema(self, exchange: Exchange) -> Answer:
        principal = await authenticate(self._identity, exchange)
        return principal if isinstance(principal, Answer) else Answer(200, _TEXT, self._sdl)


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
