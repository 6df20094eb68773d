"""`CommandHandler`: the write side's loop. Load, decide, append after what was read; on a conflict, once more.

Any number of processes may handle commands for the same stream: the journal's condition is the only lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.command.cache import CachedState, StateCache
from kiseki.command.erasure import ERASED_AGAIN_BY, CommandErasures, claim_changes
from kiseki.command.errors import CommandConflict, DecisionFailed
from kiseki.command.idempotency import IdempotencyKey, IdempotencyKeys
from kiseki.command.loader import Loader
from kiseki.journal.port import (
    ClaimChange,
    ClaimTaken,
    CommitMetadata,
    CommitTooLarge,
    Conflict,
    IdempotencyRecord,
    IdempotencyTaken,
    Journal,
)
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.command import Command, CommandMetadata
from kiseki.kernel.decider import Decider, Rejected, command_name
from kiseki.kernel.erasure import ErasureLog, NoErasureLog
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.event import Event
from kiseki.kernel.ports import Clock, IdSource, Protector, SubjectErased, Telemetry
from kiseki.kernel.shapes import RecordShape, Unstorable
from kiseki.kernel.streams import StreamId, stream_name

__all__ = ["CommandHandler", "CommandRequest", "CommandResult"]

_log = logging.getLogger(__name__)
_IMMEDIATE_ATTEMPTS: Final = 2
_NOTHING_WRITTEN: Final = (
    Rejected,
    ClaimTaken,
    CommandConflict,
    CommitTooLarge,
    DecisionFailed,
    IdempotencyTaken,
    SubjectErased,
    Unstorable,
)
"""What says for certain that the command did not become a fact."""


class CommandRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What came with a command: who asks, what it belongs to, and the client's idempotency key."""

    actor: str
    correlation_id: str
    causation_id: str | None = None
    idempotency_key: IdempotencyKey | None = None


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """Where an accepted command left its stream. Durable."""

    stream: str
    sequence_number: int
    events: int
    """How many events it wrote; 0 when there was nothing to do, or when the key's command had been done before."""

    @property
    def stream_id(self) -> str:
        """The id part of the stream's name."""
        return self.stream.partition("-")[2]


class _Keyed(NamedTuple):
    digest: str
    command_hash: str


class _Work(NamedTuple):
    """One command on its way through the loop."""

    decider: Decider[Any, Any, Any]
    command: Command
    request: CommandRequest
    keyed: _Keyed | None
    stream: str
    entry: CachedState
    begun: set[str]
    """Whose erasure the log of erasures was told of for this command."""
    held: Sequence[ClaimChange] = ()
    """Claims to give back besides, when it erases somebody whose values can't be read any more."""


