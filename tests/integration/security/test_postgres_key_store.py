"""The key store on PostgreSQL: transactions that meet, crashes, servers that are gone, unsafe or not migrated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.clients.postgres_migrations import MigrationRefused
from kiseki.security import postgres_key_store
from kiseki.security.key_store import KeyStoreCorrupt, KeyStoreUnavailable, Rewrapped, SubjectKeys, WrappedKey
from kiseki.security.postgres_key_store import PostgresKeyStore
from tests.integration.security.key_parts import GONE, NOW, attempts, key
from tests.servers.postgres import NoPostgres, PostgresServer


@pytest.fixture
async def address(postgres_address: PostgresAddress) -> PostgresAddress:
    """A schema with the tables."""
    await PostgresKeyStore.migrate(postgres_address)
    return postgres_address


@pytest.fixture
async def store(address: PostgresAddress) -> AsyncIterator[PostgresKeyStore]:
    opened = await PostgresKeyStore.open(address)
    yield opened
    await opened.close()


@pytest.fixture
async def slow(address: PostgresAddress) -> AsyncIterator[PostgresConnection]:
    """The connection of another process, whose transactions take their time."""
    connection = await connect(address, application="slow")
    yield connection
    await connection.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that this test may stop."""
    try:
        server = PostgresServer()
        server.__enter__()
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    yield server
    server.stop()


async def somebody_waits(connection: PostgresConnection) -> None:
    """Until another connection waits for a lock that this one holds."""
    while not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
        await asyncio.sleep(0.005)


async def test_a_mark_never_skips_a_slow_erasure(store: PostgresKeyStore, slow: PostgresConnection) -> None:
    mark = (await store.erasures(None)).mark
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._ERASE, "A-slow", NOW)
    quick = asyncio.create_task(store.erase("A-quick", NOW))
    await somebody_waits(slow)
    assert await store.erasures(mark) == ((), mark)
    start = (await store.erasures(None)).mark
    await transaction.commit()
    await quick
    for after in (mark, start):
        assert (await store.erasures(after)).subjects == ("A-slow", "A-quick")


async def test_an_erasure_that_is_rolled_back_is_none(store: PostgresKeyStore, slow: PostgresConnection) -> None:
    await store.insert({"A-1": key("k1")})
    mark = (await store.erasures(None)).mark
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._ERASE, "A-1", NOW)
    quick = asyncio.create_task(store.erase("A-2", NOW))
    await somebody_waits(slow)
    await transaction.rollback()
    await quick
    assert (await store.erasures(mark)).subjects == ("A-2",)
    assert await store.load(["A-1"]) == {"A-1": SubjectKeys((key("k1"),))}


@pytest.mark.parametrize("subject", ["A-known", "A-unknown"])
async def test_an_insertion_that_meets_an_erasure_waits_for_it(
    store: PostgresKeyStore, slow: PostgresConnection, subject: str
) -> None:
    await store.insert({"A-known": key("k1")})
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._ERASE, subject, NOW)
    insertion = asyncio.create_task(store.insert({"A-new": key("k2"), subject: key("k3")}))
    await somebody_waits(slow)
    await transaction.commit()
    assert await insertion == {"A-new": SubjectKeys((key("k2"),)), subject: GONE}
    assert await store.load([subject]) == {subject: GONE}


async def test_of_two_erasures_that_meet_the_first_time_is_kept(
    store: PostgresKeyStore, slow: PostgresConnection
) -> None:
    mark = (await store.erasures(None)).mark
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._ERASE, "A-1", NOW)
    again = asyncio.create_task(store.erase("A-1", NOW + timedelta(days=1)))
    await somebody_waits(slow)
    await transaction.commit()
    await again
    assert await store.load(["A-1"]) == {"A-1": GONE}
    heard = await store.erasures(mark)
    assert heard.subjects == ("A-1",)
    assert (await store.erasures(heard.mark)).subjects == ()


@pytest.mark.parametrize("change", ["rewrapped", "erased"])
async def test_a_rewrapping_that_meets_a_change_looks_again(
    store: PostgresKeyStore, slow: PostgresConnection, change: str
) -> None:
    await store.insert({"A-1": key("k1")})
    transaction = slow.transaction()
    await transaction.start()
    if change == "erased":
        await slow.execute(postgres_key_store._ERASE, "A-1", NOW)
    else:
        await slow.execute(postgres_key_store._REPLACE, "A-1", [b"theirs"])
    replacing = asyncio.create_task(store.replace([Rewrapped("A-1", key("k1"), b"mine")]))
    await somebody_waits(slow)
    await transaction.commit()
    assert await replacing == 0
    kept = GONE if change == "erased" else SubjectKeys((WrappedKey("k1", b"theirs"),))
    assert await store.load(["A-1"]) == {"A-1": kept}


