"""Continuous protection of a PostgreSQL cluster: what was acknowledged before the last step comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import Journal
from kiseki.kernel.errors import Unavailable
from kiseki.operations.backup.port import nothing
from kiseki.operations.errors import (
    BackupDamaged,
    BackupMissing,
    BackupRefused,
    ClockWrong,
    OperationFailed,
    OperatorBusy,
    ToolMissing,
)
from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.protection import PostgresProtection
from tests.integration.journal.postgres_parts import append, connected, opened
from tests.integration.operations.postgres.postgres_backup_parts import (
    CLOCK,
    SCHEMA,
    everything,
    fill,
    journal_at,
    open_folder,
    programs_of,
    writing,
)
from tests.servers.postgres import PostgresServer


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@asynccontextmanager
async def protecting(server: PostgresServer, address: PostgresAddress, folder: Path, **options: Any) -> Any:
    protection = protection_of(server, address, folder, **options)
    try:
        yield protection
    finally:
        await protection.close()


def protection_of(server: PostgresServer, address: PostgresAddress, folder: Path, **options: Any) -> PostgresProtection:
    given: dict[str, Any] = {
        "clock": CLOCK,
        "days": 7,
        "spool": folder / "spool",
        "place": FolderPlace(folder / "place", setting="x"),
    }
    given |= options
    place = given.pop("place")
    return PostgresProtection(address, programs_of(server), place, **given)


async def streams(journal: Journal) -> set[str]:
    return {stream for stream, _ in await everything(journal)}  # type: ignore[arg-type]


def work_in(folder: Path) -> Path:
    work = folder / f"work-{len(list(folder.iterdir()))}"
    work.mkdir()
    return work


async def test_the_whole_cluster_is_lost_under_load(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    await fill(address, 20)
    async with protecting(server, address, folder) as protection, writing(address) as acknowledged:
        first = await protection.step(nothing)
        assert first.base
        assert first.commits >= 20
        while len(acknowledged) < 200:
            await asyncio.sleep(0.01)
        before = list(acknowledged)
        second = await protection.step(nothing)
        assert not second.base
        assert second.through > first.through
        assert await protection.through() == second.through
        server.crash()
    owner = (server.data.stat().st_uid, server.data.stat().st_gid)
    shutil.rmtree(server.data)
    shutil.rmtree(folder / "spool")
    protection = protection_of(server, address, folder)
    assert await protection.through() == second.through
    staged = await protection.recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        there = await streams(journal)
        assert set(before) <= there
        assert len(before) + 20 <= len(there) <= len(acknowledged) + 8 + 20
        epoch = int((await journal.head()).split(".")[1])
        await append(journal, "After-1", 0)
        assert int((await journal.head()).split(".")[1]) == epoch + 1 == 2
    done = await staged.switch()
    assert any("pg_ctl" in line for line in done.left)
    data = next(folder.glob("work-*")) / "data"
    shutil.move(data, server.data)
    for path in (server.data, *server.data.rglob("*")):
        os.chown(path, *owner)
    assert server.launch()
    async with opened(address) as journal:
        assert set(before) <= await streams(journal)
        await append(journal, "After-1", 1)


async def test_what_was_received_after_the_last_step_is_not_lost(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        through = (await protection.step(nothing)).through
        await fill(address, 30)
        server.sql("SELECT pg_switch_wal()")
        await fill(address, 30, after=1)
        durable = server.sql("SELECT pg_current_wal_flush_lsn()")
        received = f"SELECT restart_lsn >= '{durable}' FROM pg_replication_slots WHERE slot_name = '{protection.slot}'"
        async with asyncio.timeout(20):
            while server.sql(received) != "t":
                await asyncio.sleep(0.05)
        server.crash()
        with pytest.raises(Unavailable):
            await protection.step(nothing)
        assert await protection.through() == through
    shutil.rmtree(server.data)
    shutil.rmtree(folder / "spool")
    staged = await protection_of(server, address, folder).recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        assert len(await everything(journal)) == 60
    await staged.discard()


async def test_a_step_waits_for_a_slow_receiver(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
        receiver = protection.receiver.process_id
        assert receiver is not None
        os.kill(receiver, signal.SIGSTOP)
        await fill(address, 10)
        step = asyncio.create_task(protection.step(nothing))
        done, _ = await asyncio.wait([step], timeout=1)
        os.kill(receiver, signal.SIGCONT)
        assert not done
        await step
    shutil.rmtree(folder / "spool")
    staged = await protection.recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        assert len(await everything(journal)) == 10
    await staged.discard()


async def test_what_was_at_a_time(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
        await fill(address, 5)
        async with connected(address) as connection:
            middle = await connection.fetchval("SELECT clock_timestamp()")
        await fill(address, 5, after=1)
        through = (await protection.step(nothing)).through
    for until, commits in ((middle, 5), (through, 10), (None, 10)):
        staged = await protection.recover(work := work_in(folder), nothing, until=until)
        async with staged.opened() as journal:
            assert len(await everything(journal)) == commits
        await staged.discard()
        assert list(work.iterdir()) == []
    with pytest.raises(BackupMissing, match="up to"):
        await protection.recover(work_in(folder), nothing, until=through + timedelta(minutes=1))
    with pytest.raises(BackupMissing, match="the oldest base"):
        await protection.recover(work_in(folder), nothing, until=through - timedelta(days=1))


async def test_many_files_of_log_and_a_receiver_that_is_killed(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
        for number in range(3):
            await fill(address, 20, after=number)
            server.sql("SELECT pg_switch_wal()")
            killed = protection.receiver.process_id
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await protection.step(nothing)
            assert protection.receiver.process_id not in (None, killed)
        assert protection.receiver.starts == 4
        assert len(list((folder / "spool/wal").iterdir())) <= 3
    assert protection.receiver.process_id is None
    staged = await protection.recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        assert len(await everything(journal)) == 60
    await staged.discard()


async def test_a_step_goes_on_after_an_earlier_process(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        assert (await protection.step(nothing)).base
        with pytest.raises(OperatorBusy, match="another process protects"):
            await protection_of(server, address, folder).step(nothing)
        elsewhere = protection_of(server, address, folder, spool=folder / "another machine's")
        with pytest.raises(OperatorBusy, match="another process receives"):
            await elsewhere.step(nothing)
        await elsewhere.close()
        await protection.step(nothing)
    await fill(address, 10)
    server.sql("SELECT pg_switch_wal()")
    await fill(address, 10, after=1)
    async with protecting(server, address, folder) as protection:
        second = await protection.step(nothing)
        assert (second.base, second.commits) == (False, 20)
        assert (await protection.step(nothing)).commits == 0
    shutil.rmtree(folder / "spool")
    async with protecting(server, address, folder) as protection:
        assert (await protection.step(nothing)).base


async def test_a_file_that_is_missing_or_altered_is_found(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
        for number in range(3):
            await fill(address, 2, after=number)
            server.sql("SELECT pg_switch_wal()")
        await fill(address, 2, after=3)
        await protection.step(nothing)
        # On another machine, that has nothing in its spool.
        elsewhere = protection_of(server, address, folder, spool=folder / "none")
        log = sorted((folder / "place/cluster-increments").rglob("*.gz"))
        whole = [path for path in log if path.name[24] == "-"]
        assert len(whole) >= 3
        held = whole[1].read_bytes()
        whole[1].write_bytes(held[:-20])
        with pytest.raises(BackupDamaged, match="truncated or altered"):
            await elsewhere.recover(work_in(folder), nothing)
        whole[1].unlink()
        with pytest.raises(BackupDamaged, match=f"lacks {whole[1].name[:24]}"):
            await elsewhere.recover(work_in(folder), nothing)
        whole[1].write_bytes(held)
        partial = next(path for path in log if ".partial" in path.name)
        last = partial.read_bytes()
        partial.unlink()
        with pytest.raises(BackupDamaged, match="its newest file"):
            await elsewhere.recover(work_in(folder), nothing)
        partial.write_bytes(last)
        base = next((folder / "place/cluster").rglob("base.tar.gz"))
        content = base.read_bytes()
        base.write_bytes(content[:-1])
        with pytest.raises(BackupDamaged, match=r"base backup .* is truncated"):
            await elsewhere.recover(work_in(folder), nothing)
        base.write_bytes(content)
        assert all(list(work.iterdir()) == [] for work in folder.glob("work-*"))
        whole[1].unlink()
        assert (await protection.step(nothing)).base
    staged = await protection.recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        assert len(await everything(journal)) == 8
    await staged.discard()


async def test_a_promoted_or_another_cluster_begins_a_new_base(
    server: PostgresServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.integration.journal.test_postgres_restore import Standby

    address = await journal_at(server.create_database())
    await fill(address, 3)
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
    with Standby(server) as standby:
        server.crash()
        standby.sql("SELECT pg_promote()")
        there = PostgresAddress.parse(standby.url(address.label.rpartition("/")[2]), schema=SCHEMA)
        await fill(there, 3, after=1)
        async with protecting(standby, there, folder) as protection:
            assert (await protection.step(nothing)).base
        staged = await protection.recover(work_in(folder), nothing)
        async with staged.opened() as journal:
            assert len(await everything(journal)) == 6
        await staged.discard()
    assert "no time between that and the new base" in caplog.text


class Later:
    """A clock that is ahead."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self._by

    def monotonic(self) -> float:
        return CLOCK.monotonic()


