"""Verifying: every way to change a log is found, up to the last anchor, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki.cli import audit as cli
from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.anchor import FileAnchors, read_anchor
from kiseki.security.audit.export import export_log
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.log import new_writer
from kiseki.security.audit.places import AuditPlaces, open_places
from kiseki.security.audit.record import Chain, Entry, read_line, split_line
from kiseki.security.audit.verify import verify_log
from tests.unit.security.audit.parts import KEYS, NOW, file_log, refused, verified, write_log

OTHER = AuditKey(b"another secret, 32 bytes or more of it")
LINES = 9


def only_file(root: Path, folder: str = "audit") -> Path:
    (found,) = (root / folder).iterdir()
    return found


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    """A log of one writer: a start, seven records, an end."""
    root = Path(tempfile.mkdtemp(prefix="kiseki-audit-"))
    asyncio.run(write_log(root, LINES - 2))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "log"))


async def problems(root: Path, **options: Any) -> str:
    report = await verified(root, **options)
    assert report.sound == (not report.problems)
    return "\n".join(report.problems)


async def test_a_log_that_nobody_touched_is_sound(root: Path) -> None:
    report = await verified(root)
    assert (report.problems, report.notes) == ([], [])
    assert (report.writers, report.records, report.anchors) == (1, LINES, 2)
    assert report.last_anchor is not None


def change(how: str, lines: list[bytes], first: int, second: int, byte: int) -> list[bytes]:
    """A changed log."""
    new = list(lines)
    if how == "flip":
        position = byte % len(new[first])
        flipped = bytearray(new[first])
        flipped[position] ^= 1 << (byte % 8)
        new[first] = bytes(flipped)
    elif how == "delete":
        del new[first]
    elif how == "duplicate":
        new.insert(second, new[first])
    elif how == "swap":
        new[first], new[second] = new[second], new[first]
    elif how == "truncate":
        new = new[:first]
    elif how == "cut":
        new = [*new[:first], new[first][: byte % len(new[first])]]
    elif how == "insert":
        new.insert(first, new[first].replace(b'"number":', b'"number":1', 1))
    elif how == "byte":
        position = byte % len(new[first])
        new[first] = new[first][:position] + b" " + new[first][position:]
    elif how == "drop":
        position = byte % len(new[first])
        new[first] = new[first][:position] + new[first][position + 1 :]
    return new


@settings(max_examples=400, deadline=None)
@given(
    how=st.sampled_from(["flip", "delete", "duplicate", "swap", "truncate", "cut", "insert", "byte", "drop"]),
    first=st.integers(0, LINES - 1),
    second=st.integers(0, LINES - 1),
    byte=st.integers(0, 1 << 16),
)
def test_any_change_is_found(written: Path, how: str, first: int, second: int, byte: int) -> None:
    original = only_file(written).read_bytes()
    lines = original.splitlines(keepends=True)
    changed = b"".join(change(how, lines, first, second, byte))
    if changed == original:
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(written / "anchors", copy / "anchors")
        (copy / "audit").mkdir()
        (copy / "audit" / only_file(written).name).write_bytes(changed)
        report = asyncio.run(verified(copy))
    assert not report.sound


@settings(max_examples=150, deadline=None)
@given(how=st.sampled_from(["flip", "delete", "swap", "byte", "drop"]), byte=st.integers(0, 1 << 16))
def test_any_change_of_anchors_is_found(written: Path, how: str, byte: int) -> None:
    original = only_file(written, "anchors").read_bytes()
    lines = original.splitlines(keepends=True)
    if how == "flip" and byte % len(lines[0]) == len(lines[0]) - 1 and byte % 8 == 0:
        return
    changed = b"".join(change(how, lines, 0, 1, byte))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(written / "audit", copy / "audit")
        (copy / "anchors").mkdir()
        (copy / "anchors" / only_file(written, "anchors").name).write_bytes(changed)
        report = asyncio.run(verified(copy))
    assert not report.sound


async def test_it_says_where(root: Path) -> None:
    file = only_file(root)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"UserAccount-2", b"UserAccount-9")
    del lines[6]
    file.write_bytes(b"".join(lines))
    found = await problems(root)
    assert f"{file.name} line 4: it was altered, or forged" in found
    assert f"{file.name} line 7: record 7 is missing before it" in found
    assert len(found.splitlines()) <= 3


async def test_truncation_is_found_up_to_the_last_anchor_only(tmp_path: Path) -> None:
    log = await file_log(tmp_path)
    for number in range(3):
        await log.record(refused(target=str(number)))
    await log._anchor()
    for number in range(3):
        await log.record(refused(target=str(number)))
    file = only_file(tmp_path)
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole[:4]))
    assert await problems(tmp_path) == ""
    file.write_bytes(b"".join(whole[:3]))
    assert "it ends with record 3, but its anchor of" in await problems(tmp_path)
    file.write_bytes(b"".join(whole[:3]) + whole[3][:20])
    assert "names record 4" in await problems(tmp_path)
    file.write_bytes(b"".join(whole))
    assert await problems(tmp_path) == ""
    await log.close()


async def test_a_torn_last_line_is_no_tampering(tmp_path: Path) -> None:
    log = await file_log(tmp_path)
    await log.record(refused())
    file = only_file(tmp_path)
    with file.open("ab") as more:
        more.write(file.read_bytes().splitlines()[1][:100])
    report = await verified(tmp_path)
    assert report.problems == []
    assert any("not written to its end" in note for note in report.notes)
    assert any("running, or was killed" in note for note in report.notes)


async def test_a_missing_writer_is_found_by_its_anchors_and_by_the_next_writer(tmp_path: Path) -> None:
    first = await write_log(tmp_path, 2)
    second = await write_log(tmp_path, 2)
    assert await problems(tmp_path) == ""
    next((tmp_path / "audit").glob(f"*{first.writer}*")).unlink()
    assert f"writer {first.writer}: all its records are missing, which had at least 4 records" in await problems(
        tmp_path
    )
    next((tmp_path / "anchors").glob(f"*{first.writer}*")).unlink()
    assert f"writer {first.writer}: all its records are missing" in await problems(tmp_path)
    assert f"writer {first.writer}: all its records are missing" in await problems(tmp_path, anchored=False)
    next((tmp_path / "audit").glob(f"*{second.writer}*")).unlink()
    assert f"writer {second.writer}: all its records are missing" in await problems(tmp_path)


async def test_the_next_writer_finds_what_was_cut_from_the_one_before_without_anchors(tmp_path: Path) -> None:
    await write_log(tmp_path, 5, anchored=False)
    file = only_file(tmp_path)
    await write_log(tmp_path, 1, anchored=False)
    assert await problems(tmp_path, anchored=False) == ""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert "names record 7" in await problems(tmp_path, anchored=False)


async def test_a_writer_that_is_only_known_from_anchors_of_others_is_missed(tmp_path: Path) -> None:
    first = await write_log(tmp_path, 1)
    await write_log(tmp_path, 1)
    await write_log(tmp_path, 1)
    next((tmp_path / "audit").glob(f"*{first.writer}*")).unlink()
    next((tmp_path / "anchors").glob(f"*{first.writer}*")).unlink()
    assert f"writer {first.writer}" in await problems(tmp_path)


async def test_a_forged_writer_is_found(root: Path) -> None:
    forged = Chain(OTHER, new_writer())
    line = forged.seal(Entry(event=refused(), at=NOW)).line
    (root / "audit" / f"audit-{forged.writer}.jsonl").write_bytes(line + b"\n")
    assert "written with a key that is not here" in await problems(root)


async def test_a_forger_who_has_the_key_but_not_the_anchors_is_found(root: Path) -> None:
    forged = Chain(KEYS.current, new_writer())
    line = forged.seal(Entry(event=refused(), at=NOW - timedelta(hours=1))).line
    (root / "audit" / f"audit-{forged.writer}.jsonl").write_bytes(line + b"\n")
    assert f"writer {forged.writer}: no anchor names it" in await problems(root)


async def test_a_log_written_anew_with_the_key_is_not_the_one_that_was_anchored(root: Path) -> None:
    file = only_file(root)
    forged = Chain(KEYS.current, file.name[6:32])
    lines = [forged.seal(Entry(event=refused(target=str(number)), at=NOW)).line for number in range(LINES)]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    assert f"record {LINES} is not the one that was anchored" in await problems(root)


async def test_a_file_under_another_writers_name_is_found(root: Path) -> None:
    file = only_file(root)
    file.rename(file.with_name(f"audit-{new_writer()}.jsonl"))
    found = await problems(root)
    assert "it is a record of writer" in found
    assert "all its records are missing" in found or "it ends with record 0" in found


async def test_a_copy_beside_the_original_is_found(root: Path) -> None:
    file = only_file(root)
    shutil.copy(file, file.with_name(file.name.replace(".jsonl", ".0002.jsonl")))
    assert "again or out of order" in await problems(root)


async def test_the_wrong_key_is_said(root: Path) -> None:
    report = await verified(root, keys=AuditKeys(OTHER))
    assert (report.sound, report.key_is_wrong, report.records, report.anchors) == (False, True, 0, 0)
    assert report.problems_found == 1
    (problem,) = report.problems
    assert problem.startswith(f"the key is not that of this log: {LINES + 2} records and anchors name another")
    assert not any("it has no record" in note for note in report.notes)


async def test_a_wrong_key_hides_nothing_else(tmp_path: Path) -> None:
    first = await write_log(tmp_path, 200)
    await write_log(tmp_path, 2)
    next((tmp_path / "audit").glob(f"*{first.writer}*")).unlink()
    (other,) = (tmp_path / "audit").iterdir()
    other.write_bytes(other.read_bytes() + b"garbage\n")
    report = await verified(tmp_path, keys=AuditKeys(OTHER))
    assert report.problems_found == len(report.problems) == 3
    assert report.problems[0].startswith("the key is not that of this log")
    assert report.problems[1] == f"{other.name} line 5: it is not a record"
    assert report.problems[2].startswith(f"writer {first.writer}: all its records are missing")


@pytest.mark.parametrize("good", ["record", "anchor"])
async def test_lines_of_another_key_are_told_of_each_when_anything_verifies(root: Path, good: str) -> None:
    forged = Chain(OTHER, only_file(root).name[6:32])
    lines = [forged.seal(Entry(event=refused(), at=NOW)).line for _ in range(300)]
    file = only_file(root)
    mine = file.read_bytes().splitlines()
    if good == "record":
        shutil.rmtree(root / "anchors")
    file.write_bytes(b"".join(line + b"\n" for line in [*lines, *(mine if good == "record" else [])]))
    report = await verified(root, anchored=good == "anchor")
    assert not report.key_is_wrong
    assert report.problems_found == (300 if good == "record" else 301)
    assert len(report.problems) == 100
    assert report.problems[0] == f"{file.name} line 1: it was written with a key that is not here, or altered"
    assert not any("the key is not that" in problem for problem in report.problems)


@pytest.mark.parametrize("json", [True, False])
def test_the_command_line_says_once_that_the_key_is_wrong(
    root: Path, capsys: pytest.CaptureFixture[str], json: bool
) -> None:
    def opened() -> AbstractAsyncContextManager[AuditPlaces]:
        return open_places(keys=AuditKeys(OTHER), directory=root / "audit", anchor_directory=root / "anchors")

    assert cli.verify(opened=opened, since=None, json=json) == 1
    shown = capsys.readouterr()
    if json:
        told = msgspec.json.decode(shown.out)
        assert (told["sound"], told["key_is_wrong"], told["problems_found"]) == (False, True, 1)
    else:
        (line,) = shown.err.splitlines()
        assert line.startswith("problem: the key is not that of this log")
        assert "can't be verified: 0 records" in shown.out
    assert OTHER.id not in shown.out + shown.err
    options = {"since": None, "until": None, "kept_since": None, "force": False}
    assert cli.export(root / "copy", opened=opened, **options) == 1  # type: ignore[arg-type]
    assert "is not verified; nothing was copied" in capsys.readouterr().out


async def test_records_of_before_a_rotation_of_the_key_are_read(tmp_path: Path) -> None:
    await write_log(tmp_path, 2)
    both = AuditKeys(OTHER, [KEYS.current])
    await write_log(tmp_path, 2, keys=both)
    assert await problems(tmp_path, keys=both) == ""
    assert not (await verified(tmp_path, keys=AuditKeys(OTHER))).sound


async def test_a_log_goes_on_in_further_files_and_a_lost_one_is_found(tmp_path: Path) -> None:
    log = await file_log(tmp_path, rotate_bytes=1_000)
    for number in range(12):
        await log.record(refused(target=str(number)))
    await log.close()
    files = LineFiles(tmp_path / "audit", prefix="audit").paths(log.writer)
    assert len(files) >= 4
    assert await problems(tmp_path) == ""
    hidden = files[1].read_bytes()
    files[1].unlink()
    assert "are missing before it" in await problems(tmp_path)
    files[1].write_bytes(hidden[:-30])
    assert "missing before it" in await problems(tmp_path)
    files[1].write_bytes(hidden + hidden.splitlines()[0][:50])
    report = await verified(tmp_path)
    assert report.problems == []
    assert "the log goes on behind it" in report.notes[0]


async def test_the_old_may_be_archived_as_far_as_anchors_vouch_for_it(tmp_path: Path) -> None:
    old = await write_log(tmp_path, 2)
    log = await file_log(tmp_path, rotate_bytes=1_000)
    for number in range(12):
        await log.record(refused(target=str(number)))
        await log._anchor()
    await log.close()
    mine = LineFiles(tmp_path / "audit", prefix="audit").paths(log.writer)
    keep = read_line(mine[2].read_bytes().splitlines()[0], KEYS)
    for gone in [*mine[:2], *(tmp_path / "audit").glob(f"*{old.writer}*")]:
        gone.unlink()
    assert not (await verified(tmp_path)).sound
    anchors = [
        read_anchor(line, KEYS)
        for line in next((tmp_path / "anchors").glob(f"*{log.writer}*")).read_bytes().splitlines()
    ]
    vouched = next(anchor.at for anchor in anchors if anchor.number >= keep.number - 1)
    too_early = next(anchor.at for anchor in anchors if anchor.number >= 1)
    assert (await verified(tmp_path, since=vouched)).problems == []
    assert not (await verified(tmp_path, since=too_early)).sound
    mine[2].unlink()
    assert not (await verified(tmp_path, since=vouched)).sound


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"{}\n",
        b"\0" * 100 + b"\n",
        b"x" * 100_000 + b"\n",
        b'{"v":1,"key":"0000000000000000","writer":"x","mac":"' + b"0" * 64 + b'"}\n',
        b"\xff\xfe\r\x1b[2J\n",
        b'{"v":1,"key":"' + b"[" * 50_000 + b"\n",
    ],
)
async def test_garbage_is_a_problem_and_no_more(root: Path, garbage: bytes) -> None:
    file = only_file(root)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:4], garbage, *lines[4:]]))
    report = await verified(root)
    assert report.problems_found == 1
    assert "line 5" in report.problems[0]
    assert len(report.problems[0]) < 300


async def test_a_million_problems_are_counted_and_a_hundred_told(root: Path) -> None:
    only_file(root).write_bytes(b"x\n" * 5_000)
    report = await verified(root)
    assert report.problems_found >= 5_000
    assert len(report.problems) == 100


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
async def test_what_is_no_file_is_refused(root: Path, kind: str) -> None:
    file = only_file(root)
    moved = root / "elsewhere"
    file.rename(moved)
    if kind == "symlink":
        file.symlink_to(moved)
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    try:
        report = await verified(root)
    except KisekiError:
        return
    assert not report.sound


async def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    chain = Chain(KEYS.current, new_writer())
    (tmp_path / "audit").mkdir()
    with (tmp_path / "audit" / f"audit-{chain.writer}.jsonl").open("wb") as file:
        for number in range(20_000):
            file.write(chain.seal(Entry(event=refused(target=f"UserAccount-{number}"), at=NOW)).line + b"\n")
    tracemalloc.start()
    try:
        report = await verified(tmp_path, anchored=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.records == 20_000
    assert report.sound
    assert peak < 3_000_000


async def test_a_log_can_be_verified_while_it_is_written(tmp_path: Path) -> None:
    log = await file_log(tmp_path, anchor_interval=0.002, rotate_bytes=20_000)
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await log.record(refused())

    writers = [asyncio.create_task(write()) for _ in range(3)]
    for _ in range(10):
        report = await verified(tmp_path)
        assert report.problems == []
        other = await write_log(tmp_path, 1)
        assert other.writer
    stop.set()
    await asyncio.gather(*writers)
    await log.close()
    assert await problems(tmp_path) == ""


async def test_an_export_is_a_verified_copy_with_a_manifest(root: Path) -> None:
    file = only_file(root)
    output = BytesIO()
    records = [read_line(line, KEYS) for line in file.read_bytes().splitlines()]
    report, manifest = await export_log(
        LineFiles(root / "audit", prefix="audit"),
        output,
        keys=KEYS,
        now=NOW,
        anchors=FileAnchors(root / "anchors"),
        since=records[2].at,
        until=records[-1].at + timedelta(seconds=1),
    )
    assert report.sound
    about = msgspec.json.decode(manifest)
    assert about["sha256"] == hashlib.sha256(output.getvalue()).hexdigest()
    body, mac = split_line(manifest)
    assert mac.decode() == KEYS.current.of_manifest(body)
    copied = [read_line(line, KEYS) for line in output.getvalue().splitlines()]
    assert copied == [record for record in records if record.at >= records[2].at]
    (of_writer,) = about["writers"].values()
    assert of_writer["mac"] == records[-1].mac
    assert of_writer["previous"] == copied[0].previous


async def test_an_export_of_a_log_that_is_not_sound_says_so_and_leaves_out_what_is_not_authentic(root: Path) -> None:
    file = only_file(root)
    file.write_bytes(file.read_bytes().replace(b"UserAccount-2", b"UserAccount-9"))
    output = BytesIO()
    report, manifest = await export_log(
        LineFiles(root / "audit", prefix="audit"), output, keys=KEYS, now=NOW, anchors=FileAnchors(root / "anchors")
    )
    assert not report.sound
    assert msgspec.json.decode(manifest)["sound"] is False
    assert b"UserAccount-9" not in output.getvalue()


async def test_records_of_two_chains_of_one_writer_do_not_pass_for_one(tmp_path: Path) -> None:
    writer = new_writer()
    first, second = Chain(KEYS.current, writer), Chain(KEYS.current, writer)
    one = [first.seal(Entry(event=refused(target=f"a{number}"), at=NOW)).line for number in range(4)]
    other = [second.seal(Entry(event=refused(target=f"b{number}"), at=NOW)).line for number in range(4)]
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / f"audit-{writer}.jsonl").write_bytes(
        b"".join(line + b"\n" for line in [*one[:2], *other[2:]])
    )
    assert "record 3 does not follow the one before it" in await problems(tmp_path, anchored=False)


class Growing(FileAnchors):
    """Anchors of which the last ones come while somebody verifies."""

    async def newest(self, writer: str, most: int) -> Any:
        return [await self.first(writer)]


async def test_anchors_that_come_while_the_log_is_read_are_not_held_against_it(root: Path) -> None:
    file = only_file(root)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))
    report = await verify_log(
        LineFiles(root / "audit", prefix="audit"), keys=KEYS, now=NOW, anchors=Growing(root / "anchors")
    )
    assert report.problems == []
