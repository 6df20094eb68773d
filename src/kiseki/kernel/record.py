"""`Record`, the frozen typed value that commands, events, states, inputs and views are made of."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, dataclass_transform

from kiseki.kernel.errors import DefinitionError

__all__ = ["Record", "RecordField", "record_fields"]


class RecordField(typing.NamedTuple):
    """One declared field of a record: its name, its resolved type, and whether it may be left out."""

    name: str
    annotation: Any
    optional: bool


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Record:
    """An immutable value with typed fields; subclasses become frozen dataclasses.

    Equality compares fields. `repr` shows field names only: a record may hold personal data, and a repr
    ends up in logs and tracebacks.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, eq=True, repr=False)(cls)

    def __repr__(self) -> str:
        names = ", ".join(f.name for f in dataclasses.fields(self))  # type: ignore[arg-type]  # subclasses are dataclasses
        return f"{type(self).__name__}({names})"


def record_fields(cls: type[Record]) -> Iterator[RecordField]:
    """The fields of a record class with their types resolved, `metadata` of commands left out.

    Raises DefinitionError when an annotation can't be resolved.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as problem:
        raise DefinitionError(f"{cls.__qualname__}: a field's type can't be resolved ({problem})") from problem
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # subclasses of Record are dataclasses
        if not field.compare:
            continue
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        yield RecordField(field.name, hints[field.name], optional)
