"""The PostgreSQL journal after a restore and after a failover: nothing is skipped, and what was lost is said."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import CorruptJournal, JournalUnavailable
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.verify import verify
from tests.integration.journal.postgres_parts import append, connected, new_journal, opened, streams_of_feed
from tests.servers.postgres import PostgresServer


class Standby(PostgresServer):
    """A streaming replica of another server."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary = primary
        self.password = primary.password

    def _make(self) -> None:
        source = self._primary.socket("postgres")
        self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def _is_ready(self, process_id: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return super()._is_ready(process_id) or (len(lines) >= 8 and lines[7].strip() == "standby")


@pytest.fixture(scope="module")
def another_server(postgres_server: PostgresServer) -> Any:
    """A cluster that has lived for a shorter time: its transaction ids are lower."""
    with PostgresServer() as server:
        yield server


def dump(server: PostgresServer, address: PostgresAddress) -> Path:
    file = server.directory / "journal.dump"
    file.unlink(missing_ok=True)
    server.run("pg_dump", "-Fc", "-n", address.schema, "-d", server.socket(_database(address)), "-f", str(file))
    return file


def restore(server: PostgresServer, file: Path, schema: str) -> PostgresAddress:
    url = server.create_database()
    server.run("pg_restore", "--exit-on-error", "-d", server.socket(url.rpartition("/")[2]), str(file))
    return PostgresAddress.parse(url, schema=schema)


def _database(address: PostgresAddress) -> str:
    return address.label.rpartition("/")[2]


async def _age(address: PostgresAddress, transactions: int) -> None:
    async with connected(address) as connection:
        for _ in range(transactions):
            await connection.execute("SELECT pg_current_xact_id()")


async def _everything_is_sound(journal: PostgresJournal, commits: int) -> None:
    report = await verify(journal, lambda _: None)
    assert report.sound, report.problems
    assert report.commits == commits


async def test_dump_restore_append_feed(
    postgres_server: PostgresServer, postgres_url: str, another_server: PostgresServer
) -> None:
    address = await new_journal(postgres_url)
    await _age(address, 500)
    async with opened(address) as journal:
        for number in range(5):
            await append(journal, "Thing-1", number)
        middle = await journal.head()
        await append(journal, "Thing-2", 0)
        head = await journal.head()
    restored = restore(another_server, dump(postgres_server, address), address.schema)
    async with connected(restored) as connection:
        # The rows' ids lie in the future of this cluster: by ids alone, they would be hidden, and new ones skipped.
        assert await connection.fetchval("SELECT bool_and(xid > pg_snapshot_xmax(pg_current_snapshot())) FROM commits")
    async with opened(restored) as journal:
        await append(journal, "Thing-1", 5)
        await append(journal, "New-1", 0)
        assert (await streams_of_feed(journal))[0] == ["Thing-1"] * 5 + ["Thing-2", "Thing-1", "New-1"]
        assert (await streams_of_feed(journal, middle))[0] == ["Thing-2", "Thing-1", "New-1"]
        assert (await streams_of_feed(journal, head))[0] == ["Thing-1", "New-1"]
        assert (await journal.lag(head)).commits == 2
        await _everything_is_sound(journal, 8)


async def test_a_reader_that_saw_what_was_not_in_the_dump(
    postgres_server: PostgresServer, postgres_url: str, another_server: PostgresServer
) -> None:
    address = await new_journal(postgres_url)
    await _age(address, 200)
    async with opened(address) as journal:
        await append(journal, "Thing-1", 0)
        file = dump(postgres_server, address)
        await append(journal, "Thing-1", 1)
        head = await journal.head()
    restored = restore(another_server, file, address.schema)
    async with opened(restored) as journal:
        await append(journal, "Thing-1", 1)
        with pytest.raises(CorruptJournal, match="lacks the commit"):
            await journal.feed(head)
        assert (await journal.lag(head)).commits == 2
        await _everything_is_sound(journal, 2)


async def test_two_restores_of_one_backup_are_two_lives(
    postgres_server: PostgresServer, postgres_url: str, another_server: PostgresServer
) -> None:
    address = await new_journal(postgres_url)
    async with opened(address) as journal:
        await append(journal, "Thing-1", 0)
    file = dump(postgres_server, address)
    first, second = (restore(another_server, file, address.schema) for _ in range(2))
    async with opened(first) as journal:
        await append(journal, "First-1", 0)
        head = await journal.head()
    async with opened(second) as journal:
        await append(journal, "Second-1", 0)
        assert (await streams_of_feed(journal, head))[0] == ["Thing-1", "Second-1"]


async def test_a_promoted_replica_that_was_behind() -> None:
    with PostgresServer() as primary, Standby(primary) as standby:
        address = await new_journal(primary.create_database())
        there = PostgresAddress.parse(standby.url(_database(address)), schema=address.schema)
        async with opened(address) as journal:
            for number in range(3):
                await append(journal, "Kept-1", number)
            kept = await journal.head()
            _wait_for_replay(primary, standby)
            async with opened(there) as early:
                with pytest.raises(JournalUnavailable, match="is a standby"):
                    await early.check()
                with pytest.raises(JournalUnavailable, match="is a standby"):
                    await append(early, "Kept-1", 3)
            standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
            standby.sql("SELECT pg_reload_conf()")
            while primary.sql("SELECT count(*) FROM pg_stat_replication") != "0":
                pass
            for number in range(4):
                await append(journal, "Lost-1", number)
            lost = await journal.head()
            primary.halt(signal.SIGQUIT)
        standby.sql("SELECT pg_promote()")
        async with opened(there) as journal:
            await append(journal, "Kept-1", 3)
            await append(journal, "After-1", 0)
            assert (await streams_of_feed(journal, kept))[0] == ["Kept-1", "After-1"]
            with pytest.raises(CorruptJournal, match="lacks the commit"):
                await journal.feed(lost)
            await _everything_is_sound(journal, 5)


def _wait_for_replay(primary: PostgresServer, standby: PostgresServer) -> None:
    written = primary.sql("SELECT pg_current_wal_lsn()")
    while standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") != "t":
        pass
