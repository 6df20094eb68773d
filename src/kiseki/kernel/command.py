"""`Command`: a wish, in the imperative. It is typed and valid when it reaches a decider."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Final

import msgspec

from kiseki.kernel.record import Record

__all__ = ["UNSTAMPED", "Command", "CommandMetadata"]


class CommandMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What surrounds a command: time, ids and who asks. `decide` takes them from here, so it stays pure."""

    command_id: str
    """A ULID. Ids that a decision needs can be derived from it."""
    stream_id: str
    """The id part of the addressed stream; for a command that creates, the id that was assigned."""
    now: datetime
    """UTC, in microseconds; the events of the decision carry the same time."""
    correlation_id: str
    causation_id: str | None = None
    actor: str = ""


UNSTAMPED: Final = CommandMetadata(command_id="", stream_id="", now=datetime(1970, 1, 1, tzinfo=UTC), correlation_id="")
"""The metadata of a command that no handler has seen yet."""


class Command(Record):
    """Base of all commands. With one `StreamId` field it addresses that stream; without one it creates a stream.

    `metadata` is filled in by the command handler and takes no part in comparison.
    """

    metadata: CommandMetadata = dataclasses.field(default=UNSTAMPED, kw_only=True, compare=False)
