"""The file of a SQLite journal: how it is opened, refused, found damaged, and what lies in it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kiseki.journal.port import START, CorruptJournal, JournalUnavailable, Position, Snapshot
from kiseki.journal.sqlite import reader as sqlite_reader
from kiseki.journal.sqlite.connection import connect
from kiseki.journal.sqlite.schema import JournalIdentity
from kiseki.journal.verify import verify
from kiseki.testing.journal_conformance import everything, idempotency, whole_feed
from tests.integration.journal.sqlite_parts import RealClock, append, append_many, opened


async def refused(path: Path, kind: type[Exception]) -> str:
    """The one line with which opening fails."""
    with pytest.raises(kind) as caught:
        async with opened(path):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sql(path: Path, statement: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, parameters).fetchall()


async def test_a_new_file_is_private_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append(journal, "Thing-1", 0)
        for name in ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        head = await journal.head()
    assert not (tmp_path / "journal.db-wal").exists()
    async with opened(path) as journal:
        assert await journal.head() == head
        assert len(await everything(journal, "Thing-1")) == 1
        assert await journal.integrity() == ()


async def test_closing_empties_the_log_also_when_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as other:
        async with opened(path) as journal:
            await append(journal, "Thing-1", 0)
            assert (tmp_path / "journal.db-wal").stat().st_size > 0
        assert (tmp_path / "journal.db-wal").stat().st_size == 0
        assert len(await everything(other, "Thing-1")) == 1
        await append(other, "Thing-1", 1)


async def test_a_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(Path("journal.db")) as journal:
        monkeypatch.chdir("/")
        await append(journal, "Thing-1", 0)
        assert len(await whole_feed(journal)) == 1


async def test_says_what_is_wrong_with_the_place(tmp_path: Path) -> None:
    assert "there is no directory" in await refused(tmp_path / "none" / "journal.db", JournalUnavailable)
    assert "it is a directory" in await refused(tmp_path, JournalUnavailable)


_AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from kiseki.journal.port import JournalUnavailable
from tests.integration.journal.sqlite_parts import opened

async def main():
    try:
        async with opened(Path(sys.argv[1])):
            print("opened")
    except JournalUnavailable as problem:
        print(problem)

if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("mode", "file_mode", "expected"),
    [(0o555, None, "is not writable"), (0o555, 0o644, "is not writable"), (0o755, 0o444, "read-only")],
)
def test_says_that_it_may_not_write(mode: int, file_mode: int | None, expected: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="kiseki-journal-"))
    try:
        path = place / "journal.db"
        if file_mode is not None:
            subprocess.run([sys.executable, "-c", _AS_NOBODY.replace("os.geteuid() == 0", "False"), path], check=True)
            for file in place.iterdir():
                file.chmod(file_mode)
                os.chown(file, 65534, 65534) if os.geteuid() == 0 else None
        if os.geteuid() == 0:
            os.chown(place, 65534, 65534)
        place.chmod(mode)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, path], capture_output=True, text=True, check=True, env=environment
        )
        assert expected in ended.stdout or "permission denied" in ended.stdout
        assert ended.stdout.count("\n") == 1
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"these are not the bytes you are looking for\n" * 200)
    assert "is not a SQLite database" in await refused(path, CorruptJournal)


async def test_the_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sql(path, "CREATE TABLE commits (hash TEXT)")
    assert "not a kiseki journal" in await refused(path, CorruptJournal)
    assert sql(path, "SELECT name FROM sqlite_master") == [("commits",)]


async def test_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append(journal, "Thing-1", 0)
    sql(path, "UPDATE meta SET value = 2 WHERE name = 'schema_version'")
    assert "has schema version 2 and this kiseki knows 1" in await refused(path, JournalUnavailable)


class _Contrary(sqlite3.Connection):
    """A SQLite that keeps one setting whatever it is told, as on a file system that can't do more."""

    setting = ""
    value: Any = None

    def execute(self, statement: str, *parameters: Any) -> Any:
        if self.setting in statement:
            return super().execute("SELECT ?", (self.value,))
        return super().execute(statement, *parameters)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("journal_mode", "delete", "journal_mode is delete, not wal"),
        ("synchronous", 1, "synchronous is 1, not 2"),
        ("secure_delete", 0, "secure_delete is 0, not 1"),
    ],
)
async def test_a_setting_that_does_not_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: Any, said: str
) -> None:
    really_connect = sqlite3.connect
    contrary = type("Contrary", (_Contrary,), {"setting": setting, "value": value})
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: really_connect(*a, **k, factory=contrary))
    assert said in await refused(tmp_path / "journal.db", JournalUnavailable)


