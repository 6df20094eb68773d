"""Audit records and anchors in files: modes, rotation, full disks, meddling, and what a start finds."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.kernel.ports import AuditUnavailable
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.append_file import AppendFile
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.record import Chain, Entry, SealedRecord, read_line
from kiseki.security.audit.sink import SinkFailed
from kiseki.security.audit.stdout_sink import StdoutSink, unwrapped
from tests.unit.security.audit.parts import KEYS, file_log, refused, until, verified, write_log
from tests.unit.security.fakes import FakeClock


def sealed(count: int, *, chain: Chain, at: datetime = datetime(2026, 3, 1, tzinfo=UTC)) -> list[SealedRecord]:
    return [chain.seal(Entry(event=refused(target=str(number)), at=at)) for number in range(count)]


async def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    log = await write_log(tmp_path, 3)
    for folder, name in (("audit", f"audit-{log.writer}.jsonl"), ("anchors", f"anchors-{log.writer}.jsonl")):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
        (file,) = (tmp_path / folder).iterdir()
        assert file.name == name
        assert file.stat().st_mode & 0o777 == 0o600


async def test_a_new_day_begins_a_new_file_and_a_clock_set_back_does_not(tmp_path: Path) -> None:
    chain = Chain(KEYS.current, new_writer())
    sink = await FileSink.open(tmp_path / "audit", writer=chain.writer)
    day = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
    for at in (day, day + timedelta(hours=1), day, day + timedelta(hours=2), day + timedelta(days=1, hours=1)):
        await sink.write(sealed(2, chain=chain, at=at), durable=True)
    await sink.close()
    paths = LineFiles(tmp_path / "audit", prefix="audit").paths(chain.writer)
    assert [len(path.read_bytes().splitlines()) for path in paths] == [2, 6, 2]
    assert (await verified(tmp_path, anchored=False)).problems == []


class FullDisk(AppendFile):
    """A file on a disk that is full after some bytes, and that may not be cut when it is marked append-only."""

    room = 0
    may_cut = True
    syncs = True

    def append(self, data: bytes, *, durable: bool) -> None:
        write, cut, sync = os.write, os.ftruncate, os.fsync
        cls = type(self)

        def limited(file: int, part: memoryview) -> int:
            if cls.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = write(file, part[: cls.room])
            cls.room -= done
            return done

        def refused_cut(file: int, length: int) -> None:
            if not cls.may_cut:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            cut(file, length)

        def failing_sync(file: int) -> None:
            if not cls.syncs:
                raise OSError(errno.EIO, "Input/output error")
            sync(file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", limited)
            patch.setattr(os, "ftruncate", refused_cut)
            patch.setattr(os, "fsync", failing_sync)
            super().append(data, durable=durable)


@pytest.fixture
def disk() -> type[FullDisk]:
    class Disk(FullDisk):
        room = 1 << 30

    return Disk


@pytest.mark.parametrize("may_cut", [True, False])
async def test_a_full_disk_refuses_then_the_chain_goes_on_whole(
    tmp_path: Path, disk: type[FullDisk], may_cut: bool
) -> None:
    disk.may_cut = may_cut
    writer, clock = new_writer(), FakeClock()
    sink = await FileSink.open(tmp_path / "audit", writer=writer)
    sink._make_file = disk
    log = await AuditLog.open(
        keys=KEYS, writer=writer, sinks=[sink], clock=clock, settings=AuditLogSettings(retry=0.01, record_timeout=5)
    )
    await log.record(refused(target="before"))
    disk.room = 700
    log.note(refused(actor="fits"))
    await until(lambda: disk.room < 400)
    with pytest.raises(AuditUnavailable, match="no space left on device"):
        await log.record(refused(target="x" * 200))
    assert not log.healthy
    with pytest.raises(AuditUnavailable):
        await log.record(refused(target="never"))
    disk.room = 1 << 30
    clock.advance(1)
    await until(lambda: log.healthy)
    await log.record(refused(target="after"))
    await log.close()
    report = await verified(tmp_path, anchored=False)
    assert report.problems == []
    text = b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir())
    assert b"after" in text
    assert b"never" not in text


@pytest.mark.parametrize("may_cut", [True, False])
async def test_after_a_failed_sync_the_file_is_left_and_nothing_stands_twice(
    tmp_path: Path, disk: type[FullDisk], may_cut: bool
) -> None:
    disk.may_cut = may_cut
    chain = Chain(KEYS.current, new_writer())
    sink = FileSink(tmp_path, writer=chain.writer, make_file=disk)
    records = sealed(3, chain=chain)
    await sink.write(records[:1], durable=True)
    disk.syncs = False
    with pytest.raises(SinkFailed) as caught:
        await sink.write(records[1:], durable=True)
    assert caught.value.written == (0 if may_cut else 2)
    disk.syncs = True
    await sink.write(records[1 + caught.value.written :], durable=True)
    await sink.write(sealed(1, chain=chain), durable=True)
    await sink.close()
    lines = [
        line
        for path in LineFiles(tmp_path, prefix="audit").paths(chain.writer)
        for line in path.read_bytes().splitlines()
    ]
    assert [read_line(line, KEYS).number for line in lines] == [1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("syncs", [True, False])
async def test_a_start_that_waits_for_a_full_disk_leaves_no_files(
    tmp_path: Path, disk: type[FullDisk], syncs: bool
) -> None:
    disk.room = 0 if syncs else 1 << 30
    disk.syncs = syncs
    before = await write_log(tmp_path, 1, anchored=False)
    for _ in range(10):
        writer = new_writer()
        sink = await FileSink.open(tmp_path / "audit", writer=writer)
        sink._make_file = disk
        with pytest.raises(AuditUnavailable):
            await AuditLog.open(keys=KEYS, writer=writer, sinks=[sink], clock=FakeClock())
    assert [path.name for path in (tmp_path / "audit").iterdir()] == [f"audit-{before.writer}.jsonl"]
    after = await write_log(tmp_path, 1, anchored=False)
    first = (tmp_path / "audit" / f"audit-{after.writer}.jsonl").read_bytes().splitlines()[0]
    named = read_line(first, KEYS).after
    assert named is not None
    assert named.writer == before.writer


async def test_a_file_whose_name_cannot_be_made_durable_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(KEYS.current, new_writer())
    sink = await FileSink.open(tmp_path, writer=chain.writer)

    def failing(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("kiseki.security.audit.append_file.sync_directory", failing)
        for _ in range(5):
            with pytest.raises(SinkFailed):
                await sink.write(sealed(1, chain=Chain(KEYS.current, chain.writer)), durable=True)
            assert list(tmp_path.iterdir()) == []
    await sink.write(sealed(1, chain=chain), durable=True)
    await sink.close()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("leave", [AppendFile.close, AppendFile.abandon])
async def test_only_a_file_in_which_nobody_wrote_is_deleted(
    tmp_path: Path, leave: Callable[[AppendFile], None]
) -> None:
    leave(AppendFile(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()

    written = AppendFile(tmp_path / "written")
    written.append(b"x\n", durable=True)
    leave(written)
    assert (tmp_path / "written").read_bytes() == b"x\n"

    cut = AppendFile(tmp_path / "cut")
    cut.append(b"x\n", durable=True)
    os.truncate(tmp_path / "cut", 0)
    leave(cut)
    assert (tmp_path / "cut").exists()

    added = AppendFile(tmp_path / "added")
    (tmp_path / "added").write_bytes(b"of somebody else")
    leave(added)
    assert (tmp_path / "added").read_bytes() == b"of somebody else"

    replaced = AppendFile(tmp_path / "replaced")
    (tmp_path / "replaced").unlink()
    (tmp_path / "replaced").write_bytes(b"")
    leave(replaced)
    assert (tmp_path / "replaced").exists()

    removed = AppendFile(tmp_path / "removed")
    (tmp_path / "removed").unlink()
    leave(removed)


async def test_a_start_looks_past_the_empty_files_of_starts_that_were_killed(tmp_path: Path) -> None:
    before = await write_log(tmp_path, 1)
    for _ in range(20):
        (tmp_path / "audit" / f"audit-{new_writer()}.jsonl").touch()
    after = await write_log(tmp_path, 1)
    (line, *_) = (tmp_path / "audit" / f"audit-{after.writer}.jsonl").read_bytes().splitlines()
    named = read_line(line, KEYS).after
    assert named is not None
    assert named.writer == before.writer


@pytest.mark.parametrize("how", ["removed", "cut", "added"])
async def test_meddling_with_the_file_of_a_running_log_is_noticed_at_once(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    log = await file_log(tmp_path, clock=clock, retry=0.01)
    await log.record(refused(actor="a"))
    (file,) = (tmp_path / "audit").iterdir()
    if how == "removed":
        file.unlink()
    elif how == "cut":
        os.truncate(file, file.stat().st_size - 10)
    else:
        with file.open("ab") as more:
            more.write(b"{}\n")
    with pytest.raises(AuditUnavailable, match="somebody else removed it, cut it or wrote to it"):
        await log.record(refused(actor="b"))
    assert "somebody else" in caplog.text
    clock.advance(1)
    await until(lambda: log.healthy)
    await log.record(refused(actor="c"))
    await log.close()
    assert not (await verified(tmp_path)).sound


async def test_a_start_names_the_newest_record_here(tmp_path: Path) -> None:
    first = await write_log(tmp_path, 2)
    second = await write_log(tmp_path, 2)
    (line, *_) = (tmp_path / "audit" / f"audit-{second.writer}.jsonl").read_bytes().splitlines()
    after = read_line(line, KEYS).after
    assert after is not None
    assert (after.writer, after.number) == (first.writer, 4)


async def test_a_start_after_a_crash_names_the_newest_whole_record(tmp_path: Path) -> None:
    first = await write_log(tmp_path, 2)
    file = tmp_path / "audit" / f"audit-{first.writer}.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    second = await write_log(tmp_path, 0)
    (line, *_) = (tmp_path / "audit" / f"audit-{second.writer}.jsonl").read_bytes().splitlines()
    after = read_line(line, KEYS).after
    assert after is not None
    assert after.number == 3


async def test_a_start_on_a_forged_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = await write_log(tmp_path, 2)
    file = tmp_path / "audit" / f"audit-{first.writer}.jsonl"
    file.write_bytes(file.read_bytes().replace(b"audit.stopped", b"audit.stoned!"))
    with caplog.at_level(logging.ERROR):
        second = await write_log(tmp_path, 0)
    assert "is not authentic" in caplog.text
    (line, *_) = (tmp_path / "audit" / f"audit-{second.writer}.jsonl").read_bytes().splitlines()
    assert read_line(line, KEYS).detail == "the newest record of the sink file is not authentic"


async def test_a_file_or_link_in_the_way_is_not_written_to(tmp_path: Path) -> None:
    chain = Chain(KEYS.current, new_writer())
    (tmp_path / "target").write_text("precious")
    (tmp_path / f"audit-{chain.writer}.jsonl").symlink_to(tmp_path / "target")
    sink = await FileSink.open(tmp_path, writer=chain.writer)
    await sink.write(sealed(1, chain=chain), durable=True)
    await sink.close()
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / f"audit-{chain.writer}.0002.jsonl").stat().st_size > 100


async def test_a_directory_that_cannot_be_made_is_said_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkFailed, match="can't be written: "):
        await FileSink.open(tmp_path / "file" / "audit", writer=new_writer())


async def test_anchors_that_cannot_be_written_are_told_of_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "anchors").write_text("in the way")
    log = await file_log(tmp_path)
    await log.record(refused())
    assert "can't be anchored" in caplog.text
    assert log.healthy
    (tmp_path / "anchors").unlink()
    await log.close()
    report = await verified(tmp_path)
    assert report.problems == []
    assert report.anchors == 1


async def test_heads_are_anchored_while_the_log_grows_and_not_when_it_rests(tmp_path: Path) -> None:
    log = await file_log(tmp_path, anchor_interval=0.01)
    file = tmp_path / "anchors" / f"anchors-{log.writer}.jsonl"
    assert len(file.read_bytes().splitlines()) == 1
    await log.record(refused())
    await until(lambda: len(file.read_bytes().splitlines()) == 2)
    ages = []
    for _ in range(3):
        await log.record(refused())
        number = len(file.read_bytes().splitlines()) + 1
        await until(lambda number=number: len(file.read_bytes().splitlines()) >= number)  # type: ignore[misc]
        ages.append(log.statistics().anchor_age)
    assert all(age is not None and age < 5 for age in ages)
    await log.close()


async def test_an_anchor_names_only_what_is_durable(tmp_path: Path) -> None:
    log = await file_log(tmp_path)
    for number in range(5):
        log.note(refused(actor=str(number)))
    await log._anchor()
    assert log._anchor_chain.number == 6
    assert log._lanes[0].durable.number == 6
    await log.close()


async def test_anchors_in_the_directory_of_records_are_told_apart(tmp_path: Path) -> None:
    await write_log(tmp_path, 1)
    for file in (tmp_path / "anchors").iterdir():
        file.rename(tmp_path / "audit" / file.name)
    records = LineFiles(tmp_path / "audit", prefix="audit")
    assert len(await records.writers()) == 1
    assert len(await FileAnchors(tmp_path / "audit").writers()) == 1


async def test_printed_records_are_marked_and_keep_every_byte() -> None:
    chain = Chain(KEYS.current, new_writer())
    read, write = os.pipe()
    try:
        records = sealed(5, chain=chain)
        await StdoutSink(write).write(records, durable=True)
        lines = os.read(read, 65_536).splitlines()
        assert all(line.startswith(b'{"audit":{"v":1,') for line in lines)
        assert [unwrapped(line) for line in lines] == [record.line for record in records]
    finally:
        os.close(read)
        os.close(write)


async def test_a_reader_that_does_not_read_or_is_gone_fails_the_sink() -> None:
    chain = Chain(KEYS.current, new_writer())
    read, write = os.pipe()
    sink = StdoutSink(write, timeout=0.05)
    with pytest.raises(SinkFailed, match="does not read") as caught:
        await sink.write(sealed(1_000, chain=chain), durable=True)
    assert 0 < caught.value.written < 1_000
    os.close(read)
    with pytest.raises(SinkFailed, match="broken pipe"):
        await sink.write(sealed(1, chain=chain), durable=True)
    os.close(write)


class Doubtful(FileAnchors):
    """Stores anchors, and loses the answer."""

    is_doubtful = True

    async def add(self, line: bytes, *, writer: str, index: int, at: datetime) -> None:
        await super().add(line, writer=writer, index=index, at=at)
        if self.is_doubtful:
            raise SinkFailed("the answer was lost")


async def test_an_anchor_whose_storing_was_in_doubt_is_stored_again_the_same(tmp_path: Path) -> None:
    writer = new_writer()
    sink = await FileSink.open(tmp_path / "audit", writer=writer)
    anchors = Doubtful(tmp_path / "anchors")
    log = await AuditLog.open(keys=KEYS, writer=writer, sinks=[sink], clock=FakeClock(), anchors=anchors)
    await log.record(refused())
    anchors.is_doubtful = False
    await log.close()
    lines = (tmp_path / "anchors" / f"anchors-{writer}.jsonl").read_bytes().splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1]
    report = await verified(tmp_path)
    assert (report.problems, report.anchors) == ([], 2)
