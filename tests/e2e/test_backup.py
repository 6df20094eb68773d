"""`kiseki backup` on a running system of real processes: copies, a lost disk, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.backed_up import BackedUp, backed_up
from tests.e2e.commands import complaint


@pytest.fixture
def system(tmp_path: Path) -> Iterator[BackedUp]:
    yield from backed_up(tmp_path / "system")


async def test_a_lost_disk_comes_back_from_backups(system: BackedUp) -> None:
    await system.start()
    kept, erased = await system.create("Hanako"), await system.create("Erased")
    made = system.kiseki("backup", "create")
    assert made.count("verified it") == 3, made  # journal, audit, keys
    await system.erase(erased)  # after the backup: only the ledger knows
    lost = await system.create("Too late")
    system.lose_data()

    restored = system.kiseki("backup", "restore")
    assert "journal: restored from the backup" in restored
    assert "keys: restored from the backup" in restored
    assert "1 keys destroyed again" in restored
    await system.start()
    system.token = ""
    assert await system.names() == {kept: "Hanako Yamada"}
    assert lost not in await system.names()
    await system.rename(kept, "Sato")
    assert await system.names() == {kept: "Hanako Sato"}
    assert "is sound" in system.kiseki("journal", "verify")
    system.stop()
    assert "all in force" in system.kiseki("erasure", "verify")


async def test_backups_under_load_equal_the_journal(system: BackedUp) -> None:
    """Writers go on; every copy is of one moment, and what it holds is in the live journal, event by event."""
    await system.start()
    account = await system.create()
    stop = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            written += 1
            await system.rename(account, f"Number {written}")

    writing = asyncio.create_task(write())
    try:
        for _ in range(3):
            done = await asyncio.to_thread(system.run, "backup", "create", "--part", "journal", "--json")
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert "every event equals the live journal" in answer["verified"]
            assert answer["contents"]["events"] >= 1
    finally:
        stop.set()
        await writing
    events = [one["contents"]["events"] for one in system.backups()]
    assert events == sorted(events)
    assert all(one["verified"] for one in system.backups())


async def test_continuous_protection_loses_only_what_came_after_its_last_step(system: BackedUp) -> None:
    await system.start()
    first = await system.create("First")
    system.kiseki("backup", "protect", "--once")
    second = await system.create("Second")
    system.kiseki("backup", "protect", "--once")
    third = await system.create("Third")
    system.lose_data()
    restored = json.loads(system.kiseki("backup", "restore", "--json"))
    assert "continuous protection" in restored["journal_from"]
    assert restored["journal"]["commits"] == 2
    await system.start()
    system.token = ""
    assert set(await system.names()) == {first, second}
    assert third not in await system.names()


async def test_protection_runs_until_it_is_told_to_end(system: BackedUp) -> None:
    await system.start()
    await system.create()
    protecting = subprocess.Popen(  # noqa: ASYNC220  # waited for in a thread
        [sys.executable, "-m", "kiseki", "backup", "protect"],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("KISEKI_")},
            **system.environment,
            "KISEKI_DATA_DIR": str(system.data_dir),
            "KISEKI_PROTECTION_INTERVAL": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        text = await asyncio.to_thread(eventually_listed, system, "continuous protection of", missing="none yet")
        assert text.count("up to") == 2
        protecting.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(protecting.wait, 30) == 0
    finally:
        protecting.kill()


def eventually_listed(system: BackedUp, wanted: str, *, missing: str) -> str:
    for _ in range(60):
        text = system.kiseki("backup", "list")
        if wanted in text and missing not in text:
            return text
    raise AssertionError(text)


async def test_what_is_live_and_sound_is_not_replaced(system: BackedUp) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create")
    await system.create("Newer")
    system.stop()
    assert "nothing was changed" in complaint(system.run("backup", "restore"))
    refused = complaint(system.run("backup", "restore", "--part", "journal"))
    assert "1 commits that this backup lacks" in refused
    assert "--discard-newer" in refused
    await system.start()
    system.token = ""
    assert len(await system.names()) == 2
    system.stop()
    forced = system.kiseki("backup", "restore", "--part", "journal", "--discard-newer")
    assert "1 newer commits of the live journal are not in it" in forced
    assert "is kept:" in forced
    await system.start()
    assert len(await system.names()) == 1


async def test_a_store_in_use_is_not_replaced(system: BackedUp) -> None:
    await system.start()
    account = await system.create()
    system.kiseki("backup", "create")
    refused = complaint(system.run("backup", "restore", "--part", "journal", "--discard-newer"))
    assert "stop kiseki" in refused
    await system.rename(account, "Still here")
    assert await system.names() == {account: "Hanako Still here"}


@pytest.mark.parametrize("how", ["truncated", "altered", "removed"])
async def test_a_damaged_backup_is_found_and_nothing_is_touched(system: BackedUp, how: str) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create", "--part", "journal", "--part", "keys")
    system.stop()
    (backup,) = system.backups()
    folder = system.elsewhere / "backups" / "journal" / backup["id"]
    (file, *_) = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    data = file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "altered":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    else:
        file.unlink()
    before = _digest(system.data_dir)
    said = complaint(system.run("backup", "verify", "--part", "journal"))
    assert backup["id"] in said or file.name in said
    complaint(system.run("backup", "restore", "--part", "journal", "--discard-newer"))
    assert _digest(system.data_dir) == before
    assert not system.backups()[0]["verified"]
    await system.start()
    assert len(await system.names()) == 1
    again = system.run("backup", "create", "--part", "journal")
    assert again.returncode == 0, again.stderr


def _digest(folder: Path) -> dict[str, bytes]:
    """The stores themselves; the audit log grows, and what SQLite keeps beside a file may come and go."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.db"))
        if "audit" not in path.parts
    }


