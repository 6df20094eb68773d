"""`SqliteKeyProtection`: copies new keys and erasures of an embedded key store every minute. Made by `Drivers`.

Rows are only appended, erasures are numbered, what is destroyed is overwritten in place: so what came since the last
step are the rows and erasures after the last ones. Putting it together ends with the erasures, which win over keys that
older copies still have. Everything older than a few days is removed, bases too, and even the last: copies of keys end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupMissing
from kiseki.operations.places.port import Place
from kiseki.operations.places.threads import in_thread
from kiseki.operations.protect.port import Protected
from kiseki.operations.sqlite.copying import copy_pages, move_file, opened_moment, unpacked
from kiseki.operations.sqlite.increments import sha256_of
from kiseki.operations.sqlite.key_increments import (
    apply_keys,
    checksum_of,
    replace_revocations,
    revoked_of,
    write_keys,
)
from kiseki.operations.sqlite.keys import (
    KEYS_FILE,
    REVOCATIONS_FILE,
    SqliteStagedKeys,
    copied_revocations,
    opened_keys,
    pack_keys,
)
from kiseki.operations.sqlite.line_pruning import prune_strictly
from kiseki.operations.sqlite.lines import (
    Head,
    Line,
    base_name,
    fetched_base,
    increment_name,
    is_base_due,
    is_whole,
    new_line,
    publish_base,
    read_lines,
    refuse_another,
    remove_rest,
    through_of,
    write_head,
)
from kiseki.security.key_store import DIGEST_SUBJECT

__all__ = ["WHAT", "SqliteKeyProtection"]

WHAT: Final = "key-increments"
_LOCK: Final = f"{WHAT}.lock"
_SOONER: Final = timedelta(hours=2)
_LIFE: Final = "SELECT key_id FROM subject_keys WHERE subject = ? ORDER BY id LIMIT 1"
_ENDS: Final = """
    SELECT coalesce((SELECT max(id) FROM subject_keys), 0), coalesce((SELECT max(number) FROM erasures), 0)
