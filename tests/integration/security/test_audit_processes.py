"""Audit logs of real processes: killed at any moment, several in one directory, and on a disk that is full."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.kernel.ports import AuditEvent, AuditUnavailable
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.record import AuditRecord
from kiseki.security.audit.tail import Tail
from kiseki.security.audit.verify import AuditReport, verify_log

SCRIPT = Path(__file__).with_name("audit_process.py")


def keys(root: Path) -> AuditKeys:
    return AuditKeys(AuditKey.load_or_create(root / "audit.key"))


async def verified(root: Path) -> tuple[AuditReport, list[AuditRecord]]:
    records: list[AuditRecord] = []
    report = await verify_log(
        LineFiles(root / "audit", prefix="audit"),
        keys=keys(root),
        now=datetime.now(UTC) + timedelta(hours=1),
        anchors=FileAnchors(root / "anchors"),
        on_record=lambda record, _line: records.append(record),
    )
    return report, records


@pytest.fixture
def start() -> Iterator[Callable[[Path, int], subprocess.Popen[str]]]:
    """Starts processes; all are ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(root: Path, recorders: int) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, root, str(recorders)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return processes[-1]

    yield start_one
    for each in processes:
        each.kill()
        each.communicate()


async def recovered(log: AuditLog) -> None:
    async with asyncio.timeout(20):
        while log.problem is not None:
            await asyncio.sleep(0.01)


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


@pytest.mark.parametrize("after", [1, 40, 333])
async def test_a_killed_process_loses_no_record_that_it_answered_for(
    tmp_path: Path, start: Callable[[Path, int], subprocess.Popen[str]], after: int
) -> None:
    process = start(tmp_path, 8)
    answered = lines(process, after + 1)
    process.kill()
    rest, _ = process.communicate()
    answered += re.findall(r"record-\d+\n", rest)
    report, records = await verified(tmp_path)
    assert report.problems == []
    assert any("running, or was killed" in note for note in report.notes)
    there = {record.target for record in records}
    assert {line.strip() for line in answered[1:]} <= there
    # The next one goes on where this one was cut.
    process = start(tmp_path, 1)
    writer = lines(process, 2)[0].split()[1]
    process.communicate("")
    report, records = await verified(tmp_path)
    assert report.problems == []
    first = next(record for record in records if record.writer == writer)
    assert first.after is not None
    assert first.after.writer != writer


async def test_several_processes_write_side_by_side_and_are_read_as_one(
    tmp_path: Path, start: Callable[[Path, int], subprocess.Popen[str]]
) -> None:
    processes = [start(tmp_path, 4) for _ in range(3)]
    writers = [lines(process, 100)[0].split()[1] for process in processes]
    for process in processes:
        process.communicate("")
        assert process.returncode == 0
    report, records = await verified(tmp_path)
    assert (report.problems, report.notes, report.writers) == ([], [], 3)
    assert {record.writer for record in records} == set(writers)
    told: list[str] = []
    newest = await Tail(
        LineFiles(tmp_path / "audit", prefix="audit"), keys=keys(tmp_path), suspicious=told.append
    ).newest(50)
    assert newest == sorted(records, key=lambda record: (record.at, record.writer, record.number))[-50:]
    assert told == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("failure", ["refuse", "continue"])
async def test_a_full_disk_and_room_again(small_disk: Path, tmp_path: Path, failure: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "audit").symlink_to(small_disk)
    writer = new_writer()
    log = await AuditLog.open(
        keys=keys(root),
        writer=writer,
        sinks=[await FileSink.open(small_disk, writer=writer)],
        clock=SystemClock(),
        anchors=FileAnchors(root / "anchors"),
        settings=AuditLogSettings(failure=failure, retry=0.01),  # type: ignore[arg-type]
    )
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    recorded = 0
    event = AuditEvent(kind="admin.test", outcome="done", detail="x" * 500)
    refusals = 0
    told: set[str] = set()
    while refusals < 20 and recorded < 1_000:
        try:
            await log.record(event)
        except AuditUnavailable as problem:
            told.add(str(problem))
            refusals += 1
        else:
            recorded += 1
            refusals += log.problem is not None
    assert len(told) == (failure == "refuse")
    assert all("no space left on device" in each for each in told)
    assert log.problem is not None
    assert log.healthy is (failure == "continue")
    filler.unlink()
    await recovered(log)
    await log.record(event)
    await log.close()
    report, records = await verified(root)
    assert report.problems == []
    there = sum(record.kind == "admin.test" for record in records)
    # With `refuse` one record, of the write that failed first, may be there though it was refused.
    assert there in ((recorded + 1, recorded + 2) if failure == "refuse" else (recorded + 1,))
    assert any(record.kind == "audit.resumed" for record in records)


async def test_a_tail_follows_what_comes(tmp_path: Path, start: Callable[[Path, int], subprocess.Popen[str]]) -> None:
    first = start(tmp_path, 1)
    lines(first, 10)
    tail = Tail(LineFiles(tmp_path / "audit", prefix="audit"), keys=keys(tmp_path), suspicious=lambda what: None)
    seen = await tail.newest(10_000)
    second = start(tmp_path, 1)
    lines(second, 300)
    for process in (first, second):
        process.communicate("")
    async with asyncio.timeout(20):
        async for records in tail.follow(poll=0.01):
            seen += records
            if sum(record.kind == "audit.stopped" for record in seen) == 2:
                break
    _, everything = await verified(tmp_path)
    by_writer = sorted(seen, key=lambda record: (record.writer, record.number))
    assert by_writer == everything
