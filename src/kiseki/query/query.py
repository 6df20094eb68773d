"""`Query`: a typed question to the read model. Users define them; the query API serves them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Row, Select

from kiseki.kernel.access import Allow, allow_of
from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.record import Record
from kiseki.projection.projection import Projection

__all__ = ["Arguments", "Query", "ReadModel", "View"]

_NAME = re.compile(r"[a-z][A-Za-z0-9]{0,63}")
_MAX_READS = 10  # as many databases as SQLite attaches to one connection; the same on every store


class Arguments(Record):
    """Base of a query's arguments: typed fields, checked like a command's."""


class View(Record):
    """Base of what queries answer: typed fields, served as a GraphQL type of the class's name."""


A = TypeVar("A", bound=Arguments)


class ReadModel(Protocol):
    """The tables of a query's projections, read in one consistent state."""

    async def all(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        """All rows of a statement. Raises Unavailable."""
        ...

    async def first(self, statement: Select[Any]) -> Row[Any] | None:
        """The first row of a statement, None when there is none. Raises Unavailable."""
        ...


class Query:
    """A named question: `Query("getUserAccount", get_user_account, reads=[user_accounts], roles={"user"})`.

    The handler is `async def handler(arguments: MyArguments, read: ReadModel) -> MyView | None` (or a tuple of
    views, or a plain value); its annotations give the GraphQL arguments and type. `reads` are the projections whose
    tables it uses, which a consistency token waits for. `roles` are the roles that may ask, or an Allow that also knows
    whose object it is about.

    Raises DefinitionError when the parts don't fit.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[A, ReadModel], Awaitable[object]],
        *,
        reads: Sequence[Projection],
        roles: Allow | Collection[str],
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"query {name!r}: a name is camelCase letters and digits")
        if not reads:
            raise DefinitionError(f"query {name}: name the projections it reads")
        if len(reads) > _MAX_READS:
            raise DefinitionError(f"query {name}: it can read at most {_MAX_READS} projections, not {len(reads)}")
        self.name = name
        self.handler: Callable[[Any, ReadModel], Awaitable[object]] = handler
        self.reads = tuple(reads)
        self.arguments_type, self.result_type = _signature(name, handler)
        self.allow = allow_of(roles, f"query {name}", self.arguments_type)

    def __repr__(self) -> str:
        return f"Query({self.name!r})"


def _signature(name: str, handler: Callable[..., Any]) -> tuple[type[Arguments], Any]:
    """The handler's first parameter's class and its result's type, from its annotations."""
    try:
        hints = typing.get_type_hints(handler, include_extras=True)
    except (NameError, TypeError) as problem:
        raise DefinitionError(f"query {name}: a type of its handler can't be resolved ({problem})") from problem
    parameters = list(inspect.signature(handler).parameters)
    arguments = hints.get(parameters[0]) if len(parameters) == 2 else None
    if not (isinstance(arguments, type) and issubclass(arguments, Arguments)) or "return" not in hints:
        raise DefinitionError(
            f"query {name}: its handler is `async def handler(arguments: <Arguments>, read: ReadModel) -> <type>`"
        )
    return arguments, hints["return"]
