"""Builds and queries on PostgreSQL: names, transactions that lose, queries that are cancelled, old rows, planning."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    func,
    insert,
    literal_column,
    select,
    update,
)

from kiseki import Projection, Unavailable
from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.port import Position
from kiseki.projection.port import (
    Batch,
    BuildMissing,
    BuildName,
    GuardMove,
    ProjectionStore,
    StatementFailed,
    TransientFailure,
)
from kiseki.projection.status import request_rebuild
from kiseki.projection.subscription import Subscription
from kiseki.query.database import QueryFailed
from kiseki.query.postgres.read_models import PostgresReadModels
from kiseki.query.postgres.schema import schema_names
from tests.integration.projection.parts import (
    DEFINITION,
    TOTALS,
    Place,
    PostgresStorage,
    parked,
    running,
    until,
)
from tests.unit.projection.parts import DECIDERS, Counted, Forgotten, Named, Totals

A, B = "Counter-a", "Counter-b"


@pytest.fixture
def storage(postgres: PostgresStorage) -> PostgresStorage:
    return postgres


# Names


def test_names_of_schemas_fit_and_differ() -> None:
    long = "p" * 40
    names = [
        BuildName(projection, version, generation)
        for projection in ("a", "a_v1_1", "a_v1", long, long[:-1] + "q")
        for version in (1, 11, 111_111)
        for generation in (1, 11, 222_222)
    ]
    for catalog in ("kiseki_read_models", "a", "a_v1_1", "c" * 41):
        found = [schema_names(catalog, name) for name in names]
        assert len({plain for plain, _ in found}) == len(names)
        assert len({hashed for _, hashed in found}) == len(names)
        assert all(len(one) <= 63 for both in found for one in both)
    assert schema_names("a", BuildName("b", 1, 2)) == (
        "a_b_v1_2",
        "a_b_v1_2_" + schema_names("a", BuildName("b", 1, 2))[1][-16:],
    )


async def test_a_projection_with_a_long_name_works(place: Place, postgres: PostgresStorage) -> None:
    totals = [Totals(name=("long_" * 8)[:39] + last, version=123_456) for last in "ab"]
    await place.world.facts.happen(A, Counted(1))
    await place.updater(*totals).run_until_caught_up()
    await request_rebuild(place.models.builds, totals[0].projection)
    await place.world.facts.happen(A, Counted(2))
    await place.updater(totals[0]).run_until_caught_up()
    assert [await place.count(one) for one in totals] == [2, 1]
    names = postgres.sql("SELECT schema_name FROM kiseki_read_models.read_model_builds").splitlines()
    assert len(set(names)) == 3
    assert {len(name) for name in names} == {63}


async def test_catalogs_whose_names_run_into_each_other_keep_apart(place: Place, postgres: PostgresStorage) -> None:
    one, other = Totals(name="b_totals"), Totals(name="totals")
    for catalog, totals in (("app", one), ("app_b", other), ("app", one)):
        address = PostgresAddress.parse(postgres.url, schema=catalog)
        await PostgresReadModels.migrate(address)
        here = Place(place.world, postgres, await PostgresReadModels.open(address, clock=SystemClock()))
        await place.world.facts.happen(A, Counted(1))
        await here.updater(totals).run_until_caught_up()
        assert await here.count(totals) == len(await place.world.facts.all())
        await here.models.close()
    schemas = postgres.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'app%v1%' ORDER BY 1").splitlines()
    assert schemas[0] == "app_b_totals_v1_1"
    assert len(schemas) == 2


# Transactions


async def test_a_transaction_that_loses_against_another_can_be_tried_again(
    store: ProjectionStore, postgres: PostgresStorage
) -> None:
    steps = TOTALS.steps
    rows = [{"id": one, "number": 1, "amount": 0} for one in "ab"]
    await store.write(Batch(changes=[(insert(steps), row) for row in rows]))
    other = await asyncpg.connect(postgres.url, server_settings={"search_path": postgres.schema(store.name)})
    await other.execute("SET deadlock_timeout = '60s'")  # the store finds it first, so the store loses
    batch = Batch(
        changes=[update(steps).where(steps.c.id == one).values(amount=steps.c.amount + 1) for one in "ab"],
        guards=[GuardMove(A, 0, 1)],
    )
    async with asyncio.timeout(30):
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE steps SET amount = amount + 10 WHERE id = 'b'")
        writing = asyncio.create_task(store.write(batch))
        await until(lambda: postgres.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
        waiting = asyncio.create_task(other.execute("UPDATE steps SET amount = amount + 10 WHERE id = 'a'"))
        with pytest.raises(TransientFailure) as failed:
            await writing
        await waiting
        await transaction.commit()
        assert failed.value.detail == "DeadlockDetectedError (40P01) in update steps"
        await store.write(batch)
    assert [tuple(row) for row in await other.fetch("SELECT amount FROM steps ORDER BY id")] == [(11,), (11,)]
    await other.close()


async def test_a_table_that_is_locked_is_unavailable_and_no_one_s_fault(postgres: PostgresStorage) -> None:
    models = await PostgresReadModels.open(postgres.address, clock=SystemClock(), write_timeout=0.3)
    build = await models.builds.create(TOTALS.projection, DEFINITION)
    store = await models.builds.open(TOTALS.projection, build.name, DEFINITION)
    other = await asyncpg.connect(postgres.url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(f"LOCK TABLE {postgres.schema(build.name)}.steps")
    batch = Batch(changes=[(insert(TOTALS.steps), {"id": "a", "number": 1, "amount": 1})], guards=[GuardMove(A, 0, 1)])
    with pytest.raises(Unavailable, match="did not finish in time"):
        await store.write(batch)
    await transaction.rollback()
    await store.write(batch)
    await other.close()
    await store.close()
    await models.close()


async def test_a_constraint_that_is_checked_at_the_commit_is_the_statement_s_fault(place: Place) -> None:
    metadata = MetaData(schema="deferred")
    parent = Table("parent", metadata, Column("id", Integer, primary_key=True))
    child = Table(
        "child",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("parent", ForeignKey(parent.c.id, deferrable=True, initially="DEFERRED")),
        Column("amount", Integer, CheckConstraint("amount > 0")),
    )
    projection = Projection("deferred", version=1, tables=[parent, child], events=Counted, apply=lambda *_: ())
    definition = Subscription(projection, DECIDERS).definition
    build = await place.models.builds.create(projection, definition)
    store = await place.models.builds.open(projection, build.name, definition)
    with pytest.raises(StatementFailed) as failed:
        await store.write(Batch(changes=[insert(child).values(id=1, parent=7, amount=1)], position=Position("x")))
    assert failed.value.detail == "ForeignKeyViolationError (23503) at the end of the transaction"
    with pytest.raises(StatementFailed) as failed:
        await store.write(Batch(changes=[insert(child).values(id=1, parent=None, amount=-5)]))
    assert failed.value.detail == "CheckViolationError (23514) in insert child"
    # The child first: order is kept between tables that refer to each other.
    adding = insert(child), insert(parent)
    await store.write(Batch(changes=[(adding[0], {"id": 1, "parent": 7, "amount": 1}), (adding[1], {"id": 7})]))
    assert await store.position() == ""
    await store.close()


async def test_a_build_that_was_deleted_parks_nothing(store: ProjectionStore, postgres: PostgresStorage) -> None:
    postgres.lose(store.name)
    step = (insert(TOTALS.steps), {"id": "a", "number": 1, "amount": 1})
    for batch in (
        Batch(changes=[step], position=Position("x")),
        Batch(guards=[GuardMove(A, 0, 1)]),
        Batch(unpark=[parked(A)]),
    ):
        with pytest.raises(BuildMissing):
            await store.write(batch)
    for look in (store.position, store.parked, lambda: store.progress([A])):
        with pytest.raises(BuildMissing):
            await look()


async def test_no_plan_that_is_kept_reads_whole_tables(
    place: Place, store: ProjectionStore, postgres: PostgresStorage
) -> None:
    """Plans are made while tables are empty, and kept while they grow."""
    many = 30_000
    schema = postgres.schema(store.name)
    for number in range(8):
        await store.progress([A])
        await store.write(Batch(guards=[GuardMove(A, number, number + 1), GuardMove(f"Counter-n{number}", 0, 1)]))
    postgres.sql(f"INSERT INTO {schema}.kiseki_guards SELECT 'Counter-' || n, 1 FROM generate_series(1, {many}) AS n")
    reads = (
        "SELECT coalesce(seq_tup_read, 0) FROM pg_stat_all_tables "
        f"WHERE schemaname = '{schema}' AND relname = 'kiseki_guards'"
    )
    for number in range(1, 20):
        await store.progress([f"Counter-{number}"])
        await store.write(Batch(guards=[GuardMove(f"Counter-{number}", 1, 2)]))
    await store.close()
    await place.models.close()
    # Statistics are sent at the end of a session.
    scans = reads.replace("coalesce(seq_tup_read, 0)", "coalesce(idx_scan, 0) >= 38")
    await until(lambda: postgres.sql(scans) == "t")
    assert int(postgres.sql(reads)) < many


# Queries


async def test_a_query_that_nobody_waits_for_is_cancelled_on_the_server(
    place: Place, postgres: PostgresStorage
) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"

    async def ask() -> None:
        async with place.models.database.open([totals.projection]) as read:
            await read.first(select(func.pg_sleep(60)))

    asked = asyncio.create_task(ask())
    await until(lambda: postgres.sql(asleep) == "1")
    asked.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: postgres.sql(asleep) == "0")
    assert await place.count(totals) == 0


async def test_waiting_for_a_connection_has_an_end(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    await place.updater(totals).run_until_caught_up()
    models = await PostgresReadModels.open(postgres.address, clock=SystemClock(), pool=1, wait=0.1)
    async with models.database.open([totals.projection]) as holding:
        await holding.all(select(totals.totals))
        with pytest.raises(Unavailable, match="all 1 connections are in use"):
            async with models.database.open([totals.projection]) as read:
                await read.all(select(totals.totals))
    assert (await models.database.progress(totals.projection, [A]))[A].sequence_number == 0
    await models.close()


async def test_a_statement_that_fails_ends_neither_the_query_nor_its_state(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    count = select(func.count()).select_from(totals.steps)
    async with place.models.database.open([totals.projection]) as read:
        assert await read.first(count) == (1,)
        for statement in (
            select(1 / (totals.totals.c.total - 1)),
            select(literal_column("nothing")),
            totals.steps.delete(),
        ):
            with pytest.raises(QueryFailed):
                await read.all(statement)
            await place.world.facts.happen(A, Counted(1))
            await place.updater(totals).run_until_caught_up()
            assert await read.first(count) == (1,)


async def test_queries_never_fail_while_builds_come_and_go(place: Place) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Counted(1))
    updater = place.updater(totals, keep_retired=0.0, prune_interval=0.0)
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while True:
            async with place.models.database.open([totals.projection]) as read:
                assert await read.first(select(func.count()).select_from(totals.steps)) == (1,)
                assert len(await read.all(select(totals.totals))) == 1
            assert (await place.models.database.progress(totals.projection, [A]))[A].sequence_number == 1
            asked += 1

    async with running(updater), asyncio.timeout(60):
        await updater.caught_up()
        asking = [asyncio.create_task(ask()) for _ in range(3)]
        for generation in range(2, 8):
            await request_rebuild(place.models.builds, totals.projection)
            await until(lambda generation=generation: _only(place, generation))  # type: ignore[misc]
        for one in asking:
            one.cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    assert asked > 10


async def _only(place: Place, generation: int) -> bool:
    builds = await place.models.builds.builds()
    return [build.name.generation for build in builds] == [generation] and place.storage.there() == [
        f"totals.v1.{generation}"
    ]


@pytest.mark.parametrize("first", [0, 1])
async def test_a_build_that_a_query_reads_is_not_deleted(place: Place, postgres: PostgresStorage, first: int) -> None:
    totals = Totals()
    tables = [totals.totals, totals.steps]
    await place.world.facts.happen(A, Counted(1))
    await place.updater(totals).run_until_caught_up()
    await place.count(totals)  # the first query of a build looks at more than its own table
    async with place.models.database.open([totals.projection]) as read, asyncio.timeout(20):
        await read.all(select(tables[first]))
        await request_rebuild(place.models.builds, totals.projection)
        await place.updater(totals).run_until_caught_up()
        removing = asyncio.create_task(place.models.builds.remove(BuildName("totals", 1, 1)))
        await until(lambda: postgres.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
        # A table that the query had not touched before, so that it holds no lock on it.
        assert len(await read.all(select(tables[1 - first]))) == 1
        assert not removing.done()
    await removing
    assert place.storage.there() == ["totals.v1.2"]


# What is left behind


async def test_an_erasure_is_followed_by_a_vacuum(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    await place.world.facts.happen(A, Named("太郎"))
    await place.world.facts.happen(B, Named("花子"))
    updater = place.updater(totals)
    vacuumed = (
        "SELECT vacuum_count > 0 AND n_dead_tup = 0 FROM pg_stat_all_tables "
        f"WHERE schemaname = '{postgres.schema(BuildName('totals', 1, 1))}' AND relname = 'totals'"
    )
    async with running(updater), asyncio.timeout(20):
        await updater.caught_up()
        assert postgres.sql(vacuumed) == "f"
        await place.world.facts.happen(A, Forgotten())
        await updater.caught_up()
        await until(lambda: postgres.sql(vacuumed) == "t")
    assert [row[0] for row in await place.rows(totals, totals.totals)] == ["b"]


async def test_a_vacuum_that_can_not_be_done_is_told(
    store: ProjectionStore, postgres: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is gone for queries; that its old version stays longer than it should is for people to know."""
    database = postgres.url.rpartition("/")[2]
    postgres.server.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    await store.write(Batch(scrub=True, position=Position("x")))
    await until(lambda: "is not vacuumed after an erasure" in caplog.text)
    postgres.server.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    assert await store.position() == "x"
    await store.close()


async def test_a_build_has_statistics_when_it_becomes_live(place: Place, postgres: PostgresStorage) -> None:
    totals = Totals()
    for number in range(30):
        await place.world.facts.happen(f"Counter-{number}", Counted(1))
    await place.updater(totals).run_until_caught_up()
    schema = postgres.schema(BuildName("totals", 1, 1))
    assert postgres.sql(f"SELECT reltuples FROM pg_class WHERE oid = '{schema}.steps'::regclass") == "30"
