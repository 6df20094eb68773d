"""What tests of projections share: a small domain, a journal to write facts into, and a ProjectionStore in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Column, Integer, MetaData, String, Table, bindparam, create_engine, delete, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert  # understood by SQLite too
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from kiseki import Change, Command, Decider, Event, EventMetadata, Personal, Projection, State
from kiseki.application.system import UlidSource
from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import START, Commit, CommitMetadata, FeedPage, Journal, Position, RecordedEvent
from kiseki.kernel.codec import EncodedEvent, EventCodec
from kiseki.kernel.personal import Erased
from kiseki.kernel.schema import EventSchema
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.port import (
    Batch,
    BuildName,
    GuardMoved,
    ParkedStream,
    StatementFailed,
    StreamProgress,
)
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from tests.support import ManualClock

UNLUCKY = 13
"""An amount that the projection's own function refuses."""
SPOILT = 66
"""An amount whose row the database refuses."""


class Counted(Event, name="Counted", version=1):
    """Something was counted."""

    amount: int


class Noted(Event, name="Noted", version=1):
    """Belongs to the aggregate, and no projection here follows it."""

    text: str


class Named(Event, name="Named", version=1):
    """Holds personal data of the stream."""

    name: Personal[str]


class Forgotten(Event, name="Forgotten", version=1, erases_subject=True):
    """The subject was erased."""


class Elsewhere(Event, name="Elsewhere", version=1):
    """Of another aggregate, which the projection does not follow at all."""

    amount: int


class Nothing(State):
    """Deciders here decide nothing."""


class Count(Command):
    """Never sent."""


class GoElsewhere(Command):
    """Never sent."""


def _decide(command: Any, state: Nothing) -> Sequence[Any]:
    return ()


def _evolve(state: Nothing, event: Any) -> Nothing:
    return state


CounterEvent = Counted | Noted | Named | Forgotten
counter: Decider[Any, Any, Any] = Decider(
    "Counter", initial=Nothing(), decide=_decide, evolve=_evolve, commands=Count, events=CounterEvent
)
other: Decider[Any, Any, Any] = Decider(
    "Other", initial=Nothing(), decide=_decide, evolve=_evolve, commands=GoElsewhere, events=Elsewhere
)
DECIDERS = (counter, other)
earlier_counter: Decider[Any, Any, Any] = Decider(
    "Counter", initial=Nothing(), decide=_decide, evolve=_evolve, commands=Count, events=Named | Noted
)
"""The aggregate as an earlier release knew it: before anything was counted."""


def schema_of(deciders: Iterable[Decider[Any, Any, Any]]) -> EventSchema:
    return EventSchema(event_type for decider in deciders for event_type in decider.event_types)


class Totals:
    """A projection whose rows show every event that is applied twice, left out, or out of order.

    `steps` holds each applied event with the total after it; a second application of one breaks its primary key.
    """

    def __init__(
        self,
        *,
        version: int = 1,
        name: str = "totals",
        unlucky: Collection[int] = (UNLUCKY,),
        events: Any = Counted | Named | Forgotten,
        extra: Sequence[Column[Any]] = (),
    ) -> None:
        metadata = MetaData(schema=name)
        self.totals = Table(
            "totals",
            metadata,
            Column("id", String(200), primary_key=True),
            Column("total", Integer, nullable=False),
            Column("name", String(200)),
            *extra,
        )
        self.steps = Table(
            "steps",
            metadata,
            Column("id", String(200), primary_key=True),
            Column("number", Integer, primary_key=True),
            Column("amount", Integer, nullable=False),
        )
        self._unlucky = frozenset(unlucky)
        adding = upsert(self.totals).values(id=bindparam("id"), total=bindparam("total"))
        self._add = adding.on_conflict_do_update(
            index_elements=[self.totals.c.id], set_={"total": self.totals.c.total + adding.excluded.total}
        )
        self._step = insert(self.steps)
        self.projection = Projection(
            name, version=version, tables=[self.totals, self.steps], events=events, apply=self.apply
        )

    def apply(self, event: Event, metadata: EventMetadata) -> Sequence[Change]:
        stream_id = metadata.stream_id
        match event:
            case Counted(amount=amount):
                if amount in self._unlucky:
                    raise ValueError(f"{amount} is a secret of {stream_id}")
                wrong = {"number": None} if amount == SPOILT else {}
                step = {"id": stream_id, "number": metadata.sequence_number, "amount": amount, **wrong}
                return ((self._step, step), (self._add, {"id": stream_id, "total": amount}))
            case Named(name=name):
                text = "(erased)" if isinstance(name, Erased) else name
                naming = upsert(self.totals).values(id=stream_id, total=0, name=text)
                return (naming.on_conflict_do_update(index_elements=[self.totals.c.id], set_={"name": text}),)
            case Forgotten():
                return (delete(self.totals).where(self.totals.c.id == stream_id),)
        raise AssertionError(event)