"""
_ROW: Final = "SELECT subject || '|' || number || '|' || wrapping || '|' || key_id FROM subject_keys WHERE id = ?"


class _Step(NamedTuple):
    prefix: str
    head: Head
    increment: str
    keys: int
    base: str


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
            for line in lines[-1:]:
                await remove_rest(self._place, line)
            # What is damaged where it lies does no harm when the next copy builds on a new base.
            whole = bool(lines) and await is_whole(self._place, lines[-1])
            progress("copying")
            step = await in_thread(lambda: self._collect(work, lines, whole=whole))
            size = 0
            if step.increment:
                size += (work / step.increment).stat().st_size
                await self._place.put(f"{step.prefix}/{step.increment}", work / step.increment)
            if step.base:
                size += await publish_base(self._place, step.prefix, step.base, work / "base", step.head)
            await write_head(self._place, step.prefix, step.head)
            return Protected(step.head.through, step.keys, size, bool(step.base))

    def _collect(self, work: Path, lines: Sequence[Line], *, whole: bool) -> _Step:
        through = self._clock.now()
        (work / "base").mkdir()
        plain = work / "base" / KEYS_FILE.removesuffix(".gz")
        line = lines[-1] if lines else None
        before = None if line is None else line.head
        with explained_room(work, "make room there"):
            revoked = revoked_of(self._revocations)
            with opened_moment(self._path) as connection:
                (root,) = connection.execute(_LIFE, (DIGEST_SUBJECT,)).fetchone() or (b"",)
                refuse_another(lines, root.decode(), what="key store", label=self._place.label)
                head = Head(
                    life=root.decode(),
                    row=0,
                    row_hash="",
                    through=through,
                    revocations=checksum_of(revoked),
                )
                last_id, erasures = connection.execute(_ENDS).fetchone()
                head = msgspec.structs.replace(
                    head, last_id=last_id, erasures=erasures, row_hash=_row_hash(connection, last_id)
                )
                increment, keys = "", 0
                if line is not None and before is not None and line.bases and _is_of(before, head.life, connection):
                    prefix, has_base = line.prefix, not whole or is_base_due(line, through)
                    bases = tuple(base.name for base in line.bases)
                    head = msgspec.structs.replace(head, row=before.row, last_sha256=before.last_sha256)
                    if _state(head) != _state(before):
                        head = msgspec.structs.replace(head, row=before.row + 1)
                        increment = increment_name(before.row, head.row, through)
                        keys = write_keys(connection, before, head, revoked, work / increment)
                        head = msgspec.structs.replace(head, last_sha256=sha256_of(work / increment))
                else:
                    prefix, bases, has_base = new_line(WHAT, lines, head.life or "new"), (), True
                    keys = last_id
                if has_base:
                    copy_pages(connection, plain)
            base = base_name(head.row, through) if has_base else ""
            if has_base:
                pack_keys(plain, plain.with_name(KEYS_FILE))
                if self._revocations.is_file():
                    copied_revocations(self._revocations, plain.with_name(REVOCATIONS_FILE))
                bases = (*bases, base)
        return _Step(prefix, msgspec.structs.replace(head, bases=bases), increment, keys, base)

    async def prune(self, now: datetime) -> int:
        """As Protection, but for the last base, which goes too: copies of keys end, whatever else there is. They go a
        little before their time, so that none is too old when this is called every hour."""
        async with self._place.lock(_LOCK):
            cutoff = now - timedelta(days=self._days) + _SOONER
            return await prune_strictly(self._place, WHAT, cutoff, now)

    async def through(self) -> datetime | None:
        """As Protection."""
        return through_of(await read_lines(self._place, WHAT))

    async def close(self) -> None:
        """As Protection: nothing runs between two steps."""

    async def recover(self, work: Path, progress: Progress) -> SqliteStagedKeys:
        """As KeyProtection."""
        line = next((line for line in reversed(await read_lines(self._place, WHAT)) if line.bases), None)
        if line is None:
            raise BackupMissing(
                f"{self._place.label} has no copy of the key store; `kiseki backup list` shows what there is"
            )
        base = line.bases[-1]
        plain, revocations = work / "keys.db", work / "revocations.db"
        async with fetched_base(self._place, line, base) as (folder, as_of_base):
            progress("unpacking")
            await in_thread(lambda: unpacked(folder / KEYS_FILE, plain))
            if (folder / REVOCATIONS_FILE).is_file():
                await in_thread(lambda: unpacked(folder / REVOCATIONS_FILE, revocations))
        following = [increment for increment in line.increments if increment.row > base.row]
        async with self._place.fetched(line.prefix, [increment.name for increment in following]) as folder:
            found = await in_thread(lambda: apply_keys(plain, folder, following, line, as_of_base))
        async with opened_keys(plain) as keys:
            for subject, at in found.erased:
                await keys.erase(subject, at)
        if found.revoked is not None:
            await replace_revocations(revocations, found.revoked)

        def put(path: Path, path_of_revocations: Path) -> None:
            move_file(plain, path)
            if revocations.exists():
                move_file(revocations, path_of_revocations)

        return await SqliteStagedKeys.made(
            self._path, self._revocations, f"{self._clock.now():%Y%m%dT%H%M%SZ}", put, clock=self._clock
        )


def _is_of(head: Head, root: str, connection: sqlite3.Connection) -> bool:
    return head.life == root and _row_hash(connection, head.last_id) == head.row_hash


def _state(head: Head) -> tuple[int, int, str]:
    return head.last_id, head.erasures, head.revocations


def _row_hash(connection: sqlite3.Connection, row: int) -> str:
    found = connection.execute(_ROW, (row,)).fetchone()
    return "" if found is None else str(found[0].decode())
