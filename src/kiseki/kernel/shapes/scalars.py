"""Shapes of single values: flags, numbers, text, ids, times, enums."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final

from kiseki.kernel.shapes.base import FAILED, FieldError, Path, Shape, Unstorable, checked, wrong
from kiseki.kernel.streams import StreamId
from kiseki.kernel.text import Text, WholeNumber, forbidden_character

__all__ = [
    "BooleanShape",
    "DateShape",
    "DateTimeShape",
    "DecimalShape",
    "EnumShape",
    "FloatShape",
    "IntegerShape",
    "StreamIdShape",
    "StringShape",
    "TextShape",
    "WholeNumberShape",
]

_MAX_PLAIN_TEXT: Final = 10_000
_INT64: Final = 2**63


class BooleanShape(Shape):
    kind = "boolean"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        return value if isinstance(value, bool) else wrong(path, errors, "true or false")


class IntegerShape(Shape):
    """A plain int: 64 bits in storage, 32 on the wire (GraphQL's Int)."""

    kind = "integer"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return wrong(path, errors, "a whole number")
        if not -(2**31) <= value < 2**31:
            errors.append(FieldError(path, "OUT_OF_RANGE", "must fit in 32 bits"))
            return FAILED
        return value

    def dump(self, value: Any) -> Any:
        if not -_INT64 <= value < _INT64:
            raise Unstorable("a whole number does not fit in 64 bits")
        return int(value)


class WholeNumberShape(IntegerShape):
    """A WholeNumber subclass."""

    def __init__(self, cls: type[WholeNumber]) -> None:
        self.cls = cls

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return wrong(path, errors, "a whole number")
        return checked(self.cls, value, path, errors)

    def load(self, data: Any) -> Any:
        return self.cls.trusted(data)


class FloatShape(Shape):
    kind = "float"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return wrong(path, errors, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            errors.append(FieldError(path, "OUT_OF_RANGE", "must be a finite number"))
            return FAILED
        return number

    def dump(self, value: Any) -> Any:
        if not math.isfinite(value):
            raise Unstorable("a number is not finite")
        return float(value)


class StringShape(Shape):
    """A plain str: any text without forbidden characters, line breaks allowed."""

    kind = "string"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str):
            return wrong(path, errors, "a string")
        if len(value) > _MAX_PLAIN_TEXT:
            errors.append(FieldError(path, "TOO_LONG", f"must be at most {_MAX_PLAIN_TEXT} characters"))
            return FAILED
        problem = forbidden_character(value, multiline=True)
        if problem is not None:
            errors.append(FieldError(path, "FORBIDDEN_CHARACTER", f"must not contain the character {problem}"))
            return FAILED
        return value

    def dump(self, value: Any) -> Any:
        text = str(value)
        if "\0" in text:
            raise Unstorable("a text contains NUL")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as problem:
                raise Unstorable("a text contains a lone surrogate") from problem
        return text


class TextShape(Shape):
    """A Text subclass, checked when it was made."""

    kind = "string"

    def __init__(self, cls: type[Text]) -> None:
        self.cls = cls

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str):
            return wrong(path, errors, "a string")
        return checked(self.cls, value, path, errors)

    def dump(self, value: Any) -> Any:
        return str(value)

    def load(self, data: Any) -> Any:
        return self.cls.trusted(data)


class StreamIdShape(Shape):
    """The id of a stream."""

    kind = "stream-id"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str):
            return wrong(path, errors, "a string")
        return checked(StreamId, value, path, errors)

    def dump(self, value: Any) -> Any:
        return str(value)

    def load(self, data: Any) -> Any:
        return StreamId(data)


class DateTimeShape(Shape):
    """A point in time: with a zone when it comes in, UTC inside."""

    kind = "datetime"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                value = None
        if not isinstance(value, datetime) or value.tzinfo is None:
            return wrong(path, errors, "a date and time with a zone (ISO 8601)")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            errors.append(FieldError(path, "OUT_OF_RANGE", "must be a time of the years 1 to 9999"))
            return FAILED

    def dump(self, value: Any) -> Any:
        if value.tzinfo is None:
            raise Unstorable("a time has no zone")
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def load(self, data: Any) -> Any:
        return datetime.fromisoformat(data)


class DateShape(Shape):
    kind = "date"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if isinstance(value, str):
            try:
                return date.fromisoformat(value)
            except ValueError:
                value = None
        return value if type(value) is date else wrong(path, errors, "a date (YYYY-MM-DD)")

    def dump(self, value: Any) -> Any:
        return value.isoformat()

    def load(self, data: Any) -> Any:
        return date.fromisoformat(data)


class DecimalShape(Shape):
    """An exact decimal number, at most 30 digits, a string on the wire and in storage."""

    kind = "decimal"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str | Decimal) or len(str(value)) > 40:
            return wrong(path, errors, "a decimal number as a string")
        try:
            number = Decimal(value)
        except InvalidOperation:
            return wrong(path, errors, "a decimal number as a string")
        if not number.is_finite() or len(number.as_tuple().digits) > 30 or abs(number.adjusted()) > 30:
            errors.append(FieldError(path, "OUT_OF_RANGE", "must be a finite number of at most 30 digits"))
            return FAILED
        return number

    def dump(self, value: Any) -> Any:
        if not value.is_finite():
            raise Unstorable("a number is not finite")
        return str(value)

    def load(self, data: Any) -> Any:
        return Decimal(data)


class EnumShape(Shape):
    """One of a closed set of names; stored and sent by name."""

    kind = "enum"

    def __init__(self, cls: type[Enum]) -> None:
        self.cls = cls

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if isinstance(value, self.cls):
            return value
        if isinstance(value, str) and value in self.cls.__members__:
            return self.cls[value]
        return wrong(path, errors, "one of " + ", ".join(self.cls.__members__))

    def dump(self, value: Any) -> Any:
        return value.name

    def load(self, data: Any) -> Any:
        return self.cls[data]

    def describe(self) -> Any:
        return {"enum": sorted(self.cls.__members__)}