async def test_an_erasure_that_meets_an_insertion_waits_for_it(
    store: PostgresKeyStore, slow: PostgresConnection
) -> None:
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._INSERT, ["A-1"], ["k1"], [b"wrapped"])
    erasure = asyncio.create_task(store.erase("A-1", NOW))
    await somebody_waits(slow)
    await transaction.commit()
    await erasure
    assert await store.load(["A-1"]) == {"A-1": GONE}
    assert [page async for page in store.scan(10)] == []


async def test_processes_that_insert_the_same_in_another_order_do_not_lock_each_other_out(
    address: PostgresAddress,
) -> None:
    stores = [await PostgresKeyStore.open(address) for _ in range(3)]
    for number in range(20):
        subjects = [f"A-{number}-{subject}" for subject in range(200)]
        orders = [subjects, subjects[::-1], subjects[100:] + subjects[:100]]
        puts = await asyncio.gather(
            *(
                each.insert({subject: key(f"k{place}") for subject in order})
                for place, (each, order) in enumerate(zip(stores, orders, strict=True))
            )
        )
        assert puts[0] == puts[1] == puts[2]
    for each in stores:
        await each.close()


async def test_concurrent_calls_share_statements(store: PostgresKeyStore, slow: PostgresConnection) -> None:
    """Two insertions run at a time; what comes meanwhile goes together, which its one transaction shows."""
    await asyncio.gather(*(store.insert({f"A-{number}": key("k")}) for number in range(100)))
    assert await slow.fetchval("SELECT count(DISTINCT xmin::text) FROM subjects") <= 3


async def test_after_an_erasure_no_old_version_is_in_the_table(
    store: PostgresKeyStore, slow: PostgresConnection
) -> None:
    """A page is known to be all visible only when a vacuum found no dead row in it."""
    clean = "SELECT relpages > 0 AND relallvisible = relpages FROM pg_class WHERE oid = 'subjects'::regclass"
    vacuums = "SELECT pg_stat_get_vacuum_count('subjects'::regclass)"
    await store.insert({f"A-{number}": key(f"k{number}") for number in range(100)})
    await store.erase("A-7", NOW)
    assert await slow.fetchval(clean)
    assert await slow.fetchval(vacuums) == 1
    assert await slow.fetchval("SELECT wrapped FROM subjects WHERE subject = 'A-7'") == []
    assert await store.replace([Rewrapped("A-8", key("k8"), b"new")]) == 1
    assert await slow.fetchval(clean)
    assert await slow.fetchval(vacuums) == 2
    await store.erase("A-7", NOW)
    assert await store.replace([Rewrapped("A-8", key("k8"), b"new")]) == 0
    assert await slow.fetchval(vacuums) == 2, "nothing was destroyed"


async def test_a_table_that_can_not_be_vacuumed_now_is_told_of_and_the_erasure_counts(
    address: PostgresAddress, slow: PostgresConnection, caplog: pytest.LogCaptureFixture
) -> None:
    store = await PostgresKeyStore.open(address, statement_timeout=0.3)
    await store.insert({"A-1": key("k1")})
    async with slow.transaction():
        await slow.execute("LOCK TABLE subjects IN SHARE UPDATE EXCLUSIVE MODE")
        with caplog.at_level(logging.WARNING):
            await store.erase("A-1", NOW)
    assert "destroyed keys stay in the table until the server vacuums it" in caplog.text
    assert await store.load(["A-1"]) == {"A-1": GONE}
    await store.close()


async def test_keys_and_erasures_outlive_a_crash_of_the_server(own_server: PostgresServer) -> None:
    address = PostgresAddress.parse(own_server.create_database(), schema="kiseki_keys")
    await PostgresKeyStore.migrate(address)
    store = await PostgresKeyStore.open(address)
    await store.insert({"A-1": key("k1"), "A-2": key("k2")})
    await store.erase("A-2", NOW)
    mark = (await store.erasures(None)).mark
    own_server.crash()
    assert own_server.launch()
    async with asyncio.timeout(30):
        while True:
            try:
                known = await store.load(["A-1", "A-2"])
                break
            except KeyStoreUnavailable:
                continue  # a connection from before the crash
    assert known == {"A-1": SubjectKeys((key("k1"),)), "A-2": GONE}
    assert (await store.erasures(None)).mark == mark
    await store.close()


