"""`SqliteKeyProtection`: copies new keys and erasures of an embedded key store every minute. Made by `Drivers`.

Rows are only appended, erasures are numbered, what is destroyed is overwritten in place: so what came since the last
step are the rows and erasures after the last ones. Putting it together ends with the erasures, which win over keys that
older copies still have. Everything older than a few days is removed, bases too, and even the last: copies of keys end.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import sqlite3
import urllib.parse
import zlib
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, BackupMissing
from kiseki.operations.places.port import Place
from kiseki.operations.protect.port import Protected
from kiseki.operations.sqlite.copying import copy_whole, opened_moment, packed, unpacked
from kiseki.operations.sqlite.keys import SqliteStagedKeys, opened_keys
from kiseki.operations.sqlite.lines import (
    Head,
    Line,
    fetched_base,
    increment_name,
    is_base_due,
    new_line,
    prune_lines,
    publish_base,
    read_lines,
    write_head,
)
from kiseki.security.key_store import DIGEST_SUBJECT

__all__ = ["WHAT", "SqliteKeyProtection"]

WHAT: Final = "key-increments"
_LOCK: Final = f"{WHAT}.lock"
_KEYS: Final = "keys.db.gz"
_REVOCATIONS: Final = "revocations.db.gz"
_LIFE: Final = "SELECT key_id FROM subject_keys WHERE subject = ? ORDER BY id LIMIT 1"
_ENDS: Final = """
    SELECT coalesce((SELECT max(id) FROM subject_keys), 0), coalesce((SELECT max(number) FROM erasures), 0)
"""
_ROW: Final = "SELECT subject || '|' || number || '|' || wrapping || '|' || key_id FROM subject_keys WHERE id = ?"
_NEW_KEYS: Final = "SELECT id, subject, number, wrapping, key_id, wrapped FROM subject_keys WHERE id > ? ORDER BY id"
_NEW_ERASURES: Final = "SELECT number, subject, erased_at FROM erasures WHERE number > ? ORDER BY number"
_PUT_KEY: Final = """
    INSERT INTO subject_keys (id, subject, number, wrapping, key_id, wrapped) VALUES (?, ?, ?, ?, ?, ?)
"""
# As wrapping anew does in the live file, so that no old wrapped form is left.
_DESTROY_OLD: Final = """
    UPDATE subject_keys AS row SET wrapped = printf('%.*c', length(wrapped), '0')
    WHERE EXISTS (SELECT 1 FROM subject_keys AS newer
        WHERE newer.subject = row.subject AND newer.number = row.number AND newer.wrapping > row.wrapping)
