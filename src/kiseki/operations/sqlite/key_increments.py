"""Increments of a key store: rows and erasures after the last ones, and the revocations beside it when they changed.

Written and read here, for the protection of embedded key stores.
"""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
import urllib.parse
import zlib
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged
from kiseki.operations.sqlite.copying import explained_full, opened_moment
from kiseki.operations.sqlite.increments import sha256_of
from kiseki.operations.sqlite.lines import Head, Increment, Line
from kiseki.security.identity.sqlite_revocations import SqliteRevocations

__all__ = ["Applied", "apply_keys", "checksum_of", "replace_revocations", "revoked_of", "write_keys"]

FORMAT: Final = 1

_NEW_KEYS: Final = "SELECT id, subject, number, wrapping, key_id, wrapped FROM subject_keys WHERE id > ? ORDER BY id"
_NEW_ERASURES: Final = "SELECT number, subject, erased_at FROM erasures WHERE number > ? ORDER BY number"
_REVOKED: Final = "SELECT issuer, subject, until FROM revocations ORDER BY issuer, subject"
_FORGET_REVOKED: Final = "DELETE FROM revocations"
_PUT_REVOKED: Final = "INSERT INTO revocations (issuer, subject, until) VALUES (?, ?, ?)"
_PUT_KEY: Final = """
    INSERT INTO subject_keys (id, subject, number, wrapping, key_id, wrapped) VALUES (?, ?, ?, ?, ?, ?)
"""
# As wrapping anew does in the live file, so that no old wrapped form is left.
_DESTROY_OLD: Final = """
    UPDATE subject_keys AS row SET wrapped = printf('%.*c', length(wrapped), '0')
    WHERE EXISTS (SELECT 1 FROM subject_keys AS newer
        WHERE newer.subject = row.subject AND newer.number = row.number AND newer.wrapping > row.wrapping)
"""

Revoked = list[tuple[str, str, float]]


class _Increment(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    row: int
    through: datetime
    previous: str
    """The checksum of the increment before; empty for the first."""
    keys: list[tuple[int, str, int, int, str, str]]
    erasures: list[tuple[int, str, datetime]]
    revoked: Revoked | None
    """All of them; None when they did not change."""


class Applied(NamedTuple):
    """What is still to be done when keys were put together: erasures in their order, and the newest revocations."""

    erased: Sequence[tuple[str, datetime]]
    revoked: Revoked | None


def revoked_of(path: Path) -> Revoked:
    """The revocations in a file; none when there is no file. Blocks. Raises OperationFailed."""
    if not path.is_file():
        return []
    with opened_moment(path) as connection:
        return [(issuer.decode(), subject.decode(), until) for issuer, subject, until in connection.execute(_REVOKED)]


def checksum_of(revoked: Revoked) -> str:
    """What tells whether revocations changed."""
    return hashlib.sha256(msgspec.json.encode(revoked)).hexdigest()


def write_keys(connection: sqlite3.Connection, before: Head, after: Head, revoked: Revoked, target: Path) -> int:
    """Writes what a connection sees and `before` lacks; how many keys. Blocks; raises OSError."""
    keys = [tuple(map(_text, row)) for row in connection.execute(_NEW_KEYS, (before.last_id,))]
    increment = {
        "format": FORMAT,
        "row": after.row,
        "through": after.through,
        "previous": before.last_sha256,
        "keys": keys,
        "erasures": [tuple(map(_text, row)) for row in connection.execute(_NEW_ERASURES, (before.erasures,))],
        "revoked": revoked if after.revocations != before.revocations else None,
    }
    target.touch(mode=0o600)
    with gzip.GzipFile(target, "wb", compresslevel=1, mtime=0) as packed:
        packed.write(msgspec.json.encode(increment))
    return len(keys)


def apply_keys(path: Path, folder: Path, increments: Sequence[Increment], line: Line, base: Head) -> Applied:
    """Adds the keys of increments to a copy, whose destroyed forms it destroys. Blocks.

    Raises BackupDamaged, NoRoom, OperationFailed.
    """
    erased: list[tuple[str, datetime]] = []
    revoked: Revoked | None = None
    row, previous = base.row, base.last_sha256
    with (
        explained_room(path.parent, "make room there"),
        explained_full(path.parent),
        closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=rw", uri=True)) as connection,
    ):
        connection.execute("PRAGMA secure_delete=ON")
        for increment in increments:
            found = _read(folder / increment.name)
            if (increment.after, found.row, found.previous) != (row, increment.row, previous):
                raise BackupDamaged(f"{increment.name} does not follow what is before it; {_REMEDY}")
            try:
                connection.executemany(_PUT_KEY, found.keys)
            except sqlite3.IntegrityError as problem:
                raise BackupDamaged(
                    f"{increment.name} does not fit to what is before it ({problem}); {_REMEDY}"
                ) from problem
            row, previous = increment.row, sha256_of(folder / increment.name)
            erased += [(subject, at) for _, subject, at in found.erasures]
            revoked = found.revoked if found.revoked is not None else revoked
        connection.execute(_DESTROY_OLD)
        connection.commit()
    if line.head is None and line.increments:
        raise BackupDamaged(f"{line.prefix}/head.json was altered or is missing, so nobody knows the end; {_REMEDY}")
    if line.head is not None and (row, previous) != (line.head.row, line.head.last_sha256):
        raise BackupDamaged(f"{line.prefix} does not end as it should; {_REMEDY}")
    return Applied(erased, revoked)


async def replace_revocations(path: Path, revoked: Revoked) -> None:
    """Makes these the revocations of a file, which is made when it is not there."""
    store = await SqliteRevocations.open(path)
    await store.close()
    with closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=rw", uri=True)) as connection, connection:
        connection.execute(_FORGET_REVOKED)
        connection.executemany(_PUT_REVOKED, revoked)


_REMEDY: Final = "restore a backup of the keys"
_decode: Final = msgspec.json.Decoder(_Increment).decode


def _read(path: Path) -> _Increment:
    try:
        with gzip.open(path, "rb") as packed:
            found = _decode(packed.read())
    except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError) as problem:
        raise BackupDamaged(f"{path.name} was altered or cut short; {_REMEDY}") from problem
    if found.format != FORMAT:
        raise BackupDamaged(f"{path.name} has format {found.format}; use the kiseki that made it, or a newer one")
    return found


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
