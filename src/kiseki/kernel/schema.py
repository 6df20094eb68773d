"""`EventSchema`: every event type an application knows, how each is dumped, upcast and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.kernel.event import Event, EventType
from kiseki.kernel.shapes import (
    OptionalShape,
    PersonalShape,
    RecordShape,
    Shape,
    StringShape,
    TextShape,
    Unreadable,
)

__all__ = ["EventSchema", "EventShape", "UnknownEvent", "fingerprint"]


class UnknownEvent(KisekiError):
    """A recorded event whose type or version this application does not know."""

    code = "UNKNOWN_EVENT"


class EventShape:
    """One event type: its record shape, which fields are personal, and whose data they are."""

    def __init__(self, cls: type[Event]) -> None:
        self.cls = cls
        self.type: EventType = cls.event_type
        self.record = RecordShape(cls)
        personal = []
        for field in self.record.fields:
            shape = field.shape.inner if isinstance(field.shape, OptionalShape) else field.shape
            if isinstance(shape, PersonalShape):
                personal.append(field.name)
                shape = shape.inner
            if _contains_personal(shape):
                raise DefinitionError(
                    f"{cls.__qualname__}.{field.name}: Personal[...] must be the type of a field of the event itself"
                )
        self.personal_fields: tuple[str, ...] = tuple(personal)
        self.subject_field = _subject_field(cls, self.record)
        if self.subject_field in self.personal_fields:
            raise DefinitionError(f"{cls.__qualname__}: the subject can't itself be personal data")

    @property
    def has_subject(self) -> bool:
        """Whether the event belongs to a person: it holds personal data, or erases its subject."""
        return bool(self.personal_fields) or self.type.erases_subject

    def describe(self) -> Any:
        """What of the type is storage format, as JSON data."""
        return {
            "name": self.type.name,
            "version": self.type.version,
            "fields": self.record.describe()["record"],
            **({"subject": self.subject_field} if self.subject_field else {}),
        }


class EventSchema:
    """The event types of an application by name. Raises DefinitionError when two share a name."""

    def __init__(self, event_types: Iterable[type[Event]]) -> None:
        shapes: dict[str, EventShape] = {}
        for cls in event_types:
            shape = EventShape(cls)
            known = shapes.get(shape.type.name)
            if known is not None and known.cls is not cls:
                raise DefinitionError(f"two events are called {shape.type.name}: {known.cls!r} and {cls!r}")
            shapes[shape.type.name] = shape
        self._by_name: Mapping[str, EventShape] = shapes
        self._by_class: Mapping[type[Event], EventShape] = {shape.cls: shape for shape in shapes.values()}

    def shape_of(self, event_type: type[Event]) -> EventShape:
        """The shape of an event class. Raises DefinitionError for a class that no decider of the application has."""
        try:
            return self._by_class[event_type]
        except KeyError:
            raise DefinitionError(f"{event_type.__qualname__} is not an event of any decider here") from None

    def find(self, name: str, version: int) -> EventShape:
        """The shape that reads a recorded event. Raises UnknownEvent."""
        shape = self._by_name.get(name)
        if shape is None:
            raise UnknownEvent(f"the application knows no event type {name}")
        if not 1 <= version <= shape.type.version:
            raise UnknownEvent(f"the application knows {name} up to version {shape.type.version}, not {version}")
        return shape

    def knows(self, name: str, version: int) -> bool:
        """Whether `find` would succeed."""
        shape = self._by_name.get(name)
        return shape is not None and 1 <= version <= shape.type.version

    def load(self, shape: EventShape, version: int, data: dict[str, Any]) -> Event:
        """The event of stored data (personal fields already readable), upcast to the current version.

        Raises Unreadable when the data does not fit.
        """
        try:
            for step in range(version, shape.type.version):
                data = shape.type.upcasts[step](data)
            event: Event = shape.record.load(data)
        except KisekiError:
            raise
        except Exception as problem:  # an upcaster is a user's function; whatever it raises means: can't be read
            raise Unreadable(
                f"stored data of {shape.type.name} version {version} can't be read ({type(problem).__name__})"
            ) from problem
        return event

    def describe(self) -> Any:
        """All names, versions and fields: the application's storage format, to be kept under test."""
        return [self._by_name[name].describe() for name in sorted(self._by_name)]


def fingerprint(description: Any) -> str:
    """A short stable hash of a description (16 hex digits)."""
    return hashlib.sha256(msgspec.json.encode(description, order="deterministic")).hexdigest()[:16]


def _contains_personal(shape: Shape) -> bool:
    if isinstance(shape, PersonalShape):
        return True
    if isinstance(shape, RecordShape):
        return any(_contains_personal(field.shape) for field in shape.fields)
    inner = [getattr(shape, name, None) for name in ("inner", "item")]
    options = getattr(shape, "options", {})
    return any(_contains_personal(part) for part in [*inner, *options.values()] if isinstance(part, Shape))


def _subject_field(cls: type[Event], record: RecordShape) -> str | None:
    shapes = {field.name: field.shape for field in record.fields}
    # With or without the ClassVar annotation: one that was forgotten must not silently change whose data it is.
    if "subject" in shapes or not hasattr(cls, "subject"):
        return None
    name = cls.subject
    if not isinstance(name, str) or not isinstance(shapes.get(name), StringShape | TextShape):
        raise DefinitionError(f"{cls.__qualname__}: subject must name a text field that holds a full stream name")
    return name
