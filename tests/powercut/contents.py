"""The bytes of one file: what is durable, and the changes that are not yet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from .records import Operation, Record, TraceError

SECTOR: Final = 512
"""What a disk writes whole or not at all, in bytes."""

_KEEP_SIZE: Final = 1


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes put at an offset; a gap before them is filled with zeros."""

    index: int
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        if len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(frozen=True, slots=True)
class Resize:
    """A new size; ``only_grow`` for an allocation, which never shortens."""

    index: int
    size: int
    only_grow: bool = False

    def apply(self, content: bytearray) -> None:
        if len(content) < self.size:
            content.extend(bytes(self.size - len(content)))
        elif not self.only_grow:
            del content[self.size :]


@dataclass(eq=False, slots=True)
class File:
    """One inode. Its names come and go (see ``names``), so it is compared by identity."""

    durable: bytearray
    pending: list[Write | Resize] = field(default_factory=list)

    def sync(self, begun: int) -> None:
        """A sync that began at record ``begun`` has ended: what was recorded before is durable."""
        covered = 0
        for change in self.pending:
            if change.index >= begun:
                break
            change.apply(self.durable)
            covered += 1
        del self.pending[:covered]


def changes_of(index: int, record: Record) -> Iterator[Write | Resize]:
    """The change that a record describes (none for an allocation that keeps the size)."""
    if record.operation is Operation.WRITE:
        yield Write(index, record.offset, record.data)
    elif record.operation is Operation.TRUNCATE:
        yield Resize(index, record.offset)
    elif record.argument == 0:
        yield Resize(index, record.offset + record.length, only_grow=True)
    elif record.argument != _KEEP_SIZE:
        raise TraceError(
            f"record {index}: fallocate mode {record.argument} on {record.path} is not modelled",
        )


def survivors(file: File, chance: float, chooser: random.Random, *, torn: bool) -> bytes:
    """The file after the cut, when each pending change survives with probability ``chance``."""
    if chance == 0.0 or not file.pending:
        return bytes(file.durable)
    content = bytearray(file.durable)
    lost: set[int] = set()
    for change in file.pending:
        if chance == 1.0:
            change.apply(content)
        elif torn and isinstance(change, Write):
            for piece in _by_sector(change):
                # The page cache holds the newest version of a sector, and the disk receives it
                # whole: a sector that missed one change cannot have seen a later one.
                sector = piece.offset // SECTOR
                if sector not in lost and chooser.random() < chance:
                    piece.apply(content)
                else:
                    lost.add(sector)
        elif chooser.random() < chance:
            change.apply(content)
    return bytes(content)


def _by_sector(change: Write) -> Iterator[Write]:
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield Write(change.index, start, change.data[start - change.offset : stop - change.offset])
        start = stop
