"""Copies that are opened to be proved hold keys and personal data: what a killed run left goes with the next run."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.sqlite.journal import SqliteJournalBackups
from kiseki.operations.sqlite.keys import SqliteKeyBackups
from kiseki.operations.sqlite.read_models import SqliteReadModelBackups
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.security.key_store import WrappedKey
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.operations.sqlite.sqlite_parts import (
    child,
    fill,
    line_from,
    manifest_of,
    no_progress,
    opened,
)
from tests.support import ManualClock

Driver = SqliteJournalBackups | SqliteKeyBackups | SqliteReadModelBackups


def driver_of(live: Path, part: Part) -> Driver:
    match part:
        case Part.JOURNAL:
            return SqliteJournalBackups(live / "journal.db", clock=ManualClock())
        case Part.KEYS:
            return SqliteKeyBackups(live / "keys.db", revocations=live / "revocations.db", clock=ManualClock())
        case _:
            return SqliteReadModelBackups(live / "read-models", clock=ManualClock())


async def made(live: Path, part: Part, copy: Path) -> tuple[Driver, Manifest]:
    async with opened(live / "journal.db") as journal:
        await fill(journal, 3)
    keys = await SqliteKeyStore.open(live / "keys.db")
    await keys.insert({"Person-1": WrappedKey("key-1", b"the-key-of-person-1")})
    await keys.close()
    models = await SqliteReadModels.open(live / "read-models", clock=ManualClock())
    await models.close()
    driver = driver_of(live, part)
    copy.mkdir()
    return driver, manifest_of(copy, await driver.make(copy, no_progress), part)


def die_with_a_copy_open(folder: str, part: str) -> None:
    """In a process."""

    async def run() -> None:
        live, copy = Path(folder), Path(folder) / "copy"
        driver, manifest = await made(live, Part(part), copy)
        async with driver.opened(copy, manifest):
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def rest_in(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.rglob("*") if path.suffix in (".db", ".sqlite"))


@pytest.mark.parametrize("part", [Part.JOURNAL, Part.KEYS, Part.READ_MODELS], ids=str)
async def test_what_a_killed_run_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for folder in ("killed", "live"):
        (tmp_path / folder).mkdir()
    process = await child(die_with_a_copy_open, str(tmp_path / "killed"), str(part))
    assert await line_from(process) == ""
    assert await process.wait() == -signal.SIGKILL
    assert rest_in(temporary), "the killed one had a copy"
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in temporary.iterdir())
    driver, manifest = await made(tmp_path / "live", part, tmp_path / "copy")
    async with driver.opened(tmp_path / "copy", manifest):
        there = rest_in(temporary)
        assert len(there) == 1, "its own, and no other"
        async with driver.opened(tmp_path / "copy", manifest):
            assert len(rest_in(temporary)) == 2, "who is alive keeps what is open"
    assert rest_in(temporary) == []
    if isinstance(driver, SqliteReadModelBackups):
        assert await driver.check(tmp_path / "copy", manifest) == []
        assert rest_in(temporary) == []
