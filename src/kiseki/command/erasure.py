"""What the command side does when a command's events erase somebody: before the commit, after it, and again later.

Used by the command handler. The ledger of erasures hears of it before the fact is written, so that a fact that is lost
with a restored journal can be made again (`CommandHandler.erase_again`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from kiseki.journal.port import ClaimChange, Journal
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.command import Command
from kiseki.kernel.decider import Decider, Take, command_name
from kiseki.kernel.erasure import ErasureLog, PlannedErasure
from kiseki.kernel.event import Event
from kiseki.kernel.personal import Erased
from kiseki.kernel.ports import Protector
from kiseki.kernel.record import record_fields
from kiseki.kernel.streams import aggregate_type_of

__all__ = ["ERASED_AGAIN_BY", "CommandErasures", "claim_changes", "erasing_names"]

ERASED_AGAIN_BY: Final = "erasure-ledger"
"""The actor of facts that were made again because a restored journal had lost them."""


class CommandErasures:
    """Erasures as commands make them."""

    def __init__(
        self,
        *,
        deciders: Iterable[Decider[Any, Any, Any]],
        journal: Journal,
        delete_snapshots: Callable[[str], Awaitable[None]],
        codec: EventCodec,
        protector: Protector,
        log: ErasureLog,
    ) -> None:
        self._journal = journal
        self._delete_snapshots = delete_snapshots
        self._codec = codec
        self._protector = protector
        self._log = log
        deciders = list(deciders)
        self._erasing_others = {
            decider.aggregate_type
            for decider in deciders
            for one in decider.event_types
            if one.event_type.erases_subject and codec.schema.shape_of(one).subject_field is not None
        }
        self._aggregates = {decider.aggregate_type: names for decider in deciders if (names := erasing_names(decider))}

    def subjects(self, stream: str, events: Iterable[Event]) -> tuple[str, ...]:
        """Whom events of a stream erase."""
        found: dict[str, None] = {}
        for event in events:
            shape = self._codec.schema.shape_of(type(event))
            if shape.type.erases_subject:
                found[stream if shape.subject_field is None else str(getattr(event, shape.subject_field))] = None
        return tuple(found)

    async def begin(self, subjects: Iterable[str], stream: str, command: Command) -> None:
        """Before the commit: the log of erasures knows them. Raises Unavailable."""
        # With other fields it might hold personal data, and it could not be sent again from the log.
        name = command_name(type(command)) if len(list(record_fields(type(command)))) == 1 else ""
        for subject in subjects:
            actor = command.metadata.actor or None
            await self._log.begin(PlannedErasure(subject=subject, stream=stream, actor=actor, command=name))

    async def releases(
        self, decider: Decider[Any, Any, Any], stream: str, upto: int, changes: Sequence[ClaimChange]
    ) -> list[ClaimChange]:
        """Gives back what a stream will still hold after these changes: an erased person's values are free, and no
        keyed hash of them stays. Reads the stream up to a sequence number, once in its life.

        Raises what reading a stream raises.
        """
        if decider.claims is None:
            return []
        known = await self._protector.ciphers([stream])
        if isinstance(known.get(stream), Erased):
            return []  # the values can't be told any more; `erase_again` is told what is held
        held: dict[tuple[str, str], None] = {}
        state: Any = decider.initial
        async for page in self._journal.read(stream):
            for event in await self._codec.decode([one for one in page if one.sequence_number <= upto]):
                _hold(held, claim_changes(decider, state, event, self._protector))
                state = decider.evolve(state, event)
        _hold(held, changes)
        return [ClaimChange(scope, digest, take=False) for scope, digest in held]

    async def carry_out(self, stream: str, subjects: Iterable[str]) -> None:
        """After the commit: the keys are destroyed. Raises Unavailable; then whoever follows the journal does it, or
        the next command that finds the stream erased."""
        for subject in subjects:
            await self._protector.erase(subject)
            await self._delete_snapshots(stream)

    async def withdraw(self, subject: str, stream: str) -> None:
        """Nothing was written, and the client is told so. Raises Unavailable."""
        await self._log.withdraw(subject, stream)

    def may_erase_others(self, decider: Decider[Any, Any, Any]) -> bool:
        """Whether events of a decider erase a subject that is not their stream."""
        return decider.aggregate_type in self._erasing_others

    async def make_sure(self, subject: str, stream: str) -> None:
        """The keys of a subject whose erasure is a fact of the stream are destroyed. Also where a tombstone is: it
        may stand there with the store's log not cut yet, or snapshots left. Raises Unavailable."""
        known = await self._protector.ciphers([subject])
        if not isinstance(known.get(subject), Erased):
            await self.carry_out(stream, [subject])
            return
        await self._protector.destroy(subject)
        await self._delete_snapshots(stream)
        await self._log.finish(subject)

    async def make_sure_again(self, stream: str) -> None:
        """As `make_sure`, for a stream of which it is not known whether it was erased; reads it only where its
        aggregate type knows erasure. Raises CorruptJournal, Unavailable."""
        names = self._aggregates.get(aggregate_type_of(stream))
        if names is None:
            return
        subjects: dict[str, None] = {}
        async for page in self._journal.read(stream):
            subjects |= {event.subject or stream: None for event in page if event.type in names}
        for subject in subjects:
            await self.make_sure(subject, stream)


def erasing_names(decider: Decider[Any, Any, Any]) -> frozenset[str]:
    """The events of a decider that erase their subject. By name alone: a version that only a newer application knows
    erases no less."""
    return frozenset(one.event_type.name for one in decider.event_types if one.event_type.erases_subject)


def claim_changes(decider: Decider[Any, Any, Any], state: Any, event: Event, protector: Protector) -> list[ClaimChange]:
    """What an event takes and gives back; `state` is the one before it."""
    if decider.claims is None:
        return []
    return [
        ClaimChange(claim.scope, protector.digest(f"claim|{claim.scope}", claim.value), isinstance(claim, Take))
        for claim in decider.claims(state, event)
    ]


def _hold(held: dict[tuple[str, str], None], changes: Iterable[ClaimChange]) -> None:
    for change in changes:
        if change.take:
            held[change.scope, change.digest] = None
        else:
            held.pop((change.scope, change.digest), None)
