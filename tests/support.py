"""What integration tests share: command handlers on real embedded stores, and what looks behind them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.audit import NoAudit
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.event import Event
from kiseki.kernel.ports import AuditEvent, Auditor, Identity
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.addresses import ClientAddresses
from kiseki.security.limits.facade import RateLimits
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.verdict import MAX_LIMIT, LimitPolicy
from kiseki.security.protector import KeyProtector
from kiseki.service.gate import Gate


class ManualClock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Counting(NoTelemetry):
    """Remembers what the handler reports."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.conflicts = 0
        self.loads: list[tuple[int, bool, bool]] = []
        self.snapshots: list[str] = []

    def command(self, name: str, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)

    def conflict(self, aggregate_type: str) -> None:
        self.conflicts += 1

    def loaded(self, aggregate_type: str, events: int, *, cached: bool, from_snapshot: bool) -> None:
        self.loads.append((events, cached, from_snapshot))

    def snapshot(self, aggregate_type: str, outcome: str) -> None:
        self.snapshots.append(outcome)


class Audited:
    """An Auditor that remembers."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.problem: Exception | None = None

    def note(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def record(self, event: AuditEvent) -> None:
        if self.problem is not None:
            raise self.problem
        self.events.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class World:
    """The stores, and handlers as so many processes would have them."""

    def __init__(self, journal: SqliteJournal, protector: KeyProtector, clock: ManualClock) -> None:
        self.journal = journal
        self.protector = protector
        self.clock = clock
        self.telemetry = Counting()

    def handler(self, app: Application, **settings: float) -> CommandHandler:
        return command_handler(
            app,
            journal=self.journal,
            snapshots=self.journal,
            protector=self.protector,
            clock=self.clock,
            ids=UlidSource(),
            telemetry=self.telemetry,
            settings=CommandSettings(**settings),  # type: ignore[arg-type]
        )

    async def events(self, app: Application, stream: str) -> list[Event]:
        codec = EventCodec(app.schema, self.protector, NoTelemetry())
        return [event async for page in self.journal.read(stream) for event in await codec.decode(page)]


def gate(identity: Identity, *, auditor: Auditor | None = None) -> Gate:
    """A gate that limits nobody who can be met in a test."""
    auditor, clock = auditor or NoAudit(), SystemClock()
    limits = RateLimits(
        by_address=MemoryLimiter(LimitPolicy("address", MAX_LIMIT), clock=clock),
        by_subject=MemoryLimiter(LimitPolicy("subject", MAX_LIMIT), clock=clock),
        auditor=auditor,
    )
    return Gate(identity, limits=limits, addresses=ClientAddresses(), auditor=auditor)
