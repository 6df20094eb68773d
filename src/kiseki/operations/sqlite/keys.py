"""`SqliteKeyBackups`: the KeyBackups of an embedded key store, and of the revocations beside it.

A key that was destroyed is in no page of the live file (see `security/sqlite_key_file`), so no later copy has it. An
erasure waits for whoever reads the log: while a copy is taken nothing is done but copying, a second for some 500 MB.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.disk import explained_room
from kiseki.operations.places.scratch import Scratch
from kiseki.operations.places.threads import in_thread
from kiseki.operations.sqlite.copying import check_sound, copy_pages, opened_copy, opened_moment, packed, unpacked
from kiseki.operations.sqlite.switching import (
    held_for_switch,
    put_in_place,
    refuse_in_use,
    remove_database,
    staged_path,
)
from kiseki.security.key_store import KeyStore
from kiseki.security.sqlite_key_store import SqliteKeyStore

__all__ = [
    "KEYS_FILE",
    "REVOCATIONS_FILE",
    "SqliteKeyBackups",
    "SqliteStagedKeys",
    "copied_revocations",
    "opened_keys",
    "pack_keys",
]

KEYS_FILE: Final = "keys.db.gz"
REVOCATIONS_FILE: Final = "revocations.db.gz"
_DAYS: Final = 7
"""How long copies of keys may be kept."""
_ROWS: Final = "SELECT subject, key_id, wrapped FROM subject_keys ORDER BY id"
_COUNT: Final = """
    SELECT count(*) FROM subject_keys AS row WHERE NOT EXISTS (SELECT 1 FROM erasures WHERE subject = row.subject)
    AND NOT EXISTS (SELECT 1 FROM subject_keys AS newer
        WHERE newer.subject = row.subject AND newer.number = row.number AND newer.wrapping > row.wrapping)
