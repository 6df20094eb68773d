"""What only read models of PostgreSQL have: a server that is down, frozen or crashes, sessions that end, owners."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, update

from kiseki import Unavailable
from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress
from kiseki.clients.postgres_migrations import NotMigrated
from kiseki.journal.port import Position
from kiseki.projection.port import (
    Batch,
    BuildName,
    BuildState,
    GuardMove,
    GuardMoved,
    OwnershipLost,
    ProjectionStore,
)
from kiseki.projection.status import request_rebuild
from kiseki.query.postgres.ownership import Ownerships
from kiseki.query.postgres.read_models import DEFAULT_SCHEMA, PostgresReadModels
from tests.integration.projection.parts import (
    DEFINITION,
    TOTALS,
    Place,
    PostgresStorage,
    expected_steps,
    parked,
    running,
    until,
)
from tests.servers.postgres import PostgresServer
from tests.unit.projection.parts import Counted, Totals, World

A, B = "Counter-a", "Counter-b"
STEP = {"id": "a", "number": 1, "amount": 1}


@pytest.fixture
def storage(postgres: PostgresStorage) -> PostgresStorage:
    return postgres


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may end."""
    with PostgresServer() as server:
        yield server


@asynccontextmanager
async def place_on(server: PostgresServer, **options: Any) -> AsyncIterator[Place]:
    storage = PostgresStorage(server, server.create_database())
    await PostgresReadModels.migrate(storage.address)
    models = await PostgresReadModels.open(storage.address, clock=SystemClock(), **options)
    yield Place(await World.new(), storage, models)
    await models.close()


def sessions(postgres: PostgresStorage, application: str = "kiseki%") -> int:
    found = postgres.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        f"AND application_name LIKE '{application}'"
    )
    return int(found)


def end_sessions(postgres: PostgresStorage, condition: str = "true") -> None:
    postgres.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
    )


HOLDS_LOCKS = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock')"


# The server


async def test_a_server_that_is_down_is_told_by_whoever_asks_and_then_forgotten(own_server: PostgresServer) -> None:
    async with place_on(own_server) as place:
        totals = Totals()
        await place.world.facts.happen(A, Counted(1))
        await place.updater(totals).run_until_caught_up()
        await place.models.close()
        own_server.halt()
        place.models = await place.storage.open()
        builds, database = place.models.builds, place.models.database
        asked = [
            builds.builds(),
            builds.check(totals.projection, DEFINITION),
            builds.create(totals.projection, DEFINITION),
            builds.open(totals.projection, BuildName("totals", 1, 1), DEFINITION),
            builds.promote(BuildName("totals", 1, 1)),
            builds.inspect(BuildName("totals", 1, 1)),
            builds.own("totals", 1),
            builds.requests("totals", 1),
            request_rebuild(builds, totals.projection),
            database.progress(totals.projection, [A]),
            place.count(totals),
        ]
        for one in asked:
            with pytest.raises(Unavailable, match="nothing listens there") as told:
                await one
            assert own_server.password not in str(told.value)
        assert own_server.launch()
        assert await place.count(totals) == 1
        await place.world.facts.happen(A, Counted(2))
        await place.updater(totals).run_until_caught_up()
        assert await place.count(totals) == 2
        await place.models.close()


async def test_an_updater_outlives_crashes_of_the_server(own_server: PostgresServer) -> None:
    totals = Totals()
    commits: list[tuple[str, list[int]]] = []

    async def write() -> None:
        for number in itertools.count():
            stream, amounts = f"Counter-{number % 7}", [100 + number]
            commits.append((stream, amounts))
            await place.world.facts.happen(stream, *map(Counted, amounts))
            await asyncio.sleep(0.002)

    async with place_on(own_server) as place, asyncio.timeout(60):
        updater = place.updater(totals, page_commits=3)
        async with running(updater):
            await updater.caught_up()
            writing = asyncio.create_task(write())
            for _ in range(3):
                applied = asyncio.Event()
                end = updater.subscribe(lambda projection, applied=applied: applied.set())  # type: ignore[misc]
                await applied.wait()
                end()
                own_server.crash()
                await asyncio.sleep(0)
                assert own_server.launch()
                await updater.caught_up()
            writing.cancel()
            await asyncio.wait([writing])
            await updater.caught_up()
        assert await place.rows(totals, totals.steps) == expected_steps(commits)
        assert place.world.telemetry.parked_codes == []


async def test_a_server_that_freezes_is_noticed_in_time_and_goes_on_after(own_server: PostgresServer) -> None:
    totals = Totals()
    async with place_on(own_server, statement_timeout=0.2, write_timeout=0.2, wait=0.2) as place, asyncio.timeout(60):
        await place.world.facts.happen(A, Counted(1))
        await place.updater(totals).run_until_caught_up()
        store = await place.models.builds.open(totals.projection, BuildName("totals", 1, 1), DEFINITION)
        own_server.freeze()
        try:
            async with asyncio.timeout(15):
                with pytest.raises(Unavailable, match="did not answer in time"):
                    await store.write(Batch(guards=[GuardMove(B, 0, 1)]))
                with pytest.raises(Unavailable, match="did not answer in time"):
                    await place.count(totals)
                with pytest.raises(Unavailable):
                    await place.models.builds.own("totals", 1)
        finally:
            own_server.thaw()
        await until(lambda: _answers(place, totals))
        await until(lambda: _writes(store))
        await store.close()