"""

_decode: Final = msgspec.json.Decoder(list[str | int]).decode


class _Step(NamedTuple):
    prefix: str
    head: Head
    increment: str
    keys: int
    has_base: bool


class SqliteKeyProtection:
    """A KeyProtection. The place keeps a second process out for as long as one steps."""

    name = "the keys"

    def __init__(self, path: Path, revocations: Path, place: Place, *, clock: Clock, days: float) -> None:
        """`days`: how long copies are kept, at most 7."""
        self._path = path
        self._revocations = revocations
        self._place = place
        self._clock = clock
        self._days = days

    async def step(self, progress: Progress) -> Protected:
        """As Protection."""
        async with self._place.lock(_LOCK), self._place.workspace(f"{WHAT}/step") as work:
            lines = await read_lines(self._place, WHAT)
            line = lines[-1] if lines else None
            (work / "base").mkdir()
            progress("copying")
            step = await asyncio.to_thread(self._collect, work, line)
            if line is not None:
                for left in line.increments:
                    if left.row > line.head.row:
                        await self._place.remove(f"{line.prefix}/{left.name}")
            size = 0
            if step.increment:
                size += (work / step.increment).stat().st_size
                await self._place.put(f"{step.prefix}/{step.increment}", work / step.increment)
            if step.has_base:
                size += await publish_base(self._place, step.prefix, work / "base", step.head)
            await write_head(self._place, step.prefix, step.head)
            return Protected(step.head.through, step.keys, size, step.has_base)

    def _collect(self, work: Path, line: Line | None) -> _Step:
        through = self._clock.now()
        with explained_room(work, "make room there"), opened_moment(self._path) as connection:
            (root,) = connection.execute(_LIFE, (DIGEST_SUBJECT,)).fetchone() or (b"",)
            last_id, erasures = connection.execute(_ENDS).fetchone()
            goes_on = line is not None and _is_of(line, root.decode(), connection)
            increment, keys = "", 0
            if line is not None and goes_on:
                prefix, before = line.prefix, line.head
                row, sha256 = before.row, before.last_sha256
                if (last_id, erasures) != (before.last_id, before.erasures):
                    row += 1
                    increment = increment_name(before.row, row)
                    keys = _write(connection, before, work / increment)
                    sha256 = _sha256(work / increment)
                has_base = is_base_due(line, through)
            else:
                prefix, row, sha256, has_base = f"{WHAT}/{new_line(root.decode() or 'new')}", 0, "", True
                keys = last_id
            if has_base:
                copy_whole(connection, work / "base" / "keys.db")
                packed(work / "base" / "keys.db", work / "base" / _KEYS)
            head = Head(
                life=root.decode(),
                row=row,
                row_hash=_row_hash(connection, last_id),
                through=through,
                last_sha256=sha256,
                last_id=last_id,
                erasures=erasures,
            )
        if has_base and self._revocations.is_file():
            plain = work / "base" / "revocations.db"
            with explained_room(work, "make room there"), opened_moment(self._revocations) as connection:
                copy_whole(connection, plain)
                packed(plain, work / "base" / _REVOCATIONS)
        return _Step(prefix, head, increment, keys, has_base)

    async def prune(self, now: datetime) -> int:
        """As Protection, but for the last base, which goes too: copies of keys end, whatever else there is."""
        async with self._place.lock(_LOCK):
            return await prune_lines(self._place, WHAT, now - timedelta(days=self._days), keep_last=False)

    async def through(self) -> datetime | None:
        """As Protection."""
        lines = await read_lines(self._place, WHAT)
        return lines[-1].head.through if lines and lines[-1].bases else None

    async def close(self) -> None:
        """As Protection: nothing runs between two steps."""

    async def recover(self, work: Path, progress: Progress) -> SqliteStagedKeys:
        """As KeyProtection."""
        lines = await read_lines(self._place, WHAT)
        if not lines or not lines[-1].bases:
            raise BackupMissing(
                f"{self._place.label} has no copy of the key store; `kiseki backup list` shows what there is"
            )
        line = lines[-1]
        base = line.bases[-1]
        following = line.after(base)
        plain, revocations = work / "keys.db", work / "revocations.db"
        async with fetched_base(self._place, line.prefix, base) as (folder, _):
            progress("unpacking")
            await asyncio.to_thread(unpacked, folder / _KEYS, plain)
            if (folder / _REVOCATIONS).is_file():
                await asyncio.to_thread(unpacked, folder / _REVOCATIONS, revocations)
        names = [increment.name for increment in following]
        async with self._place.fetched(line.prefix, names) as folder:
            erased = await asyncio.to_thread(_apply, plain, folder, names, line.head)
        async with opened_keys(plain) as keys:
            for subject, at in erased:
                await keys.erase(subject, at)

        def put(path: Path, path_of_revocations: Path) -> None:
            plain.replace(path)
            if revocations.exists():
                revocations.replace(path_of_revocations)

        return await SqliteStagedKeys.made(
            self._path, self._revocations, f"{self._clock.now():%Y%m%dT%H%M%S}", put, clock=self._clock
        )


def _is_of(line: Line, root: str, connection: sqlite3.Connection) -> bool:
    return line.head.life == root and _row_hash(connection, line.head.last_id) == line.head.row_hash


def _row_hash(connection: sqlite3.Connection, row: int) -> str:
    found = connection.execute(_ROW, (row,)).fetchone()
    return "" if found is None else str(found[0].decode())


def _write(connection: sqlite3.Connection, before: Head, target: Path) -> int:
    keys = erasures = 0
    encode = msgspec.json.Encoder().encode
    with gzip.GzipFile(target, "wb", compresslevel=1, mtime=0) as packed_file:
        packed_file.write(encode(["previous", before.last_sha256]) + b"\n")
        for row in connection.execute(_NEW_KEYS, (before.last_id,)):
            keys += 1
            packed_file.write(encode(["key", *map(_text, row)]) + b"\n")
        for row in connection.execute(_NEW_ERASURES, (before.erasures,)):
            erasures += 1
            packed_file.write(encode(["erasure", *map(_text, row)]) + b"\n")
        packed_file.write(encode(["end", keys, erasures]) + b"\n")
    return keys


def _apply(path: Path, folder: Path, names: Sequence[str], head: Head) -> list[tuple[str, datetime]]:
    """Adds the keys of increments; the erasures in them, in their order. Raises BackupDamaged."""
    erased: list[tuple[str, datetime]] = []
    previous: str | None = None
    with closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=rw", uri=True)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        try:
            for name in names:
                rows = _rows(folder / name)
                if previous is not None and rows[0] != ["previous", previous]:
                    raise BackupDamaged(f"{name} does not follow what is before it; restore a backup of the keys")
                previous = _sha256(folder / name)
                keys = [row[1:] for row in rows if row[0] == "key"]
                gone = [row for row in rows if row[0] == "erasure"]
                if rows[-1] != ["end", len(keys), len(gone)]:
                    raise BackupDamaged(f"{name} does not hold all that it should; restore a backup of the keys")
                connection.executemany(_PUT_KEY, keys)
                erased += [(str(subject), datetime.fromisoformat(str(at))) for _, _, subject, at in gone]
            connection.execute(_DESTROY_OLD)
            connection.commit()
        except sqlite3.IntegrityError as problem:
            raise BackupDamaged(
                f"{name} does not fit to what is before it ({problem}); restore a backup of the keys"
            ) from problem
    if names and previous != head.last_sha256:
        raise BackupDamaged("the newest copy of the keys is not what was written; restore a backup of the keys")
    return erased


def _rows(path: Path) -> list[list[str | int]]:
    try:
        with gzip.open(path, "rb") as packed_file:
            return [_decode(line) for line in packed_file]
    except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError) as problem:
        raise BackupDamaged(f"{path.name} is damaged or cut short; restore a backup of the keys") from problem


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
