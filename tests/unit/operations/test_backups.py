"""Making, listing, verifying and removing backups: what counts as one, what is found to be wrong, what stays."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import JournalUnavailable
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.operations.backup.catalog import Listed, Verification, new_id
from kiseki.operations.backup.create import create_backup
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part
from kiseki.operations.backup.port import Progress
from kiseki.operations.backup.prune import PRIVATE, going, prune
from kiseki.operations.backup.staged import check_journal
from kiseki.operations.backup.verify import LiveJournal, lost_keys, verified, verify_journal
from kiseki.operations.errors import (
    BackupDamaged,
    BackupMissing,
    ClockWrong,
    NoRoom,
    OperatorBusy,
    RestoreRefused,
)
from kiseki.security.key_store import MemoryKeyStore, WrappedKey
from kiseki.testing.journal_conformance import SetClock, encoded, metadata
from kiseki.testing.journal_tests.parts import NOON
from tests.integration.journal.transfer_parts import fill
from tests.unit.operations.parts import FILE, ExportBackups, catalog_in, no_progress


def live(journal: TransferableJournal | None) -> LiveJournal:
    @asynccontextmanager
    async def opened() -> AsyncIterator[TransferableJournal | None]:
        yield journal

    return opened


class World:
    """A journal with something in it, its driver, and a place."""

    def __init__(self, folder: Path) -> None:
        self.clock = SetClock()
        self.journal = MemoryJournal(clock=self.clock)
        self.driver = ExportBackups(self.journal, self.clock)
        self.catalog = catalog_in(folder / "backups")
        self.folder = folder / "backups"

    async def made(self) -> Manifest:
        return await create_backup(Part.JOURNAL, self.driver, self.catalog, clock=self.clock, progress=no_progress)

    async def check(self, manifest: Manifest, *, against: TransferableJournal | None = None) -> Verification:
        check = partial(
            verify_journal,
            manifest,
            self.driver,
            self.catalog,
            live(self.journal if against is None else against),
            progress=no_progress,
        )
        return await verified(manifest, self.catalog, check, clock=self.clock)

    def file(self, manifest: Manifest) -> Path:
        return self.folder / "journal" / manifest.id / FILE

    async def pruned(self, days: float) -> tuple[str, ...]:
        pruned = await prune(Part.JOURNAL, self.driver, self.catalog, days=days, clock=self.clock, progress=no_progress)
        return pruned.removed


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await fill(made.journal)
    return made


async def more(journal: TransferableJournal, name: str, *, stream: str = "Later-1", after: int = 0) -> None:
    await journal.append(stream, after, [encoded(name)], metadata=metadata(name))


async def test_a_backup_says_what_it_holds_and_is_proved(world: World) -> None:
    manifest = await world.made()
    contents = manifest.made.contents
    assert contents is not None
    assert (contents.commits, contents.streams) == (35, 7)
    assert contents.events > 35
    assert contents.claims > 0
    await more(world.journal, "newer")
    verification = await world.check(manifest)
    assert verification.sound
    assert "every event equals the live journal, which has 1 newer commits" in verification.found
    (listed,) = await world.catalog.list(Part.JOURNAL)
    assert listed.verified
    assert listed.manifest == manifest


async def test_the_digest_does_not_depend_on_order(world: World, tmp_path: Path) -> None:
    """Two journals with the same commits, appended in different orders, hold the same."""
    one, other = MemoryJournal(clock=world.clock), MemoryJournal(clock=world.clock)
    for journal, names in ((one, "abc"), (other, "cab")):
        for name in names:
            await more(journal, name, stream=f"Thing-{name}")
    made = [await ExportBackups(journal, world.clock).make(_folder(tmp_path, name), no_progress)
            for journal, name in ((one, "one"), (other, "other"))]  # fmt: skip
    assert made[0].contents == made[1].contents
    await more(one, "d", stream="Thing-a", after=1)
    await more(other, "e", stream="Thing-a", after=1)
    again = [await ExportBackups(journal, world.clock).make(_folder(tmp_path, name), no_progress)
             for journal, name in ((one, "1"), (other, "2"))]  # fmt: skip
    assert again[0].contents != again[1].contents


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"plain", b"plane", 1)), "altered"),
        (lambda path: path.unlink(), FILE),
    ],
)
async def test_damage_is_found_noted_and_said(world: World, damage: object, says: str) -> None:
    manifest = await world.made()
    assert callable(damage)
    damage(world.file(manifest))
    with pytest.raises(BackupDamaged, match=says) as raised:
        await world.check(manifest)
    assert "\n" not in str(raised.value)
    (listed,) = await world.catalog.list(Part.JOURNAL)
    assert not listed.verified
    assert listed.verification is not None
    assert not listed.verification.sound


async def test_contents_that_are_not_those_of_the_manifest_are_found(world: World) -> None:
    """Also when the file's checksum was made to fit."""
    manifest = await world.made()
    other = MemoryJournal(clock=world.clock)
    await fill(other, commits=4)
    world.driver.journal = other
    wrong = await world.made()
    with pytest.raises(BackupDamaged, match="holds 28 commits"):
        await check_forged(world, wrong, manifest)