@pytest.mark.parametrize("write", [True, False])
async def test_every_connection_is_durable(tmp_path: Path, write: bool) -> None:
    path = tmp_path / "journal.db"
    async with opened(path):
        pass
    with closing(connect(path, write=write, busy_seconds=1)) as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "journal_size_limit", "query_only")
        }
    assert settings == {
        "journal_mode": b"wal",
        "synchronous": 2,
        "secure_delete": 1,
        "journal_size_limit": 64 * 1024 * 1024,
        "query_only": 0 if write else 1,
    }


async def test_opening_syncs_what_a_killed_process_left_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for times in (1, 2, 3):
        async with opened(path):
            pass
        assert sql(path, "SELECT value FROM meta WHERE name = 'writes_proved'") == [(times,)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE commits SET document = replace(document, 'correlation of', 'correlation 0f')", "checksum"),
        ("UPDATE commits SET stream = 'Thing-9' WHERE stream = 'Thing-3'", "checksum"),
        ("UPDATE commits SET first_sequence = 2 WHERE stream = 'Thing-3'", "checksum"),
        ("UPDATE commits SET checksum = '0123456789abcdef'", "checksum"),
        ("UPDATE commits SET count = 2", "does not belong to its document"),
        ("UPDATE commits SET count = 0", "does not belong to its document"),
        ("UPDATE commits SET bytes = 9999999", "does not belong to its document"),
        ("UPDATE commits SET commit_id = 'x'", "does not belong to its document"),
        ("UPDATE commits SET format = 9", "has format 9"),
        ("UPDATE commits SET document = CAST(document || x'ff' AS TEXT)", "checksum"),
        ("UPDATE commits SET document = CAST(x'ff00fe' AS TEXT)", "checksum"),
        ("UPDATE commits SET document = ''", "checksum"),
        ("UPDATE commits SET count = 'many'", "is damaged"),
    ],
)
async def test_damage_is_never_passed_over(tmp_path: Path, damage: str, said: str) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append_many(journal, 5, 0)
        sound = await verify(journal, lambda commits: None)
    assert (sound.sound, sound.commits) == (True, 5)
    sql(path, damage + (" AND true" if "WHERE" in damage else " WHERE stream = 'Thing-3'"))
    async with opened(path) as journal:
        with pytest.raises(CorruptJournal, match=said):
            await whole_feed(journal)
        report = await verify(journal, lambda commits: None)
        assert (report.sound, report.complete, report.commits) == (False, False, 3)
        assert said in report.problems[0]
        if "Thing-9" not in damage:
            with pytest.raises(CorruptJournal):
                await everything(journal, "Thing-3")
        assert len(await everything(journal, "Thing-2")) == 1


async def test_a_commit_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        for number in range(6):
            await append(journal, "Thing-1", number)
    sql(path, "DELETE FROM commits WHERE first_sequence IN (3, 4)")
    async with opened(path) as journal:
        for after in (0, 1, 2):
            with pytest.raises(CorruptJournal, match="begins with sequence number 3"):
                await everything(journal, "Thing-1", after)
        assert len(await everything(journal, "Thing-1", 4)) == 2
        report = await verify(journal, lambda commits: None)
        assert report.complete
        assert report.problems == ("Thing-1 lacks sequence numbers 3 to 4",)


