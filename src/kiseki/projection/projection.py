"""`Projection`: how events become rows. Users define one per read model; the projector runs it."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Delete, Insert, MetaData, Table, Update

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.event import Event, EventMetadata

__all__ = ["Change", "Projection", "Statement"]

E = TypeVar("E", bound=Event)

Statement: TypeAlias = Insert | Update | Delete
"""A statement that changes rows: SQLAlchemy's `insert`, `update` or `delete`, dialect ones included."""

Change: TypeAlias = Statement | tuple[Statement, Mapping[str, object]]
"""A statement, or a statement with its parameters, as in SQLAlchemy's `connection.execute(statement, parameters)`.

The second form, with one statement made once at module level, is the fast one: what an event costs is then a
dictionary, and changes of the same statement in a row reach the database together. Changes of different tables may
change places for that, where each is certain to touch one table alone. A trigger, rule or function that was added to
the database by hand can't be seen: it must not make rows of one table depend on those of another.
"""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# Schema names that databases keep for themselves; a projection's name is a schema's name.
_RESERVED = frozenset({"main", "temp", "public", "information_schema"})
_RESERVED_PREFIXES = ("pg_", "sqlite_", "kiseki_")


class Projection:
    """Follows events and keeps tables.

    `apply(event, metadata)` is pure: it returns the changes that follow from one event, and they run in the same
    transaction as the progress; it may be called more than once for an event. `events` names the event types it
    follows; others pass it by. The tables are SQLAlchemy Core tables of a `MetaData(schema=<name of the projection>)`.
    They are created by kiseki and never altered: change them, `apply`, or which known events are followed, raise
    `version`, and the new version is built beside the old.

    Raises DefinitionError when the parts don't fit.
    """

    def __init__(
        self,
        name: str,
        *,
        version: int,
        tables: Sequence[Table],
        events: type[Event] | types.UnionType,
        apply: Callable[[E, EventMetadata], Sequence[Change]],
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"projection {name!r}: a name is lower case letters, digits and _, at most 40")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise DefinitionError(f"projection {name}: databases keep this name for themselves; use another one")
        if version < 1:
            raise DefinitionError(f"projection {name}: versions count from 1")
        if not tables:
            raise DefinitionError(f"projection {name}: it keeps no table")
        for table in tables:
            if table.schema != name:
                raise DefinitionError(
                    f"projection {name}: table {table.name} must be defined with MetaData(schema={name!r})"
                )
            if table.name.startswith(_RESERVED_PREFIXES):
                raise DefinitionError(
                    f"projection {name}: table {table.name}: names in {', '.join(_RESERVED_PREFIXES)}… are kept"
                )
        self.name = name
        self.version = version
        self.tables = tuple(tables)
        self.apply: Callable[[Any, EventMetadata], Sequence[Change]] = apply
        self.event_types: tuple[type[Event], ...] = _event_types(events, name)
        self.event_names = frozenset(event_type.event_type.name for event_type in self.event_types)

    def __repr__(self) -> str:
        return f"Projection({self.name!r}, version={self.version})"

    @property
    def metadata(self) -> MetaData:
        """The tables' metadata."""
        return self.tables[0].metadata


def _event_types(declared: Any, name: str) -> tuple[type[Event], ...]:
    members = typing.get_args(declared) or (declared,)
    for member in members:
        if not (isinstance(member, type) and issubclass(member, Event) and member is not Event):
            raise DefinitionError(f"projection {name}: {member!r} is not a subclass of Event")
    return members