async def test_what_is_over_the_retention_goes_but_for_the_last(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
    async with protecting(server, address, folder, clock=Later(timedelta(days=2))) as protection:
        await fill(address, 3)
        server.sql("SELECT pg_switch_wal()")
        assert (await protection.step(nothing)).base
        with pytest.raises(ClockWrong):
            await protection.prune(datetime.now(UTC))
        # Of the log there is nothing that no base needs, not even from before the first.
        assert await protection.prune(datetime.now(UTC) + timedelta(days=3)) == 0
        assert len(list((folder / "place/cluster").iterdir())) == 2
        assert await protection.prune(datetime.now(UTC) + timedelta(days=8)) >= 2
        assert await protection.prune(datetime.now(UTC) + timedelta(days=80)) == 0
    staged = await protection.recover(work_in(folder), nothing)
    async with staged.opened() as journal:
        assert len(await everything(journal)) == 3
    await staged.discard()


async def test_a_new_base_holds_no_step_up(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    async with protecting(server, address, folder) as protection:
        await protection.step(nothing)
    async with protecting(server, address, folder, clock=Later(timedelta(hours=30))) as protection:
        made = [await protection.step(nothing)]
        async with asyncio.timeout(60):
            while not made[-1].base:
                await fill(address, 1, after=len(made) - 1)
                made.append(await protection.step(nothing))
        assert not made[0].base
        assert sum(one.commits for one in made) == len(made) - 1
        assert len(list((folder / "place/cluster").iterdir())) == 2
        assert not (await protection.step(nothing)).base


async def test_private_stores_and_the_ledger(server: PostgresServer, folder: Path, postgres_url: str) -> None:
    address = await journal_at(server.create_database())
    elsewhere = PostgresAddress.parse(postgres_url, schema="kiseki_erasures")
    async with protecting(server, address, folder, ledger=address) as protection:
        with pytest.raises(BackupRefused, match="erasure ledger"):
            await protection.step(nothing)
    assert server.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    private = [("keys", address), ("read models", elsewhere)]
    async with protecting(server, address, folder, ledger=elsewhere, private=private, days=30) as protection:
        await protection.step(nothing)
        manifest = next((folder / "place/cluster").rglob("manifest.json")).read_text()
        assert '"holds": "keys"' in manifest
        assert '"days": "7"' in manifest
    gone = PostgresAddress.parse("postgresql://a@127.0.0.1:1/b", schema="kiseki_erasures")
    async with protecting(server, address, folder, ledger=gone, private=private) as protection:
        assert not (await protection.step(nothing)).base


async def test_what_forbids_it_is_one_line(server: PostgresServer, folder: Path) -> None:
    address = await journal_at(server.create_database())
    server.sql("CREATE ROLE poor LOGIN PASSWORD 'poor-secret'")
    poor = PostgresAddress.parse(address.dsn.replace(f"kiseki:{server.password}", "poor:poor-secret"), schema=SCHEMA)
    async with protecting(server, poor, folder) as protection:
        with pytest.raises(OperationFailed, match="lacks REPLICATION; as a superuser run ALTER ROLE poor REPLICATION"):
            await protection.step(nothing)
    protection = PostgresProtection(
        address, PostgresPrograms(folder), FolderPlace(folder / "place", setting="x"), clock=CLOCK, days=7,
        spool=folder / "other",
    )  # fmt: skip
    with pytest.raises(ToolMissing, match="pg_receivewal is not in"):
        await protection.step(nothing)
    await protection.close()
    with pytest.raises(BackupMissing, match="no base backup"):
        await protection.recover(work_in(folder), nothing)


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"wal_level": "minimal", "max_wal_senders": 0}, "wal_level"), ({"max_wal_senders": 1}, "max_wal_senders is 1")],
)
async def test_servers_that_are_not_set_up_for_it(folder: Path, settings: dict[str, object], what: str) -> None:
    with PostgresServer(settings=settings) as server:
        address = await journal_at(server.create_database())
        async with protecting(server, address, folder) as protection:
            with pytest.raises(OperationFailed, match=f"{what}.*restart the server"):
                await protection.step(nothing)
