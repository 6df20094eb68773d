"""Fixtures of the projection tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.query.sqlite import SqliteReadModels
from tests.integration.projection.parts import Place
from tests.unit.projection.parts import World


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    directory = tmp_path / "read-models"
    models = await SqliteReadModels.open(directory, clock=SystemClock())
    place = Place(await World.new(), directory, models)
    yield place
    await place.models.close()
