"""Shapes: what kiseki knows of a field's type. One description serves parsing input, storing, loading and schemas.

`shape_of(annotation)` turns a type annotation into a shape once, when an application is composed. A shape can
`parse` what came from outside (collecting every error, never only the first), `dump` a value to plain JSON data
(refusing what some store could not hold), `load` it back without checking it again, and `describe` itself.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.kernel.personal import ERASED, Erased, PersonalMarker
from kiseki.kernel.record import Record, record_fields
from kiseki.kernel.streams import StreamId
from kiseki.kernel.text import InvalidValue, Text, WholeNumber, forbidden_character

__all__ = [
    "FAILED",
    "FieldError",
    "Path",
    "RecordShape",
    "Shape",
    "Unreadable",
    "Unstorable",
    "camel_case",
    "shape_of",
]

Path: TypeAlias = tuple[str | int, ...]
ERASED_MARK: Final = "$erased"
TAG: Final = "$type"
_MAX_PLAIN_TEXT = 10_000
_MAX_ITEMS = 1_000
_INT64 = 2**63


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


def _wrong(path: Path, errors: list[FieldError], expected: str) -> _Failed:
    errors.append(FieldError(path, "WRONG_TYPE", f"must be {expected}"))
    return FAILED


class BooleanShape(Shape):
    kind = "boolean"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        return value if isinstance(value, bool) else _wrong(path, errors, "true or false")


class IntegerShape(Shape):
    """A plain int: 64 bits in storage, 32 on the wire (GraphQL's Int)."""

    kind = "integer"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return _wrong(path, errors, "a whole number")
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
            return _wrong(path, errors, "a whole number")
        return _checked(self.cls, value, path, errors)

    def load(self, data: Any) -> Any:
        return self.cls.trusted(data)


class FloatShape(Shape):
    kind = "float"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return _wrong(path, errors, "a number")
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
            return _wrong(path, errors, "a string")
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
            return _wrong(path, errors, "a string")
        return _checked(self.cls, value, path, errors)

    def dump(self, value: Any) -> Any:
        return str(value)

    def load(self, data: Any) -> Any:
        return self.cls.trusted(data)


class StreamIdShape(Shape):
    """The id of a stream."""

    kind = "stream-id"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str):
            return _wrong(path, errors, "a string")
        return _checked(StreamId, value, path, errors)

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
            return _wrong(path, errors, "a date and time with a zone (ISO 8601)")
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
        return value if type(value) is date else _wrong(path, errors, "a date (YYYY-MM-DD)")

    def dump(self, value: Any) -> Any:
        return value.isoformat()

    def load(self, data: Any) -> Any:
        return date.fromisoformat(data)


class DecimalShape(Shape):
    """An exact decimal number, at most 30 digits, a string on the wire and in storage."""

    kind = "decimal"

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, str | Decimal) or len(str(value)) > 40:
            return _wrong(path, errors, "a decimal number as a string")
        try:
            number = Decimal(value)
        except InvalidOperation:
            return _wrong(path, errors, "a decimal number as a string")
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
        return _wrong(path, errors, "one of " + ", ".join(self.cls.__members__))

    def dump(self, value: Any) -> Any:
        return value.name

    def load(self, data: Any) -> Any:
        return self.cls[data]

    def describe(self) -> Any:
        return {"enum": sorted(self.cls.__members__)}


class OptionalShape(Shape):
    """A value or nothing."""

    def __init__(self, inner: Shape) -> None:
        self.inner = inner

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        return None if value is None else self.inner.parse(value, path, errors)

    def dump(self, value: Any) -> Any:
        return None if value is None else self.inner.dump(value)

    def load(self, data: Any) -> Any:
        return None if data is None else self.inner.load(data)

    def describe(self) -> Any:
        return {"optional": self.inner.describe()}


