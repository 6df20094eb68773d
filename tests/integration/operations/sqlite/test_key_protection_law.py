"""The law of protected keys: what the place gives back is the key store of the last step, and nothing destroyed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiseki.operations.errors import BackupMissing, ClockWrong
from kiseki.operations.sqlite.key_protection import SqliteKeyProtection
from kiseki.security.identity.sqlite_revocations import SqliteRevocations
from kiseki.security.key_store import DIGEST_SUBJECT, Rewrapped, WrappedKey
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.operations.sqlite.sqlite_parts import (
    Killed,
    KillingPlace,
    Rows,
    key_rows,
    no_progress,
    place_in,
    revoked_rows,
)
from tests.support import ManualClock

_SUBJECTS = st.integers(0, 3)
_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), _SUBJECTS),
        st.tuples(st.just("erase"), _SUBJECTS),
        st.tuples(st.just("rewrap")),
        st.tuples(st.just("revoke"), _SUBJECTS),
        st.tuples(st.just("step")),
        st.tuples(st.just("killed_step"), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.sampled_from([1, 60, 40_000, 90_000, -3, -7_200])),
        st.tuples(st.just("recover")),
    ),
    min_size=4,
    max_size=20,
)


class _World:
    """A live key store under protection, and what its copies may be."""

    def __init__(self, folder: Path, keys: SqliteKeyStore, revocations: SqliteRevocations) -> None:
        self.folder = folder
        self.keys = keys
        self.revocations = revocations
        self.clock = ManualClock()
        (folder / "place").mkdir(exist_ok=True)
        self.place = KillingPlace(folder / "place")
        self.protection = self.protection_of(folder, self.place)
        self.number = 0
        self.possible: list[tuple[Rows, Rows]] = []
        self.finished = False
        self.recoveries = 0

    def protection_of(self, folder: Path, place: KillingPlace) -> SqliteKeyProtection:
        return SqliteKeyProtection(folder / "keys.db", folder / "revocations.db", place, clock=self.clock, days=7)

    def state(self) -> tuple[Rows, Rows]:
        return key_rows(self.folder / "keys.db"), revoked_rows(self.folder / "revocations.db")

    async def insert(self, subject: int) -> None:
        self.number += 1
        key = WrappedKey(f"key-{self.number}", f"wrapped-{self.number:06d}".encode())
        await self.keys.insert({f"Person-{subject}": key})

    async def erase(self, subject: int) -> None:
        await self.keys.erase(f"Person-{subject}", self.clock.now())

    async def rewrap(self) -> None:
        self.number += 1
        changes = [
            Rewrapped(subject, key, f"rewrapd-{self.number:06d}".encode())
            async for page in self.keys.scan(10)
            for subject, key in page
        ]
        await self.keys.replace(changes)

    async def revoke(self, subject: int) -> None:
        self.number += 1
        await self.revocations.revoke("issuer", f"user-{subject}", at=float(self.number), forget_before=0)

    async def step(self) -> None:
        await self.protection.step(no_progress)
        self.possible, self.finished = [self.state()], True

    async def killed_step(self, lives: int) -> None:
        self.place.lives = lives
        try:
            await self.protection.step(no_progress)
        except Killed:
            self.possible.append(self.state())
        else:
            self.possible, self.finished = [self.state()], True
        self.place.lives = None

    async def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    async def recover(self) -> None:
        self.recoveries += 1
        target = self.folder / f"recovered-{self.recoveries}"
        work = target / "work"
        work.mkdir(parents=True)
        protection = self.protection_of(target, place_in(self.folder / "place"))  # type: ignore[arg-type]
        try:
            staged = await protection.recover(work, no_progress)
        except BackupMissing:
            if self.finished:
                raise
            return
        await staged.switch()
        assert (key_rows(target / "keys.db"), revoked_rows(target / "revocations.db")) in self.possible


async def _in_world(folder: Path, story: Callable[[_World], object]) -> None:
    keys = await SqliteKeyStore.open(folder / "keys.db")
    revocations = await SqliteRevocations.open(folder / "revocations.db")
    await keys.insert({DIGEST_SUBJECT: WrappedKey("root", b"root-of-digests")})
    try:
        outcome = story(_World(folder, keys, revocations))
        if asyncio.iscoroutine(outcome):
            await outcome
    finally:
        await keys.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_ACTIONS)
def test_the_place_gives_back_the_key_store_of_the_last_step(actions: list[tuple[object, ...]]) -> None:
    async def story(world: _World) -> None:
        for name, *arguments in [*actions, ("step",), ("recover",)]:
            await getattr(world, str(name))(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_in_world(Path(folder), story))


@pytest.mark.parametrize("jump", [0, 86_400 * 10, -86_400 * 10], ids=["a right clock", "once ahead", "once behind"])
async def test_a_destroyed_key_leaves_the_place_within_seven_days(tmp_path: Path, jump: int) -> None:
    async def story(world: _World) -> None:
        await world.keys.insert({"Person-9": WrappedKey("key-9", b"the-key-of-person-9")})
        world.clock.advance(jump)
        await world.step()
        world.clock.advance(-jump)
        for _ in range(20):
            world.clock.advance(3_600)
            await world.insert(0)
            await world.step()
        await world.keys.erase("Person-9", world.clock.now())
        erased_at = world.clock.now()
        assert await _gives_back(world, b"the-key-of-person-9") is False, "who is erased does not come back"
        while world.clock.now() < erased_at + timedelta(days=7):
            world.clock.advance(3_600)
            await world.step()
            await world.protection.prune(world.clock.now())
        place = world.folder / "place"
        assert await _holds(world, b"the-key-of-person-9") is False
        assert any(place.rglob("base-*"))

    await _in_world(tmp_path, story)


async def test_even_the_last_copy_of_keys_ends(tmp_path: Path) -> None:
    async def story(world: _World) -> None:
        await world.step()
        assert await world.protection.through() == world.clock.now()
        world.clock.advance(7 * 86_400)
        assert await world.protection.prune(world.clock.now()) > 0
        assert await world.protection.through() is None
        assert not [path for path in (world.folder / "place").rglob("*") if path.suffix == ".gz"]
        with pytest.raises(BackupMissing):
            await world.protection.recover(tmp_path, no_progress)

    await _in_world(tmp_path, story)


async def test_a_clock_that_went_back_removes_no_copy_of_keys(tmp_path: Path) -> None:
    async def story(world: _World) -> None:
        await world.step()
        world.clock.advance(3_600)
        await world.insert(1)
        await world.step()
        there = sorted((world.folder / "place").rglob("*"))
        world.clock.advance(-86_400)
        with pytest.raises(ClockWrong, match="nothing was removed"):
            await world.protection.prune(world.clock.now())
        assert sorted((world.folder / "place").rglob("*")) == there
        # A step by this clock says that it goes on so: what it has copied anew stays, and can be put together.
        await world.step()
        await world.protection.prune(world.clock.now())
        await world.recover()
        assert world.recoveries == 1

    await _in_world(tmp_path, story)


async def test_a_base_of_the_future_goes_as_soon_as_the_clock_is_right(tmp_path: Path) -> None:
    async def story(world: _World) -> None:
        await world.step()
        world.clock.advance(2 * 86_400)
        await world.insert(1)
        await world.step()
        world.clock.advance(-2 * 86_400 + 60)
        await world.step()  # with a base of today there is no need for another
        assert len(list((world.folder / "place").rglob("base-*"))) == 2
        assert await world.protection.prune(world.clock.now()) == 1
        await world.recover()

    await _in_world(tmp_path, story)


async def _gives_back(world: _World, wrapped: bytes) -> bool:
    target = world.folder / "elsewhere"
    (target / "work").mkdir(parents=True)
    await world.step()
    staged = await world.protection_of(target, world.place).recover(target / "work", no_progress)
    async with staged.opened() as keys:
        return wrapped in [key.wrapped async for page in keys.scan(100) for _, key in page]


async def _holds(world: _World, wrapped: bytes) -> bool:
    """Whether any file in the place has a key in it, compressed or not."""
    for path in (world.folder / "place").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            if base64.b64encode(wrapped) in data or wrapped in data:
                return True
    return False
