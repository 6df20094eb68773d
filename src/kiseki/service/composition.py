"""The composition root: what one process is made of, put together in one place. Used by `kiseki.service.process`.

Everything that is opened here registers at once how it is ended, so that a start that fails half-way is undone by the
same shutdown that ends a process that ran.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Final, Literal

import msgspec

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application
from kiseki.command.handler import CommandHandler
from kiseki.graphql.documents import DocumentCache
from kiseki.graphql.endpoint import GraphQLEndpoint
from kiseki.graphql.limits import DocumentLimits
from kiseki.graphql.schema import command_schema, query_schema, sdl
from kiseki.journal.lease.holder import WriterLease
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Auditor, AuditUnavailable, Clock, Identity, IdSource, Telemetry
from kiseki.projection.projection import Projection
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.status import ProjectionStatus, projection_status
from kiseki.projection.subscription import follows_of
from kiseki.projection.sweeper import HasHeads, Sweeper, SweeperSettings
from kiseki.projection.updater import Updater
from kiseki.query.queries import Queries
from kiseki.query.waiting import ConsistencyWaiter
from kiseki.security.addresses import ClientAddresses
from kiseki.security.audit.log import AuditLog
from kiseki.security.erasure.replay import ErasureReplay
from kiseki.security.limits.facade import RateLimits
from kiseki.security.secrets.source import SecretSource
from kiseki.security.tls import ReloadingTls
from kiseki.service.admin import AdminPages
from kiseki.service.development import DEVELOPMENT_SUBJECT, DevelopmentIdentity
from kiseki.service.erasures import AuditedErasures, erasure_replay, replay_forever
from kiseki.service.gate import Gate
from kiseki.service.health import Health
from kiseki.service.identity import DEVELOPMENT_ISSUER, open_identity
from kiseki.service.kinds import Parts
from kiseki.service.lease import once_permitted
from kiseki.service.lifecycle import CoordinatedShutdown, Phase
from kiseki.service.limits import rate_limits
from kiseki.service.metrics import Metrics, Sample
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.service.transport import Transport

__all__ = ["Components", "ServedApi", "compose", "make_updater"]

_EVICT_INTERVAL: Final = 10.0


class ServedApi(msgspec.Struct, frozen=True, kw_only=True):
    """One API: what answers its documents, and its schema as text."""

    name: Literal["command", "query"]
    endpoint: GraphQLEndpoint
    sdl: str


class Components(msgspec.Struct, frozen=True, kw_only=True):
    """What a process runs."""

    apis: Sequence[ServedApi]
    gate: Gate | None
    """Before every API; None without one."""
    auditor: Auditor
    admin: AdminPages | None
    measure: Callable[[], Awaitable[Sequence[Sample]]]
    """Gauges of projections, measured from outside. Raises Unavailable."""
    erasures: ErasureReplay
    """Has to have run before anything is served."""
    lease: WriterLease | None
    """Permission to write, which has to be there before that; None where it is not needed."""
    running: Sequence[asyncio.Task[None]]
    """Tasks that end only by shutdown; one that ends by itself ends the process."""


class ProjectionWaits(KisekiError):
    """A projection makes no progress. The message says which, and why."""

    code = "PROJECTION_WAITS"


async def compose(
    parts: Parts,
    application: Application,
    settings: Settings,
    stores: Stores,
    *,
    clock: Clock,
    ids: IdSource,
    metrics: Metrics,
    health: Health,
    shutdown: CoordinatedShutdown,
    audit: AuditLog,
    secrets: SecretSource,
    transport: Transport,
) -> Components:
    """Builds the parts on open stores, which are closed at shutdown. Raises KisekiError, one clear line."""
    shutdown.add(Phase.SYSTEM_TERMINATE, "stores", stores.close)
    health.add_remote("audit", partial(_check_audit, audit))
    health.add_remote("journal", stores.check_journal)
    health.add_remote("keys", stores.check_keys)
    stores.protector.erasure_log = AuditedErasures(stores.protector.erasure_log, audit)
    replay = erasure_replay(application, stores, clock=clock, telemetry=metrics, auditor=audit)
    metrics.add_gauges(partial(_audit_samples, audit))
    composer = _Composer(
        application,
        settings,
        stores,
        clock=clock,
        ids=ids,
        metrics=metrics,
        health=health,
        shutdown=shutdown,
        audit=audit,
        secrets=secrets,
    )
    running: dict[str, Callable[[], Coroutine[None, None, None]]] = {"secrets": secrets.watch}
    if stores.lease is not None:
        # Only who writes takes it: of the others nobody has to wait until they let go.
        if parts.command or parts.updater:
            running["lease"] = stores.lease.run
        if parts.command:
            health.add_remote("writer", stores.check_writer)
    if transport.tls is not None:
        running["certificates"] = transport.tls.watch_forever
        metrics.add_gauges(partial(_tls_samples, transport.tls))
    updater = composer.updater() if parts.updater else None
    if updater is not None:
        await updater.check()
        following = {"updater": updater.run, **composer.sweepers(updater)}
        following["erasures"] = partial(replay_forever, replay, settings.erasure_replay_every, stores.lease)
        if stores.lease is not None:
            following = {name: partial(once_permitted, stores.lease, run) for name, run in following.items()}
        running |= following
    apis: list[ServedApi] = []
    admin = None
    if parts.command:
        apis.append(composer.command_api())
    if parts.query:
        served = composer.query_api(updater)
        apis.append(served)
        admin = AdminPages(
            application.admin, endpoint=served.endpoint, access=application.access, auditor=composer.auditor
        )
    return Components(
        apis=apis,
        gate=await composer.gate(transport.addresses) if apis else None,
        auditor=audit,
        admin=admin,
        erasures=replay,
        lease=stores.lease if parts.command or parts.updater else None,
        measure=composer.measure if parts.updater else _nothing,
        running=[asyncio.create_task(run(), name=name) for name, run in running.items()],
    )


def make_updater(
    application: Application,
    projections: Sequence[Projection],
    stores: Stores,
    settings: Settings,
    *,
    clock: Clock,
    telemetry: Telemetry,
) -> Updater:
    """An updater of these projections of an application; also for the command line, when no process has one."""
    return Updater(
        projections=projections,
        deciders=application.deciders,
        journal=stores.journal,
        builds=stores.read_models.builds,
        codec=EventCodec(application.schema, stores.protector, telemetry),
        protector=stores.protector,
        telemetry=telemetry,
        clock=clock,
        settings=UpdaterSettings(page_commits=settings.projection_page),
    )


class _Composer:
    """Builds one part after the other from what they share."""

    def __init__(
        self,
        application: Application,
        settings: Settings,
        stores: Stores,
        *,
        clock: Clock,
        ids: IdSource,
        metrics: Metrics,
        health: Health,
        shutdown: CoordinatedShutdown,
        audit: AuditLog,
        secrets: SecretSource,
    ) -> None:
        self._secrets = secrets
        self._application = application
        self._settings = settings
        self._stores = stores
        self._clock = clock
        self._ids = ids
        self._metrics = metrics
        self._health = health
        self._shutdown = shutdown
        self.auditor = audit

    async def gate(self, addresses: ClientAddresses) -> Gate:
        """What every request passes: addresses, identity, limits."""
        settings, protector = self._settings, self._stores.protector
        opened = await open_identity(
            settings,
            secrets=self._secrets,
            clock=self._clock,
            auditor=self.auditor,
            pseudonym=protector.pseudonym,
        )
        self._shutdown.add(Phase.BEFORE_SYSTEM_TERMINATE, "identity", opened.close)
        identity: Identity = opened.identity
        if settings.development:
            # May do all that the application knows roles for; nobody is let in like this in another profile.
            roles = frozenset({"user", "admin"}) | self._application.access.roles
            actor = protector.pseudonym(DEVELOPMENT_ISSUER, DEVELOPMENT_SUBJECT)
            identity = DevelopmentIdentity(actor=actor, roles=roles, tokens=identity)
        limits = await rate_limits(
            settings, secrets=self._secrets, clock=self._clock, auditor=self.auditor, digest=protector.digest
        )
        self._shutdown.add(Phase.BEFORE_SYSTEM_TERMINATE, "rate limits", limits.close)
        self._metrics.add_gauges(partial(_limit_samples, limits))
        return Gate(identity, limits=limits, addresses=addresses, auditor=self.auditor)

    def updater(self) -> Updater:
        updater = make_updater(
            self._application,
            self._application.projections,
            self._stores,
            self._settings,
            clock=self._clock,
            telemetry=self._metrics,
        )
        self._shutdown.add(Phase.BEFORE_CLUSTER_SHUTDOWN, "projections", updater.stop)
        self._health.add_remote("projections", partial(_check_projections, updater))
        return updater

    def sweepers(self, updater: Updater) -> dict[str, Callable[[], Coroutine[None, None, None]]]:
        """What finds events that a stream lost, for journals that are followed by one."""
        journal = self._stores.journal
        if not isinstance(journal, HasHeads):
            return {}

        def runs(projection: str) -> bool:
            return any(one.projection == projection and one.role != "standby" for one in updater.status())

        sweeper = Sweeper(
            projections=self._application.projections,
            deciders=self._application.deciders,
            journal=journal,
            heads=journal,
            builds=self._stores.read_models.builds,
            codec=EventCodec(self._application.schema, self._stores.protector, self._metrics),
            protector=self._stores.protector,
            telemetry=self._metrics,
            clock=self._clock,
            settings=SweeperSettings(interval=self._settings.sweep_interval),
            runs=runs,
        )
        self._shutdown.add(Phase.BEFORE_CLUSTER_SHUTDOWN, "sweeper", sweeper.stop)
        return {"sweeper": sweeper.run}

    def command_api(self) -> ServedApi:
        handler = command_handler(
            self._application,
            journal=self._stores.journal,
            snapshots=self._stores.journal,
            protector=self._stores.protector,
            clock=self._clock,
            ids=self._ids,
            telemetry=self._metrics,
            settings=CommandSettings(
                cache_capacity=self._settings.cache_size,
                cache_idle=self._settings.cache_idle,
                snapshot_every=self._settings.snapshot_every,
                snapshots_keep=self._settings.snapshots_keep,
                idempotency_hours=self._settings.idempotency_hours,
            ),
            erasure_log=self._stores.protector.erasure_log,
            may_write=None if self._stores.lease is None else self._stores.lease.check,
        )
        self._stores.protector.on_erase(handler.forget_subject)
        evicting = asyncio.create_task(_evict_forever(handler), name="eviction")

        async def end() -> None:
            evicting.cancel()
            await handler.close()

        self._shutdown.add(Phase.BEFORE_SYSTEM_TERMINATE, "snapshots", end)
        schema = command_schema(self._application)
        endpoint = GraphQLEndpoint(
            schema=schema,
            kind="CommandError",
            documents=DocumentCache(schema, limits=self._limits(), introspection=self._settings.development),
            access=self._application.access,
            auditor=self.auditor,
            commands=handler,
        )
        return ServedApi(name="command", endpoint=endpoint, sdl=sdl(schema))

    def query_api(self, updater: Updater | None) -> ServedApi:
        """With an updater in the same process, a query that waits for a write hears of it at once."""
        schema = query_schema(self._application)
        database = self._stores.read_models.database
        waiter = ConsistencyWaiter(
            database,
            follows=follows_of(self._application.projections, self._application.deciders),
            timeout=self._settings.consistency_wait,
        )
        self._shutdown.add(Phase.SERVICE_STOP, "queries that wait", waiter.close)
        if updater is not None:
            updater.subscribe(waiter.notify)
        for projection in self._application.projections:
            self._health.add_remote(f"read model {projection.name}", partial(self._stores.check_read_model, projection))
        endpoint = GraphQLEndpoint(
            schema=schema,
            kind="QueryError",
            documents=DocumentCache(schema, limits=self._limits(), introspection=self._settings.development),
            access=self._application.access,
            auditor=self.auditor,
            queries=Queries(database=database, waiter=waiter, telemetry=self._metrics, clock=self._clock),
        )
        return ServedApi(name="query", endpoint=endpoint, sdl=sdl(schema))

    async def measure(self) -> Sequence[Sample]:
        status = await projection_status(
            journal=self._stores.journal, builds=self._stores.read_models.builds, clock=self._clock
        )
        return [sample for build in status for sample in _samples(build)]

    def _limits(self) -> DocumentLimits:
        return DocumentLimits(
            tokens=self._settings.graphql_tokens,
            depth=self._settings.graphql_depth,
            fields=self._settings.graphql_fields,
            aliases=self._settings.graphql_aliases,
            directives=self._settings.graphql_directives,
            root_fields=self._settings.graphql_root_fields,
        )


def _samples(build: ProjectionStatus) -> Sequence[Sample]:
    labels = (build.name.projection, str(build.name.version), build.state.value)
    return (
        Sample("kiseki_projection_lag_commits", labels, build.commits_behind),
        Sample("kiseki_projection_lag_seconds", labels, build.seconds_behind),
        Sample("kiseki_projection_parked_streams", labels, build.parked_count),
    )


def _tls_samples(tls: ReloadingTls) -> Sequence[Sample]:
    return (Sample("kiseki_tls_expires_seconds", (), tls.seconds_left),)


def _limit_samples(limits: RateLimits) -> Sequence[Sample]:
    samples = [Sample("kiseki_rate_limit_checks", labels, count) for labels, count in limits.counts().items()]
    samples += [Sample("kiseki_rate_limit_keys", (limit,), count) for limit, count in limits.keys().items()]
    shared = limits.shared_available()
    return samples if shared is None else [*samples, Sample("kiseki_rate_limit_shared", (), float(shared))]


def _audit_samples(audit: AuditLog) -> Sequence[Sample]:
    counted = audit.statistics()
    samples = [
        Sample("kiseki_audit_records", (outcome,), getattr(counted, outcome))
        for outcome in ("written", "coalesced", "dropped", "refused", "waiting")
    ]
    samples.append(Sample("kiseki_audit_healthy", (), float(audit.problem is None)))
    if counted.anchor_age is not None:
        samples.append(Sample("kiseki_audit_anchor_age_seconds", (), counted.anchor_age))
    return samples


async def _nothing() -> Sequence[Sample]:
    return ()


async def _check_projections(updater: Updater) -> None:
    stuck = [
        f"{build.projection}: {build.problem or build.waiting}"
        for build in updater.status()
        if build.problem or build.waiting
    ]
    if stuck:
        raise ProjectionWaits("; ".join(stuck))


async def _evict_forever(handler: CommandHandler) -> None:
    while True:
        await asyncio.sleep(_EVICT_INTERVAL)
        handler.evict()


async def _check_audit(audit: AuditLog) -> None:
    if not audit.healthy:
        raise AuditUnavailable(f"security events can't be recorded: {audit.problem}")
