"""The lease on each store that keeps it, real ones: compare-and-set holds among many, and permission comes and goes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.lease.dynamodb import DynamoDbLeaseStore
from kiseki.journal.lease.folder import FolderLeaseStore
from kiseki.journal.lease.handing_over import HandingOver, HandingOverRefused, LeaseBusy
from kiseki.journal.lease.holder import WriterLease, first_record
from kiseki.journal.lease.port import LeaseBroken, LeaseStore, LeaseUnavailable, NotTheWriter, elapsed_clock
from kiseki.journal.lease.postgres import PostgresLeaseStore
from tests.servers.emulator import REGION

SECONDS = 2.0


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(params=["folder", "postgresql", "dynamodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LeaseStore]:
    opened: LeaseStore
    if request.param == "folder":
        opened = FolderLeaseStore(tmp_path / "witness")
    elif request.param == "postgresql":
        address = PostgresAddress.parse(request.getfixturevalue("postgres_url"), schema="kiseki_lease")
        assert len(await PostgresLeaseStore.migrate(address)) == 1
        opened = await PostgresLeaseStore.open(address)
    else:
        patch = request.getfixturevalue("monkeypatch")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "test")
        endpoint = request.getfixturevalue("aws_endpoint")
        url = f"dynamodb://test-{secrets.token_hex(6)}?region={REGION}&endpoint={endpoint}"
        assert len(await DynamoDbLeaseStore.migrate(DynamoDbAddress.parse(url))) == 1
        opened = await DynamoDbLeaseStore.open(DynamoDbAddress.parse(url))
    yield opened
    await opened.close()


def process(store: LeaseStore, site: str, name: str, seconds: float = SECONDS) -> WriterLease:
    return WriterLease(store, site=site, writer=name, seconds=seconds, clock=elapsed_clock, now=now)


def run_of(store: LeaseStore, operator: str = "operator") -> HandingOver:
    return HandingOver(store, operator=operator, seconds=SECONDS, clock=elapsed_clock, now=now)


async def test_one_of_many_changes_gets_through(store: LeaseStore) -> None:
    assert await store.read() is None
    firsts = [first_record("tokyo", term=1, now=now()).changed(term=n) for n in range(8)]
    begun = await asyncio.gather(*(store.swap(None, record) for record in firsts))
    assert sum(begun) == 1
    there = await store.read()
    assert there == firsts[begun.index(True)]
    assert there is not None
    wanted = [there.changed(term=100 + n) for n in range(8)]
    changed = await asyncio.gather(*(store.swap(there, record) for record in wanted))
    assert sum(changed) == 1
    assert await store.read() == wanted[changed.index(True)]
    assert not await store.swap(there, there.changed())
    assert not await store.swap(None, there.changed())


async def test_all_processes_of_the_site_get_it_and_nobody_else(store: LeaseStore) -> None:
    await store.swap(None, first_record("tokyo", term=3, now=now()))
    tokyo = [process(store, "tokyo", f"tokyo-{n}") for n in range(4)]
    osaka = process(store, "osaka", "osaka-1")
    await asyncio.gather(*(lease.renew() for lease in (*tokyo, osaka)))
    for lease in tokyo:
        lease.check()
        assert lease.term == 3
    with pytest.raises(NotTheWriter, match="the site tokyo writes"):
        osaka.check()
    record = await store.read()
    assert record is not None
    assert set(record.writers) == {"tokyo-0", "tokyo-1", "tokyo-2", "tokyo-3"}


async def test_a_failover_waits_for_who_does_not_let_go_and_not_for_who_does(store: LeaseStore) -> None:
    await store.swap(None, first_record("tokyo", term=1, now=now()))
    living, silent = process(store, "tokyo", "living"), process(store, "tokyo", "silent")
    await living.renew()
    await silent.renew()
    running = asyncio.create_task(living.run())
    handing = run_of(store)
    await handing.begin("osaka")
    began = elapsed_clock()
    waited = await handing.wait()
    assert elapsed_clock() - began >= SECONDS
    assert not handing.all_let_go
    for lease in (living, silent):
        with pytest.raises(NotTheWriter):
            lease.check()
    assert waited >= SECONDS
    record = await handing.finish()
    assert (record.holder, record.term, record.state) == ("osaka", 2, "active")
    osaka = process(store, "osaka", "osaka-1")
    await osaka.renew()
    osaka.check()
    back = run_of(store)
    await back.begin("tokyo")
    renewing = asyncio.create_task(osaka.run())
    assert await back.wait() < SECONDS
    assert back.all_let_go
    await back.finish()
    for task in (running, renewing):
        task.cancel()


async def test_writes_under_way_keep_a_process_from_letting_go(store: LeaseStore) -> None:
    await store.swap(None, first_record("tokyo", term=1, now=now()))
    lease = process(store, "tokyo", "tokyo-1", seconds=30)
    await lease.renew()
    lease.begin()
    handing = run_of(store)
    await handing.begin("osaka")
    leaving = asyncio.create_task(lease.renew())
    done, _ = await asyncio.wait([leaving], timeout=0.3)
    assert not done
    with pytest.raises(NotTheWriter, match="handed over to osaka"):
        lease.begin()
    lease.end()
    await leaving
    await handing.wait()
    assert handing.all_let_go


async def test_of_two_operators_the_second_is_told_and_one_that_died_is_replaced(store: LeaseStore) -> None:
    await store.swap(None, first_record("tokyo", term=1, now=now()))
    first = run_of(store, "alice")
    await first.begin("osaka")
    async with first.alive():
        with pytest.raises(LeaseBusy, match="alice is handing the lease over to osaka at this moment"):
            await run_of(store, "bob").begin("osaka")
    second = run_of(store, "bob")
    await second.begin("osaka")
    assert second.resumed
    with pytest.raises(LeaseBusy, match="somebody else took over"):
        await first.wait()
    await second.wait()
    await second.finish()
    with pytest.raises((LeaseBusy, HandingOverRefused)):
        await first.back()
    with pytest.raises(HandingOverRefused, match="writes already, in term 2"):
        await run_of(store).begin("osaka")


async def test_a_lease_that_is_not_there_is_granted_to_nobody(store: LeaseStore) -> None:
    lease = process(store, "tokyo", "tokyo-1")
    await lease.renew()
    with pytest.raises(NotTheWriter, match="kiseki dr begin"):
        lease.check()
    with pytest.raises(HandingOverRefused, match="kiseki dr begin"):
        await run_of(store).begin("osaka")


async def test_what_is_no_record_is_said_and_what_is_not_reached(tmp_path: Path) -> None:
    folder = tmp_path / "witness"
    store = FolderLeaseStore(folder)
    await store.swap(None, first_record("tokyo", term=1, now=now()))
    (folder / "lease.json").write_text('{"version": 1')
    with pytest.raises(LeaseBroken, match="not a record"):
        await store.read()
    (tmp_path / "file").touch()
    with pytest.raises(LeaseUnavailable, match=r"can.t be used: file exists"):
        await FolderLeaseStore(tmp_path / "file").read()
