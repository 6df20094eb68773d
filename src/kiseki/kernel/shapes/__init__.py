"""Shapes: what kiseki knows of a field's type. One description serves parsing input, storing, loading and schemas.

`shape_of(annotation)` turns a type annotation into a shape once, when an application is composed. A shape can
`parse` what came from outside (collecting every error, never only the first), `dump` a value to plain JSON data
(refusing what some store could not hold), `load` it back without checking it again, and `describe` itself.
"""

from kiseki.kernel.shapes.base import FAILED, FieldError, Path, Shape, Unreadable, Unstorable, camel_case
from kiseki.kernel.shapes.composites import (
    ERASED_MARK,
    ListShape,
    MappingShape,
    OptionalShape,
    PersonalShape,
    RecordShape,
    ShapedField,
    UnionShape,
    shape_of,
)
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

__all__ = [
    "ERASED_MARK",
    "FAILED",
    "BooleanShape",
    "DateShape",
    "DateTimeShape",
    "DecimalShape",
    "EnumShape",
    "FieldError",
    "FloatShape",
    "IntegerShape",
    "ListShape",
    "MappingShape",
    "OptionalShape",
    "Path",
    "PersonalShape",
    "RecordShape",
    "Shape",
    "ShapedField",
    "StreamIdShape",
    "StringShape",
    "TextShape",
    "UnionShape",
    "Unreadable",
    "Unstorable",
    "WholeNumberShape",
    "camel_case",
    "shape_of",
]
