"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from tests.support import ManualClock, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    journal = await SqliteJournal.open(tmp_path / "journal.sqlite", clock=clock, telemetry=NoTelemetry())
    protector = await KeyProtector.open(store=MemoryKeyStore(), wrapper=LocalMasterKey(bytes(32)), clock=clock)
    yield World(journal, protector, clock)
    await journal.close()


@pytest.fixture
def raw(tmp_path: Path) -> Callable[[], bytes]:
    """Every byte of the journal's files."""
    return lambda: b"".join(path.read_bytes() for path in sorted(tmp_path.glob("journal.sqlite*")) if path.is_file())
