"""Backups of PostgreSQL read models: a restored build serves, and numbers go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.errors import BackupDamaged, RestoreRefused
from kiseki.operations.postgres.read_models import PostgresReadModelBackups
from kiseki.operations.postgres.scratch import Scratch
from kiseki.projection.port import BuildName
from kiseki.projection.status import request_rebuild
from kiseki.query.postgres.read_models import DEFAULT_SCHEMA, PostgresReadModels
from tests.integration.operations.postgres.postgres_backup_parts import CLOCK, manifest_of, programs_of
from tests.integration.projection.parts import Place, PostgresStorage, running, until
from tests.servers.postgres import PostgresServer
from tests.unit.projection.parts import Counted, Totals, World

A = "Counter-a"


@pytest.fixture
async def storage(postgres_server: PostgresServer) -> PostgresStorage:
    storage = PostgresStorage(postgres_server, postgres_server.create_database())
    await PostgresReadModels.migrate(storage.address)
    return storage


@pytest.fixture
def driver(postgres_server: PostgresServer, storage: PostgresStorage) -> PostgresReadModelBackups:
    beside = Scratch(PostgresAddress.parse(postgres_server.url(), schema="public"))
    return PostgresReadModelBackups(storage.address, programs_of(postgres_server), clock=CLOCK, scratch=beside)


async def test_restored_builds_serve(
    driver: PostgresReadModelBackups, storage: PostgresStorage, tmp_path: Path
) -> None:
    totals = Totals()
    world = await World.new()
    place = Place(world, storage, await storage.open())
    for amount in range(100, 120):
        await world.facts.happen(A, Counted(amount))
    async with running(place.updater(totals)):
        await until(place.live)
        made = await driver.make(tmp_path, nothing)
        assert made.counts["builds"] == 1
        assert made.counts["rows"] >= 20
        await request_rebuild(place.models.builds, totals.projection)
        while await place.live() != BuildName("totals", 1, 2):
            await world.facts.happen(A, Counted(1))
        rows = await place.rows(totals, totals.steps)
        manifest = manifest_of(made, Part.READ_MODELS)
        assert await driver.check(tmp_path, manifest) == []
        staged = await driver.stage(tmp_path, manifest, nothing)
        with pytest.raises(RestoreRefused, match="kiseki"):
            await staged.switch()
    await place.models.close()
    done = await staged.switch()
    assert done.kept
    assert any(f"{DEFAULT_SCHEMA}_totals_v1_2" in line for line in done.left)
    place = Place(world, storage, await storage.open())
    assert await place.live() == BuildName("totals", 1, 1)
    assert len(await place.rows(totals, totals.steps)) == 20
    async with running(place.updater(totals)):
        await until(lambda: _caught_up(place, totals, len(rows)))
        await request_rebuild(place.models.builds, totals.projection)
        # No number is given twice, also not that of a build which only the replaced catalog knew.
        await until(lambda: _is_live(place, BuildName("totals", 1, 3)))
    await place.models.close()
    again = await driver.stage(tmp_path, manifest, nothing)
    await again.discard()
    assert storage.sql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'kiseki%restored%'") == "1"


async def _caught_up(place: Place, totals: Totals, count: int) -> bool:
    return await place.count(totals) >= count


async def _is_live(place: Place, name: BuildName) -> bool:
    return await place.live() == name


async def test_after_everything_is_lost(
    driver: PostgresReadModelBackups, storage: PostgresStorage, tmp_path: Path
) -> None:
    totals = Totals()
    world = await World.new()
    place = Place(world, storage, await storage.open())
    await world.facts.happen(A, Counted(1))
    async with running(place.updater(totals)):
        await until(place.live)
    await place.models.close()
    manifest = manifest_of(await driver.make(tmp_path, nothing), Part.READ_MODELS)
    storage.sql(f"DROP SCHEMA {DEFAULT_SCHEMA} CASCADE")
    storage.lose(BuildName("totals", 1, 1))
    assert (await (await driver.stage(tmp_path, manifest, nothing)).switch()).kept == ""
    place = Place(world, storage, await storage.open())
    assert len(await place.rows(totals, totals.steps)) == 1
    await place.models.close()
    storage.sql(f"DROP TABLE {DEFAULT_SCHEMA}.read_model_owners")
    assert await driver.check(tmp_path, manifest) == []
    async with driver.opened(tmp_path, manifest) as builds:
        assert [build.name for build in await builds.builds()] == [BuildName("totals", 1, 1)]
        assert list(await builds.guards(BuildName("totals", 1, 1))) == [(A, 1)]
    altered = manifest_of(
        type(manifest.made)(store="x", method="x", as_of=manifest.made.as_of, counts={"rows": 7}, digest="x")
    )
    assert "should hold 7" in (await driver.check(tmp_path, altered))[0]
    with pytest.raises(BackupDamaged, match="should hold 7"):
        async with driver.opened(tmp_path, altered):
            pass
