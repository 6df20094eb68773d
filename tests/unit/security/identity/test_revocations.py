"""Revocations on every store, and the list that each process keeps of them."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import AuditUnavailable
from kiseki.security.identity import revocations as module
from kiseki.security.identity.dynamodb_revocations import DynamoDbRevocations
from kiseki.security.identity.postgres_revocations import PostgresRevocations
from kiseki.security.identity.revocations import (
    MemoryRevocations,
    RevocationList,
    RevocationRefused,
    RevocationStore,
    RevocationsUnavailable,
    Revoked,
)
from kiseki.security.identity.sqlite_revocations import SqliteRevocations
from tests.servers.emulator import REGION
from tests.support import Audited, ManualClock

OpenStore: TypeAlias = Callable[[], Awaitable[RevocationStore]]

NOW = 1_800_000_000.123456


@pytest.fixture
def dynamodb_address(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> DynamoDbAddress:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return DynamoDbAddress(prefix=f"revoked-{secrets.token_hex(4)}", region=REGION, endpoint=aws_endpoint)


@pytest.fixture
def postgres_address(postgres_url: str) -> PostgresAddress:
    return PostgresAddress.parse(postgres_url, schema="kiseki_keys")


@pytest.fixture(params=["memory", "sqlite", "postgres", "dynamodb"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens the store as another process would. All are closed with the test."""
    stores: list[RevocationStore] = []
    memory = MemoryRevocations()
    if request.param == "postgres":
        assert await PostgresRevocations.migrate(request.getfixturevalue("postgres_address"))
        assert await PostgresRevocations.migrate(request.getfixturevalue("postgres_address")) == []
    if request.param == "dynamodb":
        await DynamoDbRevocations.migrate(request.getfixturevalue("dynamodb_address"))

    async def open_one() -> RevocationStore:
        match request.param:
            case "postgres":
                return await PostgresRevocations.open(request.getfixturevalue("postgres_address"))
            case "dynamodb":
                return await DynamoDbRevocations.open(request.getfixturevalue("dynamodb_address"))
            case "sqlite":
                return await SqliteRevocations.open(tmp_path / "revocations.sqlite")
        return memory

    async def open_another() -> RevocationStore:
        stores.append(await open_one())
        return stores[-1]

    yield open_another
    for store in stores:
        await store.close()


async def revoke(store: RevocationStore, subject: str, at: float, forget_before: float = 0.0) -> None:
    await store.revoke("https://i", subject, at=at, forget_before=forget_before)


async def test_other_processes_read_what_one_revoked(open_store: OpenStore) -> None:
    one, other = await open_store(), await open_store()
    assert await other.load(0) == {}
    await revoke(one, "u-1", NOW)
    await one.revoke("https://other", "太郎 '; DROP TABLE revocations; --", at=NOW + 1, forget_before=0)
    assert await other.load(0) == {
        ("https://i", "u-1"): NOW,
        ("https://other", "太郎 '; DROP TABLE revocations; --"): NOW + 1,
    }
    assert await other.load(NOW) == {("https://other", "太郎 '; DROP TABLE revocations; --"): NOW + 1}


async def test_the_latest_counts(open_store: OpenStore) -> None:
    store = await open_store()
    for at in (NOW, NOW + 5, NOW + 2):
        await revoke(store, "u-1", at)
    assert await store.load(0) == {("https://i", "u-1"): NOW + 5}


async def test_many_at_once(open_store: OpenStore) -> None:
    stores = [await open_store() for _ in range(2)]
    await asyncio.gather(*(revoke(stores[n % 2], f"u-{n % 10}", NOW + n) for n in range(40)))
    assert await stores[0].load(0) == {("https://i", f"u-{n}"): NOW + 30 + n for n in range(10)}