class Facts:
    """Writes events into a journal as commands would, one commit for each call."""

    def __init__(
        self, journal: Journal, codec: EventCodec, clock: ManualClock, protector: KeyProtector | None = None
    ) -> None:
        self.journal = journal
        self.codec = codec
        self._clock = clock
        self._ids = UlidSource()
        self._last: dict[str, int] = {}

    async def happen(self, stream: str, *events: Event) -> Commit:
        ids = [self._ids.new_id() for _ in events]
        return await self.store(stream, await self.codec.encode(stream, events, ids))

    async def store(self, stream: str, encoded: Sequence[EncodedEvent]) -> Commit:
        after = self._last.get(stream, 0)
        commit_id = self._ids.new_id()
        metadata = CommitMetadata(commit_id=commit_id, committed_at=self._clock.now(), correlation_id=commit_id)
        commit = await self.journal.append(stream, after, encoded, metadata=metadata)
        self._last[stream] = after + len(encoded)
        return commit

    async def unknown(self, stream: str, *, type_name: str = "Unheard", version: int = 1) -> Commit:
        """An event of a type that no application here knows."""
        event = EncodedEvent(self._ids.new_id(), type_name, version, msgspec.Raw(b'{"amount":1}'))
        return await self.store(stream, [event])

    async def all(self) -> list[RecordedEvent]:
        """Every event, in the order of the feed."""
        found: list[RecordedEvent] = []
        position = START
        while (page := await self.journal.feed(position)).commits:
            position = page.position
            found += [event for commit in page.commits for event in commit.recorded()]
        return found


class RecordingTelemetry(NoTelemetry):
    """Remembers what the projection machinery reports."""

    def __init__(self) -> None:
        self.parked_codes: list[str] = []
        self.retries: list[str] = []

    def parked(self, projection: str, code: str) -> None:
        self.parked_codes.append(code)

    def projection_retry(self, projection: str, code: str) -> None:
        self.retries.append(code)


async def a_protector(clock: ManualClock, store: MemoryKeyStore | None = None) -> KeyProtector:
    return await KeyProtector.open(store=store or MemoryKeyStore(), wrapper=LocalMasterKey(bytes(32)), clock=clock)


class World:
    """A journal in memory and what surrounds it."""

    def __init__(self, clock: ManualClock, protector: KeyProtector, deciders: Sequence[Decider[Any, Any, Any]]) -> None:
        self.clock = clock
        self.protector = protector
        self.deciders = deciders
        self.telemetry = RecordingTelemetry()
        self.codec = EventCodec(schema_of(deciders), protector, self.telemetry)
        self.journal = MemoryJournal(clock=clock)
        self.facts = Facts(self.journal, self.codec, clock)

    @classmethod
    async def new(cls, deciders: Sequence[Decider[Any, Any, Any]] = DECIDERS) -> World:
        clock = ManualClock()
        return cls(clock, await a_protector(clock), deciders)


class MemoryStore:
    """A ProjectionStore in memory, with faults on demand.

    `faults` are raised by the next writes, one each (None lets one pass). `refuse` decides on each batch.
    """

    def __init__(self, totals: Totals) -> None:
        self.name = BuildName(totals.projection.name, totals.projection.version, 1)
        self.faults: list[BaseException | None] = []
        self.after_write: list[BaseException | None] = []
        self.refuse: Callable[[Batch], BaseException | None] = lambda batch: None
        self.batches: list[Batch] = []
        self.guards: dict[str, int] = {}
        self.parked_streams: dict[str, ParkedStream] = {}
        self.stored_position = START
        engine = create_engine("sqlite://", poolclass=StaticPool, hide_parameters=True)
        self._engine = engine.execution_options(schema_translate_map={totals.projection.name: None})
        for table in totals.projection.tables:
            table.create(self._engine)

    async def position(self) -> Position:
        return self.stored_position

    async def progress(self, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        waiting = self._waiting()
        return {one: StreamProgress(self.guards.get(one, 0), waiting.get(one)) for one in streams}

    async def parked(self, *, after: str = "", limit: int = 500) -> Sequence[ParkedStream]:
        return [one for name, one in sorted(self._waiting().items()) if name > after][:limit]

    def _waiting(self) -> dict[str, ParkedStream]:
        return {
            name: one for name, one in self.parked_streams.items() if one.sequence_number > self.guards.get(name, 0)
        }

    async def write(self, batch: Batch) -> None:
        problem = self.faults.pop(0) if self.faults else self.refuse(batch)
        if problem is not None:
            raise problem
        reached = self.guards | {move.stream: move.to for move in batch.guards}
        if (
            any(self.guards.get(move.stream, 0) != move.expected for move in batch.guards)
            or any(move.stream in self._waiting() and not move.retry for move in batch.guards)
            or any(reached.get(one.stream, 0) != one.sequence_number - 1 for one in batch.park)
            or any(self._waiting().get(one.stream, one) != one for one in batch.unpark)
        ):
            raise GuardMoved("the guard is elsewhere, or the stream is parked")
        with self._engine.connect() as connection:
            for change in batch.changes:
                statement, parameters = change if isinstance(change, tuple) else (change, None)
                try:
                    connection.execute(statement, parameters)
                except SQLAlchemyError as wrong:
                    raise StatementFailed(type(wrong).__name__) from wrong
            connection.commit()
        self.batches.append(batch)
        self.guards.update({move.stream: move.to for move in batch.guards})
        self.parked_streams.update({one.stream: one for one in batch.park})
        for one in batch.unpark:
            self.parked_streams.pop(one.stream, None)
        if batch.position is not None:
            self.stored_position = batch.position
        after = self.after_write.pop(0) if self.after_write else None
        if after is not None:
            raise after

    async def flush(self) -> None: ...

    async def close(self) -> None:
        self._engine.dispose()

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]


class Feed:
    """A journal whose feed is what a test says; reading streams is that of the journal behind it."""

    def __init__(self, behind: Journal) -> None:
        self._behind = behind
        self.limits = behind.limits
        self.reads: list[tuple[str, int]] = []
        self.before_read: Callable[[], None] = lambda: None
        self.page: int | None = None
        """Events in a page of a stream at most; None leaves it to the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        self.before_read()
        self.reads.append((stream, after))
        async for page in self._behind.read(stream, after):
            size = self.page or len(page)
            for start in range(0, len(page), size):
                yield page[start : start + size]

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        return await self._behind.feed(after, limit=limit)
