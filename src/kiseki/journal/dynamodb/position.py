"""Places in the feed of the DynamoDB journal, and the text that they are between calls.

Used by the DynamoDB journal only. A place is in one of three phases. `stream` reads DynamoDB's stream of changes, shard
by shard. `history` scans the table, for whoever starts at a journal that is older than its stream remembers. `index`
reads by time of writing, for whoever comes back to a stream that has forgotten where it was. The last two end in the
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.journal.port import Position

__all__ = ["DONE", "FeedPlace", "Phase", "Shard", "Shards", "read_position", "write_position"]

DONE: Final = "done"
"""Instead of a sequence number: all of the shard has been read."""

_VERSION: Final = "1"


class Phase(StrEnum):
    """Where a place reads from."""

    STREAM = "stream"
    HISTORY = "history"
    INDEX = "index"


class FeedPlace(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A place in the feed."""

    life: str
    """Which stream of which table the place belongs to."""
    phase: Phase
    at: float
    """AWS's time, in seconds of the epoch: all that was written before it has been given, or will be in this phase."""
    cursors: dict[str, str] = {}
    """By shard: the sequence number of the last record that was given, or `DONE`. Others are read from their begin."""
    began: float = 0.0
    """When the history or index phase began, in seconds of the epoch."""
    key: dict[str, Any] | None = None
    """Where the scan, or the query of the slice, goes on."""
    reached: int = 0
    """In the history phase: the last sequence number that was given of the stream at `key`."""
    slice: int = 0
    """In the index phase: the slice that is being read."""
    since: str = ""
    """In the index phase: the first time of writing that is looked at."""
    given: int = 0
    """In the history phase: how many commits were given."""


_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_decode: Final = msgspec.json.Decoder(FeedPlace).decode


def write_position(place: FeedPlace) -> Position:
    """The text of a place, the same for the same place."""
    return Position(f"{_VERSION} {_encode(place).decode()}")


def read_position(position: Position, life: str) -> FeedPlace | None:
    """The place of a position, None when it is of another life, of another version, or the start."""
    version, _, text = position.partition(" ")
    if version != _VERSION:
        return None
    try:
        place = _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    return place if place.life == life else None


class Shard(NamedTuple):
    """A part of the stream: the changes of some keys, in order, for some hours. Its children go on where it ends."""

    id: str
    parent: str | None
    closed: bool
    """Whether nothing will be added."""


class Shards:
    """The shards that the stream lists now, and which of them can be read, given how far each was."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._shards = {shard.id: shard for shard in shards}
        self._children: dict[str, list[str]] = {}
        for shard in self._shards.values():
            if shard.parent in self._shards:
                self._children.setdefault(shard.parent, []).append(shard.id)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards.values())

    def __contains__(self, shard: str) -> bool:
        return shard in self._shards

    def readable(self, cursors: Mapping[str, str]) -> list[str]:
        """The shards that have not been read to their end, and whose parent has (or is gone)."""
        done = self._done(cursors)
        return [
            shard.id
            for shard in self._shards.values()
            if shard.id not in done and (shard.parent not in self._shards or shard.parent in done)
        ]

    def compact(self, cursors: Mapping[str, str]) -> dict[str, str]:
        """The cursors without those that say nothing: shards that are gone, and ancestors of shards in reading."""
        needed = {}
        begun = self._begun(cursors)
        for shard, cursor in cursors.items():
            if shard in self._shards and not (
                cursor == DONE and any(child in begun for child in self._children.get(shard, ()))
            ):
                needed[shard] = cursor
        return needed

    def _begun(self, cursors: Mapping[str, str]) -> set[str]:
        return {shard for shard in cursors if shard in self._shards} | self._done(cursors)

    def _done(self, cursors: Mapping[str, str]) -> set[str]:
        """Shards that are marked, and all ancestors of shards that have a cursor."""
        done = {shard for shard, cursor in cursors.items() if cursor == DONE}
        for shard in cursors:
            parent = self._parent(shard)
            while parent is not None and parent not in done:
                done.add(parent)
                parent = self._parent(parent)
        return done

    def _parent(self, shard: str) -> str | None:
        there = self._shards.get(shard)
        return there.parent if there is not None and there.parent in self._shards else None
