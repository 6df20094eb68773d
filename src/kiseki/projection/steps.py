"""From recorded events to what is to be written: decoded in one batch, applied one by one. Used by the projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Delete, Insert, Update

from kiseki.journal.port import RecordedEvent
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.event import Event
from kiseki.kernel.schema import UnknownEvent
from kiseki.projection.failure import Failure, place_of
from kiseki.projection.port import BuildName
from kiseki.projection.projection import Change, Projection

__all__ = ["Step", "Steps"]


class Step(NamedTuple):
    """One event, ready to be written: the changes that follow from it, or why it can't be applied."""

    event: RecordedEvent
    changes: tuple[Change, ...] = ()
    failure: Failure | None = None


class Steps:
    """Prepares events of the streams that a projection looks at.

    A type or version that the application does not know is a failure (UNKNOWN_EVENT), or an error when
    `refuse_unknown_in` names the build that must not be built without it.
    """

    def __init__(self, *, projection: Projection, codec: EventCodec, refuse_unknown_in: BuildName | None) -> None:
        self._projection = projection
        self._codec = codec
        self.refuse_unknown_in = refuse_unknown_in

    async def prepare(self, recorded: Sequence[RecordedEvent]) -> list[Step]:
        """A step for each event, up to the first one of a stream that can't be applied.

        Raises Unavailable when keys can't be read; UnknownEvent when told to refuse.
        """
        schema = self._codec.schema
        followed = self._projection.event_names
        known = [schema.knows(event.type, event.version) for event in recorded]
        to_decode = [e for e, is_known in zip(recorded, known, strict=True) if is_known and e.type in followed]
        decoded = iter(await self._decode(to_decode))
        steps: list[Step] = []
        failed: set[str] = set()
        for event, is_known in zip(recorded, known, strict=True):
            what = next(decoded) if is_known and event.type in followed else None
            if event.stream in failed:
                continue
            if not is_known:
                step = Step(event, failure=self._unknown(event))
            elif what is None:
                step = Step(event)
            elif isinstance(what, Failure):
                step = Step(event, failure=what)
            else:
                step = self._apply(event, what)
            if step.failure is not None:
                failed.add(event.stream)
            steps.append(step)
        return steps

    async def _decode(self, recorded: Sequence[RecordedEvent]) -> Sequence[Event | Failure]:
        if not recorded:
            return ()
        try:
            return await self._codec.decode(recorded)
        except (Unavailable, MemoryError):
            raise
        except Exception as problem:  # noqa: BLE001  # one can't be read; which, shows when they are read one by one
            if len(recorded) == 1:
                code = problem.code if isinstance(problem, KisekiError) else "UNREADABLE"
                return (Failure(code, place_of(problem)),)
        return [(await self._decode([event]))[0] for event in recorded]

    def _unknown(self, event: RecordedEvent) -> Failure:
        what = f"{event.type} version {event.version}"
        if self.refuse_unknown_in is not None:
            raise UnknownEvent(
                f"{event.stream} holds at sequence number {event.sequence_number} a {what}, which this application "
                f"does not know; it can't build {self.refuse_unknown_in}"
            )
        return Failure(UnknownEvent.code, what)

    def _apply(self, recorded: RecordedEvent, event: Event) -> Step:
        try:
            changes = tuple(self._projection.apply(event, recorded))
            for change in changes:
                statement = change[0] if isinstance(change, tuple) else change
                if not isinstance(statement, Insert | Update | Delete):
                    raise TypeError("apply returned something that is not an insert, update or delete")
        except MemoryError:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever a user's function raises concerns this event alone
            return Step(recorded, failure=Failure("APPLY_FAILED", place_of(problem)))
        return Step(recorded, changes)
