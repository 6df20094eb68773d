"""`Decider`: the whole of an aggregate's behaviour as plain functions (initial state, `decide`, `evolve`)."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from kiseki.kernel.command import Command
from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.kernel.event import Event
from kiseki.kernel.record import record_fields
from kiseki.kernel.shapes import camel_case
from kiseki.kernel.state import State
from kiseki.kernel.streams import AGGREGATE_TYPE, StreamId

__all__ = ["Claim", "Decider", "Rejected", "Release", "Take"]

C = TypeVar("C", bound=Command)
S = TypeVar("S")
E = TypeVar("E", bound=Event)

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SCOPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class Rejected(KisekiError):  # the field's word for it
    """The decider says no: `raise Rejected("SAME_NAME", "the account already has this name")`.

    Nothing is written. The code is stable and goes to clients; so does the message, which therefore holds no
    personal data.
    """

    def __init__(self, code: str, message: str) -> None:
        if not _CODE.fullmatch(code):
            raise DefinitionError(f"a rejection's code is upper case letters, digits and _, not {code!r}")
        super().__init__(message)
        self.code = code
        self.message = message


class Take(msgspec.Struct, frozen=True):
    """Takes a value that only one stream may hold at a time within `scope`. Only a keyed hash of it is stored."""

    scope: str
    value: str


class Release(msgspec.Struct, frozen=True):
    """Gives back a value that this stream holds."""

    scope: str
    value: str


Claim: TypeAlias = Take | Release


class Decider(Generic[C, S, E]):
    """How one kind of aggregate behaves.

    `decide(command, state)` returns the events that follow, `()` when there is nothing to write, or raises
    Rejected. `evolve(state, event)` gives the next state and is total. Both are pure. `claims(state, event)`, with the
    state before the event, says which unique values an event takes and releases, atomically with it.
    `state_version` must be raised when `evolve` changes its meaning while the state's types stay the same;
    older snapshots are then not used.

    Raises DefinitionError when the parts don't fit.
    """

    def __init__(
        self,
        aggregate_type: str,
        *,
        initial: State,
        decide: Callable[[C, S], Sequence[E]],
        evolve: Callable[[S, E], S],
        commands: type[Command] | types.UnionType,
        events: type[Event] | types.UnionType,
        claims: Callable[[S, E], Sequence[Claim]] | None = None,
        state_version: int = 1,
    ) -> None:
        if not AGGREGATE_TYPE.fullmatch(aggregate_type):
            raise DefinitionError(f"decider {aggregate_type!r}: an aggregate type is a letter, then letters and digits")
        self.aggregate_type = aggregate_type
        self.decide = decide
        self.evolve = evolve
        self.claims = claims
        self.state_version = state_version
        self.command_types: tuple[type[Command], ...] = _members(commands, Command, aggregate_type)
        self.event_types: tuple[type[Event], ...] = _members(events, Event, aggregate_type)
        self.state_type = _state_type(evolve, aggregate_type)
        if not isinstance(initial, typing.get_args(self.state_type) or self.state_type):
            raise DefinitionError(f"decider {aggregate_type}: the initial state is not of the type that evolve returns")
        self.initial: S = typing.cast(S, initial)
        self._id_fields: Mapping[type[Command], str | None] = {
            command: _stream_id_field(command) for command in self.command_types
        }

    def __repr__(self) -> str:
        return f"Decider({self.aggregate_type!r})"

    def creates(self, command_type: type[Command]) -> bool:
        """Whether commands of this type create a stream (they have no StreamId field)."""
        return self._id_fields[command_type] is None

    def stream_id_field(self, command_type: type[Command]) -> str | None:
        """The name of the field that addresses the stream, None for a command that creates one."""
        return self._id_fields[command_type]


def command_name(command_type: type[Command]) -> str:
    """A command's name on the wire: `CreateUserAccount` is `createUserAccount`."""
    name = command_type.__name__
    return name[0].lower() + name[1:]


def _members(declared: Any, base: type[Any], aggregate_type: str) -> tuple[Any, ...]:
    members = typing.get_args(declared) or (declared,)
    for member in members:
        if not (isinstance(member, type) and issubclass(member, base) and member is not base):
            raise DefinitionError(f"decider {aggregate_type}: {member!r} is not a subclass of {base.__name__}")
    return members


def _state_type(evolve: Callable[..., Any], aggregate_type: str) -> Any:
    try:
        state_type = typing.get_type_hints(evolve, include_extras=True)["return"]
    except (KeyError, NameError, TypeError) as problem:
        raise DefinitionError(
            f"decider {aggregate_type}: annotate what evolve returns; that is the type of the state"
        ) from problem
    for member in typing.get_args(state_type) or (state_type,):
        if not (isinstance(member, type) and issubclass(member, State)):
            raise DefinitionError(f"decider {aggregate_type}: the state {member!r} is not a subclass of State")
    return state_type


def _stream_id_field(command_type: type[Command]) -> str | None:
    fields = [field for field in record_fields(command_type) if field.annotation is StreamId]
    if len(fields) > 1:
        names = ", ".join(camel_case(field.name) for field in fields)
        raise DefinitionError(f"{command_type.__qualname__}: a command has one StreamId field, not several ({names})")
    return fields[0].name if fields else None
