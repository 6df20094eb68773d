"""Backups of PostgreSQL that are killed or run out of disk: the live journal goes on, and a second run works."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.errors import Unavailable
from kiseki.operations.backup.port import nothing
from kiseki.operations.errors import NoRoom
from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.postgres.dump import DUMP
from kiseki.operations.postgres.journal import PostgresJournalBackups
from kiseki.operations.postgres.protection import PostgresProtection
from kiseki.operations.postgres.scratch import Scratch
from tests.integration.journal.postgres_parts import append, connected, opened
from tests.integration.operations.postgres.postgres_backup_parts import (
    CLOCK,
    SCHEMA,
    contents_of,
    everything,
    fill,
    journal_at,
    manifest_of,
    open_folder,
    programs_of,
)
from tests.servers.postgres import PostgresServer

_ROOT = Path(__file__).parents[4]


@pytest.fixture
async def address(postgres_server: PostgresServer) -> PostgresAddress:
    return await journal_at(postgres_server.create_database())


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0755", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@asynccontextmanager
async def child(
    what: str, address: PostgresAddress, server: PostgresServer, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.operations.postgres.backup_process", what, address.dsn, server.bin,
        folder, cwd=_ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'src'}"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        if text in line:
            return line
    raise AssertionError(f"it ended before it said {text!r}")


async def alone(address: PostgresAddress) -> None:
    """Until no program of a backup is connected any more."""
    async with connected(address) as connection, asyncio.timeout(20):
        while await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name ~ '^kiseki b')"
        ):
            await asyncio.sleep(0.01)


async def dump_waits(address: PostgresAddress) -> None:
    """Until a dump waits for a lock."""
    async with connected(address) as connection:
        while not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ '^LOCK TABLE' AND wait_event_type = 'Lock')"
        ):
            await asyncio.sleep(0.01)


async def test_a_killed_dump_leaves_nothing_behind(
    postgres_server: PostgresServer, address: PostgresAddress, folder: Path
) -> None:
    await fill(address, 200)
    # The dump waits for this lock, so it is under way when its process is killed.
    async with connected(address, settings={"idle_in_transaction_session_timeout": "0"}) as holder:
        await holder.execute("BEGIN; LOCK TABLE idempotency IN ACCESS EXCLUSIVE MODE")
        async with child("make", address, postgres_server, folder) as process, asyncio.timeout(30):
            await line_with(process, "dumping")
            await dump_waits(address)
            dumps = _children(process.pid)
            assert dumps
            process.kill()
            await process.wait()
            while any(Path(f"/proc/{one}").exists() for one in dumps):
                await asyncio.sleep(0.01)
        await holder.execute("ROLLBACK")
    await alone(address)
    async with opened(address) as journal:
        await append(journal, "New-1", 0)
    driver = PostgresJournalBackups(address, programs_of(postgres_server), clock=CLOCK)
    made = await driver.make(folder, nothing)
    assert made.contents is not None
    assert made.contents.commits == 201


async def test_a_cancelled_dump_is_ended(
    postgres_server: PostgresServer, address: PostgresAddress, folder: Path
) -> None:
    await fill(address, 5)
    driver = PostgresJournalBackups(address, programs_of(postgres_server), clock=CLOCK)
    async with connected(address, settings={"idle_in_transaction_session_timeout": "0"}) as holder:
        await holder.execute("BEGIN; LOCK TABLE idempotency IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(driver.make(folder, nothing))
        async with asyncio.timeout(30):
            await dump_waits(address)
        assert _children(os.getpid(), "pg_dump")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not _children(os.getpid(), "pg_dump")
        await holder.execute("ROLLBACK")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("when", ["into a throw-away", "beside the live"])
async def test_a_killed_restore_leaves_the_live_journal_alone(
    postgres_server: PostgresServer, address: PostgresAddress, folder: Path, when: str
) -> None:
    await fill(address, 300)
    driver = PostgresJournalBackups(address, programs_of(postgres_server), clock=CLOCK, scratch=Scratch(folder=folder))
    made = await driver.make(folder, nothing)
    (folder / "made.json").write_bytes(msgspec.json.encode(made))
    async with child("stage", address, postgres_server, folder) as process:
        await line_with(process, when)
        process.kill()
        await process.wait()
    await alone(address)
    async with opened(address) as journal:
        assert await contents_of(journal) == made.contents
    staged = await driver.stage(folder, manifest_of(made), nothing)
    assert list(folder.glob("kiseki-throwaway-*")) == []
    assert len(await _schemas(address)) == 2
    await staged.switch()
    async with opened(address) as journal:
        assert await contents_of(journal) == made.contents


async def test_a_killed_protection_takes_its_receiver_along_and_is_made_good(folder: Path) -> None:
    with PostgresServer() as server:
        address = await journal_at(server.create_database())
        for _ in range(3):
            async with child("protect", address, server, folder) as process, asyncio.timeout(60):
                receiver = int((await line_with(process, "receiver")).split()[1])
                await fill(address, 10, after=len(await _streams(address)) // 10)
                process.kill()
                await process.wait()
                while Path(f"/proc/{receiver}").exists() and _state(receiver) != "Z":
                    await asyncio.sleep(0.01)
        protection = PostgresProtection(
            address, programs_of(server), FolderPlace(folder / "place", setting="x"), clock=CLOCK, days=7,
            spool=folder / "spool",
        )  # fmt: skip
        done = await protection.step(nothing)
        await protection.close()
        assert not done.base
        server.crash()
        (folder / "work").mkdir()
        staged = await protection.recover(folder / "work", nothing)
        async with staged.opened() as journal:
            assert len(await everything(journal)) == 30
        await staged.discard()


async def test_a_disk_that_is_full(
    postgres_server: PostgresServer, address: PostgresAddress, folder: Path, small_disk: Path
) -> None:
    async with opened(address) as journal:
        for number in range(30):
            await append(journal, "Big-1", number, data=b'"%s"' % os.urandom(120_000).hex().encode())
    programs = programs_of(postgres_server)
    driver = PostgresJournalBackups(address, programs, clock=CLOCK, scratch=Scratch(folder=small_disk))
    with pytest.raises(NoRoom, match=r"pg_dump failed.*No space left on device; make room there$"):
        await driver.make(small_disk, nothing)
    assert list(small_disk.iterdir()) == []
    made = await driver.make(folder, nothing)
    with pytest.raises(NoRoom):
        await driver.stage(folder, manifest_of(made), nothing)
    assert list(small_disk.iterdir()) == []
    assert await _schemas(address) == [SCHEMA]
    assert (folder / DUMP).stat().st_size > 3_000_000
    other = PostgresJournalBackups(address, programs, clock=CLOCK, scratch=Scratch(folder=folder))
    await (await other.stage(folder, manifest_of(made), nothing)).switch()


async def test_a_spool_that_is_full(folder: Path, small_disk: Path) -> None:
    with PostgresServer() as server:
        address = await journal_at(server.create_database())
        protection = PostgresProtection(
            address, programs_of(server), FolderPlace(folder / "place", setting="x"), clock=CLOCK, days=7,
            spool=small_disk / "spool",
        )  # fmt: skip
        try:
            await protection.step(nothing)
            # What the place has is removed first when there is no room; here is nothing of that kind.
            for path in (small_disk / "spool/wal").iterdir():
                if path.suffix != ".partial":
                    path.unlink()
            in_the_way = small_disk / "in the way"
            in_the_way.write_bytes(bytes(shutil.disk_usage(small_disk).free))
            await fill(address, 5)
            server.sql("SELECT pg_switch_wal()")
            await fill(address, 5, after=1)
            with pytest.raises(NoRoom, match="make room there"):
                await protection.step(nothing)
            async with opened(address) as journal:
                await append(journal, "New-1", 0)
            in_the_way.unlink()
            async with asyncio.timeout(60):
                while True:
                    try:
                        done = await protection.step(nothing)
                    except (NoRoom, Unavailable):
                        continue
                    break
            assert not done.base
        finally:
            await protection.close()
        (folder / "work").mkdir()
        staged = await protection.recover(folder / "work", nothing)
        async with staged.opened() as journal:
            assert len(await everything(journal)) == 11
        await staged.discard()


def _children(process_id: int, name: str = "") -> list[int]:
    found = [int(one) for one in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]
    return [one for one in found if re.search(name or "pg_", Path(f"/proc/{one}/comm").read_text())]


def _state(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


async def _streams(address: PostgresAddress) -> list[tuple[str, int]]:
    async with opened(address) as journal:
        return await everything(journal)


async def _schemas(address: PostgresAddress) -> list[str]:
    async with connected(address) as connection:
        rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'kiseki%' ORDER BY 1")
    return [row["nspname"] for row in rows]
