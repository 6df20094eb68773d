"""The compiled shim, once per test process."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import compile_shim


@pytest.fixture(scope="session")
def powercut_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skips where the shim cannot be built."""
    return compile_shim(tmp_path_factory.mktemp("powercut-shim"))