async def _answers(place: Place, totals: Totals) -> bool:
    try:
        return await place.count(totals) == 1
    except Unavailable:
        return False


async def _writes(store: ProjectionStore) -> bool:
    try:
        await store.write(Batch(position=Position("p")))
    except Unavailable:
        return False
    return True


async def test_without_tables_it_says_what_to_run(postgres_server: PostgresServer, postgres_url: str) -> None:
    address = PostgresAddress.parse(postgres_url, schema=DEFAULT_SCHEMA)
    models = await PostgresReadModels.open(address, clock=SystemClock())
    for ask in (models.builds.builds, lambda: models.builds.own("totals", 1)):
        with pytest.raises(NotMigrated, match="kiseki migrate"):
            await ask()
    assert await PostgresReadModels.migrate(address) == [
        f"the read models on {address.label}, schema {address.schema}: migration 1 applied"
    ]
    assert await PostgresReadModels.migrate(address) == []
    assert list(await models.builds.builds()) == []
    await models.close()


async def test_a_user_who_may_not_make_schemas_is_told(postgres: PostgresStorage) -> None:
    role = f"clerk_{postgres.url.rpartition('/')[2]}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    postgres.sql(f"GRANT USAGE ON SCHEMA {DEFAULT_SCHEMA} TO {role}")
    postgres.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {DEFAULT_SCHEMA} TO {role}")
    url = postgres.url.replace(f"kiseki:{postgres.server.password}@", f"{role}:x@")
    models = await PostgresReadModels.open(PostgresAddress.parse(url, schema=DEFAULT_SCHEMA), clock=SystemClock())
    with pytest.raises(Unavailable, match="GRANT CREATE ON DATABASE"):
        await models.builds.create(TOTALS.projection, DEFINITION)
    assert list(await models.builds.builds()) == []
    await models.close()


