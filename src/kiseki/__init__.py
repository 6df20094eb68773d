"""kiseki: event-sourced services for Python, ready for production from the first command.

A context is plain typed Python made of the names exported here.
"""

from kiseki._version import __version__
from kiseki.application.context import Application, Context
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
