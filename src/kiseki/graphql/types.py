"""GraphQL types for the shapes of commands, arguments and views; used when a schema is built."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any

from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLFloat,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLString,
)

from kiseki.kernel import shapes
from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.shapes import RecordShape, Shape, ShapedField

__all__ = ["TypeMap"]


def _serialize_datetime(value: object) -> str:
    if not isinstance(value, datetime):
        raise GraphQLError("a DateTime was expected")
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _serialize_date(value: object) -> str:
    if not isinstance(value, date):
        raise GraphQLError("a Date was expected")
    return value.isoformat()


def _parse_string(value: object) -> str:
    # What the string holds is checked with all other fields of the input, so that all errors are told at once.
    if not isinstance(value, str):
        raise GraphQLError("must be a string")
    return value


class TypeMap:
    """The types of one schema: one GraphQL type for each class, made when first met."""

    def __init__(self) -> None:
        self._inputs: dict[type, GraphQLInputObjectType] = {}
        self._outputs: dict[type, GraphQLObjectType] = {}
        self._enums: dict[type, GraphQLEnumType] = {}
        self._scalars: dict[type[Shape], GraphQLScalarType] = {
            shapes.BooleanShape: GraphQLBoolean,
            shapes.IntegerShape: GraphQLInt,
            shapes.WholeNumberShape: GraphQLInt,
            shapes.FloatShape: GraphQLFloat,
            shapes.StringShape: GraphQLString,
            shapes.TextShape: GraphQLString,
            shapes.StreamIdShape: GraphQLString,
            shapes.DateTimeShape: GraphQLScalarType(
                "DateTime",
                description="A point in time, ISO 8601 in UTC.",
                serialize=_serialize_datetime,
                parse_value=_parse_string,
            ),
            shapes.DateShape: GraphQLScalarType(
                "Date", description="A day, YYYY-MM-DD.", serialize=_serialize_date, parse_value=_parse_string
            ),
            shapes.DecimalShape: GraphQLScalarType(
                "Decimal",
                description="An exact decimal number, as a string.",
                serialize=lambda value: str(Decimal(value)),
                parse_value=_parse_string,
            ),
        }

    def input(self, shape: Shape, where: str) -> Any:
        """The input type of a shape, non-null unless optional. Raises DefinitionError."""
        if isinstance(shape, shapes.OptionalShape):
            return _nullable(self.input(shape.inner, where))
        return GraphQLNonNull(self._named(shape, where, self.input, self._input_object))

    def output(self, shape: Shape, where: str) -> Any:
        """The output type of a shape, non-null unless optional. Raises DefinitionError."""
        if isinstance(shape, shapes.OptionalShape):
            return _nullable(self.output(shape.inner, where))
        return GraphQLNonNull(self._named(shape, where, self.output, self._object))

    def input_field(self, field: ShapedField, where: str) -> Any:
        """The input type of a record's field; one with a default may be left out."""
        made = self.input(field.shape, f"{where}.{field.name}")
        return _nullable(made) if field.optional else made

    def _named(
        self, shape: Shape, where: str, items: Callable[[Shape, str], Any], records: Callable[[RecordShape], Any]
    ) -> Any:
        scalar = self._scalars.get(type(shape))
        if scalar is not None:
            return scalar
        if isinstance(shape, shapes.EnumShape):
            return self._enum(shape)
        if isinstance(shape, shapes.ListShape):
            return GraphQLList(items(shape.item, where))
        if isinstance(shape, RecordShape):
            return records(shape)
        raise DefinitionError(f"{where}: GraphQL has no type for this; use value objects, scalars, lists and records")

    def _enum(self, shape: shapes.EnumShape) -> GraphQLEnumType:
        if shape.cls not in self._enums:
            names = {name: name for name in shape.cls.__members__}
            self._enums[shape.cls] = GraphQLEnumType(shape.cls.__name__, names, description=_first_line(shape.cls))
        return self._enums[shape.cls]

    def _input_object(self, shape: RecordShape) -> GraphQLInputObjectType:
        if shape.cls not in self._inputs:
            self._inputs[shape.cls] = GraphQLInputObjectType(
                f"{shape.cls.__name__}Input",
                {f.wire_name: GraphQLInputField(self.input_field(f, shape.cls.__name__)) for f in shape.fields},
                description=_first_line(shape.cls),
            )
        return self._inputs[shape.cls]

    def _object(self, shape: RecordShape) -> GraphQLObjectType:
        if shape.cls not in self._outputs:
            self._outputs[shape.cls] = GraphQLObjectType(
                shape.cls.__name__,
                {
                    f.wire_name: GraphQLField(
                        self.output(f.shape, f"{shape.cls.__name__}.{f.name}"), resolve=_resolver(f.name, f.shape)
                    )
                    for f in shape.fields
                },
                description=_first_line(shape.cls),
            )
        return self._outputs[shape.cls]


def _resolver(name: str, shape: Shape) -> Callable[[Any, GraphQLResolveInfo[Any]], Any]:
    get = attrgetter(name)
    inner = shape.inner if isinstance(shape, shapes.OptionalShape) else shape
    if isinstance(inner, shapes.EnumShape):
        return lambda source, _info: None if (value := get(source)) is None else value.name
    return lambda source, _info: get(source)


def _nullable(made: Any) -> Any:
    return made.of_type if isinstance(made, GraphQLNonNull) else made


def _first_line(cls: type) -> str | None:
    text = cls.__dict__.get("__doc__")
    # dataclasses write a signature into a class that has no docstring
    if not text or text.startswith(f"{cls.__name__}("):
        return None
    return str(text).strip().splitlines()[0]
