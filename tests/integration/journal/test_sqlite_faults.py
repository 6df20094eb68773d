"""The SQLite journal when the disk fails: everybody is told, nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kiseki.journal.port import Commit, Conflict, CorruptJournal, JournalUnavailable
from kiseki.journal.sqlite import schema as sqlite_schema
from kiseki.journal.sqlite import writer as sqlite_writer
from kiseki.journal.sqlite.connection import connect
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.verify import verify
from kiseki.testing.journal_conformance import everything, whole_feed
from tests.integration.journal.sqlite_parts import Groups, RealClock, append, append_many, child, line_from, opened, say


class Faulty(sqlite3.Connection):
    """A connection that fails where a test says so: `fault` is told each statement before it runs, and after."""

    fault: Callable[[str, bool], None] = staticmethod(lambda statement, after: None)

    def execute(self, statement: str, *parameters: Any) -> Any:
        self.fault(statement, False)
        cursor = super().execute(statement, *parameters)
        self.fault(statement, True)
        return cursor


def error(code: int, name: str, text: str = "it failed") -> sqlite3.OperationalError:
    problem = sqlite3.OperationalError(text)
    problem.sqlite_errorcode, problem.sqlite_errorname = code, name
    return problem


class Faults:
    """Which statements fail, and how often the writer opened the file."""

    def __init__(self) -> None:
        self.connections = 0
        self.on: tuple[str | tuple[str, ...], bool, Exception] | None = None

    def __call__(self, statement: str, after: bool) -> None:
        if self.on is not None and statement.strip().startswith(self.on[0]) and after is self.on[1]:
            raise self.on[2]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()
    really_connect = sqlite3.connect

    def connect_faulty(path: Path, *, write: bool, busy_seconds: float) -> sqlite3.Connection:
        faults.connections += 1
        factory = type("FaultyHere", (Faulty,), {"fault": staticmethod(faults)})
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", lambda *a, **k: really_connect(*a, **k, factory=factory))
            return connect(path, write=write, busy_seconds=busy_seconds)

    monkeypatch.setattr(sqlite_schema, "connect", connect_faulty)
    monkeypatch.setattr(sqlite_writer, "connect", connect_faulty)
    return faults


IO_ERROR = error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC", "disk I/O error")


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize(
    ("problem", "said", "reopened"),
    [
        (IO_ERROR, "input/output error (SQLITE_IOERR_FSYNC)", True),
        (error(sqlite3.SQLITE_FULL, "SQLITE_FULL"), "the disk is full", False),
        (error(sqlite3.SQLITE_READONLY, "SQLITE_READONLY"), "read-only", True),
        (MemoryError(), "MemoryError", False),
    ],
)
async def test_a_failed_group_fails_everybody_in_it_and_nobody_after(
    tmp_path: Path, faults: Faults, statement: str, problem: Exception, said: str, reopened: bool
) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        await append_many(journal, 5, 0)
        faults.on = (statement, False, problem)
        outcomes = await append_many(journal, 10, 1)
        assert [type(outcome) for outcome in outcomes] == [JournalUnavailable] * 10
        assert len({id(outcome) for outcome in outcomes}) == 10
        assert all(said in str(outcome) and "\n" not in str(outcome) for outcome in outcomes)
        with pytest.raises(JournalUnavailable, match=said.partition(" (")[0]):
            await append(journal, "Thing-0", 1)
        faults.on = None
        await append_many(journal, 5, 1)
        assert len(await whole_feed(journal)) == 10
        assert (faults.connections > 1) == reopened


async def test_a_commit_of_which_nobody_knows_is_found_again(tmp_path: Path, faults: Faults) -> None:
    """COMMIT succeeded, but the answer was an error."""
    async with opened(tmp_path / "journal.db") as journal:
        faults.on = ("COMMIT", True, IO_ERROR)
        assert [type(outcome) for outcome in await append_many(journal, 5, 0)] == [JournalUnavailable] * 5
        faults.on = None
        outcomes = await append_many(journal, 8, 0)
        assert [type(outcome) for outcome in outcomes] == [Commit] * 8
        assert len(await whole_feed(journal)) == 8


async def test_a_group_that_can_not_be_rolled_back(tmp_path: Path, faults: Faults) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        faults.on = (("COMMIT", "ROLLBACK"), False, IO_ERROR)
        with pytest.raises(JournalUnavailable):
            await append(journal, "Thing-1", 0)
        faults.on = None
        await append(journal, "Thing-1", 0)
        assert len(await whole_feed(journal)) == 1
        assert faults.connections == 2


async def test_damage_that_a_write_meets_is_named(tmp_path: Path, faults: Faults) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        faults.on = ("INSERT", False, error(sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"))
        with pytest.raises(CorruptJournal, match="kiseki journal verify"):
            await append(journal, "Thing-1", 0)
        faults.on = ("UPDATE", False, error(sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"))
        with pytest.raises(JournalUnavailable, match="damaged"):
            await journal.check()
        faults.on = None
        await journal.check()


async def test_a_snapshot_that_can_not_be_saved_fails_only_itself(tmp_path: Path, faults: Faults) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        faults.on = ("DELETE FROM snapshots", False, error(sqlite3.SQLITE_FULL, "SQLITE_FULL"))
        outcomes = await asyncio.gather(
            append(journal, "Thing-1", 0), journal.delete_snapshots("Thing-1"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Commit, JournalUnavailable]


# A disk that is really full.


def fill(file: Path) -> None:
    """Takes all the room there is."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 4096)