async def check_forged(world: World, files_of: Manifest, says: Manifest) -> None:
    forged = Manifest(
        format=FORMAT,
        id=files_of.id,
        part=Part.JOURNAL,
        kiseki="0",
        started_at=NOON,
        finished_at=NOON,
        made=says.made,
        files=files_of.files,
    )
    await world.check(forged)


async def test_a_live_journal_that_differs_is_named(world: World) -> None:
    manifest = await world.made()
    other = MemoryJournal(clock=world.clock)
    await fill(other, streams=6)
    await more(other, "else", stream="Thing-6")
    with pytest.raises(BackupDamaged, match="differs from the live journal in Thing-6"):
        await world.check(manifest, against=other)


async def test_a_live_journal_that_lacks_the_end_of_a_stream_differs(world: World) -> None:
    manifest = await world.made()
    other = MemoryJournal(clock=world.clock)
    await fill(other, commits=4)
    with pytest.raises(BackupDamaged, match="differs from the live journal in Thing-0, Thing-1, Thing-2"):
        await world.check(manifest, against=other)


async def test_what_fails_leaves_no_backup_and_the_next_one_works(world: World) -> None:
    class Full(ExportBackups):
        async def make(self, folder: Path, progress: Progress) -> Made:
            (folder / FILE).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoRoom, match="full"):
        await create_backup(
            Part.JOURNAL, Full(world.journal, world.clock), world.catalog, clock=world.clock, progress=no_progress
        )
    assert await world.catalog.list(Part.JOURNAL) == []
    assert [path for path in world.folder.rglob("*") if path.name == FILE] == []
    assert (await world.check(await world.made())).sound


async def test_two_operators_at_once(world: World) -> None:
    async with world.catalog.place.lock("journal.lock"):
        with pytest.raises(OperatorBusy) as raised:
            await world.made()
        assert "\n" not in str(raised.value)
    await world.made()


async def test_a_clock_that_went_back_keeps_everything(world: World) -> None:
    manifest = await world.made()
    await world.check(manifest)
    world.clock.advance(timedelta(days=-1))
    with pytest.raises(ClockWrong, match="set the clock"):
        await world.made()
    with pytest.raises(ClockWrong, match=f"remove its folder journal/{manifest.id} from the place by hand"):
        await world.pruned(7)
    world.clock.advance(timedelta(days=1))
    await world.made()


async def test_an_id_that_is_none_is_missing(world: World) -> None:
    with pytest.raises(BackupMissing, match="kiseki backup create"):
        await world.catalog.find(Part.JOURNAL, None)
    for name in ("20260301T120000Z-000000", "../secrets", ""):
        with pytest.raises(BackupMissing):
            await world.catalog.find(Part.JOURNAL, name)


async def test_a_manifest_that_cant_be_read_is_listed_as_that(world: World) -> None:
    manifest = await world.made()
    world.file(manifest).with_name("manifest.json").write_bytes(b"{")
    (listed,) = await world.catalog.list(Part.JOURNAL)
    assert listed.manifest is None
    assert listed.problem is not None
    assert "manifest" in listed.problem


async def test_the_last_verified_backup_is_never_removed(world: World) -> None:
    first = await world.made()
    await world.check(first)
    world.clock.advance(timedelta(days=40))
    second = await world.made()
    assert await world.pruned(7) == ()  # the newer one is not verified
    await world.check(second)
    world.clock.advance(timedelta(days=40))
    assert await world.pruned(7) == (first.id,)
    assert world.driver.forgotten == [first.id]
    assert await world.pruned(7) == ()
    assert [one.id for one in await world.catalog.list(Part.JOURNAL)] == [second.id]


def listed(part: Part, age: int, *, sound: bool | None, finished: bool = True) -> Listed:
    at = NOON - timedelta(days=age)
    manifest = Manifest(
        format=FORMAT,
        id=new_id(at),
        part=part,
        kiseki="0",
        started_at=at,
        finished_at=at,
        made=Made(store="memory", method="online", as_of=at),
        files=(),
    )
    return Listed(
        id=manifest.id,
        part=part,
        manifest=manifest if finished else None,
        problem=None if finished else "it was never finished",
        verification=None if sound is None else Verification(at=at, sound=sound, found=""),
        bytes=1,
        finished=finished,
    )


BACKUPS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from([None, True, False]), st.booleans()), unique_by=lambda each: each[0]
)