async def test_connections_that_were_ended_meanwhile_harm_no_query(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    for _ in range(3):
        assert await asyncio.gather(*(place.count(totals) for _ in range(5))) == [0] * 5
        end_sessions(postgres)
        await asyncio.sleep(0.05)  # the end of a session has to come through the loop


async def test_a_server_that_became_a_standby_is_left_for_the_new_one(
    store: ProjectionStore, postgres: PostgresStorage
) -> None:
    database = postgres.url.rpartition("/")[2]
    postgres.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    end_sessions(postgres)
    await until(lambda: _is_refused(store, "the server is read-only"))
    postgres.server.sql(f"ALTER DATABASE {database} RESET ALL")
    # A new connection finds what there is now.
    await store.write(Batch(position=Position("x")))
    await store.close()


async def _is_refused(store: ProjectionStore, why: str) -> bool:
    with pytest.raises(Unavailable) as refused:
        await store.write(Batch(position=Position("x")))
    return why in str(refused.value)


# Owning


async def test_two_stores_of_one_build_apply_once(place: Place, postgres: PostgresStorage) -> None:
    """Without owners, as for events that are pushed to many: the guards decide."""
    build = await place.models.builds.create(TOTALS.projection, DEFINITION)
    await place.models.builds.promote(build.name)
    elsewhere = await postgres.open()
    stores = [
        await models.builds.open(TOTALS.projection, build.name, DEFINITION) for models in (place.models, elsewhere)
    ]
    for number in range(20):
        # The second insert of the row would be refused by the database; that must not look like the event's fault.
        step = (insert(TOTALS.steps), {**STEP, "number": number})
        batch = Batch(changes=[step], guards=[GuardMove(A, number, number + 1), GuardMove(f"Counter-{number}", 0, 1)])
        results = await asyncio.gather(*(store.write(batch) for store in stores), return_exceptions=True)
        assert sorted(map(type, results), key=repr) == sorted([type(None), GuardMoved], key=repr)
    assert await place.count(TOTALS) == 20
    for store in stores:
        await store.close()
    await elsewhere.close()


async def test_an_owner_whose_number_is_old_writes_nothing(place: Place, postgres: PostgresStorage) -> None:
    """Its session may have ended without its knowledge: only the database tells."""
    builds = place.models.builds
    ownership = await builds.own("totals", 1)
    build = await builds.create(TOTALS.projection, DEFINITION)
    store = await builds.open(TOTALS.projection, build.name, DEFINITION)
    await store.write(Batch(position=Position("1"), guards=[GuardMove(A, 0, 1)]))
    postgres.sql(f"UPDATE {DEFAULT_SCHEMA}.read_model_owners SET number = number + 1")
    for batch in (Batch(position=Position("0")), Batch(guards=[GuardMove(A, 1, 2)]), Batch(unpark=[parked(A)])):
        with pytest.raises(OwnershipLost):
            await store.write(batch)
    assert await store.position() == "1"
    for change in (
        builds.create(TOTALS.projection, DEFINITION),
        builds.promote(build.name),
        builds.demote(build.name),
        builds.note(build.name, "x"),
        builds.remove(build.name),
    ):
        with pytest.raises(OwnershipLost):
            await change
    (found,) = await builds.builds()
    assert (found.state, found.problem) == (BuildState.BUILDING, None)
    await ownership.release()
    await store.close()


async def test_a_new_owner_waits_for_what_the_old_one_is_writing(
    place: Place, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the old one, which was told of nothing, writes no more."""
    monkeypatch.setattr(Ownerships, "_ended", lambda *_: None)
    builds = place.models.builds
    await builds.own("totals", 1)
    build = await builds.create(TOTALS.projection, DEFINITION)
    store = await builds.open(TOTALS.projection, build.name, DEFINITION)
    await store.write(Batch(changes=[(insert(TOTALS.steps), STEP)]))
    elsewhere = await postgres.open()
    assert await elsewhere.builds.own("totals", 1) is None
    # Somebody holds a row, so that the owner's write waits inside its transaction; then the owner's session ends.
    held = await asyncpg.connect(postgres.url)
    schema = postgres.schema(build.name)
    transaction = held.transaction()
    await transaction.start()
    await held.execute(f"SELECT * FROM {schema}.steps FOR UPDATE")
    writing = asyncio.create_task(
        store.write(Batch(changes=[update(TOTALS.steps).values(amount=2)], position=Position("old")))
    )
    await until(lambda: postgres.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
    end_sessions(postgres, HOLDS_LOCKS)
    taking = asyncio.create_task(elsewhere.builds.own("totals", 1))
    await until(lambda: postgres.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "2")
    assert not taking.done()
    await transaction.rollback()
    async with asyncio.timeout(10):
        await writing
        ownership = await taking
    assert ownership is not None
    new = await elsewhere.builds.open(TOTALS.projection, build.name, DEFINITION)
    assert await new.position() == "old"
    await new.write(Batch(position=Position("new")))
    with pytest.raises(OwnershipLost):
        await store.write(Batch(position=Position("older")))
    assert await new.position() == "new"
    for one in (store, new):
        await one.close()
    await held.close()
    await elsewhere.close()


async def test_an_updater_whose_session_ended_owns_again(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    elsewhere = await postgres.open()
    updater = place.updater(totals)
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        for amount in range(1, 4):
            end_sessions(postgres, HOLDS_LOCKS)
            await place.world.facts.happen(A, Counted(amount))
            await until(lambda amount=amount: _count_is(place, totals, amount))  # type: ignore[misc]
            assert await elsewhere.builds.own("totals", 1) is None
        assert updater.status()[0].role == "live"
    await elsewhere.close()
    builds = await place.models.builds.builds()
    assert [build.name for build in builds] == [BuildName("totals", 1, 1)]


async def _count_is(place: Place, totals: Totals, count: int) -> bool:
    return await place.count(totals) == count


async def test_an_owner_that_lost_its_session_stands_by_for_the_next(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    elsewhere = Place(place.world, postgres, await postgres.open())
    first, second = place.updater(totals), elsewhere.updater(totals)
    async with running(first), asyncio.timeout(20):
        await first.caught_up()
        async with running(second):
            await until(lambda: second.status()[0].role == "standby")
            end_sessions(postgres, HOLDS_LOCKS)
            await second.caught_up()
            await place.world.facts.happen(A, Counted(1))
            await until(lambda: first.status()[0].role == "standby")
            await second.caught_up()
            assert await place.rows(totals, totals.steps) == [("a", 1, 1)]
        await first.caught_up()
    await elsewhere.models.close()


async def test_what_is_owned_in_vain_is_let_go(place: Place, postgres: PostgresStorage) -> None:
    """A caller that is cancelled while it waits for an ownership leaves nothing locked."""
    elsewhere = await postgres.open()
    for delay in range(30):
        owning = asyncio.create_task(place.models.builds.own("totals", 1))
        await asyncio.sleep(delay * 0.0003)
        owning.cancel()
        try:
            ownership = await owning
        except asyncio.CancelledError:
            pass
        else:
            await ownership.release()
        # The process itself too: it is free again only when what was given up has been let go, however late it came.
        for builds in (elsewhere.builds, place.models.builds):
            async with asyncio.timeout(5):
                while (ownership := await builds.own("totals", 1)) is None:
                    await asyncio.sleep(0.001)
            await ownership.release()
    await elsewhere.close()


async def test_one_session_holds_all_locks_of_a_process(place: Place, postgres: PostgresStorage) -> None:
    held = [await place.models.builds.own("totals", version) for version in range(1, 6)]
    assert all(held)
    assert postgres.sql("SELECT count(*), count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory'") == "5|1"
    await held[0].release()
    await held[0].release()
    assert await place.models.builds.own("totals", 2) is None
    again = await place.models.builds.own("totals", 1)
    assert again is not None
    await place.models.close()
    await until(lambda: sessions(postgres) == 0)