async def test_two_operators_at_once(system: BackedUp) -> None:
    await system.start()
    await system.create()
    both = await asyncio.gather(
        *(asyncio.to_thread(system.run, "backup", "create", "--part", "journal") for _ in range(2))
    )
    outcomes = sorted(done.returncode for done in both)
    assert outcomes in ([0, 0], [0, 1])  # they may have missed each other
    for done in both:
        if done.returncode:
            assert done.stderr.count("\n") == 1
            assert "Traceback" not in done.stderr
    assert all(one["verified"] for one in system.backups())


async def test_a_killed_backup_is_no_backup_and_the_next_one_works(system: BackedUp) -> None:
    await system.start()
    account = await system.create()
    for number in range(20):
        await system.rename(account, f"Number {number}")
    for seconds in (0.3, 0.6, 0.9, 1.2):
        await _killed(system, seconds, "backup", "create")
    made = system.run("backup", "create")
    assert made.returncode == 0, made.stderr
    assert system.backups()[-1]["verified"]
    await system.rename(account, "Still served")
    assert list((system.elsewhere / "backups").rglob(".*part*")) == []


async def test_a_killed_restore_is_made_good_by_the_next(system: BackedUp) -> None:
    """Killed at many moments, of a lost disk and of a journal that is there; what is there is always whole."""
    await system.start()
    account = await system.create()
    for number in range(50):
        await system.rename(account, f"Number {number}")
    system.kiseki("backup", "create")
    system.lose_data()
    for seconds in (0.6, 0.9, 1.2, 1.5, 1.8):
        await _killed(system, seconds, "backup", "restore")
    done = system.run("backup", "restore")
    # One of those that were killed may have come to its end just before.
    assert done.returncode == 0 or "nothing was changed" in done.stderr, done.stderr
    assert "is sound: 51 commits" in system.kiseki("journal", "verify")
    for seconds in (0.8, 1.1, 1.4, 1.7):
        await _killed(system, seconds, "backup", "restore", "--part", "journal", "--discard-newer")
        assert "is sound: 51 commits" in system.kiseki("journal", "verify")
    system.kiseki("backup", "restore", "--part", "journal")
    left = [path.name for path in system.data_dir.iterdir() if "restored-" in path.name]
    assert left == []
    await system.start()
    system.token = ""
    assert await system.names() == {account: "Hanako Number 49"}


