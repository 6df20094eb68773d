"""The PostgreSQL journal when its server fails: callers are told, nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, PostgresConnection
from kiseki.journal.port import START, ClaimChange, Commit, Conflict, CorruptJournal, Journal, JournalUnavailable
from kiseki.journal.postgres import writer as postgres_writer
from kiseki.journal.postgres.append import GroupResult
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.verify import verify
from kiseki.testing.journal_conformance import claimed, encoded, everything, idempotency, metadata, whole_feed
from tests.integration.journal.postgres_parts import (
    SlowAppend,
    append,
    append_many,
    connected,
    new_journal,
    opened,
    until_it_works,
    until_waiting,
    utc_now,
)
from tests.integration.journal.sqlite_parts import Groups, RealClock
from tests.servers.postgres import PostgresServer

LATER = timedelta(hours=1)


@pytest.fixture(scope="module")
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may be harmed."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def address(server: PostgresServer) -> PostgresAddress:
    return await new_journal(server.create_database())


class Load:
    """Callers that append to streams of their own, one commit after another, and insist until each is acknowledged."""

    def __init__(self, journal: Journal, callers: int) -> None:
        self._journal = journal
        self.acknowledged: list[Commit] = []
        self.unavailable = 0
        self._grew = asyncio.Event()
        self._ending = False
        self._callers = [asyncio.ensure_future(self._call(n)) for n in range(callers)]

    async def _call(self, n: int) -> None:
        number = 0
        while not self._ending:
            decided: dict[str, Any] = {"claims": claimed(f"{n}.{number}")} if n % 3 == 0 else {}
            try:
                commit = await append(self._journal, f"Thing-{n}", number, **decided)
            except JournalUnavailable:
                self.unavailable += 1
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.append(commit)
                number += 1
            self._grew.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            self._grew.clear()
            await self._grew.wait()

    async def end(self) -> None:
        self._ending = True
        await asyncio.gather(*self._callers)


async def test_killed_under_load(server: PostgresServer, address: PostgresAddress) -> None:
    async with asyncio.timeout(60), opened(address) as journal:
        load = Load(journal, 24)
        for _ in range(3):
            reached = len(load.acknowledged) + 300
            await load.until(lambda reached=reached: len(load.acknowledged) >= reached)  # type: ignore[misc]
            server.crash()
            failures = load.unavailable + 30
            await load.until(lambda failures=failures: load.unavailable >= failures)  # type: ignore[misc]
            assert server.launch()
        reached = len(load.acknowledged) + 300
        await load.until(lambda: len(load.acknowledged) >= reached)
        await load.end()
        there = Counter((c.stream, c.first_sequence_number, c.metadata.commit_id) for c in await whole_feed(journal))
        assert set(there.values()) == {1}
        acknowledged = {(c.stream, c.first_sequence_number, c.metadata.commit_id) for c in load.acknowledged}
        assert len(acknowledged) == len(load.acknowledged)
        assert acknowledged == set(there)  # every caller insisted until it was told
        assert (await verify(journal, lambda _: None)).sound


async def test_a_server_that_is_down(
    server: PostgresServer, address: PostgresAddress, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    woken = asyncio.Event()
    server.halt()
    async with asyncio.timeout(60), opened(address) as journal:
        journal.watch(woken.set)
        record = idempotency("key", "Thing-9", 1, expires_at=utc_now() + LATER)
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: append(journal, "Thing-1", 0),
            lambda: append(journal, "Thing-9", 0, idempotency=record),
            lambda: everything(journal, "Thing-1"),
            lambda: journal.feed(START),
            journal.head,
            lambda: journal.lag(START),
            lambda: journal.recall("key"),
            lambda: journal.load_snapshot("Thing-1", "a"),
            journal.check,
            journal.raise_epoch,
        ]
        for attempt in attempts:
            with pytest.raises(JournalUnavailable) as caught:
                await attempt()
            assert str(caught.value) == (
                f"the journal on {address.label} can't be used: nothing listens there (connection refused)"
            )
        assert server.launch()
        await journal.check()
        await append(journal, "Thing-1", 0)
        assert len(await whole_feed(journal)) == 1
        async with opened(address) as other:
            number = 1
            woken.clear()
            while not woken.is_set():  # hints come back by themselves
                await append(other, "Thing-1", number)
                number += 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not [record for record in caplog.records if server.password in record.getMessage()]


async def test_connections_that_the_server_ended(server: PostgresServer, address: PostgresAddress) -> None:
    async with opened(address) as journal:
        await append_many(journal, 5, 0)
        await journal.head()
        server.halt()
        server.launch()
        # No caller notices: what is known to be dead is not used.
        assert [type(outcome) for outcome in await append_many(journal, 5, 1)] == [Commit] * 5
        assert len(await whole_feed(journal)) == 10


@pytest.mark.parametrize("decided", [False, True])
async def test_a_frozen_server(server: PostgresServer, address: PostgresAddress, decided: bool) -> None:
    rest: dict[str, Any] = {"claims": [ClaimChange("address", "v", take=False)]} if decided else {}
    async with asyncio.timeout(60), opened(address, statement_timeout=0.5) as journal:
        await append_many(journal, 5, 0)
        await journal.head()
        server.freeze()
        try:
            outcomes = await append_many(journal, 5, 1, **rest)
            assert [type(outcome) for outcome in outcomes] == [JournalUnavailable] * 5
            assert "did not answer in time" in str(outcomes[0])
            with pytest.raises(JournalUnavailable, match="did not answer in time"):
                await journal.head()
        finally:
            server.thaw()
        await until_it_works(journal.check)
        await append_many(journal, 5, 1, **rest)  # their own, if they landed
        assert len(await whole_feed(journal)) == 10


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_is_not_durable(server: PostgresServer, address: PostgresAddress, setting: str) -> None:
    server.sql(f"ALTER SYSTEM SET {setting} = off")
    server.sql("SELECT pg_reload_conf()")
    try:
        async with connected(address) as connection:
            while await connection.fetchval("SELECT current_setting($1)", setting) != "off":
                await asyncio.sleep(0.01)
        async with opened(address) as journal:
            with pytest.raises(JournalUnavailable, match=f"{setting} is off"):
                await append(journal, "Thing-1", 0)
            with pytest.raises(JournalUnavailable, match=f"{setting} is off"):
                await journal.check()
    finally:
        server.sql(f"ALTER SYSTEM RESET {setting}")
        server.sql("SELECT pg_reload_conf()")
    async with connected(address) as connection:
        while await connection.fetchval("SELECT current_setting($1)", setting) != "on":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("synchronous_commit = off", "synchronous_commit is off"),
        ("default_transaction_read_only = on", "default_transaction_read_only"),
    ],
)
async def test_a_database_that_is_not_fit(
    server: PostgresServer, address: PostgresAddress, setting: str, said: str
) -> None:
    server.sql(f'ALTER DATABASE "{address.label.rpartition("/")[2]}" SET {setting}')
    async with opened(address) as journal:
        with pytest.raises(JournalUnavailable, match=said):
            await append(journal, "Thing-1", 0)


async def test_a_server_that_becomes_read_only(server: PostgresServer, address: PostgresAddress) -> None:
    async with opened(address) as journal:
        await append(journal, "Thing-1", 0)
        async with connected(address) as connection:
            server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
            server.sql("SELECT pg_reload_conf()")
            try:
                while await connection.fetchval("SHOW default_transaction_read_only") != "on":
                    await asyncio.sleep(0.01)
                with pytest.raises(JournalUnavailable, match="read-only"):
                    await append(journal, "Thing-1", 1)
                with pytest.raises(JournalUnavailable, match="read-only"):
                    await journal.check()
            finally:
                await connection.execute("SET default_transaction_read_only = off")
                await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await connection.execute("SELECT pg_reload_conf()")
        await until_it_works(lambda: append(journal, "Thing-1", 1))


async def test_a_full_disk(address: PostgresAddress) -> None:
    async with opened(address) as journal, connected(address) as connection:
        await append(journal, "Thing-1", 0)
        await _fail(connection, "commits", "53100", times=1_000)
        await _fail(connection, "proofs", "53100", times=1_000)
        with pytest.raises(JournalUnavailable, match="disk is full"):
            await append(journal, "Thing-1", 1)
        with pytest.raises(JournalUnavailable, match="disk is full"):
            await journal.check()
        await connection.execute("DROP TRIGGER fail ON commits")
        await append(journal, "Thing-1", 1)


@pytest.mark.parametrize("state", ["40P01", "40001"])
async def test_groups_that_get_into_each_others_way_try_again(address: PostgresAddress, state: str) -> None:
    async with opened(address) as journal, connected(address) as connection:
        await journal.check()
        await _fail(connection, "commits", state, times=3)
        assert [type(outcome) for outcome in await append_many(journal, 5, 0)] == [Commit] * 5
        await connection.execute(
            "DROP TRIGGER fail ON commits; DROP FUNCTION fail_commits(); DROP SEQUENCE tries_commits"
        )
        await _fail(connection, "commits", state, times=1_000)
        assert [type(outcome) for outcome in await append_many(journal, 5, 1)] == [JournalUnavailable] * 5


async def _fail(connection: PostgresConnection, table: str, state: str, *, times: int) -> None:
    """Lets the next writes to a table fail with an error of the server. A sequence counts also what is rolled back."""
    await connection.execute(
        f"""
        CREATE SEQUENCE tries_{table};
        CREATE FUNCTION fail_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('tries_{table}') <= {times} THEN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail_{table}();
        """
    )


@pytest.mark.parametrize("decided", [False, True])
async def test_a_commit_of_which_nobody_knows_is_found_again(
    address: PostgresAddress, monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    """It was made, and the connection was lost before the answer came."""
    name = "append_decided" if decided else "append_plain"
    really_append = getattr(postgres_writer, name)
    lost = 1

    async def lose_the_answer(*arguments: object) -> GroupResult:
        nonlocal lost
        result: GroupResult = await really_append(*arguments)
        if lost:
            lost -= 1
            raise ConnectionResetError
        return result

    monkeypatch.setattr(postgres_writer, name, lose_the_answer)
    groups = Groups()

    def rest(n: int) -> dict[str, Any]:
        record = idempotency(f"key {n}", f"Thing-{n}", 1, expires_at=utc_now() + LATER)
        return {"claims": claimed(f"value {n}"), "idempotency": record} if decided else {}

    async with opened(address, groups) as journal:
        outcomes = await asyncio.gather(*(append(journal, f"Thing-{n}", 0, **rest(n)) for n in range(5)))
        assert [type(outcome) for outcome in outcomes] == [Commit] * 5
        assert groups.sizes == [5]
        lost = 2  # and the connection to look again is lost too
        with pytest.raises(JournalUnavailable, match="connection was lost"):
            await append(journal, "Thing-5", 0, **rest(5))
        await append(journal, "Thing-5", 0, **rest(5))
        assert len(await whole_feed(journal)) == 6


async def test_a_session_that_is_ended_in_the_middle_of_an_append(
    server: PostgresServer, address: PostgresAddress
) -> None:
    async with asyncio.timeout(30), opened(address) as journal, connected(address) as watching:
        await journal.check()
        slow = await SlowAppend.begin(address, "Thing-1")
        appending = asyncio.ensure_future(append(journal, "Thing-1", 0))
        await until_waiting(watching, "transactionid")
        await watching.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        )
        await slow.give_up()
        assert isinstance(await appending, Commit)
        assert len(await whole_feed(journal)) == 1


async def test_waiting_for_another_append_is_bounded(address: PostgresAddress) -> None:
    async with asyncio.timeout(30), opened(address, statement_timeout=1.0) as journal:
        await journal.check()
        slow = await SlowAppend.begin(address, "Thing-1")
        with pytest.raises(JournalUnavailable, match="a lock was not available in time"):
            await append(journal, "Thing-1", 0)
        await append(journal, "Other-1", 0)
        await slow.land()
        with pytest.raises(Conflict):
            await append(journal, "Thing-1", 0)


async def test_many_writers_of_the_same_streams_lose_no_update(address: PostgresAddress) -> None:
    streams, callers, each = 3, 8, 12
    async with opened(address) as one, opened(address) as other:

        async def count_up(journal: PostgresJournal, caller: int) -> None:
            for number in range(each):
                stream, name = f"Thing-{(caller + number) % streams}", f"{caller}.{number}"
                while True:
                    after = len(await everything(journal, stream))
                    claims = claimed(f"{stream} {name}") if number % 2 else ()
                    try:
                        await journal.append(stream, after, [encoded(name)], metadata=metadata(name), claims=claims)
                    except Conflict:
                        continue
                    break

        await asyncio.gather(*(count_up((one, other)[caller % 2], caller) for caller in range(callers)))
        commits = await whole_feed(one)
        assert len(commits) == callers * each
        assert len({commit.metadata.commit_id for commit in commits}) == callers * each
        assert (await verify(other, lambda _: None)).sound


async def test_what_can_not_be_stored_harms_only_its_own_caller(address: PostgresAddress) -> None:
    nul, surrogate = "a\0", "a\ud800"
    soon = utc_now() + LATER
    async with opened(address) as journal:
        refused = await asyncio.gather(
            append(journal, "Thing-1", 0),
            journal.append("Bad-1", 0, [encoded("a")], metadata=metadata(nul)),
            append(journal, "Bad-2", 0, claims=claimed(nul)),
            append(journal, "Bad-3", 0, claims=claimed(surrogate)),
            append(journal, "Bad-4", 0, idempotency=idempotency(nul, "Bad-4", 1, expires_at=soon)),
            append(journal, "Bad-5", 0, idempotency=idempotency("k", "Bad-5", 2**63, expires_at=soon)),
            append(journal, "Bad-6", 0, idempotency=idempotency("k", "Bad-6", 1, expires_at=soon.replace(tzinfo=None))),
            append(journal, "Bad-7", 2**63),
            append(journal, "Bad-8", -(2**70)),
            append(journal, "Bad-9", 0, data=b'{"x":"\0"}'),
            journal.append("Bad-10", 0, [encoded("a")], metadata=metadata("b", at=utc_now().replace(tzinfo=None))),
            append(journal, "Thing-2", 0, claims=claimed("v")),
            return_exceptions=True,
        )
        kinds = [type(outcome) for outcome in refused]
        assert kinds[0] is kinds[-1] is Commit
        assert all(issubclass(kind, ValueError | Conflict) for kind in kinds[1:-1]), kinds
        assert len(await whole_feed(journal)) == 2
        assert await everything(journal, "not a stream\0") == []
        assert await everything(journal, "Thing-1", 2**70) == []


@pytest.mark.parametrize("decided", [False, True])
async def test_damage_is_told_to_its_own_caller_alone(address: PostgresAddress, decided: bool) -> None:
    rest: dict[str, Any] = {"claims": [ClaimChange("address", "v", take=False)]} if decided else {}
    async with opened(address) as journal, connected(address) as connection:
        await append(journal, "Thing-1", 0)
        await connection.execute("UPDATE commits SET checksum = 'damaged'")
        outcomes = await append_many(journal, 3, 0, **rest)
        assert [type(outcome) for outcome in outcomes] == [Commit, CorruptJournal, Commit]


async def test_groups_are_bounded(address: PostgresAddress) -> None:
    groups = Groups()
    async with opened(address, groups) as journal:
        await append_many(journal, 1_200, 0)
        assert sum(groups.sizes) == 1_200
        assert max(groups.sizes) == 512
        groups.sizes.clear()
        await append_many(journal, 40, 1, data=b'"' + b"x" * 250_000 + b'"')
        assert sum(groups.sizes) == 40
        assert max(groups.sizes) == 15  # of 250,000 bytes in 4,000,000


async def test_expired_records_are_removed(address: PostgresAddress) -> None:
    async with opened(address) as journal, connected(address) as connection:
        await journal.check()
        await connection.execute(
            """
            INSERT INTO idempotency SELECT 'old ' || n, '', 'Thing-0', 1, now() - interval '1 hour'
            FROM generate_series(1, 1500) AS n
            """
        )

        async def keyed(n: int) -> Commit:
            record = idempotency(f"key {n}", f"Thing-{n}", 1, expires_at=utc_now() + LATER)
            return await append(journal, f"Thing-{n}", 0, idempotency=record)

        async def left() -> int:
            return int(await connection.fetchval("SELECT count(*) FROM idempotency WHERE expires_at < now()"))

        await keyed(0)
        while await left() == 1_500:
            await asyncio.sleep(0.01)
        assert await left() == 1_500 - 1_024
        await asyncio.gather(*(keyed(n) for n in range(1, 300)))
        while await left():
            await asyncio.sleep(0.01)
        assert await journal.recall("key 0") is not None


async def test_tables_that_are_not_there(server: PostgresServer) -> None:
    address = PostgresAddress.parse(server.create_database(), schema="kiseki_journal")
    async with opened(address) as journal:
        for attempt in (journal.check, journal.head, lambda: append(journal, "Thing-1", 0)):
            with pytest.raises(NotMigrated, match="run `kiseki migrate`") as caught:
                await attempt()
            assert address.label in str(caught.value)
        where = f"the journal on {address.label}, schema kiseki_journal"
        assert await PostgresJournal.migrate(address) == [f"{where}: migration {n} applied" for n in (1, 2)]
        assert await PostgresJournal.migrate(address) == []
        await append(journal, "Thing-1", 0)


async def test_a_role_that_may_not_ask_which_cluster_it_is_on(server: PostgresServer) -> None:
    url = server.create_database()
    address = PostgresAddress.parse(url, schema="kiseki_journal")
    await PostgresJournal.migrate(address)
    server.sql(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE app LOGIN PASSWORD 'app'; "
        "GRANT USAGE ON SCHEMA kiseki_journal TO app; "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA kiseki_journal TO app",
        url,
    )
    app = PostgresAddress.parse(url.replace(f"kiseki:{server.password}", "app:app"), schema="kiseki_journal")
    async with opened(app) as journal:
        with pytest.raises(JournalUnavailable, match=r"GRANT EXECUTE ON FUNCTION pg_control_system\(\)"):
            await append(journal, "Thing-1", 0)
        server.sql("GRANT EXECUTE ON FUNCTION pg_control_system() TO app", url)
        await append(journal, "Thing-1", 0, claims=claimed("v"))
        await journal.check()
        await journal.raise_epoch()
    server.sql("DROP OWNED BY app; DROP ROLE app", url)


async def test_a_wrong_password(server: PostgresServer, address: PostgresAddress) -> None:
    url = address.dsn.replace(server.password, "wrong-password")
    async with opened(PostgresAddress.parse(url, schema=address.schema)) as journal:
        with pytest.raises(JournalUnavailable, match="did not accept the user or password") as caught:
            await journal.check()
    assert "wrong-password" not in str(caught.value)
    assert "kiseki:" not in str(caught.value)


async def test_closing_while_the_server_is_down(server: PostgresServer, address: PostgresAddress) -> None:
    async with asyncio.timeout(60):
        journal = await PostgresJournal.open(address, clock=RealClock(), telemetry=Groups())
        await append(journal, "Thing-1", 0)
        server.halt()
        try:
            appending = [asyncio.ensure_future(append(journal, f"Other-{n}", 0)) for n in range(5)]
            await asyncio.sleep(0)
            await journal.close()
            outcomes = await asyncio.gather(*appending, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [JournalUnavailable] * 5
        finally:
            assert server.launch()
