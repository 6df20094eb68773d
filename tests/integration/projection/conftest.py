"""Fixtures of the projection tests: read models of both databases, or of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kiseki.projection.port import ProjectionStore
from kiseki.query.postgres.read_models import PostgresReadModels
from tests.integration.projection.parts import DEFINITION, TOTALS, Place, PostgresStorage, SqliteStorage, Storage
from tests.servers.postgres import PostgresServer
from tests.unit.projection.parts import World


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteStorage:
    return SqliteStorage(tmp_path / "read-models")


@pytest.fixture
async def postgres(postgres_server: PostgresServer, postgres_url: str) -> PostgresStorage:
    storage = PostgresStorage(postgres_server, postgres_url)
    await PostgresReadModels.migrate(storage.address)
    return storage


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each database in turn; a test module that is about one of them says so by a fixture of this name."""
    found: Storage = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def place(storage: Storage) -> AsyncIterator[Place]:
    place = Place(await World.new(), storage, await storage.open())
    yield place
    await place.models.close()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ProjectionStore]:
    """A build, open for writing, which queries read; nobody owns it."""
    build = await place.models.builds.create(TOTALS.projection, DEFINITION)
    store = await place.models.builds.open(TOTALS.projection, build.name, DEFINITION)
    await place.models.builds.promote(build.name)
    yield store
    await store.close()