async def test_too_many(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("revocations", "sqlite_revocations", "postgres_revocations", "dynamodb_revocations"):
        monkeypatch.setattr(f"kiseki.security.identity.{name}.MAX_REVOCATIONS", 3)
    store = await open_store()
    for number in range(3):
        await revoke(store, f"u-{number}", NOW + number)
    with pytest.raises(RevocationRefused, match="change the key"):
        await revoke(store, "u-3", NOW + 3)
    assert len(await store.load(0)) == 3
    # What concerns no token any more makes room.
    await revoke(store, "u-3", NOW + 3, forget_before=NOW)
    assert ("https://i", "u-3") in await store.load(NOW)


async def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "revocations.sqlite"
    await SqliteRevocations.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(RevocationRefused, match="chmod 600"):
        await SqliteRevocations.open(path)
    foreign = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    foreign.chmod(0o600)
    with pytest.raises(RevocationRefused, match="does not hold"):
        await SqliteRevocations.open(foreign)


@pytest.mark.parametrize("damage", ["removed", "emptied", "overwritten", "a folder"])
async def test_a_damaged_file_never_means_that_nobody_was_revoked(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "revocations.sqlite"
    store = await SqliteRevocations.open(path)
    await revoke(store, "u-1", NOW)
    match damage:
        case "removed":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "overwritten":
            path.write_bytes(b"x" * 8192)
        case "a folder":
            path.unlink()
            path.mkdir()
    with pytest.raises((RevocationsUnavailable, RevocationRefused)):
        await store.load(0)
    assert path.exists() == (damage != "removed")


async def test_a_lock_of_another_process_is_waited_for_and_then_told(tmp_path: Path) -> None:
    path = tmp_path / "revocations.sqlite"
    store = await SqliteRevocations.open(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RevocationsUnavailable):
            await revoke(store, "u-1", NOW)
        assert await store.load(0) == {}
        other.execute("COMMIT")
    await revoke(store, "u-1", NOW)


async def test_servers_without_tables(postgres_address: PostgresAddress, dynamodb_address: DynamoDbAddress) -> None:
    for opening in (PostgresRevocations.open(postgres_address), DynamoDbRevocations.open(dynamodb_address)):
        store = await opening
        with pytest.raises(NotMigrated):
            await store.load(0)
        await store.close()


async def test_a_server_that_is_down() -> None:
    address = PostgresAddress.parse("postgresql://u:p4ssw0rd@127.0.0.1:1/x", schema="k")
    store = await PostgresRevocations.open(address)
    for call in (store.load(0), revoke(store, "u-1", NOW), PostgresRevocations.migrate(address)):
        with pytest.raises(RevocationsUnavailable) as problem:
            await call
        assert "p4ssw0rd" not in str(problem.value)
    await store.close()


# The list


class Failing(MemoryRevocations):
    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.loads = 0
        self.read = asyncio.Event()
        self.after = 0.0

    async def load(self, after: float) -> Revoked:
        self.loads += 1
        self.after = after
        self.read.set()
        if self.down:
            raise RevocationsUnavailable("down")
        return await super().load(after)


class World:
    def __init__(self, store: RevocationStore, **times: float) -> None:
        self.clock = ManualClock()
        self.clock.advance(10_000)
        self.audited = Audited()
        self.list = RevocationList(store, clock=self.clock, auditor=self.audited, max_lifetime=3600, leeway=10, **times)


async def test_a_list_hears_of_others_within_its_interval() -> None:
    store = Failing()
    world = World(store, interval=0.01)
    await world.list.start()
    assert world.list.not_before("i", "u-1") is None
    await store.revoke("i", "u-1", at=world.clock.now().timestamp(), forget_before=0)
    async with asyncio.timeout(10):
        while world.list.not_before("i", "u-1") is None:
            store.read.clear()
            await store.read.wait()
    assert store.after == world.clock.now().timestamp() - 3620
    await world.list.close()
    await world.list.close()


async def test_a_store_that_was_never_read_means_503() -> None:
    store = Failing()
    store.down = True
    world = World(store)
    await world.list.start()
    with pytest.raises(RevocationsUnavailable):
        world.list.not_before("i", "u-1")
    await world.list.close()


async def test_reading_goes_on_while_a_store_is_down() -> None:
    store = Failing()
    world = World(store, interval=0.005)
    await world.list.start()
    store.down = True
    async with asyncio.timeout(10):
        while store.loads < 5:
            store.read.clear()
            await store.read.wait()
        store.down = False
        world.clock.advance(31)
        with pytest.raises(RevocationsUnavailable):
            world.list.not_before("i", "u-1")
        reads = store.loads
        while store.loads < reads + 2:
            store.read.clear()
            await store.read.wait()
    assert world.list.not_before("i", "u-1") is None
    await world.list.close()


async def test_a_revocation_during_a_read_is_not_lost() -> None:
    class Slow(MemoryRevocations):
        gate = asyncio.Event()

        async def load(self, after: float) -> Revoked:
            found = dict(await super().load(after))
            await self.gate.wait()
            return found

    world = World(Slow())
    reading = asyncio.create_task(world.list.read())
    await asyncio.sleep(0)
    await world.list.revoke("i", "u-1")
    Slow.gate.set()
    await reading
    assert world.list.not_before("i", "u-1") == world.clock.now().timestamp()


async def test_a_revocation_is_audited_first() -> None:
    store = Failing()
    world = World(store)
    await world.list.revoke("i", "u-1", actor="pseudonym")
    (event,) = world.audited.events
    assert (event.kind, event.issuer, event.subject, event.actor) == ("token.revoked", "i", "u-1", "pseudonym")
    world.audited.problem = AuditUnavailable("full")
    with pytest.raises(AuditUnavailable):
        await world.list.revoke("i", "u-2")
    assert list(await store.load(0)) == [("i", "u-1")]


@pytest.mark.parametrize(("issuer", "subject"), [("", "u"), ("i", ""), ("i", "a\0b"), ("i", "x" * 256), ("i\n", "u")])
async def test_a_revocation_names_somebody(issuer: str, subject: str) -> None:
    world = World(MemoryRevocations())
    with pytest.raises(RevocationRefused):
        await world.list.revoke(issuer, subject)
    assert world.audited.events == []


async def test_memory_forgets_what_concerns_no_token() -> None:
    store = MemoryRevocations()
    world = World(store)
    await world.list.revoke("i", "u-1")
    world.clock.advance(3621)
    await world.list.revoke("i", "u-2")
    assert list(await store.load(0)) == [("i", "u-2")]
    assert module.NoRevocations().not_before("i", "u-2") is None


def test_times_of_the_list() -> None:
    for times in ({"interval": 0.0}, {"interval": 40.0}):
        with pytest.raises(DefinitionError):
            World(MemoryRevocations(), **times)
