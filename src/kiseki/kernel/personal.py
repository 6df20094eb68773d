"""Personal data in events and states: `Personal[T]` is encrypted per subject and reads as `T | Erased`."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

__all__ = ["ERASED", "PERSONAL", "Erased", "Personal", "PersonalMarker"]

T = TypeVar("T")


class Erased:
    """What a personal field reads as after its subject was erased. There is one: `ERASED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ERASED"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erased)

    def __hash__(self) -> int:
        return hash(Erased)


class PersonalMarker:
    """Marks a field's type as personal; found in the annotation, never in a value."""

    __slots__ = ()


ERASED: Final = Erased()
PERSONAL: Final = PersonalMarker()

Personal: TypeAlias = Annotated[T | Erased, PERSONAL]
"""The type of an event's field that holds personal data: stored encrypted, reads as the value or `Erased`."""
