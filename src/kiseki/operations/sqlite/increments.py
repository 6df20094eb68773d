"""Increments of a journal: the commits after a row, with all that the streams they are of hold. Written and read here.

A claim is taken and released by a commit of its own stream, so what a stream holds changes only when the stream is in
an increment: the state of these streams is the whole change. Used by the protection of embedded journals.
"""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.operations.backup.manifest import Contents
from kiseki.operations.errors import BackupDamaged

__all__ = ["FORMAT", "IncrementHeader", "apply_increment", "read_header", "row_hash", "sha256_of", "write_increment"]

FORMAT: Final = 1

# One statement for what the streams of an increment hold: their names are read from the commits themselves.
_COMMITS: Final = """
    SELECT position, stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, document
    FROM commits WHERE position > ?1 AND position <= ?2 ORDER BY position
"""
_CLAIMS: Final = """
    SELECT scope, digest, stream FROM claims
    WHERE stream IN (SELECT stream FROM commits WHERE position > ?1 AND position <= ?2)
"""
_RECORDS: Final = """
    SELECT key, command_hash, stream, sequence_number, expires_at FROM idempotency
    WHERE stream IN (SELECT stream FROM commits WHERE position > ?1 AND position <= ?2)
"""
_ROW: Final = (
    "SELECT stream || '|' || first_sequence || '|' || commit_id || '|' || checksum FROM commits WHERE position = ?"
)
_LET_GO: Final = (
    "DELETE FROM claims WHERE stream IN (SELECT stream FROM commits WHERE position > ?1 AND position <= ?2)"
)
_FORGET: Final = """
    DELETE FROM idempotency WHERE stream IN (SELECT stream FROM commits WHERE position > ?1 AND position <= ?2)
"""
_PUT_COMMIT: Final = """
    INSERT INTO commits
        (position, stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, document)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_PUT_CLAIM: Final = """
    INSERT INTO claims (scope, digest, stream) VALUES (?, ?, ?)
    ON CONFLICT (scope, digest) DO UPDATE SET stream = excluded.stream
"""
_PUT_RECORD: Final = """
    INSERT INTO idempotency (key, command_hash, stream, sequence_number, expires_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET command_hash = excluded.command_hash, stream = excluded.stream,
        sequence_number = excluded.sequence_number, expires_at = excluded.expires_at
"""


class IncrementHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: int
    life: str
    after: int
    row: int
    through: datetime
    """Everything durable at this time (UTC) is in the line up to here."""
    previous: str
    """The checksum of the increment before; empty for the first."""
    contents: Contents | None = None
    """What the journal holds at `row`. None where a step goes on: what streams hold is as of its end, not of `row`."""


_encode: Final = msgspec.json.Encoder().encode
_decode_header: Final = msgspec.json.Decoder(IncrementHeader).decode
_decode_row: Final = msgspec.json.Decoder(list[str | int]).decode


def write_increment(connection: sqlite3.Connection, header: IncrementHeader, target: Path) -> int:
    """Writes an increment from what a connection sees at its moment; how many commits. Blocks; raises OSError."""
    rows = (header.after, header.row)
    commits = 0
    with gzip.GzipFile(target, "wb", compresslevel=1, mtime=0) as packed:
        packed.write(_encode(header) + b"\n")
        for kind, statement in (("commit", _COMMITS), ("claim", _CLAIMS), ("record", _RECORDS)):
            for row in connection.execute(statement, rows):
                commits += kind == "commit"
                packed.write(_encode([kind, *map(_text, row)]) + b"\n")
        packed.write(_encode(["end", commits]) + b"\n")
    return commits


def read_header(path: Path) -> IncrementHeader:
    """Raises BackupDamaged."""
    return next(_lines(path))[0]


def apply_increment(connection: sqlite3.Connection, path: Path) -> IncrementHeader:
    """Brings a copy of a journal to the row that an increment goes to. In a transaction of the caller. Blocks.

    Raises BackupDamaged, sqlite3.Error.
    """
    header: IncrementHeader | None = None
    parts: dict[str, list[list[str | int]]] = {"commit": [], "claim": [], "record": []}
    ended = False
    for found, row in _lines(path):
        header = found
        if row is None:
            continue
        kind, *values = row
        if kind == "end":
            ended = values == [len(parts["commit"])]
        else:
            parts[str(kind)].append(values)
    if header is None or not ended:
        raise BackupDamaged(f"{path.name} does not hold all that it should")
    connection.executemany(_PUT_COMMIT, parts["commit"])
    connection.execute(_LET_GO, (header.after, header.row))
    connection.execute(_FORGET, (header.after, header.row))
    connection.executemany(_PUT_CLAIM, parts["claim"])
    connection.executemany(_PUT_RECORD, parts["record"])
    return header


def row_hash(connection: sqlite3.Connection, row: int) -> str:
    """What tells a row from another one of the same number; empty when there is none."""
    found = connection.execute(_ROW, (row,)).fetchone()
    if found is None:
        return ""
    return found[0].decode() if isinstance(found[0], bytes) else str(found[0])


def sha256_of(path: Path) -> str:
    """The checksum by which an increment is named in the next. Blocks; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(path: Path) -> Iterator[tuple[IncrementHeader, list[str | int] | None]]:
    try:
        with gzip.open(path, "rb") as packed:
            header = _decode_header(next(packed, b""))
            if header.format != FORMAT:
                raise BackupDamaged(
                    f"{path.name} has format {header.format}; use the kiseki that made it, or a newer one"
                )
            yield header, None
            for line in packed:
                yield header, _decode_row(line)
    except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise BackupDamaged(f"{path.name} was altered or cut short") from problem


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
