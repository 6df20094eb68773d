"""Continuous protection of an embedded journal: times, damage, disks, other processes."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.journal.port import ClaimChange
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.sqlite.schema import raise_epoch
from kiseki.operations.errors import BackupDamaged, BackupMissing, OperationFailed, OperatorBusy
from kiseki.operations.sqlite.protection import SqliteJournalProtection
from tests.integration.operations.sqlite.sqlite_parts import (
    Killed,
    KillingPlace,
    Rows,
    append,
    child,
    fill,
    journal_rows,
    line_from,
    no_progress,
    opened,
    place_in,
    record,
)
from tests.support import ManualClock


class _World:
    def __init__(self, folder: Path, journal: SqliteJournal, clock: ManualClock) -> None:
        self.folder = folder
        self.journal = journal
        self.clock = clock
        self.live = folder / "journal.db"
        self.place = folder / "place"
        self.place.mkdir()
        self.protection = self.at(self.live)
        self.recoveries = 0

    def at(self, live: Path) -> SqliteJournalProtection:
        return SqliteJournalProtection(live, place_in(self.place), clock=self.clock, days=3)

    async def step(self) -> tuple[datetime, Rows]:
        """After a minute."""
        self.clock.advance(60)
        through = (await self.protection.step(no_progress)).through
        return through, journal_rows(self.live)

    async def recovered(self, until: datetime | None = None) -> Rows:
        self.recoveries += 1
        target = self.folder / f"recovered-{self.recoveries}"
        (target / "work").mkdir(parents=True)
        staged = await self.at(target / "journal.db").recover(target / "work", no_progress, until=until)
        assert staged.contents is not None
        await staged.switch()
        rows = journal_rows(target / "journal.db")
        assert (len(rows["commits"]), len(rows["claims"])) == (staged.contents.commits, staged.contents.claims)
        return rows

    def files(self, pattern: str = "*") -> list[Path]:
        return sorted(path for path in self.place.rglob(pattern) if path.is_file() and path.suffix != ".lock")


@asynccontextmanager
async def world_in(folder: Path) -> AsyncIterator[_World]:
    clock = ManualClock()
    async with opened(folder / "journal.db", clock) as journal:
        yield _World(folder, journal, clock)


async def test_every_step_can_be_gone_back_to(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        history: list[tuple[datetime, Rows]] = []
        for number in range(6):
            await fill(world.journal, 3, first=10 * number)
            if number == 3:
                world.clock.advance(86_400)  # so that there are two bases
            history.append(await world.step())
        assert len(world.files("journal.db.gz")) == 2
        for through, rows in history:
            assert await world.recovered(through) == rows
            assert await world.recovered(through + timedelta(seconds=30)) == rows
        with pytest.raises(BackupMissing, match="of before"):
            await world.recovered(history[0][0] - timedelta(seconds=1))
        assert await world.protection.through() == history[-1][0]


async def test_a_step_without_news_is_small(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await fill(world.journal, 3)
        await world.step()
        before = world.files()
        world.clock.advance(60)
        done = await world.protection.step(no_progress)
        assert (done.commits, done.bytes, done.base) == (0, 0, False)
        assert world.files() == before
        assert await world.protection.through() == world.clock.now()


async def test_claims_that_move_between_streams_come_back_where_they_are(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        value = ("name", "v")
        await append(world.journal, "Thing-a", 0, claims=[ClaimChange(*value, take=True)])
        await world.step()
        await append(world.journal, "Thing-a", 1, claims=[ClaimChange(*value, take=False)])
        await append(
            world.journal,
            "Thing-b",
            0,
            claims=[ClaimChange(*value, take=True)],
            record=record("k", "Thing-b", 1, world.clock.now() + timedelta(days=1)),
        )
        _, rows = await world.step()
        assert rows["claims"] == [(*value, "Thing-b")]
        assert await world.recovered() == rows


async def test_what_is_given_back_or_has_expired_does_not_come_back(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        soon = world.clock.now() + timedelta(hours=1)
        await append(
            world.journal,
            "Thing-a",
            0,
            claims=[ClaimChange("name", "v", take=True), ClaimChange("name", "w", take=True)],
            record=record("first", "Thing-a", 1, soon),
        )
        await world.step()
        world.clock.advance(7_200)
        later = world.clock.now() + timedelta(days=1)
        await append(
            world.journal,
            "Thing-a",
            1,
            claims=[ClaimChange("name", "v", take=False)],
            record=record("second", "Thing-a", 2, later),
        )
        _, rows = await world.step()
        assert [claim[:2] for claim in rows["claims"]] == [("name", "w")]
        assert [each[0] for each in rows["records"]] == ["second"]
        assert await world.recovered() == rows


async def test_any_altered_cut_or_lost_file_is_found_and_what_is_whole_is_said(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        history = []
        for number in range(4):
            await fill(world.journal, 3, first=10 * number)
            history.append(await world.step())
        files = world.files()
        assert len(files) == 2 + 3 + 1  # a base of two files, three increments, the head
        for file in files:
            whole = file.read_bytes()
            for harm in ("first bit", "middle bit", "last bit", "cut", "empty", "lost"):
                match harm:
                    case "cut":
                        file.write_bytes(whole[: len(whole) // 2])
                    case "empty":
                        file.write_bytes(b"")
                    case "lost":
                        file.unlink()
                    case _:
                        place = {"first bit": 0, "middle bit": len(whole) // 2, "last bit": len(whole) - 1}[harm]
                        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with pytest.raises((BackupDamaged, BackupMissing)) as caught:
                    await world.recovered()
                assert "\n" not in str(caught.value)
                if is_increment(file):
                    number = [each.name for each in world_increments(files)].index(file.name)
                    through, rows = history[number]
                    assert f"whole up to {through:%Y-%m-%dT%H:%M:%S}" in str(caught.value)
                    assert await world.recovered(through) == rows
                # Whatever was harmed: protection goes on by itself.
                copy = tmp_path / "copy"
                shutil.copytree(world.place, copy)
                world.clock.advance(60)
                done = await world.protection.step(no_progress)
                if harm in ("cut", "empty", "lost") and not is_increment(file):
                    assert done.base
                if harm == "lost":
                    assert await world.recovered() == journal_rows(world.live)
                shutil.rmtree(world.place)
                copy.rename(world.place)
                file.write_bytes(whole)
        assert await world.recovered() == history[-1][1]


def is_increment(file: Path) -> bool:
    return file.name.endswith(".json.gz")


def world_increments(files: list[Path]) -> list[Path]:
    return [file for file in files if is_increment(file)]


async def test_a_step_that_dies_at_any_write_harms_nothing(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await fill(world.journal, 3)
        await world.step()
        for number in range(14):
            before = journal_rows(world.live)
            await fill(world.journal, 3, first=10 * number + 10)
            if number >= 7:
                world.clock.advance(86_400)  # a base is due
            dying = KillingPlace(world.place)
            dying.lives = number % 7
            protection = SqliteJournalProtection(world.live, dying, clock=world.clock, days=3)
            try:
                await protection.step(no_progress)
            except Killed:
                assert await world.recovered() in (before, journal_rows(world.live))
            _, rows = await world.step()
            assert await world.recovered() == rows


async def test_an_increment_that_was_written_anew_is_found(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        history = []
        for number in range(3):
            await fill(world.journal, 2, first=10 * number)
            history.append(await world.step())
        first, last = world_increments(world.files())
        for file in (first, last):
            whole = file.read_bytes()
            altered = gzip.decompress(whole).replace(b'\\"text\\":', b'\\"test\\":')
            assert altered != gzip.decompress(whole)
            file.write_bytes(gzip.compress(altered))
            with pytest.raises(BackupDamaged):
                await world.recovered()
            file.write_bytes(whole)
        assert await world.recovered() == history[-1][1]


async def test_a_base_of_the_future_is_none(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await fill(world.journal, 3)
        world.clock.advance(10 * 86_400)
        await world.step()
        world.clock.advance(-10 * 86_400)
        assert [(await world.protection.step(no_progress)).base for _ in range(3)] == [True, False, False]
        assert await world.recovered() == journal_rows(world.live)


async def test_a_restored_or_replaced_journal_begins_a_new_line(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await fill(world.journal, 3)
        await world.journal.close()
        shutil.copy(world.live, tmp_path / "older.db")
        async with opened(world.live, world.clock) as journal:
            await fill(journal, 3, first=10)
        newest, rows = await world.step()
        assert await world.recovered() == rows
        # Another one, put there by hand, of the same life.
        shutil.copy(tmp_path / "older.db", world.live)
        world.clock.advance(60)
        done = await world.protection.step(no_progress)
        assert done.base
        assert await world.recovered() == journal_rows(world.live)
        assert await world.recovered(newest) == rows, "what was there before is kept"
        async with opened(world.live, world.clock) as journal:
            await fill(journal, 3, first=20)
        await world.step()
        assert await world.recovered() == journal_rows(world.live)
        raise_epoch(world.live)
        world.clock.advance(60)
        assert (await world.protection.step(no_progress)).base
        # A clock that goes back makes no difference: lines are numbered.
        raise_epoch(world.live)
        world.clock.advance(-3_600)
        assert (await world.protection.step(no_progress)).base
        assert not (await world.protection.step(no_progress)).base
        assert await world.protection.through() == world.clock.now()
        assert await world.recovered() == journal_rows(world.live)


async def test_two_at_once_and_a_lost_journal(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await fill(world.journal, 3)
        async with place_in(world.place).lock("journal-increments.lock"):
            with pytest.raises(OperatorBusy):
                await world.protection.step(no_progress)
        _, rows = await world.step()
        await world.journal.close()
        world.live.rename(tmp_path / "gone.db")
        with pytest.raises(OperationFailed, match="there is no"):
            await world.protection.step(no_progress)
        assert not world.live.exists()
        assert await world.recovered() == rows


async def test_pruning_keeps_every_time_of_the_retention_and_the_last_whole_base(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        history = []
        for number in range(30):
            await fill(world.journal, 1, first=number)
            world.clock.advance(6 * 3_600)
            history.append(await world.step())
            await world.protection.prune(world.clock.now())
        now = world.clock.now()
        young = [(through, rows) for through, rows in history if through >= now - timedelta(days=3)]
        assert len(young) == 12
        for through, rows in young:
            assert await world.recovered(through) == rows
        bases = world.files("journal.db.gz")
        assert 3 <= len(bases) <= 5
        assert len(world_increments(world.files())) < 20
        world.clock.advance(100 * 86_400)
        await world.protection.prune(world.clock.now())
        assert world.files("journal.db.gz") == bases[-1:], "the last one never goes"
        assert await world.recovered() == history[-1][1]
        await world.step()
        newest = world.files("journal.db.gz")[-1]
        newest.write_bytes(newest.read_bytes()[:-1])
        world.clock.advance(100 * 86_400)
        await world.protection.prune(world.clock.now())
        assert bases[-1] in world.files(), "nor does the last one that is whole"


async def test_more_than_one_increment_makes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiseki.operations.sqlite.protection._CHUNK", 2)
    monkeypatch.setattr("kiseki.operations.sqlite.recovery._AT_ONCE", 2)
    async with world_in(tmp_path) as world:
        await append(world.journal, "Thing-a", 0, claims=[ClaimChange("name", "v", take=True)])
        first, rows = await world.step()
        await append(world.journal, "Thing-a", 1, claims=[ClaimChange("name", "v", take=False)])
        await fill(world.journal, 6)
        await append(world.journal, "Thing-b", 0, claims=[ClaimChange("name", "v", take=True)])
        through, later = await world.step()
        parts = world_increments(world.files())
        assert len(parts) == 4
        assert await world.recovered() == later
        parts[-1].unlink()
        with pytest.raises(BackupDamaged, match=f"whole up to {first:%Y-%m-%dT%H:%M:%S}"):
            await world.recovered(through - timedelta(microseconds=0))
        assert await world.recovered(first) == rows


async def write_on(path: str) -> None:
    """In a process: appends as fast as it goes, and says how far it is."""
    async with opened(Path(path)) as journal:
        for first in range(0, 1_000_000, 20):
            await fill(journal, 20, first=first)
            print(first + 20, flush=True)


async def protect(path: str, place: str) -> None:
    """In a process: steps without a pause, and says each one that is done."""
    protection = SqliteJournalProtection(Path(path), place_in(Path(place)), clock=_Real(), days=3)
    while True:
        done = await protection.step(no_progress)
        print(done.through.isoformat(), flush=True)


class _Real:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


async def test_protection_killed_again_and_again_under_load_loses_no_finished_step(tmp_path: Path) -> None:
    live, place = tmp_path / "journal.db", tmp_path / "place"
    place.mkdir()
    writer = await child(write_on, str(live))
    durable = int(await line_from(writer))
    for number in range(4):
        protector = await child(protect, str(live), str(place))
        for _ in range(2 + number % 3):
            assert await line_from(protector)
            durable = int(await line_from(writer))
        protector.kill()  # wherever it is now
        await protector.wait()
    protection = SqliteJournalProtection(live, place_in(place), clock=_Real(), days=3)
    assert (await protection.step(no_progress)).through
    writer.kill()
    await writer.wait()
    target = tmp_path / "elsewhere"
    (target / "work").mkdir(parents=True)
    elsewhere = SqliteJournalProtection(target / "journal.db", place_in(place), clock=_Real(), days=3)
    await (await elsewhere.recover(target / "work", no_progress)).switch()
    there, now = journal_rows(target / "journal.db"), journal_rows(live)
    assert len(there["commits"]) >= durable
    assert there["commits"] == now["commits"][: len(there["commits"])], "byte for byte, without a gap"
    streams = {row[1] for row in there["commits"]}
    assert there["claims"] == [row for row in now["claims"] if row[2] in streams]