class CommandHandler:
    """Handles typed, valid commands of an application's deciders."""

    def __init__(
        self,
        *,
        deciders: Mapping[type[Command], Decider[Any, Any, Any]],
        journal: Journal,
        loader: Loader,
        codec: EventCodec,
        protector: Protector,
        clock: Clock,
        ids: IdSource,
        telemetry: Telemetry,
        cache: StateCache,
        idempotency: IdempotencyKeys,
        snapshot_every: int,
        attempts: int = 12,
        erasure_log: ErasureLog | None = None,
        may_write: Callable[[], None] | None = None,
    ) -> None:
        """`erasure_log` hears of erasures before they become facts; without one nobody does. `may_write` raises
        Unavailable while nothing may be written; it is asked before a command has any effect."""
        self._may_write = may_write
        self._deciders = deciders
        self._journal = journal
        self._loader = loader
        self._codec = codec
        self._protector = protector
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._cache = cache
        self._idempotency = idempotency
        self._snapshot_every = snapshot_every
        self._attempts = attempts
        self._names = {command: command_name(command) for command in deciders}
        self._shapes = {command: RecordShape(command) for command in deciders}
        self._background: set[asyncio.Task[None]] = set()
        self._erasures = CommandErasures(
            deciders=deciders.values(),
            journal=journal,
            delete_snapshots=loader.delete_snapshots,
            codec=codec,
            protector=protector,
            log=erasure_log or NoErasureLog(),
        )

    async def handle(self, command: Command, request: CommandRequest) -> CommandResult:
        """Decides a command and makes its events durable.

        Raises Rejected (nothing written), ClaimTaken, CommandConflict, IdempotencyMismatch, IdempotencyInFlight,
        CommitTooLarge, Unstorable, DecisionFailed, UnknownEvent, Unavailable.
        """
        name = self._names[type(command)]
        started = self._clock.monotonic()
        outcome = "INTERNAL"
        try:
            if self._may_write is not None:
                self._may_write()
            result = await self._keyed(command, request)
            outcome = "accepted" if result.events else "unchanged"
        except Rejected:
            outcome = "rejected"
            raise
        except KisekiError as problem:
            outcome = problem.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._telemetry.command(name, outcome, self._clock.monotonic() - started)
        return result

    async def erase_again(self, stream: str, name: str, held: Sequence[tuple[str, str]] = ()) -> CommandResult:
        """Makes the fact of an erasure again, that a restored journal has lost: the command of this name is decided on
        what the journal holds now. `held` are claims (scope and digest) that the stream holds, to be given back.

        Raises Rejected when the decider does not want it now, KeyError for a name that is no command of a stream, and
        what `handle` raises.
        """
        command_type = {known: command for command, known in self._names.items()}[name]
        decider = self._deciders[command_type]
        id_field = decider.stream_id_field(command_type)
        if id_field is None:
            raise KeyError(name)
        make: Callable[..., Command] = command_type
        command = make(**{id_field: StreamId(stream.partition("-")[2])})
        request = CommandRequest(actor=ERASED_AGAIN_BY, correlation_id=self._ids.new_id())
        changes = tuple(ClaimChange(scope, digest, take=False) for scope, digest in held)
        return await self._addressed(command, request, None, changes)

    async def close(self) -> None:
        """Waits for snapshots that are being saved."""
        while self._background:
            await asyncio.wait(self._background)

    def evict(self) -> None:
        """Drops idle states; called now and then by whoever runs the handler."""
        evicted = self._cache.evict(self._clock.monotonic())
        if evicted:
            self._telemetry.evicted(evicted)

    def forget_subject(self, subject: str) -> None:
        """Drops every cached state that may hold personal data of a subject: they are erased."""
        self._cache.forget_subject(subject)

    async def _keyed(self, command: Command, request: CommandRequest) -> CommandResult:
        if request.idempotency_key is None:
            return await self._addressed(command, request, None)
        digest = self._idempotency.digest(request.idempotency_key)
        with self._idempotency.exclusively(digest):
            dumped = self._shapes[type(command)].dump(command)
            keyed = _Keyed(digest, self._idempotency.command_hash(self._names[type(command)], dumped))
            record = await self._idempotency.recall(digest, keyed.command_hash)
            if record is not None:
                return await self._first_answer(record)
            try:
                return await self._addressed(command, request, keyed)
            except IdempotencyTaken:
                # Another process handled the same key in the meantime; what it did is the answer.
                record = await self._idempotency.recall(digest, keyed.command_hash)
                if record is None:
                    raise
                return await self._first_answer(record)

    async def _first_answer(self, record: IdempotencyRecord) -> CommandResult:
        await self._erasures.make_sure_again(record.stream)
        return CommandResult(stream=record.stream, sequence_number=record.sequence_number, events=0)

    async def _addressed(
        self, command: Command, request: CommandRequest, keyed: _Keyed | None, held: Sequence[ClaimChange] = ()
    ) -> CommandResult:
        decider = self._deciders[type(command)]
        id_field = decider.stream_id_field(type(command))
        stream_id = self._ids.new_id() if id_field is None else getattr(command, id_field)
        stream = stream_name(decider.aggregate_type, stream_id)
        entry = self._cache.enter(stream, self._clock.monotonic())
        try:
            async with entry.lock:
                if id_field is None and entry.sequence_number < 0:
                    # The id is new, so there is nothing to load; the journal's condition would find out.
                    entry.state, entry.sequence_number = decider.initial, 0
                work = _Work(decider, command, request, keyed, stream, entry, set(), held)
                try:
                    return await self._decide_and_append(work)
                except _NOTHING_WRITTEN:
                    # Else whoever replays the log would carry out later what is refused now.
                    for subject in work.begun:
                        await self._erasures.withdraw(subject, stream)
                    raise
        finally:
            self._cache.leave(entry)
            self.evict()

    async def _decide_and_append(self, work: _Work) -> CommandResult:
        decider, entry, stream = work.decider, work.entry, work.stream
        command_id = self._ids.new_id()
        for attempt in range(self._attempts):
            if entry.sequence_number < 0:
                await self._loader.refresh(decider.aggregate_type, stream, entry)
            else:
                self._telemetry.loaded(decider.aggregate_type, 0, cached=True, from_snapshot=False)
            metadata = CommandMetadata(
                command_id=command_id,
                stream_id=stream.partition("-")[2],
                now=self._clock.now(),
                correlation_id=work.request.correlation_id,
                causation_id=work.request.causation_id,
                actor=work.request.actor,
            )
            command = dataclasses.replace(work.command, metadata=metadata)
            events, state, claims = self._decide(decider, command, entry.state)
            if not events:
                result = CommandResult(stream=stream, sequence_number=entry.sequence_number, events=0)
                if entry.is_erased:
                    # What is answered as done has to be done: an earlier call may have failed after its commit.
                    await self._erasures.make_sure(stream, stream)
                elif self._erasures.may_erase_others(decider):
                    await self._erasures.make_sure_again(stream)
                return result
            erased = self._erasures.subjects(stream, events)
            if erased:
                await self._erasures.begin([one for one in erased if one not in work.begun], stream, command)
                work.begun.update(erased)
                if stream in erased:
                    releases = await self._erasures.releases(decider, stream, entry.sequence_number, claims)
                    claims = [*claims, *(change for change in (*releases, *work.held) if change not in claims)]
            at, forgotten = entry.sequence_number, entry.forgotten
            try:
                subjects = await self._append(work, events, claims, metadata)
            except Conflict:
                self._telemetry.conflict(decider.aggregate_type)
                if _IMMEDIATE_ATTEMPTS <= attempt < self._attempts - 1:
                    # Processes that try again at once keep overtaking each other; at different times they take turns.
                    pause = random.uniform(0, min(0.001 * 2 ** (attempt + 1), 0.05))  # noqa: S311  # not a secret
                    await asyncio.sleep(pause)
                await self._loader.refresh(decider.aggregate_type, stream, entry)
                continue
            except KisekiError as problem:
                # Whether it was written may be unknown; the journal knows, so it is asked next time.
                self._telemetry.append_failed(problem.code)
                entry.forget()
                raise
            except BaseException:
                entry.forget()
                raise
            if entry.forgotten == forgotten:  # else somebody was erased meanwhile, and the state may hold their data
                entry.state = state
                entry.sequence_number = at + len(events)
                entry.subjects |= subjects
                entry.is_erased |= stream in erased
            await self._after_commit(work, erased)
            return CommandResult(stream=stream, sequence_number=at + len(events), events=len(events))
        raise CommandConflict(
            f"{stream} is being written by others; the command met a conflict {self._attempts} times, send it again"
        )

    def _decide(
        self, decider: Decider[Any, Any, Any], command: Command, state: Any
    ) -> tuple[Sequence[Event], Any, list[ClaimChange]]:
        """Events, the state after them, and claims. The state is computed before anything is written: an event
        that can't be folded must not become a fact."""
        started = self._clock.monotonic()
        claims: list[ClaimChange] = []
        try:
            events = tuple(decider.decide(command, state))
            for event in events:
                claims.extend(claim_changes(decider, state, event, self._protector))
                state = decider.evolve(state, event)
        except KisekiError:
            raise
        except Exception as problem:
            _log.exception("decider %s failed on %s", decider.aggregate_type, type(command).__name__)
            raise DecisionFailed(f"the decider {decider.aggregate_type} failed; nothing was written") from problem
        self._telemetry.decided(self._names[type(command)], self._clock.monotonic() - started)
        return events, state, claims

    async def _append(
        self, work: _Work, events: Sequence[Event], claims: Sequence[ClaimChange], metadata: CommandMetadata
    ) -> frozenset[str]:
        """Makes the events durable; returns the subjects whose personal data they hold."""
        stream, after, keyed = work.stream, work.entry.sequence_number, work.keyed
        if self._may_write is not None:
            self._may_write()  # before keys are made for people of whom nothing may be written
        ids = [metadata.command_id, *(self._ids.new_id() for _ in events[1:])]
        encoded = await self._codec.encode(stream, events, ids)
        record: IdempotencyRecord | None = None
        if keyed is not None:
            record = self._idempotency.record(keyed.digest, keyed.command_hash, stream, after + len(events))
        started = self._clock.monotonic()
        try:
            await self._journal.append(
                stream,
                after,
                encoded,
                metadata=CommitMetadata(
                    commit_id=metadata.command_id,
                    committed_at=metadata.now,
                    correlation_id=metadata.correlation_id,
                    causation_id=metadata.causation_id,
                    actor=metadata.actor,
                ),
                claims=claims,
                idempotency=record,
            )
        except ClaimTaken as taken:
            raise Rejected("CLAIM_TAKEN", f"the {taken.scope} is already taken") from taken
        self._telemetry.appended(len(events), self._clock.monotonic() - started)
        return self._codec.subjects_of_encoded(stream, encoded)

    async def _after_commit(self, work: _Work, erased: Sequence[str]) -> None:
        entry = work.entry
        if erased:
            for subject in erased:
                self._cache.forget_subject(subject)
            await self._erasures.carry_out(work.stream, erased)
        if not entry.is_erased and entry.sequence_number - entry.snapshot_at >= self._snapshot_every:
            entry.snapshot_at = entry.sequence_number
            task = asyncio.create_task(
                self._loader.save_snapshot(
                    work.decider.aggregate_type, work.stream, entry.sequence_number, entry.state, entry.subjects
                ),
                name=f"snapshot {work.stream}",
            )
            self._background.add(task)
            task.add_done_callback(self._background.discard)