class ListShape(Shape):
    """`tuple[X, ...]` or `frozenset[X]`: an array on the wire and in storage."""

    def __init__(self, item: Shape, make: Callable[[Sequence[Any]], Any]) -> None:
        self.item = item
        self.make = make

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, list | tuple):
            return _wrong(path, errors, "a list")
        if len(value) > _MAX_ITEMS:
            errors.append(FieldError(path, "TOO_LONG", f"must have at most {_MAX_ITEMS} items"))
            return FAILED
        before = len(errors)
        items = [self.item.parse(item, (*path, index), errors) for index, item in enumerate(value)]
        return FAILED if len(errors) > before else self.make(items)

    def dump(self, value: Any) -> Any:
        # Sets are dumped in one order, so that equal values are equal bytes.
        items = [self.item.dump(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, frozenset) else items

    def load(self, data: Any) -> Any:
        return self.make([self.item.load(item) for item in data])

    def describe(self) -> Any:
        return {"list": self.item.describe()}


class MappingShape(Shape):
    """`Mapping[str, X]`; only inside events and states, GraphQL inputs have no maps."""

    def __init__(self, key: Shape, item: Shape) -> None:
        self.key = key
        self.item = item

    def dump(self, value: Any) -> Any:
        return {self.key.dump(key): self.item.dump(item) for key, item in value.items()}

    def load(self, data: Any) -> Any:
        return {self.key.load(key): self.item.load(item) for key, item in data.items()}

    def describe(self) -> Any:
        return {"map": [self.key.describe(), self.item.describe()]}


class PersonalShape(Shape):
    """`Personal[X]`: the value, or the mark that it was erased."""

    def __init__(self, inner: Shape) -> None:
        self.inner = inner

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        return self.inner.parse(value, path, errors)

    def dump(self, value: Any) -> Any:
        return {ERASED_MARK: True} if isinstance(value, Erased) else self.inner.dump(value)

    def load(self, data: Any) -> Any:
        if isinstance(data, dict) and data.get(ERASED_MARK) is True:
            return ERASED
        return self.inner.load(data)

    def describe(self) -> Any:
        return {"personal": self.inner.describe()}


class ShapedField(typing.NamedTuple):
    """A field of a record with its shape and its name on the wire."""

    name: str
    wire_name: str
    shape: Shape
    optional: bool


class RecordShape(Shape):
    """A Record: an object on the wire and in storage."""

    def __init__(self, cls: type[Record], outer: tuple[type, ...] = ()) -> None:
        if cls in outer:
            raise DefinitionError(f"{cls.__qualname__}: a record can't contain itself")
        self.cls = cls
        self.fields = tuple(
            ShapedField(
                f.name,
                camel_case(f.name),
                _shape(f.annotation, f"{cls.__qualname__}.{f.name}", (*outer, cls)),
                f.optional,
            )
            for f in record_fields(cls)
        )
        self._wire_names = frozenset(field.wire_name for field in self.fields)
        self._loads = tuple((f.name, None if type(f.shape).load is Shape.load else f.shape.load) for f in self.fields)
        self._dumps = tuple((f.name, f.shape.dump) for f in self.fields)
        self._optional = frozenset(f.name for f in self.fields if f.optional)

    def parse(self, value: object, path: Path, errors: list[FieldError]) -> Any:
        if not isinstance(value, dict):
            return _wrong(path, errors, "an object")
        before = len(errors)
        values: dict[str, Any] = {}
        for name, wire_name, shape, optional in self.fields:
            given = value.get(wire_name)
            if given is None:
                # An explicit null for a field that has a default is the same as leaving it out.
                if optional:
                    continue
                if not isinstance(shape, OptionalShape):
                    errors.append(FieldError((*path, wire_name), "REQUIRED", "is required"))
                    continue
            values[name] = shape.parse(given, (*path, wire_name), errors)
        if len(value) > len(self._wire_names) or not self._wire_names.issuperset(value):
            errors.extend(
                FieldError((*path, str(key)[:100]), "UNKNOWN_FIELD", "is not a field of this input")
                for key in value
                if key not in self._wire_names
            )
        if len(errors) > before:
            return FAILED
        try:
            return self.cls(**values)
        except InvalidValue as problem:
            errors.append(FieldError(path, problem.code, problem.message))
            return FAILED

    def dump(self, value: Any) -> Any:
        return {name: dump(getattr(value, name)) for name, dump in self._dumps}

    def load(self, data: Any) -> Any:
        values: dict[str, Any] = {}
        for name, load in self._loads:
            try:
                given = data[name]
            except KeyError:
                return self._load_partial(data)
            values[name] = given if load is None else load(given)
        # What was stored is trusted: no __init__, no second check of what was a fact.
        record = object.__new__(self.cls)
        record.__dict__.update(values)
        return record

    def _load_partial(self, data: Any) -> Any:
        values = {}
        for name, load in self._loads:
            if name in data:
                values[name] = data[name] if load is None else load(data[name])
            elif name not in self._optional:
                raise Unreadable(f"{self.cls.__qualname__}: stored data has no field {name}")
        return self.cls(**values)

    def describe(self) -> Any:
        return {"record": {f.name: f.shape.describe() for f in self.fields}}


class UnionShape(Shape):
    """One of several records, told apart by class name; only inside events and states."""

    def __init__(self, options: Sequence[RecordShape]) -> None:
        self.options: Mapping[str, RecordShape] = {option.cls.__name__: option for option in options}
        if len(self.options) != len(options):
            raise DefinitionError("two records of a union have the same class name")

    def dump(self, value: Any) -> Any:
        name = type(value).__name__
        return {TAG: name, **self.options[name].dump(value)}

    def load(self, data: Any) -> Any:
        option = self.options.get(data[TAG])
        if option is None:
            raise Unreadable(f"stored data is of an unknown kind; known are {', '.join(self.options)}")
        return option.load(data)

    def describe(self) -> Any:
        return {"union": {name: option.describe() for name, option in sorted(self.options.items())}}


def _checked(cls: Callable[[Any], Any], value: object, path: Path, errors: list[FieldError]) -> Any:
    try:
        return cls(value)
    except InvalidValue as problem:
        errors.append(FieldError(path, problem.code, problem.message))
        return FAILED


_PLAIN: Final[Mapping[Any, Callable[[], Shape]]] = types.MappingProxyType(
    {
        bool: BooleanShape,
        int: IntegerShape,
        float: FloatShape,
        str: StringShape,
        datetime: DateTimeShape,
        date: DateShape,
        Decimal: DecimalShape,
        StreamId: StreamIdShape,
    }
)


def shape_of(annotation: Any, where: str = "") -> Shape:
    """The shape of a type annotation. Raises DefinitionError, naming `where`, for a type kiseki has no shape for."""
    return _shape(annotation, where or str(annotation), ())


def _shape(annotation: Any, where: str, outer: tuple[type, ...]) -> Shape:
    if annotation in _PLAIN:
        return _PLAIN[annotation]()
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        if any(isinstance(extra, PersonalMarker) for extra in arguments[1:]):
            options = [option for option in typing.get_args(arguments[0]) if option is not Erased]
            return PersonalShape(_shape(typing.Union[tuple(options)], where, outer))  # noqa: UP007  # a union made at run time
        return _shape(arguments[0], where, outer)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, where, outer)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return ListShape(_shape(arguments[0], where, outer), tuple)
    if origin is frozenset:
        return ListShape(_shape(arguments[0], where, outer), frozenset)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        key = _shape(arguments[0], where, outer)
        if not isinstance(key, StringShape | TextShape | StreamIdShape):
            raise DefinitionError(f"{where}: the keys of a mapping must be text")
        return MappingShape(key, _shape(arguments[1], where, outer))
    if isinstance(annotation, type):
        if issubclass(annotation, Text):
            return TextShape(annotation)
        if issubclass(annotation, WholeNumber):
            return WholeNumberShape(annotation)
        if issubclass(annotation, Enum):
            return EnumShape(annotation)
        if issubclass(annotation, Record):
            return RecordShape(annotation, outer)
    raise DefinitionError(
        f"{where}: kiseki can't store a {annotation!r}; use value objects, str, int, float, bool, Decimal, datetime, "
        "date, an Enum, tuple[X, ...], frozenset[X], Mapping[str, X], a record, or a union of records"
    )


def _union(arguments: tuple[Any, ...], where: str, outer: tuple[type, ...]) -> Shape:
    options = [argument for argument in arguments if argument is not type(None)]
    if len(options) == 1:
        inner = _shape(options[0], where, outer)
        return OptionalShape(inner) if len(options) < len(arguments) else inner
    shapes = [_shape(option, where, outer) for option in options]
    records = [shape for shape in shapes if isinstance(shape, RecordShape)]
    if len(records) < len(shapes):
        raise DefinitionError(f"{where}: a union can hold records, or one type and None")
    union = UnionShape(records)
    return OptionalShape(union) if len(options) < len(arguments) else union