async def test_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        for number in range(10):
            await append_many(journal, 50, number, data=b'"' + b"x" * 500 + b'"')
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(size // 4096 // 2, size // 4096 // 2 + 20):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    async with opened(path) as journal:
        with pytest.raises(CorruptJournal, match="damaged"):
            await whole_feed(journal)
        assert not (await verify(journal, lambda commits: None)).sound
        assert await journal.integrity() != ()


async def test_an_index_that_lost_an_entry_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append_many(journal, 5, 0)
    # The index of (stream, first_sequence) made to look at an empty tree.
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE empty (a TEXT, b TEXT, UNIQUE (a, b))")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET rootpage ="
            " (SELECT rootpage FROM sqlite_master WHERE name LIKE '%autoindex_empty%')"
            " WHERE name LIKE '%autoindex_commits%'"
        )
        connection.execute("DELETE FROM sqlite_master WHERE tbl_name = 'empty'")
    async with opened(path) as journal:
        assert await journal.integrity() != ()


async def test_pages_are_bounded_in_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        for number in range(12):
            await append(journal, "Thing-1", number, data=b'"' + b"x" * 250_000 + b'"')
        pages = [len(page) async for page in journal.read("Thing-1")]
        assert pages == [8, 4]
        assert len((await journal.feed(START)).commits) == 8
        assert len(await whole_feed(journal)) == 12


async def test_a_long_lag_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reader, "_COUNTED_AT_MOST", 5)
    async with opened(tmp_path / "journal.db") as journal:
        for number, expected in ((0, 4), (1, 8)):
            await append_many(journal, 4, number)
            assert (await journal.lag(START)).commits == expected


async def test_positions_belong_to_one_life() -> None:
    now = JournalIdentity("abc", 2)
    assert now.row(now.position(17)) == 17
    others = [JournalIdentity("abc", 1).position(17), JournalIdentity("abd", 2).position(17), START]
    assert [
        now.row(Position(position))
        for position in [*others, "abc-2-", "abc-2-x", "abc-2--1", "17", "abc-2-" + "9" * 30]
    ] == ([0] * 8)


async def test_a_file_that_was_put_back_is_read_from_the_start(tmp_path: Path) -> None:
    """Even by someone who copied it by hand and did not raise the epoch."""
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        await append_many(journal, 3, 0)
    shutil.copy(path, tmp_path / "copy.db")
    async with opened(path) as journal:
        await append_many(journal, 3, 1)
        head = await journal.head()
    async with opened(tmp_path / "copy.db") as journal:
        page = await journal.feed(head)
        assert len(page.commits) == 3
        assert page.position == await journal.head()
        assert (await journal.lag(head)).commits == 3


async def test_deleted_snapshots_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    secret = b"a state that has to go" * 100
    clock = RealClock()
    async with opened(path) as journal:
        snapshot = Snapshot(stream="Thing-1", sequence_number=1, schema="1", data=secret, saved_at=clock.now())
        await journal.save_snapshot(snapshot, keep=2)
    assert secret[:50] in path.read_bytes()
    async with opened(path) as journal:
        await journal.delete_snapshots("Thing-1")
    assert secret[:50] not in path.read_bytes()


async def test_only_the_newest_snapshots_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    clock = RealClock()
    async with opened(path) as journal:
        for number in range(1, 6):
            snapshot = Snapshot(
                stream="Thing-1", sequence_number=number, schema="1", data=b"state", saved_at=clock.now()
            )
            await journal.save_snapshot(snapshot, keep=2)
    assert sql(path, "SELECT sequence_number FROM snapshots ORDER BY 1") == [(4,), (5,)]


async def test_expired_idempotency_records_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with opened(path) as journal:
        now = journal._clock.now()
        for number in range(3):
            await append_many(journal, 50, number)
        for number in range(200):
            record = idempotency(f"old {number}", "Old-1", number + 1, expires_at=now)
            await append(journal, "Old-1", number, idempotency=record)
        (before,) = sql(path, "SELECT COUNT(*) FROM idempotency")[0]
        for number in range(4):
            record = idempotency(f"new {number}", "New-1", number + 1, expires_at=now.replace(year=2999))
            await append(journal, "New-1", number, idempotency=record)
    # Each old record was already expired when it came, so every later append may take it away again.
    assert before <= 64
    assert sql(path, "SELECT COUNT(*), MIN(key) FROM idempotency") == [(4, "new 0")]
