"""Names of write-ahead log files, and the chain of them that a place keeps. Pure, but for reading and packing files.

`cluster/<id>/…` are base backups; `cluster-increments/<system>/<timeline>/<file>-<checksum>.gz` is the log of one
cluster on one timeline, and `cluster-increments/<system>/head.json` says how far it goes.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kiseki.operations.errors import BackupDamaged
from kiseki.operations.places.port import Stored

__all__ = [
    "BASES",
    "HEAD",
    "INCREMENTS",
    "Head",
    "Segment",
    "Shipped",
    "chain_from",
    "head_name",
    "pack",
    "segment_of",
    "shipped",
    "unpack",
]

BASES: Final = "cluster"
INCREMENTS: Final = "cluster-increments"
HEAD: Final = "head.json"
_FILE: Final = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial)?")
_STORED: Final = re.compile(r"([0-9A-F]{24})(\.partial)?-([0-9a-f]{32})\.gz")
_LOG_FILE: Final = 1 << 32
"""Bytes that the middle part of a name counts."""
_CHUNK: Final = 1 << 20


class Segment(NamedTuple):
    """One file of the log: its timeline, and its number in the sequence of all files."""

    timeline: int
    number: int
    size: int
    """Bytes of every file of this cluster's log."""

    @property
    def name(self) -> str:
        """As PostgreSQL calls the file."""
        high, low = divmod(self.number, _LOG_FILE // self.size)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    @classmethod
    def parse(cls, name: str, size: int) -> Segment | None:
        """The segment of a file's name, whole or partial; None when it is no such name."""
        match = _FILE.fullmatch(name)
        if match is None:
            return None
        timeline, high, low = (int(part, 16) for part in match.groups()[:3])
        return cls(timeline, high * (_LOG_FILE // size) + low, size)


class Shipped(NamedTuple):
    """A file of the log in a place."""

    stored: Stored
    file: str
    """Its name there, without the folder."""
    segment: Segment
    partial: bool
    checksum: str
    """The first 32 hex digits of the SHA-256 of what is packed in it."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a place covers a cluster."""

    system: str
    timeline: int
    through: datetime
    """By the clock of the server."""
    lsn: str
    file: str
    """The newest file of the log, whole or partial, as it is called in the place."""
    segment: int
    """Bytes of every file of this cluster's log."""
    feed: str
    """Where the journal's feed was: epoch.transaction.row."""


def head_name(system: str) -> str:
    """Where the head of a cluster is kept."""
    return f"{INCREMENTS}/{system}/{HEAD}"


def segment_of(lsn: str, timeline: int, size: int) -> Segment:
    """The segment that holds a position of the log."""
    high, _, low = lsn.partition("/")
    return Segment(timeline, (int(high, 16) * _LOG_FILE + int(low, 16)) // size, size)


def shipped(names: Iterable[Stored], size: int) -> list[Shipped]:
    """Those of the names that are files of the log, in their order; a partial one before the whole one."""
    found = []
    for stored in names:
        file = stored.name.rpartition("/")[2]
        match = _STORED.fullmatch(file)
        segment = Segment.parse(match[1], size) if match else None
        if match and segment:
            found.append(Shipped(stored, file, segment, match[2] is not None, match[3]))
    return sorted(found, key=lambda one: (one.segment, not one.partial, one.stored.changed_at))


def chain_from(first: Segment, files: Sequence[Shipped], where: str) -> list[Shipped]:
    """The files from a segment on, none missing; a partial one only at the end.

    Raises BackupDamaged, which names the first that is not there.
    """
    by_number: dict[int, Shipped] = {}
    for one in files:
        if one.segment.number >= first.number:
            by_number[one.segment.number] = one
    last = max(by_number, default=first.number)
    chain = []
    for number in range(first.number, last + 1):
        found = by_number.get(number)
        if found is None or (found.partial and number != last):
            raise BackupDamaged(
                f"the write-ahead log in {where} lacks {Segment(first.timeline, number, first.size).name}; what came "
                "after it can't be recovered from there: take a new base now (the next step of the protection does)"
            )
        chain.append(found)
    return chain


def pack(source: Path, target: Path) -> str:
    """Packs a file of the log; the checksum of what is in it. Blocks; raises OSError."""
    digest = hashlib.sha256()
    with source.open("rb") as file, gzip.open(target, "wb", compresslevel=1) as packed:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            packed.write(chunk)
    return digest.hexdigest()[:32]


def unpack(source: Path, target: Path, one: Shipped) -> None:
    """Unpacks a file of the log. Blocks; raises BackupDamaged, OSError."""
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(source, "rb") as packed, target.open("wb") as file:
            while chunk := packed.read(_CHUNK):
                digest.update(chunk)
                size += file.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise BackupDamaged(f"{one.stored.name} is truncated or altered; recover to a time before it") from problem
    if digest.hexdigest()[:32] != one.checksum or size != one.segment.size:
        raise BackupDamaged(f"{one.stored.name} is not what was written; recover to a time before it")
