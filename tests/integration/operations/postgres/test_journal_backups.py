"""Backups of a PostgreSQL journal: made under load, restored whole or not at all, and never over somebody's head."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kiseki.clients.postgres import PostgresAddress, connect
from kiseki.journal.lease.port import NotTheWriter
from kiseki.journal.port import START, CorruptJournal
from kiseki.journal.postgres.fence import raise_fence
from kiseki.kernel.errors import Unavailable
from kiseki.operations.backup.port import nothing
from kiseki.operations.errors import BackupDamaged, BackupRefused, OperationFailed, RestoreRefused, ToolMissing
from kiseki.operations.postgres.dump import DUMP
from kiseki.operations.postgres.journal import PostgresJournalBackups
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import Scratch
from tests.integration.journal.postgres_parts import SlowAppend, append, append_raw, connected, opened, until_waiting
from tests.integration.operations.postgres.postgres_backup_parts import (
    CLOCK,
    SCHEMA,
    contents_of,
    everything,
    fill,
    journal_at,
    manifest_of,
    programs_of,
    writing,
)
from tests.servers.postgres import PostgresServer


@pytest.fixture
async def address(postgres_server: PostgresServer) -> PostgresAddress:
    return await journal_at(postgres_server.create_database())


@pytest.fixture
def beside(postgres_server: PostgresServer) -> Scratch:
    """Throw-away copies on the same server: quicker than a server of their own."""
    return Scratch(PostgresAddress.parse(postgres_server.url(), schema="public"))


def backups_of(server: PostgresServer, address: PostgresAddress, scratch: Scratch) -> PostgresJournalBackups:
    return PostgresJournalBackups(address, programs_of(server), clock=CLOCK, scratch=scratch)


async def schemas(address: PostgresAddress) -> list[str]:
    async with connected(address) as connection:
        rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'kiseki%' ORDER BY 1")
    return [row["nspname"] for row in rows]


async def test_what_was_there_at_one_moment_and_nothing_else(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 50)
    driver = backups_of(postgres_server, address, beside)
    slow = await SlowAppend.begin(address, "Slow-1")
    async with writing(address) as acknowledged:
        while len(acknowledged) < 50:
            await asyncio.sleep(0.01)
        before = len(acknowledged)
        made = await driver.make(tmp_path, nothing)
        while len(acknowledged) < before + 50:
            await asyncio.sleep(0.01)
    await slow.land()
    assert made.contents is not None
    assert made.contents.commits >= 50 + before
    async with opened(address) as live:
        assert (await contents_of(live)).commits > made.contents.commits
    async with driver.opened(tmp_path, manifest_of(made)) as restored:
        assert await contents_of(restored) == made.contents
        names = {stream for stream, _ in await everything(restored)}
    assert set(acknowledged[:before]) <= names
    assert "Slow-1" not in names


async def test_a_server_of_our_own_is_taken_and_removed(
    postgres_server: PostgresServer, address: PostgresAddress, tmp_path: Path
) -> None:
    await fill(address, 5)
    driver = backups_of(postgres_server, address, Scratch())
    made = await driver.make(tmp_path, nothing)
    databases = postgres_server.sql("SELECT count(*) FROM pg_database")
    async with driver.opened(tmp_path, manifest_of(made)) as restored:
        assert await contents_of(restored) == made.contents
        assert postgres_server.sql("SELECT count(*) FROM pg_database") == databases


async def test_restore_after_the_schema_is_gone(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 20)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    async with connected(address) as connection:
        await connection.execute("DROP SCHEMA kiseki_journal CASCADE")
    staged = await driver.stage(tmp_path, manifest_of(made), nothing)
    async with staged.opened() as journal:
        assert await contents_of(journal) == made.contents
    assert (await staged.switch()).kept == ""
    async with opened(address) as journal:
        assert await contents_of(journal) == made.contents
        assert len(await everything(journal)) == 20
        await append(journal, "New-1", 0)


async def test_restore_beside_newer_commits(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 20)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    async with opened(address) as journal:
        kept = await journal.head()
    await fill(address, 5, after=1)
    async with opened(address) as journal:
        lost = await journal.head()
        await journal.raise_epoch()
        await append(journal, "Later-1", 0)
        lost_in_a_later_epoch = await journal.head()
        live = await contents_of(journal)
    staged = await driver.stage(tmp_path, manifest_of(made), nothing)
    async with opened(address) as journal:
        assert await contents_of(journal) == live
    done = await staged.switch()
    async with opened(address) as journal:
        assert await contents_of(journal) == made.contents
        await append(journal, "New-1", 0)
        feed = await everything(journal)
        assert len(feed) == len(set(feed)) == 21
        assert await everything(journal, kept) == [("New-1", 1)]
        for position in (lost, lost_in_a_later_epoch):
            with pytest.raises(CorruptJournal, match="lacks the commit"):
                await journal.feed(position)
        assert int((await journal.head()).split(".")[1]) == 3
    replaced = re.search(r"kiseki_journal_replaced_\w+", done.kept)
    assert replaced is not None
    assert await schemas(address) == [SCHEMA, replaced[0]]
    async with opened(dataclasses.replace(address, schema=replaced[0])) as journal:
        assert await contents_of(journal) == live
    await staged.discard()
    assert await schemas(address) == [SCHEMA, replaced[0]]


async def test_a_site_that_was_cut_off_stays_cut_off(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 1)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    async with connected(address) as connection:
        await raise_fence(connection, 7, "the journal")
    await (await driver.stage(tmp_path, manifest_of(made), nothing)).switch()
    async with opened(address) as journal:
        with pytest.raises(NotTheWriter, match="in term 7"):
            await append(journal, "New-1", 0)


async def test_nothing_is_switched_while_somebody_uses_it(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 3)
    driver = backups_of(postgres_server, address, beside)
    staged = await driver.stage(tmp_path, manifest_of(await driver.make(tmp_path, nothing)), nothing)
    async with opened(address) as journal:
        await append(journal, "New-1", 0)
        with pytest.raises(RestoreRefused, match=r"in use \(1 × kiseki journal"):
            await staged.switch()
        await append(journal, "New-1", 1)
    slow = await SlowAppend.begin(address, "Slow-1")
    with pytest.raises(RestoreRefused, match="a lock"):
        await staged.switch()
    await slow.land()
    async with opened(address) as journal:
        assert len(await everything(journal)) == 6
    await staged.discard()
    assert await schemas(address) == [SCHEMA]


async def test_who_comes_while_the_switch_waits_is_seen(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 3)
    driver = backups_of(postgres_server, address, beside)
    staged = await driver.stage(tmp_path, manifest_of(await driver.make(tmp_path, nothing)), nothing)
    slow = await SlowAppend.begin(address, "Slow-1")
    switching = asyncio.create_task(staged.switch())
    async with connected(address) as connection:
        await until_waiting(connection, "relation")
    late = await connect(address, application="kiseki journal writer")
    await slow.land()
    with pytest.raises(RestoreRefused, match="1 × kiseki journal writer"):
        await switching
    await late.close()
    async with opened(address) as journal:
        assert len(await everything(journal)) == 4
    await staged.discard()


async def test_a_session_that_was_not_seen_writes_nothing_into_the_old_journal(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 2)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    async with connected(address) as stale:
        # Its statements are prepared, and it believes that Thing-0 has one more commit than the backup.
        await append_raw(stale, "Thing-0", 1)
        staged = await driver.stage(tmp_path, manifest_of(made), nothing)
        done = await staged.switch()
        with pytest.raises(AssertionError):
            await append_raw(stale, "Thing-0", 2)
        await append_raw(stale, "Other-1", 0)
        replaced = re.search(r"kiseki_journal_replaced_\w+", done.kept)
        assert replaced is not None
        for statement in (
            f"INSERT INTO {replaced[0]}.claims VALUES ('a', 'b', 'c')",
            f"UPDATE {replaced[0]}.proofs SET written = 1",
            f"DELETE FROM {replaced[0]}.commits",
            f"TRUNCATE {replaced[0]}.idempotency",
        ):
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="was replaced by a restore"):
                await stale.execute(statement)
        assert await stale.fetchval(f"SELECT count(*) FROM {replaced[0]}.commits") == 3
    async with opened(address) as journal:
        assert (await everything(journal))[-1] == ("Other-1", 1)
        assert int((await journal.head()).split(".")[1]) == 2


@pytest.mark.parametrize("gone", [False, True])
async def test_the_role_of_the_service_can_use_what_was_restored(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path, gone: bool
) -> None:
    role = f"the service {address.label.rpartition('_')[2]}-{gone}"
    postgres_server.sql(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'")
    async with connected(address) as connection:
        await connection.execute(
            f'GRANT USAGE ON SCHEMA kiseki_journal TO "{role}";'
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA kiseki_journal TO "{role}";'
            f'ALTER DEFAULT PRIVILEGES IN SCHEMA kiseki_journal GRANT SELECT ON TABLES TO "{role}"'
        )
    await fill(address, 3)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    if gone:
        async with connected(address) as connection:
            await connection.execute("DROP SCHEMA kiseki_journal CASCADE")
    await (await driver.stage(tmp_path, manifest_of(made), nothing)).switch()
    url = address.dsn.replace(f"kiseki:{postgres_server.password}", f"{role.replace(' ', '%20')}:x")
    async with opened(PostgresAddress.parse(url, schema=SCHEMA)) as journal:
        assert len(await everything(journal)) == 3
        await append(journal, "New-1", 0)
        await journal.check()
    async with connected(address) as connection:
        await connection.execute("CREATE TABLE another ()")
        assert await connection.fetchval("SELECT has_table_privilege($1, 'another', 'SELECT')", role)


async def test_a_role_that_is_gone_is_named(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    role = f"gone_{address.label.rpartition('_')[2]}"
    postgres_server.sql(f"CREATE ROLE {role}")
    async with connected(address) as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA kiseki_journal TO {role}")
        driver = backups_of(postgres_server, address, beside)
        made = await driver.make(tmp_path, nothing)
        await connection.execute("DROP SCHEMA kiseki_journal CASCADE")
        await connection.execute(f"DROP ROLE {role}")
    done = await (await driver.stage(tmp_path, manifest_of(made), nothing)).switch()
    assert any(f"the role {role} is not on this server" in line for line in done.left)


@pytest.mark.parametrize("how", ["truncated", "altered", "empty", "gone"])
async def test_a_damaged_dump_changes_nothing(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path, how: str
) -> None:
    await fill(address, 100)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    file = tmp_path / DUMP
    whole = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        middle = len(whole) * 2 // 3
        changed = {
            "truncated": whole[:middle],
            "altered": whole[:middle] + bytes(64) + whole[middle + 64 :],
            "empty": b"",
        }
        file.write_bytes(changed[how])
    databases = postgres_server.sql("SELECT datname FROM pg_database ORDER BY 1")
    with pytest.raises(BackupDamaged, match=r"can't be restored .*; use another backup$"):
        await driver.stage(tmp_path, manifest_of(made), nothing)
    with pytest.raises(BackupDamaged):
        async with driver.opened(tmp_path, manifest_of(made)):
            pass
    assert postgres_server.sql("SELECT datname FROM pg_database ORDER BY 1") == databases
    assert await schemas(address) == [SCHEMA]
    file.write_bytes(whole)
    await (await driver.stage(tmp_path, manifest_of(made), nothing)).switch()


async def test_what_is_not_allowed_or_not_there_is_one_line(
    postgres_server: PostgresServer, address: PostgresAddress, tmp_path: Path
) -> None:
    await fill(address, 1)
    role = f"poor_{address.label.rpartition('_')[2]}"
    postgres_server.sql(f"CREATE ROLE {role} LOGIN PASSWORD 's3cret-one'")
    async with connected(address) as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA kiseki_journal TO {role}")
    poor = PostgresAddress.parse(
        address.dsn.replace(f"kiseki:{postgres_server.password}", f"{role}:s3cret-one"), schema=SCHEMA
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    driver = backups_of(postgres_server, address, Scratch())
    made = await driver.make(whole, nothing)
    problems: list[str] = []

    async def refused(kind: type[Exception], work: Any) -> None:
        with pytest.raises(kind) as raised:
            await work
        problems.append(str(raised.value))

    await refused(OperationFailed, backups_of(postgres_server, poor, Scratch()).make(tmp_path, nothing))
    assert "permission denied" in problems[-1]

    async def verify(driver: PostgresJournalBackups) -> None:
        async with driver.opened(whole, manifest_of(made)):
            pass

    await refused(OperationFailed, verify(backups_of(postgres_server, poor, Scratch(server=poor))))
    assert "grant it CREATEDB" in problems[-1]
    wrong = PostgresAddress.parse(poor.dsn.replace("s3cret-one", "s3cret-two"), schema=SCHEMA)
    await refused(Unavailable, backups_of(postgres_server, wrong, Scratch()).make(tmp_path, nothing))
    old = PostgresJournalBackups(address, PostgresPrograms(tmp_path), clock=CLOCK)
    await refused(ToolMissing, old.make(tmp_path, nothing))
    assert "postgres_programs" in problems[-1]
    nobody = dataclasses.replace(address, schema="nothing_here")
    await refused(BackupRefused, backups_of(postgres_server, nobody, Scratch()).make(tmp_path, nothing))
    for problem in problems:
        assert "\n" not in problem
        assert "s3cret" not in problem
        assert postgres_server.password not in problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]


async def test_programs_that_are_older_than_the_server_are_refused(
    postgres_server: PostgresServer, address: PostgresAddress, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (programs / name).write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 14.2'\n")
        (programs / name).chmod(0o755)
    driver = PostgresJournalBackups(address, PostgresPrograms(programs), clock=CLOCK)
    with pytest.raises(
        ToolMissing, match=r"pg_dump 14 in .* is too old for PostgreSQL \d+; install postgresql-client-"
    ):
        await driver.make(tmp_path, nothing)


async def test_a_schema_with_something_else_in_it_is_refused(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    from kiseki.security.postgres_key_store import PostgresKeyStore

    await PostgresKeyStore.migrate(address)
    with pytest.raises(BackupRefused, match="also holds the key store"):
        await backups_of(postgres_server, address, beside).make(tmp_path, nothing)


async def test_leftovers_of_killed_runs_are_cleared_away_and_nothing_else(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 2)
    driver = backups_of(postgres_server, address, beside)
    made = await driver.make(tmp_path, nothing)
    for name in ("kiseki_verify_200101000000_0123abcd", "kiseki_verify_mine", "kiseki_verify_200101000000_0123abcd_x"):
        postgres_server.sql(f"CREATE DATABASE {name}")
    left = ""
    postgres_server.sql("CREATE ROLE somebody_else")
    postgres_server.sql("CREATE DATABASE kiseki_verify_200101000000_0123abce OWNER somebody_else")
    try:
        async with connected(address) as connection:
            await connection.execute("CREATE SCHEMA kiseki_journal_restored_200101000000_abcd")
            await connection.execute("CREATE SCHEMA kiseki_journal_restored_mine")
        other = await driver.stage(tmp_path, manifest_of(made), nothing)
        staged = await driver.stage(tmp_path, manifest_of(made), nothing)
        there = await schemas(address)
        assert "kiseki_journal_restored_200101000000_abcd" not in there
        assert "kiseki_journal_restored_mine" in there
        assert len(there) == 4
        left = postgres_server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'kiseki_verify%' ORDER BY 1")
        assert left.split() == [
            "kiseki_verify_200101000000_0123abcd_x",
            "kiseki_verify_200101000000_0123abce",
            "kiseki_verify_mine",
        ]
        await other.discard()
        await staged.switch()
    finally:
        for name in (*left.split(), "kiseki_verify_200101000000_0123abcd"):
            postgres_server.sql(f"DROP DATABASE IF EXISTS {name}")
        postgres_server.sql("DROP ROLE somebody_else")


async def test_into_another_database(
    postgres_server: PostgresServer, address: PostgresAddress, beside: Scratch, tmp_path: Path
) -> None:
    await fill(address, 4)
    made = await backups_of(postgres_server, address, beside).make(tmp_path, nothing)
    into = PostgresAddress.parse(postgres_server.create_database(), schema="another_name")
    driver = PostgresJournalBackups(address, programs_of(postgres_server), clock=CLOCK, scratch=beside, into=into)
    assert (await (await driver.stage(tmp_path, manifest_of(made), nothing)).switch()).kept == ""
    async with opened(into) as journal:
        assert await contents_of(journal) == made.contents
        assert (await journal.feed(START)).commits