async def _killed(system: BackedUp, seconds: float, *arguments: str) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220  # waited for in a thread
        [sys.executable, "-m", "kiseki", *arguments],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("KISEKI_")},
            **system.environment,
            "KISEKI_DATA_DIR": str(system.data_dir),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await asyncio.to_thread(process.wait, seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_places_that_cant_be_used_are_said_in_one_line(system: BackedUp) -> None:
    await system.start()
    await system.create()
    missing = complaint(system.run("backup", "create", "--part", "journal", KISEKI_BACKUP="/nonexistent/disk/backups"))
    assert "/nonexistent/disk" in missing
    unset = complaint(system.run("backup", "create", KISEKI_BACKUP="", KISEKI_BACKUP_KEYS=""))
    assert "backup" in unset
    same = complaint(system.run("backup", "create", KISEKI_BACKUP_KEYS=system.environment["KISEKI_BACKUP"]))
    assert "backup_keys" in same
    inside = complaint(system.run("backup", "create", KISEKI_BACKUP=str(system.data_dir / "backups")))
    assert "data directory" in inside
    typo = complaint(system.run("backup", "create", "--part", "jurnal"))
    assert "journal" in typo
    unknown = complaint(system.run("backup", "verify", "20260301T120000Z-000000"))
    assert "kiseki backup list" in unknown
    nothing = complaint(system.run("backup", "restore", "--part", "audit"))
    assert "no backup of audit" in nothing


async def test_the_key_store_of_another_journal_is_refused(system: BackedUp, tmp_path: Path) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create")
    system.stop()
    for other in backed_up(tmp_path / "other"):
        await other.start()
        await other.create("Somebody else")
        other.kiseki("backup", "create")
        other.lose_data()
        shutil.rmtree(other.elsewhere / "key-backups")
        shutil.copytree(system.elsewhere / "key-backups", other.elsewhere / "key-backups")
        refused = complaint(other.run("backup", "restore"))
        assert "belong" in refused
        assert not (other.data_dir / "journal.db").exists()


async def test_the_audit_log_comes_back(system: BackedUp) -> None:
    await system.start()
    await system.create()
    await with_erased(system)
    system.stop()
    before = {path.name: path.read_bytes() for path in (system.data_dir / "audit").glob("*.jsonl")}
    system.kiseki("backup", "create", "--part", "audit")
    shutil.rmtree(system.data_dir / "audit")
    system.kiseki("backup", "restore", "--part", "audit")
    after = {path.name: path.read_bytes() for path in (system.data_dir / "audit").glob("*.jsonl")}
    assert {name: after[name] for name in before} == before
    assert "is sound" in system.kiseki("audit", "verify")
    system.kiseki("backup", "restore", "--part", "audit")
    again = {path.name: path.read_bytes() for path in (system.data_dir / "audit").glob("*.jsonl")}
    assert {name: again[name] for name in before} == before


async def with_erased(system: BackedUp) -> None:
    await system.erase(await system.create("Gone"))


async def test_an_empty_start_does_not_hide_the_real_copies(system: BackedUp) -> None:
    """A supervisor starts the service on a lost disk before anybody restores, and what it made is protected too."""
    await system.start()
    account = await system.create()
    system.kiseki("backup", "protect", "--once")
    system.lose_data()
    # The ledger tells a new key store apart, so in earnest it does not even start; here it is as if it had.
    await asyncio.to_thread(shutil.move, system.elsewhere / "erasures", system.elsewhere / "erasures.away")
    await system.start()
    await system.create("Nobody")
    refused = system.run("backup", "protect", "--once")
    assert refused.returncode == 1
    assert "copies of another journal" in refused.stderr
    assert "Traceback" not in refused.stderr
    system.lose_data()
    await asyncio.to_thread(shutil.rmtree, system.elsewhere / "erasures")
    await asyncio.to_thread(shutil.move, system.elsewhere / "erasures.away", system.elsewhere / "erasures")
    system.kiseki("backup", "restore")
    await system.start()
    system.token = ""
    assert set(await system.names()) == {account}


async def test_nothing_starts_between_the_two_switches(system: BackedUp) -> None:
    """A restore that was ended there goes on when it is run again, and only then may anything start."""
    await system.start()
    account = await system.create()
    system.kiseki("backup", "create")
    system.stop()
    plan = {"parts": ["journal", "keys"], "discard_newer": True}
    (system.data_dir / "restore.pending").write_text(json.dumps(plan))
    assert "kiseki backup restore" in complaint(system.run("serve"))
    assert "kiseki backup restore" in complaint(system.run("keys", "status"))
    restored = system.kiseki("backup", "restore")
    assert "journal: restored from the backup" in restored
    assert "keys: restored from the backup" in restored
    assert not (system.data_dir / "restore.pending").exists()
    await system.start()
    assert set(await system.names()) == {account}


async def test_a_journal_that_is_read_is_not_replaced_and_neither_are_the_keys(system: BackedUp) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create")
    system.stop()
    before = _digest(system.data_dir)
    reader = sqlite3.connect(system.data_dir / "journal.db")
    try:
        reader.execute("SELECT count(*) FROM commits").fetchone()
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM commits").fetchone()
        refused = complaint(system.run("backup", "restore", "--part", "journal", "--part", "keys", "--discard-newer"))
        assert "a process uses the journal" in refused
    finally:
        reader.close()
    assert _kept(system) == []
    assert not (system.data_dir / "restore.pending").exists()
    assert set(_digest(system.data_dir)) == set(before)
    await system.start()
    assert len(await system.names()) == 1


def _kept(system: BackedUp) -> list[str]:
    return [path.name for path in system.data_dir.rglob("*replaced*")]


async def test_a_time_is_met_by_whatever_is_nearest_before_it(system: BackedUp) -> None:
    """Protection, then a backup, then protection again: between the last two it is the backup."""
    await system.start()
    await system.create("One")
    system.kiseki("backup", "protect", "--once")
    await system.create("Two")
    system.kiseki("backup", "create")
    between = json.loads(system.kiseki("backup", "create", "--part", "journal", "--json"))["asOf"]
    await system.create("Three")
    system.kiseki("backup", "protect", "--once")
    system.stop()
    arguments = ("backup", "restore", "--part", "journal", "--discard-newer", "--json")
    restored = json.loads(system.kiseki(*arguments, "--until", between))
    assert "the backup" in restored["journal_from"]
    assert restored["journal"]["commits"] == 2
    newest = json.loads(system.kiseki(*arguments))
    assert "continuous protection" in newest["journal_from"]
    assert newest["journal"]["commits"] == 3
    both = complaint(
        system.run("backup", "restore", "--part", "journal", "--until", between, "20260301T120000Z-000000")
    )
    assert "not both" in both


async def test_keys_are_restored_from_the_backup_that_is_named(system: BackedUp) -> None:
    await system.start()
    account = await system.create()
    system.kiseki("backup", "create", "--part", "keys")
    system.kiseki("backup", "protect", "--once")
    system.stop()
    (backup,) = system.backups("keys")
    for base in (system.elsewhere / "key-backups" / "key-increments").rglob("keys.db.gz"):
        base.write_bytes(b"x")
    shutil.rmtree(system.data_dir / "keys")
    complaint(system.run("backup", "restore"))  # the newest copy is damaged
    restored = system.kiseki("backup", "restore", "--part", "keys", backup["id"])
    assert f"keys: restored from the backup {backup['id']}" in restored
    await system.start()
    assert set(await system.names()) == {account}
