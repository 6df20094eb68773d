"""Backups of the audit log: every record, as it is; and putting back what a log lacks at its end, and nothing else."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from kiseki.operations.backup.audit import AuditBackups, put_back_files
from kiseki.operations.backup.manifest import FORMAT, Manifest, Part
from kiseki.operations.errors import BackupDamaged, RestoreRefused
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.places import AuditPlaces, open_places
from kiseki.testing.journal_conformance import SetClock
from kiseki.testing.journal_tests.parts import NOON
from tests.unit.operations.parts import no_progress
from tests.unit.security.audit.parts import KEYS, verified, write_log


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.audit = folder / "audit"
        self.copy = folder / "copy"
        self.copy.mkdir()
        self.backups = AuditBackups(self._opened, clock=SetClock())

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[AuditPlaces]:
        async with open_places(keys=KEYS, directory=self.audit) as places:
            yield places

    async def made(self) -> Manifest:
        made = await self.backups.make(self.copy, no_progress)
        return Manifest(
            format=FORMAT,
            id="20260301T120000Z-000001",
            part=Part.AUDIT,
            kiseki="0",
            started_at=NOON,
            finished_at=NOON,
            made=made,
            files=(),
        )

    async def put_back(self, manifest: Manifest) -> int:
        return await self.backups.put_back(self.copy, manifest, partial(put_back_files, self.audit))

    @property
    def lines(self) -> list[bytes]:
        return sorted(line for path in self.audit.glob("*.jsonl") for line in path.read_bytes().splitlines())


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    for _ in range(3):
        await write_log(tmp_path, 5)
    return made


async def test_a_copy_has_every_record_and_a_lost_log_comes_back(world: World) -> None:
    before = world.lines
    manifest = await world.made()
    assert manifest.made.counts == {"records": len(before), "writers": 3}
    assert "every one equals" in await world.backups.check(world.copy, manifest)
    for path in world.audit.iterdir():
        path.unlink()
    assert await world.put_back(manifest) == len(before)
    assert world.lines == before
    assert (await verified(world.folder)).problems == []
    assert {path.stat().st_mode & 0o777 for path in world.audit.iterdir()} == {0o600}


async def test_what_a_writer_lacks_at_its_end_goes_into_a_further_file(world: World) -> None:
    before = world.lines
    manifest = await world.made()
    path = sorted(world.audit.iterdir())[1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    await world.put_back(manifest)
    assert world.lines == before
    assert len(list(world.audit.iterdir())) == 4
    assert (await verified(world.folder)).problems == []
    await world.put_back(manifest)
    assert world.lines == before


async def test_a_log_that_went_on_keeps_what_is_newer(world: World) -> None:
    manifest = await world.made()
    await write_log(world.folder, 2)
    before = world.lines
    await world.put_back(manifest)
    assert world.lines == before
    assert "every one equals" in await world.backups.check(world.copy, manifest)


async def test_another_log_of_the_same_writer_is_not_touched(world: World) -> None:
    manifest = await world.made()
    path = sorted(world.audit.iterdir())[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b"refused", b"Refused"), *lines[2:]]))
    before = world.lines
    with pytest.raises(RestoreRefused, match="other records"):
        await world.put_back(manifest)
    assert world.lines == before
    with pytest.raises(BackupDamaged, match="differs from the live audit log"):
        await world.backups.check(world.copy, manifest)


async def test_a_copy_that_was_altered_or_cut_is_found(world: World) -> None:
    manifest = await world.made()
    path = world.copy / "audit.jsonl.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(b"".join(data.splitlines(keepends=True)[:-1])))
    with pytest.raises(BackupDamaged, match="does not hold the records"):
        await world.backups.check(world.copy, manifest)
    path.write_bytes(gzip.compress(data)[:-20])
    with pytest.raises(BackupDamaged, match="damaged"):
        await world.backups.check(world.copy, manifest)
    with pytest.raises(BackupDamaged, match="damaged"):
        await world.put_back(manifest)


async def test_records_that_are_put_back_never_take_the_place_of_a_file_that_is_there(world: World) -> None:
    """An operator has moved the first file of a writer away: there are fewer files than their numbers say."""
    manifest = await world.made()
    first = sorted(world.audit.iterdir())[0]
    lines = first.read_bytes().splitlines(keepends=True)
    second, third = first.with_name(f"{first.stem}.0002.jsonl"), first.with_name(f"{first.stem}.0003.jsonl")
    second.write_bytes(lines[0])
    third.write_bytes(b"".join(lines[1:3]))
    first.unlink()
    await world.put_back(manifest)
    assert second.read_bytes() == lines[0]
    assert third.read_bytes() == b"".join(lines[1:3])
    assert first.with_name(f"{first.stem}.0004.jsonl").read_bytes() == b"".join(lines[3:])


async def test_a_file_that_is_begun_meanwhile_is_not_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = await world.made()
    first = sorted(world.audit.iterdir())[0]
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(lines[0])
    began = first.with_name(f"{first.stem}.0002.jsonl")

    def begun_meanwhile(_: LineFiles, __: str) -> int:
        began.touch()
        return 2

    monkeypatch.setattr(LineFiles, "next_segment", begun_meanwhile)
    with pytest.raises(RestoreRefused, match="run the same again"):
        await world.put_back(manifest)
    assert sorted(path.name for path in world.audit.iterdir() if path.name.startswith(".")) == []
    assert began.read_bytes() == b""
