"""`kiseki audit tail | verify | export`: what is printed, exit codes, and nothing that plays tricks on a terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from kiseki.cli.audit import TimeInvalid, export, moment, tail, verify
from kiseki.journal.transfer.transferable import TransferFailed
from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.places import AuditLogNotKept, AuditPlaces, open_places
from tests.unit.security.audit.parts import KEYS, file_log

Opened = Callable[[], AbstractAsyncContextManager[AuditPlaces]]


async def _written(root: Path) -> None:
    log = await file_log(root)
    await log.record(
        AuditEvent(
            kind="access.denied", outcome="refused", code="FORBIDDEN", actor="a" * 32, address="192.0.2.1",
            api="command", operation="delete\x1b[2JUser\u202eAccount", target="UserAccount-1",
        )
    )  # fmt: skip
    for _ in range(5):
        log.note(AuditEvent(kind="limit.hit", outcome="refused", address="192.0.2.9"))
    await log.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    asyncio.run(_written(tmp_path))
    return tmp_path


def opened(root: Path, keys: AuditKeys = KEYS) -> Opened:
    return lambda: open_places(keys=keys, directory=root / "audit", anchor_directory=root / "anchors")


def only_file(root: Path) -> Path:
    (found,) = (root / "audit").iterdir()
    return found


def test_tail_shows_a_table_of_the_newest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail(opened=opened(root), lines=4, follow=False, json=False)
    out = capsys.readouterr().out
    assert "audit.stopped done" in out
    assert "audit.started" not in out
    assert "192.0.2.9" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "delete\\x1b[2JUser\\u202eAccount" in out.replace("\n", "")


def test_tail_as_json_is_lines_of_ascii(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail(opened=opened(root), lines=100, follow=False, json=True)
    out = capsys.readouterr().out
    records = [json.loads(line) for line in out.splitlines()]
    assert out.isascii()
    assert "\x1b" not in out
    assert [record["kind"] for record in records] == [
        "audit.started", "access.denied", "limit.hit", "limit.hit", "audit.stopped"
    ]  # fmt: skip
    assert records[3]["count"] == 4
    assert records[1]["operation"] == "delete\x1b[2JUser\u202eAccount"


def test_tail_tells_of_lines_that_are_not_authentic(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = only_file(root)
    file.write_bytes(file.read_bytes().replace(b"192.0.2.1", b"192.0.2.8"))
    tail(opened=opened(root), lines=100, follow=False, json=True)
    shown = capsys.readouterr()
    assert "192.0.2.8" not in shown.out
    assert "altered, or forged; run `kiseki audit verify`" in shown.err


def test_verify_says_that_a_log_is_sound(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(opened=opened(root), since=None, json=False) == 0
    out = capsys.readouterr().out
    assert "is sound: 5 records, 1 writers, 2 anchors, anchored up to 20" in out
    assert verify(opened=opened(root), since=None, json=True) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True


def test_verify_says_what_is_wrong_and_ends_with_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = only_file(root)
    file.write_bytes(file.read_bytes().replace(b"192.0.2.1", b"192.0.2.8"))
    assert verify(opened=opened(root), since=None, json=False) == 1
    shown = capsys.readouterr()
    assert f"problem: {file.name} line 2: it was altered, or forged" in shown.err
    assert "is not as it was written" in shown.out
    assert verify(opened=opened(root), since=None, json=True) == 1
    assert json.loads(capsys.readouterr().out)["problems_found"] == 1


def test_export_writes_a_copy_and_its_manifest_for_the_owner_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "copy.jsonl"
    assert export(file, opened=opened(root), since=None, until=None, kept_since=None, force=False) == 0
    assert file.read_bytes() == only_file(root).read_bytes()
    manifest = root / "copy.jsonl.manifest.json"
    assert json.loads(manifest.read_bytes())["records"] == 5
    assert file.stat().st_mode & 0o777 == manifest.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TransferFailed, match="is there already"):
        export(file, opened=opened(root), since=None, until=None, kept_since=None, force=False)
    assert export(file, opened=opened(root), since="2100-01-01", until=None, kept_since=None, force=True) == 0
    assert file.read_bytes() == b""
    assert "exported to" in capsys.readouterr().out


def test_export_of_a_log_that_is_not_sound_ends_with_one(root: Path) -> None:
    only_file(root).write_bytes(only_file(root).read_bytes()[:-1] + b"x\n")
    assert export(root / "copy", opened=opened(root), since=None, until=None, kept_since=None, force=False) == 1
    assert json.loads((root / "copy.manifest.json").read_bytes())["sound"] is False


def test_a_log_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(AuditLogNotKept, match="there is no audit log in"):
        verify(opened=opened(tmp_path), since=None, json=False)
    with pytest.raises(AuditLogNotKept, match="only printed"):
        verify(opened=lambda: open_places(keys=KEYS), since=None, json=False)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "", "12"])
def test_times_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(TimeInvalid, match="2026-03-01"):
        moment(text)


def test_times_are_utc_unless_they_say_otherwise() -> None:
    assert str(moment("2026-03-01")) == "2026-03-01 00:00:00+00:00"
    assert str(moment("2026-03-01T12:00+09:00")) == "2026-03-01 12:00:00+09:00"
    assert moment(None) is None
