"""Shapes made of other shapes, and `shape_of`, which finds the shape of an annotation."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.personal import ERASED, Erased, PersonalMarker
from kiseki.kernel.record import Record, record_fields
from kiseki.kernel.shapes.base import FAILED, FieldError, Path, Shape, Unreadable, camel_case, wrong
from kiseki.kernel.shapes.scalars import (
    BooleanShape,
    DateShape,
    DateTimeShape,
    DecimalShape,
    EnumShape,
    FloatShape,
    IntegerShape,
    StreamIdShape,
    StringShape,
    TextShape,
    WholeNumberShape,
)
from kiseki.kernel.streams import StreamId
from kiseki.kernel.text import InvalidValue, Text, WholeNumber

__all__ = [
    "ERASED_MARK",
    "ListShape",
    "MappingShape",
    "OptionalShape",
    "PersonalShape",
    "RecordShape",
    "ShapedField",
    "UnionShape",
    "shape_of",
]

ERASED_MARK: Final = "$erased"
TAG: Final = "$type"
_MAX_ITEMS: Final = 1_000


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
            return wrong(path, errors, "a list")
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
            return wrong(path, errors, "an object")
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
