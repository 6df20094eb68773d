"""kiseki as it would be without its security: what `python -m benchmarks security` compares the secured server with.

The same HTTP server, GraphQL endpoints, stores and updater, in the same process layout. What is left out: tokens
(everybody is one administrator), rate limits, the list of hosts, the bound on connections, the audit log, and all
security headers. Nothing in the product can be switched to this, so it is put together here, from the product's parts.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.errors import BenchmarkError
from kiseki.application.system import SystemClock, UlidSource
from kiseki.graphql.answers import Answer
from kiseki.graphql.endpoint import GraphQLRequest
from kiseki.kernel.audit import NoAudit
from kiseki.kernel.ports import Credentials, Principal
from kiseki.security.audit.log import AuditLog
from kiseki.security.masking import Masker
from kiseki.service.composition import _Composer
from kiseki.service.health import Health
from kiseki.service.http import GRAPHQL, Endpoint
from kiseki.service.kinds import Parts
from kiseki.service.lifecycle import CoordinatedShutdown
from kiseki.service.listening import (
    Exposition,
    bind_apis,
    bind_management,
    connection_limits,
    http_limits,
    start_management,
)
from kiseki.service.logging import configure_logging
from kiseki.service.media import accepts_json, negotiate
from kiseki.service.metrics import Metrics
from kiseki.service.process import _settle_garbage_collector
from kiseki.service.responses import Scope, Send
from kiseki.service.secrets import secrets_of
from kiseki.service.server import HttpServer
from kiseki.service.serving import Serving
from kiseki.service.settings import Settings
from kiseki.service.shell import Exchange, Route, Shell, Uncounted
from kiseki.service.shutdown_times import phase_times
from kiseki.service.stores import Stores
from kiseki.users import app

CHECK_TIMEOUT_SECONDS = 3.0


class Everybody:
    """An Identity that believes everybody, whatever they bring."""

    def __init__(self) -> None:
        self._principal = Principal(subject="load", actor="load", roles=frozenset({"admin"}), user_id="load")

    async def identify(self, credentials: Credentials) -> Principal:
        """As Identity."""
        return self._principal


class PlainShell(Shell):
    """Answers without security headers."""

    async def _send(self, exchange: Exchange, answer: Answer, send: Send, scope: Scope) -> None:
        headers = [
            *answer.headers,
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-correlation-id", exchange.correlation_id.encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


class PlainGraphQL:
    """POST /api/graphql without a gate: identity, media types, size, then the endpoint."""

    def __init__(self, endpoint: Endpoint, identity: Everybody) -> None:
        self._endpoint = endpoint
        self._identity = identity

    async def post(self, exchange: Exchange) -> Answer:
        """As the handler of the product."""
        head = exchange.head
        principal = await self._identity.identify(head.credentials(exchange.peer))
        if not accepts_json(head.content_type) or head.content_encoding not in (None, b"identity"):
            return exchange.refuse(415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")
        graphql_response = negotiate(head.accept)
        if graphql_response is None:
            return exchange.refuse(406, "NOT_ACCEPTABLE", "answers are application/json")
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
            )
        )


async def serve(settings: Settings) -> None:
    """Serves both APIs and the updater until it is told to end."""
    parts = Parts(command=True, query=True, updater=True)
    clock, ids, metrics = SystemClock(), UlidSource(), Metrics()
    shutdown = CoordinatedShutdown(phase_times(settings))
    shutdown.install_signal_handlers()
    listeners = bind_apis(parts, settings)
    health = Health(
        clock=asyncio.get_running_loop().time,
        interval=settings.health_interval,
        timeout=CHECK_TIMEOUT_SECONDS,
        local={},
        remote={},
    )
    exposition = Exposition(metrics)
    management = await start_management(
        bind_management(settings), settings, health=health, metrics=exposition, telemetry=Uncounted()
    )
    secrets = secrets_of(settings, clock=clock, masker=Masker())
    stores = await Stores.open(settings, clock=clock, telemetry=metrics, secrets=secrets)
    health.add_remote("journal", stores.check_journal)
    health.add_remote("keys", stores.check_keys)
    composer = _Composer(
        app,
        settings,
        stores,
        clock=clock,
        ids=ids,
        metrics=metrics,
        health=health,
        shutdown=shutdown,
        audit=cast(AuditLog, NoAudit()),  # it is an Auditor to everything that is made here
        secrets=secrets,
    )
    exposition.measure = composer.measure
    updater = composer.updater()
    await updater.check()
    updating = asyncio.create_task(updater.run())
    servers = []
    for api in (composer.command_api(), composer.query_api(updater)):
        serving = Serving(time.monotonic)
        graphql = PlainGraphQL(api.endpoint, Everybody())
        shell = PlainShell(
            api.name,
            routes={GRAPHQL: Route({"POST": graphql.post}, graphql=True)},
            serving=serving,
            limits=http_limits(settings),
            ids=ids,
            telemetry=metrics,
            any_host=True,
        )
        server = HttpServer(
            shell,
            listeners[api.name],
            serving=serving,
            limits=connection_limits(settings),
            keep_alive=settings.keep_alive,
        )
        await server.start()
        servers.append(server)
    await health.start()
    _settle_garbage_collector()
    health.started = True
    await shutdown.wait_requested()
    ended_early = updating.done()
    for server in servers:
        await server.close()
    await shutdown.run()
    await health.stop()
    await stores.close()
    await management.close()
    if ended_early:
        raise BenchmarkError("the updater ended by itself")


def main() -> None:
    """Serves on the folder and ports that the command line gives."""
    folder, command_port, query_port, management_port = sys.argv[1:]
    settings = Settings(
        data_dir=Path(folder),
        command_port=int(command_port),
        query_port=int(query_port),
        management_port=int(management_port),
        log_level="warning",
        drain_delay=0,
    )
    configure_logging(level=settings.log_level, log_format=settings.log_format, masker=Masker())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))


if __name__ == "__main__":
    main()
