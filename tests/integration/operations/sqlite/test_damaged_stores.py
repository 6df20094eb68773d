"""Live files that are damaged are not copied, whatever is wrong in them: that is one line each time."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from kiseki.kernel.errors import KisekiError
from kiseki.operations.errors import OperationFailed
from kiseki.operations.sqlite.journal import SqliteJournalBackups
from kiseki.operations.sqlite.key_protection import SqliteKeyProtection
from kiseki.operations.sqlite.keys import SqliteKeyBackups
from kiseki.operations.sqlite.protection import SqliteJournalProtection
from kiseki.security.identity.sqlite_revocations import SqliteRevocations
from kiseki.security.key_store import WrappedKey
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.operations.sqlite.sqlite_parts import fill, no_progress, opened, place_in
from tests.support import ManualClock

_PAGE = 4_096


class World:
    """A live journal, a key store and revocations, and everything that copies them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal, self.keys = folder / "journal.db", folder / "keys.db"
        self.revocations = folder / "revocations.db"
        self._number = 0

    async def fill(self) -> None:
        async with opened(self.journal) as journal:
            await fill(journal, 60)
        keys = await SqliteKeyStore.open(self.keys)
        await keys.insert({f"Person-{n}": WrappedKey(f"key-{n}", b"wrapped key %06d" % n) for n in range(200)})
        await keys.close()
        revocations = await SqliteRevocations.open(self.revocations)
        await revocations.revoke("issuer", "somebody", at=1.0, forget_before=0)

    def _new(self) -> Path:
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        return folder

    async def copy_journal(self) -> None:
        await SqliteJournalBackups(self.journal, clock=ManualClock()).make(self._new(), no_progress)

    async def protect_journal(self) -> None:
        place = place_in(self._new())
        await SqliteJournalProtection(self.journal, place, clock=ManualClock(), days=7).step(no_progress)

    async def copy_keys(self) -> None:
        backups = SqliteKeyBackups(self.keys, revocations=self.revocations, clock=ManualClock())
        await backups.make(self._new(), no_progress)

    async def protect_keys(self) -> None:
        place = place_in(self._new())
        protection = SqliteKeyProtection(self.keys, self.revocations, place, clock=ManualClock(), days=7)
        await protection.step(no_progress)

    @property
    def everything(self) -> list[tuple[Path, Callable[[], Awaitable[None]]]]:
        return [
            (self.journal, self.copy_journal),
            (self.journal, self.protect_journal),
            (self.keys, self.copy_keys),
            (self.keys, self.protect_keys),
            (self.revocations, self.copy_keys),
            (self.revocations, self.protect_keys),
        ]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.fill()
    return made


async def test_a_table_whose_root_page_is_damaged_is_said(world: World) -> None:
    """Also one that is only emptied in the copy, or read there."""
    for path, table, copies in (
        (world.journal, "snapshots", (world.copy_journal, world.protect_journal)),
        (world.keys, "subject_keys", (world.copy_keys, world.protect_keys)),
        (world.revocations, "revocations", (world.copy_keys,)),
    ):
        good = path.read_bytes()
        with closing(sqlite3.connect(path)) as connection:
            (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        path.write_bytes(good[: (root - 1) * size] + b"\xff" * size + good[root * size :])
        for copy in copies:
            with pytest.raises(OperationFailed, match=r"malformed|damaged") as raised:
                await copy()
            assert "\n" not in str(raised.value)
        path.write_bytes(good)


async def test_whatever_is_damaged_is_said_in_one_line(world: World) -> None:
    chance = random.Random(5)  # the same each time
    for path, copy in world.everything * 12:
        good = path.read_bytes()
        damaged = bytearray(good)
        # In the middle of a page, or in its header, which says where its rows are.
        at = chance.randrange(len(good))
        at = at if chance.random() < 0.5 else at // _PAGE * _PAGE + chance.randrange(16)
        size = min(chance.choice([1, 8, 200, _PAGE]), len(good) - at)
        damaged[at : at + size] = chance.randbytes(size) if chance.random() < 0.5 else bytes(size)
        path.write_bytes(damaged)
        said = ""
        try:
            await copy()
        except KisekiError as problem:
            said = str(problem)
        assert "\n" not in said
        path.write_bytes(good)


async def test_a_row_that_is_of_another_kind_is_said(world: World) -> None:
    for path, statement, copies in (
        (world.journal, "UPDATE commits SET committed_at = 'never' WHERE position = 7", world.everything[:2]),
        (world.revocations, "UPDATE revocations SET issuer = x'ff'", world.everything[5:]),
    ):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)
        for _, copy in copies:
            with pytest.raises(OperationFailed, match="never written"):
                await copy()
