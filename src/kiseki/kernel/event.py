"""`Event`: a fact, in the past tense. Its name and version are the storage format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import ClassVar, NamedTuple, TypeAlias

import msgspec

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.record import Record

__all__ = ["Event", "EventMetadata", "EventType", "Json", "Upcast"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Upcast: TypeAlias = Callable[[dict[str, Json]], dict[str, Json]]
"""Turns the stored data of one version into that of the next. Pure; an erased personal field is
`{"$erased": true}` in it and is passed on as it is."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,99}")


class EventType(NamedTuple):
    """How a class of events is stored: its name, current version, and the way there from older versions."""

    name: str
    version: int
    upcasts: Mapping[int, Upcast]
    erases_subject: bool


class Event(Record):
    """Base of all events: `class UserAccountRenamed(Event, name="UserAccountRenamed", version=1)`.

    `name` and `version` are what is stored and never change for facts that exist. A new version of a type comes
    with `upcasts={1: v1_to_v2}`, one function for every older version. `erases_subject=True` says that with
    this fact the keys of the event's subject are destroyed. The subject of personal data is the stream,
    or the field named by `subject: ClassVar[str]`, which holds the full stream name of the subject.
    """

    event_type: ClassVar[EventType]

    def __init_subclass__(
        cls,
        *,
        name: str,
        version: int,
        upcasts: Mapping[int, Upcast] | None = None,
        erases_subject: bool = False,
    ) -> None:
        super().__init_subclass__()
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"{cls.__qualname__}: an event's name is 1 to 100 letters, digits, _ or .")
        steps = dict(upcasts or {})
        if version < 1 or sorted(steps) != list(range(1, version)):
            raise DefinitionError(
                f"{cls.__qualname__}: version {version} needs upcasts from each of the versions before it, from 1"
            )
        cls.event_type = EventType(name, version, steps, erases_subject)


class EventMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the envelope says of one recorded event."""

    stream: str
    sequence_number: int
    """Place in the stream: 1, 2, 3 … without gaps."""
    event_id: str
    """A ULID."""
    type: str
    version: int
    occurred_at: datetime
    """UTC, in microseconds."""
    commit_id: str
    correlation_id: str
    causation_id: str | None
    actor: str
    """A pseudonym of who caused it; only the audit log can resolve it."""

    @property
    def stream_id(self) -> str:
        """The id part of the stream's name, as clients see it."""
        return self.stream.partition("-")[2]