@given(BACKUPS, st.integers(1, 40), st.sampled_from(list(Part)))
def test_what_goes_and_what_stays(ages: list[tuple[int, bool | None, bool]], days: int, part: Part) -> None:
    there = [listed(part, age, sound=sound, finished=finished) for age, sound, finished in sorted(ages, reverse=True)]
    cutoff = NOON - timedelta(days=days)
    gone = going(part, there, cutoff)
    left = [one for one in there if one not in gone]
    if part in PRIVATE:
        assert all(one.manifest is not None and one.manifest.made.as_of >= cutoff for one in left)
        return
    # What was proved before is proved after, by one that is at least as new.
    proved = [one.id for one in there if one.verified]
    if proved:
        assert max(proved) in {one.id for one in left}
    else:
        assert all(one.manifest is None for one in gone)
    assert all(one.manifest is None or one.manifest.made.as_of < cutoff for one in gone)


async def test_a_restore_refuses_to_lose_what_is_newer(world: World) -> None:
    manifest = await world.made()
    await more(world.journal, "newer")
    folder = world.file(manifest).parent
    staged = await world.driver.stage(folder, manifest, no_progress)
    with pytest.raises(RestoreRefused, match="1 commits that this backup lacks") as raised:
        await check_journal(
            staged,
            name="the backup",
            wanted=manifest.made.contents,
            live=live(world.journal),
            discard_newer=False,
            progress=no_progress,
        )
    assert "--discard-newer" in str(raised.value)
    checked = await check_journal(
        staged,
        name="the backup",
        wanted=manifest.made.contents,
        live=live(world.journal),
        discard_newer=True,
        progress=no_progress,
    )
    assert checked.lost_commits == 1
    assert checked.contents == manifest.made.contents


async def test_a_live_journal_that_cant_be_read_may_hold_anything(world: World) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[TransferableJournal | None]:
        if world.clock.now() == NOON:
            raise JournalUnavailable("the disk does not answer")
        yield None

    manifest = await world.made()
    staged = await world.driver.stage(world.file(manifest).parent, manifest, no_progress)
    arguments = {"name": "the backup", "wanted": manifest.made.contents, "live": broken, "progress": no_progress}
    with pytest.raises(RestoreRefused, match="nobody knows what a restore would lose"):
        await check_journal(staged, discard_newer=False, **arguments)  # type: ignore[arg-type]
    assert (await check_journal(staged, discard_newer=True, **arguments)).lost_commits is None  # type: ignore[arg-type]
    there = await check_journal(
        staged,
        name="the backup",
        wanted=manifest.made.contents,
        live=live(None),
        discard_newer=False,
        progress=no_progress,
    )
    assert there.lost_commits == 0


async def test_a_staged_journal_that_lacks_something_is_not_switched(world: World) -> None:
    manifest = await world.made()
    other = MemoryJournal(clock=world.clock)
    await fill(other, commits=4)
    world.driver.journal = other
    smaller = await world.made()
    staged = await world.driver.stage(world.file(smaller).parent, smaller, no_progress)
    with pytest.raises(BackupDamaged):
        await check_journal(
            staged,
            name="the backup",
            wanted=manifest.made.contents,
            live=live(None),
            discard_newer=False,
            progress=no_progress,
        )


async def test_another_key_of_the_same_person_is_a_lost_key() -> None:
    live_keys, other = MemoryKeyStore(), MemoryKeyStore()
    await live_keys.insert(
        {name: WrappedKey(f"{name}-1", b"wrapped") for name in ("same", "other", "erased", "absent")}
    )
    await other.insert({"same": WrappedKey("same-1", b"wrapped anew"), "other": WrappedKey("other-2", b"wrapped")})
    await other.erase("erased", NOON)
    assert await lost_keys(live_keys, other) == 2


@pytest.mark.parametrize("commits", [0, 1, 4])
async def test_a_restore_brings_back_what_the_live_journal_merely_lacks(world: World, commits: int) -> None:
    manifest = await world.made()
    older = MemoryJournal(clock=world.clock)
    await fill(older, commits=commits)
    staged = await world.driver.stage(world.file(manifest).parent, manifest, no_progress)
    checked = await check_journal(
        staged,
        name="the backup",
        wanted=manifest.made.contents,
        live=live(older),
        discard_newer=False,
        progress=no_progress,
    )
    assert checked.lost_commits == 0


async def test_a_shorter_stream_with_other_events_is_not_merely_older(world: World) -> None:
    """Notes are of the ends of streams: this one ends before, and differs from its first event on."""
    manifest = await world.made()
    other = MemoryJournal(clock=world.clock)
    await fill(other, streams=6)
    await more(other, "else", stream="Thing-6")
    staged = await world.driver.stage(world.file(manifest).parent, manifest, no_progress)
    with pytest.raises(RestoreRefused, match="other events of Thing-6 than this backup"):
        await check_journal(
            staged,
            name="the backup",
            wanted=manifest.made.contents,
            live=live(other),
            discard_newer=False,
            progress=no_progress,
        )
