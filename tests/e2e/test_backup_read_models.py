"""`kiseki backup restore --part read-models` with real processes: beside a journal that has all they have applied."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.backed_up import BackedUp, backed_up
from tests.e2e.commands import complaint
from tests.servers.postgres import PostgresServer

RESTORE = ("backup", "restore", "--part", "read-models")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[BackedUp]:
    yield from backed_up(tmp_path / "system", KISEKI_BACKUP_READ_MODELS=str(tmp_path / "read-model-backups"))


@pytest.fixture
def remote(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[BackedUp]:
    yield from backed_up(
        tmp_path / "remote",
        KISEKI_JOURNAL=postgres_server.create_database(),
        KISEKI_POSTGRES_PROGRAMS=str(postgres_server.bin),
        KISEKI_BACKUP_READ_MODELS=str(tmp_path / "read-model-backups"),
    )


def read_models(system: BackedUp) -> Path:
    return system.data_dir / "read-models"


def rows(folder: Path) -> list[str]:
    """Who is in the newest build of a folder."""
    build = max(folder.glob("user_accounts.v*.sqlite"))
    with closing(sqlite3.connect(build)) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("kiseki_")
        ]
        return sorted(str(row) for table in tables for row in connection.execute(f'SELECT * FROM "{table}"'))


def as_it_is(folder: Path) -> dict[str, bytes]:
    """What is in a folder that nobody uses, locks and what SQLite keeps beside its files apart."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.sqlite"))}


async def test_lost_read_models_come_back_and_follow_on(system: BackedUp) -> None:
    await system.start()
    kept = await system.create("Hanako")
    made = system.kiseki("backup", "create", "--part", "read-models")
    assert "restored and sound" in made
    await system.rename(kept, "Sato")  # after the backup
    newer = await system.create("Newer")
    assert len(await system.names()) == 2
    refused = complaint(system.run(*RESTORE))
    assert "a process runs the projection user_accounts" in refused
    system.stop()
    shutil.rmtree(read_models(system))

    done = system.kiseki(*RESTORE)
    assert "read models: restored from the backup" in done
    assert ": 1 builds" in done
    # Brought up to the journal before it is done, and it is the build of the backup, not another.
    assert [path.name for path in sorted(read_models(system).glob("*.v*.sqlite"))] == ["user_accounts.v1.1.sqlite"]
    assert "behind" in system.kiseki("projection", "status")
    assert any(newer in row for row in rows(read_models(system)))
    await system.start()
    assert await system.names() == {kept: "Hanako Sato", newer: "Newer Yamada"}
    await system.rename(newer, "After")
    assert await system.names() == {kept: "Hanako Sato", newer: "Hanako After"}


