"""kiseki: event-sourced services for Python, ready for production from the first command.

A context is plain typed Python made of the names exported here. Each is imported when it is first used (PEP 562): the
command line's own answers must not wait for a database toolkit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kiseki._version import __version__

if TYPE_CHECKING:
    from kiseki.application.context import Application, Context
    from kiseki.kernel.access import Allow
    from kiseki.kernel.command import Command, CommandMetadata
    from kiseki.kernel.decider import Claim, Decider, Rejected, Release, Take
    from kiseki.kernel.errors import DefinitionError, KisekiError, Unavailable
    from kiseki.kernel.event import Event, EventMetadata, Json
    from kiseki.kernel.personal import ERASED, Erased, Personal
    from kiseki.kernel.state import State, ValueObject
    from kiseki.kernel.streams import StreamId
    from kiseki.kernel.text import InvalidValue, Text, WholeNumber
    from kiseki.projection.projection import Change, Projection
    from kiseki.projection.types import UtcDateTime
    from kiseki.query.query import Arguments, Query, ReadModel, View

__all__ = [
    "ERASED",
    "Allow",
    "Application",
    "Arguments",
    "Change",
    "Claim",
    "Command",
    "CommandMetadata",
    "Context",
    "Decider",
    "DefinitionError",
    "Erased",
    "Event",
    "EventMetadata",
    "InvalidValue",
    "Json",
    "KisekiError",
    "Personal",
    "Projection",
    "Query",
    "ReadModel",
    "Rejected",
    "Release",
    "State",
    "StreamId",
    "Take",
    "Text",
    "Unavailable",
    "UtcDateTime",
    "ValueObject",
    "View",
    "WholeNumber",
    "__version__",
]

_HOMES: Final = {
    "kiseki.application.context": (
        "Application",
        "Context",
    ),
    "kiseki.kernel.access": ("Allow",),
    "kiseki.kernel.command": (
        "Command",
        "CommandMetadata",
    ),
    "kiseki.kernel.decider": (
        "Claim",
        "Decider",
        "Rejected",
        "Release",
        "Take",
    ),
    "kiseki.kernel.errors": (
        "DefinitionError",
        "KisekiError",
        "Unavailable",
    ),
    "kiseki.kernel.event": (
        "Event",
        "EventMetadata",
        "Json",
    ),
    "kiseki.kernel.personal": (
        "ERASED",
        "Erased",
        "Personal",
    ),
    "kiseki.kernel.state": (
        "State",
        "ValueObject",
    ),
    "kiseki.kernel.streams": ("StreamId",),
    "kiseki.kernel.text": (
        "InvalidValue",
        "Text",
        "WholeNumber",
    ),
    "kiseki.projection.projection": (
        "Change",
        "Projection",
    ),
    "kiseki.projection.types": ("UtcDateTime",),
    "kiseki.query.query": (
        "Arguments",
        "Query",
        "ReadModel",
        "View",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'kiseki' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