async def test_while_the_server_is_down_it_opens_and_everything_is_unavailable(own_server: PostgresServer) -> None:
    address = PostgresAddress.parse(own_server.create_database(), schema="kiseki_keys")
    await PostgresKeyStore.migrate(address)
    own_server.halt()
    store = await PostgresKeyStore.open(address)
    assert await attempts(store) == ["UNAVAILABLE"] * 7
    with pytest.raises(KeyStoreUnavailable, match="can't be migrated: nothing listens there"):
        await PostgresKeyStore.migrate(address)
    assert own_server.launch()
    assert await store.load(["A-1"]) == {}
    await store.close()
    assert await attempts(store) == ["UNAVAILABLE"] * 7


async def test_a_server_that_does_not_answer_is_unavailable_in_time(own_server: PostgresServer) -> None:
    address = PostgresAddress.parse(own_server.create_database(), schema="kiseki_keys")
    await PostgresKeyStore.migrate(address)
    store = await PostgresKeyStore.open(address, statement_timeout=0.2)
    await store.load(["A-1"])
    own_server.freeze()
    try:
        async with asyncio.timeout(20):
            with pytest.raises(KeyStoreUnavailable):
                await store.load(["A-1"])
    finally:
        own_server.thaw()
    assert await store.load(["A-1"]) == {}
    await store.close()


async def test_without_tables_everything_says_to_migrate(postgres_address: PostgresAddress) -> None:
    store = await PostgresKeyStore.open(postgres_address)
    assert await attempts(store) == ["NOT_MIGRATED"] * 7
    assert await PostgresKeyStore.migrate(postgres_address) == [
        f"the key store on {postgres_address.label}, schema kiseki_keys: migration 1 applied"
    ]
    assert await PostgresKeyStore.migrate(postgres_address) == []
    assert await store.load(["A-1"]) == {}
    await store.close()


async def test_tables_of_a_newer_release_are_used_but_not_migrated(
    store: PostgresKeyStore, slow: PostgresConnection, address: PostgresAddress
) -> None:
    await slow.execute("INSERT INTO kiseki_migrations VALUES ('key store', 2, 'newer')")
    assert await store.load(["A-1"]) == {}
    with pytest.raises(MigrationRefused, match="by a newer release"):
        await PostgresKeyStore.migrate(address)


async def test_tables_of_another_program_are_refused(slow: PostgresConnection, address: PostgresAddress) -> None:
    await slow.execute("UPDATE kiseki_migrations SET checksum = 'other'")
    store = await PostgresKeyStore.open(address)
    with pytest.raises(KeyStoreUnavailable, match="is it another program's schema"):
        await store.load(["A-1"])
    await store.close()


async def test_a_database_that_forgets_commits_is_refused(
    postgres_server: PostgresServer, postgres_url: str, address: PostgresAddress
) -> None:
    database = postgres_url.rpartition("/")[2]
    postgres_server.sql(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    store = await PostgresKeyStore.open(address)
    with pytest.raises(KeyStoreUnavailable, match="a crash would lose keys"):
        await store.insert({"A-1": key("k1")})
    await store.close()


async def test_a_count_of_erasures_that_is_lost_is_damage(store: PostgresKeyStore, slow: PostgresConnection) -> None:
    await slow.execute("DELETE FROM erasures")
    for after in (None, 0):
        with pytest.raises(KeyStoreCorrupt, match="lost its count of erasures"):
            await store.erasures(after)
    with pytest.raises(KeyStoreCorrupt, match="lost its count of erasures"):
        await store.erase("A-1", NOW)


async def test_the_table_refuses_a_tombstone_with_keys(slow: PostgresConnection) -> None:
    for row in (
        "'{k}', '{x}', now(), 1",
        "'{}', '{}', NULL, NULL",
        "'{k}', '{}', NULL, NULL",
        "'{}', '{}', now(), NULL",
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await slow.execute(f"INSERT INTO subjects VALUES ('A-1', {row})")


async def test_callers_that_go_away_leave_the_store_usable(store: PostgresKeyStore, slow: PostgresConnection) -> None:
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(postgres_key_store._INSERT, ["A-1"], ["k1"], [b"wrapped"])
    for _ in range(6):
        task = asyncio.create_task(store.erase("A-1", NOW))
        await somebody_waits(slow)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await transaction.commit()
    await store.erase("A-1", NOW)
    assert await store.load(["A-1"]) == {"A-1": GONE}