async def test_who_was_erased_since_is_gone_before_it_is_done(system: BackedUp) -> None:
    await system.start()
    kept, erased = await system.create("Hanako"), await system.create("Zebedee")
    assert len(await system.names()) == 2
    system.kiseki("backup", "create", "--part", "read-models")
    await system.erase(erased)
    assert set(await system.names()) == {kept}
    system.stop()
    done = system.run(*RESTORE, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["builds"] == 1
    assert report["read_models_from"].startswith("the backup")
    assert Path(report["read_models_kept"]).is_dir()
    assert "within 7 days" in done.stderr
    assert "Zebedee" not in "".join(rows(read_models(system)))
    assert b"Zebedee" not in b"".join(as_it_is(read_models(system)).values())  # overwritten, not only deleted
    await system.start()
    assert set(await system.names()) == {kept}


async def test_a_journal_that_went_back_is_refused(system: BackedUp) -> None:
    """Also when it has gone on since, to the same numbers: other events, which the read models do not know."""
    await system.start()
    account = await system.create("Hanako")
    system.kiseki("backup", "create", "--part", "journal", "--part", "keys")
    await system.rename(account, "Lost")
    assert await system.names() == {account: "Hanako Lost"}
    system.kiseki("backup", "create", "--part", "read-models")
    system.stop()
    system.kiseki("backup", "restore", "--part", "journal", "--discard-newer")
    before = as_it_is(read_models(system))
    refused = complaint(system.run(*RESTORE))
    assert "the journal was restored since the backup" in refused
    assert "kiseki projection rebuild" in refused
    assert as_it_is(read_models(system)) == before
    await system.start()
    system.token = ""
    await system.rename(account, "Other")  # the same number as the one that was lost
    assert await system.names() == {account: "Hanako Other"}
    system.stop()
    before = as_it_is(read_models(system))
    assert "the journal was restored since the backup" in complaint(system.run(*RESTORE))
    assert as_it_is(read_models(system)) == before
    assert not list(system.data_dir.glob("read-models.*"))
    await system.start()
    assert await system.names() == {account: "Hanako Other"}


async def test_a_journal_that_was_put_back_by_hand_is_refused(system: BackedUp) -> None:
    """A file that was copied begins no new life, so the guards are looked at too."""
    await system.start()
    account = await system.create("Hanako")
    system.stop()
    shutil.copy(system.data_dir / "journal.db", system.folder / "journal.db")
    await system.start()
    await system.rename(account, "Lost")
    assert await system.names() == {account: "Hanako Lost"}
    system.kiseki("backup", "create", "--part", "read-models")
    system.stop()
    for left in system.data_dir.glob("journal.db-*"):
        left.unlink()
    shutil.copy(system.folder / "journal.db", system.data_dir / "journal.db")
    before = as_it_is(read_models(system))
    refused = complaint(system.run(*RESTORE))
    assert "up to 2, and the journal has it up to 1" in refused
    assert as_it_is(read_models(system)) == before
    assert not list(system.data_dir.glob("read-models.*"))


async def test_what_does_not_go_together_is_refused(system: BackedUp) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create")
    system.stop()
    before = as_it_is(read_models(system))
    assert "built anew" in complaint(system.run(*RESTORE, "--part", "journal"))
    assert "--no-catch-up" in complaint(system.run(*RESTORE, "--no-catch-up"))
    assert "there is no backup 20200101T000000Z-abcdef" in complaint(system.run(*RESTORE, "20200101T000000Z-abcdef"))
    assert as_it_is(read_models(system)) == before


async def test_on_postgresql(remote: BackedUp, postgres_server: PostgresServer) -> None:
    """Good case, who was erased in between, and a journal that went back, of which nothing has been written since."""
    url = remote.environment["KISEKI_JOURNAL"]
    await remote.start()
    kept, erased = await remote.create("Hanako"), await remote.create("Zebedee")
    assert len(await remote.names()) == 2
    remote.kiseki("backup", "create")
    await remote.erase(erased)
    await remote.rename(kept, "Sato")
    assert await remote.names() == {kept: "Hanako Sato"}
    assert "a process runs the projection user_accounts" in complaint(remote.run(*RESTORE))
    remote.stop()
    done = remote.run(*RESTORE)
    assert done.returncode == 0, done.stderr
    assert "read models: restored from the backup" in done.stdout
    assert "DROP SCHEMA kiseki_read_models_replaced" in done.stderr
    live = postgres_server.sql("SELECT schema_name FROM kiseki_read_models.read_model_builds WHERE state = 'live'", url)
    assert "_restored_" in live
    assert postgres_server.sql(f"SELECT count(*) FROM {live}.accounts", url) == "1"
    await remote.start()
    assert await remote.names() == {kept: "Hanako Sato"}
    remote.stop()

    remote.kiseki("backup", "restore", "--part", "journal", "--discard-newer")
    live = postgres_server.sql("SELECT * FROM kiseki_read_models.read_model_builds", url)
    refused = complaint(remote.run(*RESTORE))
    assert "the journal was restored since the backup" in refused
    assert postgres_server.sql("SELECT * FROM kiseki_read_models.read_model_builds", url) == live
    await remote.start()
    remote.token = ""
    assert await remote.names() == {kept: "Hanako Yamada"}
