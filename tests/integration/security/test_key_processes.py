"""Several processes on one key store, some of which are killed."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.kernel.personal import Erased
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.security.conftest import KeyProcess
from tests.integration.security.key_process import CONTEXT
from tests.integration.security.test_key_erasure import content

Start = Callable[[Path], KeyProcess]


async def unopened(directory: Path, lines: list[str]) -> list[str]:
    """The subjects whose seals do not open with what the files hold."""
    store = await SqliteKeyStore.open(directory / "keys.sqlite")
    master = LocalMasterKey.load(directory / "master.key")
    keys = await KeyProtector.open(store=store, wrapper=master, clock=SystemClock())
    ciphers = await keys.ciphers([line.split()[0] for line in lines])
    missing = []
    for subject, sealed in (line.split() for line in lines):
        cipher = ciphers.get(subject)
        if cipher is None or isinstance(cipher, Erased) or cipher.open(sealed, CONTEXT) != subject.encode():
            missing.append(subject)
    await store.close()
    return missing


async def test_a_key_is_durable_when_ensure_returns(tmp_path: Path, start: Start) -> None:
    for number in range(5):
        process = start(tmp_path)
        process.answers("ready")
        lines = process.ask("ensure " + " ".join(f"A-{number}-{subject}" for subject in range(40)))
        process.kill()
        assert len(lines) == 40
        assert await unopened(tmp_path, lines) == []


async def test_processes_that_start_at_once_share_master_key_and_store(tmp_path: Path, start: Start) -> None:
    processes = [start(tmp_path) for _ in range(4)]
    lines = []
    for number, process in enumerate(processes):
        process.answers("ready")
        lines += process.ask(f"ensure A-{number}")
    assert await unopened(tmp_path, lines) == []


async def test_processes_that_make_keys_for_the_same_subjects_agree(tmp_path: Path, start: Start) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    for process in processes:
        process.answers("ready")
    for number in range(5):
        subjects = [f"A-{number}-{subject}" for subject in range(200)]
        for process in processes:
            process.send("ensure " + " ".join(random.sample(subjects, len(subjects))))
        lines = [line for process in processes for line in process.answers()]
        assert len(lines) == 400
        assert await unopened(tmp_path, lines) == []


async def test_an_erasure_is_heard_by_the_other_process_and_leaves_nothing(tmp_path: Path, start: Start) -> None:
    eraser, reader = start(tmp_path), start(tmp_path)
    for process in (eraser, reader):
        process.answers("ready")
    eraser.ask("ensure A-1 A-2")
    assert reader.ask("look A-1") == ["key"]
    store = await SqliteKeyStore.open(tmp_path / "keys.sqlite")
    (key,) = (await store.load(["A-1"]))["A-1"].keys
    await store.close()
    assert base64.b64encode(key.wrapped) in content(tmp_path)
    eraser.ask("erase A-1")
    assert base64.b64encode(key.wrapped)[:16] in content(tmp_path), "the id of the master key, which others share"
    assert base64.b64encode(key.wrapped)[-48:] not in content(tmp_path)
    while reader.ask("look A-1") == ["key"]:
        pass  # for a second at most; the test's own time limit ends it otherwise
    assert reader.ask("look A-1") == ["erased"]
    assert reader.ask("look A-2") == ["key"]


async def test_an_erasure_waits_for_readers_in_other_processes(tmp_path: Path, start: Start) -> None:
    eraser, reader = start(tmp_path), start(tmp_path)
    for process in (eraser, reader):
        process.answers("ready")
    eraser.ask("ensure A-1")
    reader.ask("hold")
    eraser.send("erase A-1")
    reader.ask("release")
    assert eraser.answers() == []
    assert reader.ask("look A-1") == ["erased"]