"""
_ERASED: Final = "SELECT count(*) FROM erasures"
_REVOKED: Final = "SELECT count(*) FROM revocations"
_ALL_ERASURES: Final = "SELECT subject, erased_at FROM erasures ORDER BY number"


class SqliteKeyBackups:
    """Online copies of two files."""

    store = "sqlite"

    def __init__(self, path: Path, *, revocations: Path, clock: Clock) -> None:
        self._path = path
        self._revocations = revocations
        self._clock = clock

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. The digest is over subject, id and wrapped form of every row."""
        as_of = self._clock.now()
        progress("copying")
        counts, digest = await in_thread(lambda: copied_keys(self._path, folder / KEYS_FILE))
        if self._revocations.is_file():
            counts["revocations"] = await in_thread(
                lambda: copied_revocations(self._revocations, folder / REVOCATIONS_FILE)
            )
        return Made(
            store=self.store,
            method="online",
            as_of=as_of,
            versions={"sqlite": sqlite3.sqlite_version},
            counts=counts,
            digest=digest,
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[KeyStore]:
        """As KeyBackups."""
        async with Scratch().folder("verify-keys") as work:
            path = work / "keys.db"
            await in_thread(lambda: unpacked(folder / KEYS_FILE, path))
            async with opened_keys(path) as keys:
                yield keys

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> SqliteStagedKeys:
        """As KeyBackups."""
        progress("unpacking")
        has_revocations = any(file.name == REVOCATIONS_FILE for file in manifest.files)

        def put(keys: Path, revocations: Path) -> None:
            unpacked(folder / KEYS_FILE, keys)
            if has_revocations:
                unpacked(folder / REVOCATIONS_FILE, revocations)

        return await SqliteStagedKeys.made(self._path, self._revocations, manifest.id, put, clock=self._clock)


class SqliteStagedKeys:
    """A StagedKeys: files beside the live ones. `made` is the way in."""

    def __init__(self, staged: tuple[Path, Path], live: tuple[Path, Path], *, clock: Clock) -> None:
        self._keys, self._revocations = staged
        self._live_keys, self._live_revocations = live
        self._clock = clock
        self._switched = False

    @classmethod
    async def made(
        cls, keys: Path, revocations: Path, identity: str, put: Callable[[Path, Path], None], *, clock: Clock
    ) -> SqliteStagedKeys:
        """Has `put` make the files, in a thread. Whom the live store knows to be erased is erased in them too.

        Raises what `put` raises, KeyStoreUnavailable.
        """

        def make() -> tuple[Path, Path]:
            with explained_room(keys.parent, "make room there"):
                staged = staged_path(keys, identity), staged_path(revocations, identity)
                try:
                    put(*staged)
                except BaseException:
                    for path in staged:
                        remove_database(path)
                    raise
                return staged

        made = cls(await in_thread(make), (keys, revocations), clock=clock)
        try:
            await made._carry_erasures()
        except BaseException:
            await made.discard()
            raise
        return made

    async def _carry_erasures(self) -> None:
        erased = await in_thread(lambda: _erasures_of(self._live_keys))
        async with opened_keys(self._keys) as keys:
            known = set((await keys.erasures(0)).subjects)
            for subject, at in erased:
                if subject not in known:
                    await keys.erase(subject, at)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[KeyStore]:
        """As StagedKeys."""
        async with opened_keys(self._keys) as keys:
            yield keys

    async def switch(self) -> Switched:
        """As Staged: one rename. Revocations that are live and can be read stay: they are newer."""
        await in_thread(self._refuse_in_use)
        await self._carry_erasures()  # of those who were erased since
        kept = await in_thread(self._switch)
        self._switched = True
        return Switched(kept, (f"remove {kept} within {_DAYS} days: it holds keys",) if kept else ())

    def _refuse_in_use(self) -> None:
        with explained_room(self._live_keys.parent, "make room there"):
            refuse_in_use(self._live_keys, what="the key store")

    def _switch(self) -> str:
        kept = []
        with held_for_switch(self._live_keys, what="the key store"):
            refuse_in_use(self._live_keys, what="the key store")
            refuse_in_use(self._keys, what="the restored key store")
            if self._revocations.exists() and not _is_readable(self._live_revocations):
                refuse_in_use(self._live_revocations, what="the revocations")
                kept.append(put_in_place(self._revocations, self._live_revocations, now=self._clock.now()))
            else:
                remove_database(self._revocations)
            kept.insert(0, put_in_place(self._keys, self._live_keys, now=self._clock.now()))
        return ", ".join(files for files in kept if files)

    async def discard(self) -> None:
        """As Staged."""
        if not self._switched:
            for path in (self._keys, self._revocations):
                await in_thread(partial(remove_database, path))


@asynccontextmanager
async def opened_keys(path: Path) -> AsyncIterator[SqliteKeyStore]:
    """A key store in a file that nobody else uses."""
    store = await SqliteKeyStore.open(path)
    try:
        yield store
    finally:
        await store.close()


def copied_keys(live: Path, target: Path) -> tuple[dict[str, int], str]:
    """Copies a live key store, compressed; what it holds, of the same moment. Blocks."""
    plain = target.with_suffix("")
    with explained_room(target.parent, "make room there"):
        with opened_moment(live) as connection:
            copy_pages(connection, plain)
        return pack_keys(plain, target)


def pack_keys(plain: Path, target: Path) -> tuple[dict[str, int], str]:
    """Compresses a copy of a key store, and says what it holds. Blocks."""
    digest = hashlib.sha256()
    with opened_copy(plain) as copy:
        for subject, key_id, wrapped in copy.execute(_ROWS):
            digest.update(b"%s\0%s\0%s\n" % (subject, key_id, wrapped))
        (keys,) = copy.execute(_COUNT).fetchone()
        (erased,) = copy.execute(_ERASED).fetchone()
    check_sound(plain)
    packed(plain, target)
    return {"keys": keys, "erasures": erased}, digest.hexdigest()


def copied_revocations(live: Path, target: Path) -> int:
    """Copies the revocations beside a key store, compressed; how many. Blocks."""
    plain = target.with_suffix("")
    with explained_room(target.parent, "make room there"):
        with opened_moment(live) as connection:
            copy_pages(connection, plain)
        with opened_copy(plain) as copy:
            (count,) = copy.execute(_REVOKED).fetchone()
        check_sound(plain)
        packed(plain, target)
    return int(count)


def _erasures_of(path: Path) -> list[tuple[str, datetime]]:
    """Whom a live key store knows to be erased, as far as it can be read: the ledger knows them all."""
    if not path.exists():
        return []
    try:
        with opened_moment(path) as connection:
            rows = connection.execute(_ALL_ERASURES).fetchall()
    except KisekiError:
        return []
    return [(subject.decode(), datetime.fromisoformat(at.decode())) for subject, at in rows]


def _is_readable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with opened_moment(path) as connection:
            connection.execute("SELECT count(*) FROM revocations").fetchone()
    except KisekiError:
        return False
    return True
