"""What only read models of SQLite have: files, which can be damaged, half made, held by others, or find no room."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any

import pytest
from sqlalchemy import insert, select

from kiseki import Unavailable
from kiseki.application.system import SystemClock
from kiseki.journal.port import Position
from kiseki.projection.port import Batch, BuildMissing, BuildName, ProjectionStore
from kiseki.projection.status import request_rebuild
from kiseki.query.database import QueryTooSlow
from kiseki.query.sqlite.files import connect
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.query.sqlite.reader import SqliteReader
from tests.integration.projection.parts import (
    DEFINITION,
    NEVER,
    TOTALS,
    Place,
    SqliteStorage,
    is_live,
    running,
    until,
)
from tests.unit.projection.parts import UNLUCKY, Counted, Forgotten, Named, Noted, Totals

A, B = "Counter-a", "Counter-b"


@pytest.fixture
def storage(sqlite: SqliteStorage) -> SqliteStorage:
    return sqlite


async def test_a_busy_database_is_unavailable_and_no_one_s_fault(
    place: Place, sqlite: SqliteStorage, store: ProjectionStore
) -> None:
    other = sqlite3.connect(sqlite.directory / "totals.v1.1.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    batch = Batch(changes=[(insert(TOTALS.steps), {"id": "a", "number": 1, "amount": 1})])
    with pytest.raises(Unavailable, match="another process holds it"):
        await store.write(batch)
    other.execute("ROLLBACK")
    other.close()
    await store.write(batch)
    assert await place.rows(TOTALS, TOTALS.steps) == [("a", 1, 1)]


async def test_a_build_that_was_not_made_to_the_end_is_missing(
    place: Place, sqlite: SqliteStorage, store: ProjectionStore
) -> None:
    path = sqlite.directory / "totals.v1.9.sqlite"
    sqlite3.connect(path).close()
    with pytest.raises(BuildMissing):
        await place.models.builds.open(TOTALS.projection, BuildName("totals", 1, 9), DEFINITION)
    with pytest.raises(BuildMissing):
        await place.models.builds.open(TOTALS.projection, BuildName("totals", 1, 10), DEFINITION)
    await store.close()
    changed = sqlite3.connect(sqlite.directory / "totals.v1.1.sqlite", isolation_level=None)
    changed.execute("UPDATE kiseki_build SET format = 99")
    changed.close()
    with pytest.raises(BuildMissing):
        await place.models.builds.open(TOTALS.projection, store.name, DEFINITION)


async def test_only_the_user_may_read_the_files(place: Place, sqlite: SqliteStorage, store: ProjectionStore) -> None:
    await store.write(Batch(position=Position("p")))
    assert sqlite.directory.stat().st_mode & 0o077 == 0
    assert [path.name for path in sqlite.directory.iterdir() if path.stat().st_mode & 0o077] == []


async def test_a_directory_that_can_not_be_used_is_unavailable(place: Place, sqlite: SqliteStorage) -> None:
    (sqlite.directory / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        await SqliteReadModels.open(sqlite.directory / "file", clock=place.world.clock)


async def test_a_damaged_live_build_does_not_hold_up_a_rebuild_with_parked_streams(
    place: Place, sqlite: SqliteStorage
) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    await place.updater(totals).run_until_caught_up()
    (sqlite.directory / "totals.v1.1.sqlite").write_bytes(b"damage" * 2_000)
    await request_rebuild(place.models.builds, totals.projection)
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await until(lambda: is_live(place, 2))


async def test_what_a_cut_off_creation_left_is_not_used(place: Place, sqlite: SqliteStorage) -> None:
    totals = Totals()
    (sqlite.directory / "totals.v1.1.sqlite").write_bytes(b"left over")
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    assert await place.rows(totals, totals.steps) == [("a", 1, 1)]


async def test_a_damaged_live_build_is_replaced_by_a_rebuild(place: Place, sqlite: SqliteStorage) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    path = sqlite.directory / "totals.v1.1.sqlite"
    path.write_bytes(b"damage" * 2_000)
    await place.world.facts.happen(A, Counted(2))
    await request_rebuild(place.models.builds, totals.projection)
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await until(lambda: is_live(place, 2))
    assert await place.rows(totals, totals.steps) == [("a", 1, 1), ("a", 2, 2)]


async def test_a_full_disk_is_waited_for_and_parks_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database may not grow beyond some pages, which is what SQLite makes of a full disk (SQLITE_FULL)."""
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    opened: list[sqlite3.Connection] = []

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 14")
        opened.append(connection)
        return connection

    monkeypatch.setattr("kiseki.query.sqlite.build.connect", small)
    for amount in range(100, 1_100):
        await place.world.facts.happen(A, Noted("x" * 10), Counted(amount))
    updater = place.updater(totals, page_commits=100, poll_interval=NEVER)
    async with running(updater), asyncio.timeout(30):
        await until(lambda: updater.status()[0].waiting)
        waiting = updater.status()[0].waiting
        assert waiting is not None
        assert "the disk is full (SQLITE_FULL)" in waiting
        first = await place.count(totals)
        assert 0 < first < 1_000
        opened[-1].execute("PRAGMA max_page_count = 1000000")
        await updater.caught_up()
        assert updater.status()[0].waiting is None
    assert await place.count(totals) == 1_000
    assert place.world.telemetry.parked_codes == []
    assert set(place.world.telemetry.retries) == {"UNAVAILABLE"}


async def test_one_connection_does_one_thing_at_a_time(
    place: Place, sqlite: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a statement was given up and is not back yet."""
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    await place.models.close()
    place.models = await SqliteReadModels.open(sqlite.directory, clock=SystemClock(), readers=3, statement_timeout=0.01)
    busy: set[SqliteReader] = set()
    overlaps = []

    def slow(reader: SqliteReader, statement: object) -> None:
        if reader in busy:
            overlaps.append(statement)
        busy.add(reader)
        time.sleep(0.05)
        busy.discard(reader)

    monkeypatch.setattr(SqliteReader, "first", slow)
    async with asyncio.timeout(20), place.models.database.open([totals.projection]) as read:
        for _ in range(2):
            with pytest.raises(QueryTooSlow):
                await read.first(select(totals.totals))
        await asyncio.gather(*(read.first(select(totals.totals)) for _ in range(3)), return_exceptions=True)
    assert overlaps == []


async def test_what_was_erased_is_in_no_file(place: Place, sqlite: SqliteStorage) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Named("太郎"))
    await place.world.facts.happen(B, Named("花子"))
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        await place.world.facts.happen(A, Forgotten())
        await updater.caught_up()
        # Already while the files are open: also the database's log holds it no longer.
        everything = b"".join(path.read_bytes() for path in sqlite.directory.iterdir())
        assert "花子".encode() in everything
        assert "太郎".encode() not in everything