async def append_until_refused(journal: SqliteJournal) -> tuple[int, str]:
    """How many commits of 10 KB were acknowledged, and with which words the next was not."""
    for number in range(10_000):
        try:
            await append(journal, "Thing-1", number, data=b'"' + b"x" * 10_000 + b'"')
        except JournalUnavailable as problem:
            return number, str(problem)
    raise AssertionError("it was never refused")


async def fill_up_within_a_limit(path: Path, limit: int) -> None:
    """Appends until the largest file this process may write is full, then gets more room."""
    async with opened(path) as journal:
        (_, hard) = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        number, told = await append_until_refused(journal)
        say(told)
        say(number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await append(journal, "Thing-1", number)
        say(len(await everything(journal, "Thing-1")))


async def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    process = await child(fill_up_within_a_limit, path, 2_000_000)
    assert "input/output error (SQLITE_IOERR_WRITE)" in await line_from(process)
    acknowledged = int(await line_from(process))
    assert acknowledged > 50
    assert int(await line_from(process)) == acknowledged + 1
    assert await process.wait() == 0
    async with opened(path) as journal:
        assert len(await everything(journal, "Thing-1")) == acknowledged + 1
        assert (await verify(journal, lambda commits: None)).sound


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_and_room_again(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    filler = small_disk / "filler"
    async with opened(path) as journal:
        await journal.check()
        fill(filler)
        number, told = await append_until_refused(journal)
        assert "the disk is full" in told
        crowd = await append_many(journal, 5, 0, data=b'"' + b"x" * 100_000 + b'"')
        assert [type(outcome) for outcome in crowd] == [JournalUnavailable] * 5
        with pytest.raises(JournalUnavailable, match=r"short of space: a commit may need \d+ bytes") as nothing_free:
            await journal.check()
        os.truncate(filler, filler.stat().st_size - 100_000)
        with pytest.raises(JournalUnavailable) as little_free:
            await journal.check()
        assert str(little_free.value) == str(nothing_free.value), "each change would be logged"
        assert len(await everything(journal, "Thing-1")) == number
        filler.unlink()
        await journal.check()
        await append(journal, "Thing-1", number)
        assert len(await everything(journal, "Thing-1")) == number + 1
    async with opened(path) as journal:
        assert (await verify(journal, lambda commits: None)).sound


async def test_a_journal_is_not_created_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(JournalUnavailable, match=r"disk is full|input/output error|no space left"):
        async with opened(small_disk / "journal.db"):
            pass
    (small_disk / "filler").unlink()
    async with opened(small_disk / "journal.db") as journal:
        await append(journal, "Thing-1", 0)


# Others on the same file.


async def test_waits_for_another_writer_but_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path, busy_seconds=0.2) as journal:
        with (tmp_path / "journal.db.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(JournalUnavailable, match="another process holds its write lock"):
                await append(journal, "Thing-1", 0)
            with pytest.raises(JournalUnavailable, match="another process holds its write lock"):
                await journal.check()
        await append(journal, "Thing-1", 0)
    async with opened(path, busy_seconds=20) as journal:
        with (tmp_path / "journal.db.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            appending = asyncio.ensure_future(append(journal, "Thing-1", 1))
            done, _ = await asyncio.wait([appending], timeout=0.05)
            assert not done
        await appending


async def test_waits_for_another_program_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path, busy_seconds=0.2) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as program:
            program.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalUnavailable, match="another process holds its write lock"):
                await append(journal, "Thing-1", 0)
            assert await everything(journal, "Thing-1") == []
            program.execute("ROLLBACK")
            await append(journal, "Thing-1", 0)


@pytest.mark.parametrize("replacement", [None, "file", "directory"])
async def test_a_file_that_was_replaced_takes_no_more_commits(tmp_path: Path, replacement: str | None) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append(journal, "Thing-1", 0)
        path.rename(tmp_path / "elsewhere.db")
        if replacement == "file":
            shutil.copy(tmp_path / "elsewhere.db", path)
        elif replacement == "directory":
            path.mkdir()
        # Nor does a reader open what is there now under the name of what was there.
        reads = [everything(journal, "Thing-1") for _ in range(4)]
        for read in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(read, JournalUnavailable)
        for _ in range(2):
            with pytest.raises(JournalUnavailable, match="was replaced or removed"):
                await append(journal, "Thing-1", 1)
            with pytest.raises(JournalUnavailable, match="was replaced or removed"):
                await journal.check()


async def test_a_journal_with_another_identity_is_not_opened_again(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        faults.on = ("COMMIT", False, IO_ERROR)
        with pytest.raises(JournalUnavailable):
            await append(journal, "Thing-1", 0)
        faults.on = None
        with closing(sqlite3.connect(path, isolation_level=None)) as program:
            program.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
        with pytest.raises(JournalUnavailable, match="start this process again"):
            await append(journal, "Thing-1", 0)


# Groups.


async def test_callers_share_a_sync(tmp_path: Path) -> None:
    groups = Groups()
    async with opened(tmp_path / "journal.db", groups) as journal:
        await append_many(journal, 64, 0)
        outcomes = await append_many(journal, 65, 1)
        assert isinstance(outcomes[64], Conflict)
        # The same once more: nothing is written, so nothing is counted.
        await append_many(journal, 64, 1)
    assert groups.sizes == [64, 64]


async def test_a_group_is_bounded(tmp_path: Path) -> None:
    groups = Groups()
    async with opened(tmp_path / "journal.db", groups) as journal:
        await append_many(journal, 1_200, 0)
    assert groups.sizes == [512, 512, 176]


async def test_large_commits_are_cut_into_groups(tmp_path: Path) -> None:
    groups = Groups()
    async with opened(tmp_path / "journal.db", groups) as journal:
        await append_many(journal, 40, 0, data=b'"' + b"x" * 250_000 + b'"')
    assert groups.sizes == [15, 15, 10]


async def test_telemetry_that_fails_harms_no_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Groups):
        def group_committed(self, commits: int, seconds: float) -> None:
            raise RuntimeError("no")

    async with opened(tmp_path / "journal.db", Failing()) as journal:
        await append(journal, "Thing-1", 0)
        await append(journal, "Thing-1", 1)
        assert len(await whole_feed(journal)) == 2
    assert "could not be reported" in caplog.text


async def test_an_event_loop_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    """A process that ends without closing: the file stays sound."""

    async def leave() -> None:
        journal = await SqliteJournal.open(tmp_path / "journal.db", clock=RealClock(), telemetry=Groups())
        appending.append(asyncio.ensure_future(append(journal, "Thing-1", 0)))
        await asyncio.sleep(0)

    appending: list[asyncio.Future[Commit]] = []
    await asyncio.to_thread(asyncio.run, leave())
    assert appending[0].cancelled()
    async with opened(tmp_path / "journal.db") as journal:
        await append(journal, "Thing-1", 0)
        assert (await verify(journal, lambda commits: None)).sound
