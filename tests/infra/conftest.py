"""Without the environment that these tests run their tools in, they are skipped."""

from __future__ import annotations

import pytest

from tests.infra.support import NOT_HERE, SCHEMA


@pytest.fixture(scope="session")
def infra_tools() -> None:
    """For every test that runs Terraform or checkov."""
    if not SCHEMA.exists():
        pytest.skip(NOT_HERE)
