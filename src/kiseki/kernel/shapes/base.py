"""What all shapes share: the base class, how input errors are collected, and what storing and reading can refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.text import InvalidValue

__all__ = ["FAILED", "FieldError", "Path", "Shape", "Unreadable", "Unstorable", "camel_case", "checked", "wrong"]

Path: TypeAlias = tuple[str | int, ...]


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with one field of an input. The message never repeats the value."""

    path: Path
    code: str
    message: str


class Unstorable(KisekiError):
    """A value that some store can't hold: refused before it becomes a fact that can't be applied."""

    code = "UNSTORABLE"


class Unreadable(KisekiError):
    """Stored data that does not fit the type that reads it."""

    code = "UNREADABLE"


class _Failed:
    __slots__ = ()


FAILED: Final = _Failed()
"""What `parse` returns when it has added an error."""


def camel_case(name: str) -> str:
    """`first_name` as it is called on the wire: `firstName`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class Shape:
    """Base of all shapes: a value that is plain JSON data as it stands."""

    kind = "json"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        """The typed value of an input, or FAILED after adding to `errors`."""
        raise NotImplementedError

    def dump(self, value: Any) -> Any:
        """The value as plain JSON data. Raises Unstorable."""
        return value

    def load(self, data: Any) -> Any:
        """The typed value of stored data, trusted. Raises Unreadable, TypeError, KeyError or ValueError."""
        return data

    def describe(self) -> Any:
        """What of the type matters to storage, as JSON data."""
        return self.kind


def wrong(path: Path, errors: list[FieldError], expected: str) -> _Failed:
    """Adds that a value is of another type than `expected`."""
    errors.append(FieldError(path, "WRONG_TYPE", f"must be {expected}"))
    return FAILED


def checked(cls: Callable[[Any], Any], value: object, path: Path, errors: list[FieldError]) -> Any:
    """The value as its value object makes it, or FAILED after adding why it does not."""
    try:
        return cls(value)
    except InvalidValue as problem:
        errors.append(FieldError(path, problem.code, problem.message))
        return FAILED
