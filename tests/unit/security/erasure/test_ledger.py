"""The ledger of erasures: what is written when, and that nothing of it can be changed, taken out or cut unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kiseki.kernel.erasure import PlannedErasure
from kiseki.security.digests import Digests
from kiseki.security.erasure.file_ledger import FileLedgerStore, LedgerRefused
from kiseki.security.erasure.ledger import ErasureLedger, LedgerForeign
from kiseki.security.erasure.lines import Kind, LedgerBroken, Line
from kiseki.security.erasure.store import LedgerStore, LedgerUnavailable, MemoryLedgerStore
from kiseki.security.key_store import MemoryKeyStore
from tests.unit.security.fakes import ROOT, FakeClock, WatchedStore, protector

DIGESTS = Digests(ROOT)


async def opened(store: LedgerStore, digests: Digests = DIGESTS) -> ErasureLedger:
    return await ErasureLedger.open(store, digests=digests, clock=FakeClock())


async def kinds(ledger: ErasureLedger) -> list[str]:
    return [f"{line.kind} {line.subject}" async for line in ledger.lines(1)]


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    made: LedgerStore = MemoryLedgerStore() if request.param == "memory" else await FileLedgerStore.open(tmp_path / "e")
    yield made
    await made.close()


async def test_an_erasure_has_a_line_before_its_keys_go_and_one_after(store: LedgerStore) -> None:
    ledger, keys, clock = await opened(store), WatchedStore(), FakeClock()
    told: list[list[str]] = []

    async def look() -> None:
        told.append(await kinds(ledger))

    keys.before["erase"] = look
    process = protector(keys, clock, erasure_log=ledger)
    await process.ensure(["A-1"])
    await process.erase("A-1")
    assert told == [["erase A-1"]]
    assert await kinds(ledger) == ["erase A-1", "done A-1"]
    assert [(entry.line.subject, entry.is_done) async for entry in ledger.entries()] == [("A-1", True)]


async def test_no_key_is_destroyed_while_the_ledger_can_not_be_written(tmp_path: Path) -> None:
    store = await FileLedgerStore.open(tmp_path / "e")
    ledger, keys = await opened(store), MemoryKeyStore()
    process = protector(keys, FakeClock(), erasure_log=ledger)
    await process.ensure(["A-1"])
    (tmp_path / "e" / "erasures.jsonl").rename(tmp_path / "away")
    with pytest.raises(LedgerUnavailable):
        await process.erase("A-1")
    assert (await keys.load(["A-1"]))["A-1"].keys
    (tmp_path / "away").rename(tmp_path / "e" / "erasures.jsonl")
    await process.erase("A-1")
    assert (await keys.load(["A-1"]))["A-1"].erased_at is not None


async def test_what_the_command_side_began_is_one_erasure_when_the_keys_go(store: LedgerStore) -> None:
    ledger = await opened(store)
    process = protector(MemoryKeyStore(), FakeClock(), erasure_log=ledger)
    await ledger.begin(PlannedErasure(subject="A-1", stream="A-1", command="forget"))
    await ledger.begin(PlannedErasure(subject="A-1", stream="A-1", command="forget"))
    await process.erase("A-1")
    await process.erase("A-2")
    assert await kinds(ledger) == ["erase A-1", "done A-1", "erase A-2", "done A-2"]
    first = (await anext(ledger.entries())).line
    assert (first.stream, first.command) == ("A-1", "forget")


async def test_a_crash_leaves_an_open_line(store: LedgerStore) -> None:
    await (await opened(store)).begin(PlannedErasure(subject="A-1", stream="A-1"))
    again = await opened(store)
    assert [(entry.line.subject, entry.is_done) async for entry in again.entries()] == [("A-1", False)]
    (entry,) = [entry async for entry in again.entries()]
    await again.settle(entry.line.number, "A-1", Kind.WITHDRAWN)
    assert [entry async for entry in again.entries()] == []
    # It was only slow: what is done is done, whoever took it for lost.
    await again.settle(entry.line.number, "A-1", Kind.DONE)
    assert [(entry.line.subject, entry.is_done) async for entry in again.entries()] == [("A-1", True)]


async def test_processes_that_write_at_once_take_turns(tmp_path: Path) -> None:
    ledgers = [await opened(await FileLedgerStore.open(tmp_path / "e")) for _ in range(4)]
    await asyncio.gather(
        *(ledger.adopt(f"A-{one}-{number}") for one, ledger in enumerate(ledgers) for number in range(10))
    )
    lines = [line async for line in ledgers[0].lines()]
    assert [line.number for line in lines] == list(range(1, 82))
    assert len({entry.line.subject async for entry in ledgers[0].entries()}) == 40


async def test_reading_begins_anywhere_without_reading_what_is_before(tmp_path: Path) -> None:
    store = await FileLedgerStore.open(tmp_path / "e")
    ledger = await opened(store)
    for number in range(60):
        await ledger.adopt(f"Account-{number:040d}")
    everything = [line.number async for line in ledger.lines()]
    assert everything == list(range(1, 122))
    for after in range(122):
        assert [line.number async for line in ledger.lines(after)] == everything[after:]
        assert [line.number for line in await store.lines(after, 3)] == everything[after : after + 3]


@pytest.mark.parametrize(
    "what", ["subject", "at", "kind", "refers", "command", "mac", "swap", "out", "twice", "insert"]
)
async def test_whatever_is_changed_is_found(what: str) -> None:
    store = MemoryLedgerStore()
    ledger = await opened(store)
    for subject in ("A-1", "A-2", "A-3"):
        await ledger.adopt(subject)
    kept = store.kept
    third = kept[3]
    changes: dict[str, Line] = {
        "subject": msgspec.structs.replace(third, subject="A-9"),
        "at": msgspec.structs.replace(third, at=kept[0].at.replace(year=2020)),
        "kind": msgspec.structs.replace(third, kind=Kind.WITHDRAWN),
        "refers": msgspec.structs.replace(third, refers=77),
        "command": msgspec.structs.replace(third, command="other"),
        "mac": msgspec.structs.replace(third, mac=third.mac.upper()),
    }
    if what in changes:
        kept[3] = changes[what]
    elif what == "swap":
        kept[3], kept[5] = kept[5], kept[3]
    elif what == "out":  # and renumbered, so that no gap shows
        store.kept = kept[:3] + [msgspec.structs.replace(line, number=line.number - 1) for line in kept[4:]]
    elif what == "twice":
        kept.insert(4, third)
    else:
        kept.insert(4, msgspec.structs.replace(third, number=5, subject="A-9"))
    with pytest.raises(LedgerBroken):
        [line async for line in ledger.lines()]


async def test_a_cut_end_is_found_by_the_mark(store: LedgerStore, tmp_path: Path) -> None:
    ledger = await opened(store)
    await ledger.adopt("A-1")
    older = list(await store.lines(0, 100))
    await ledger.adopt("A-2")
    last = await ledger.last()
    assert last is not None
    await ledger.set_mark(last, 2)
    mark = await ledger.mark()
    assert mark is not None
    assert (mark.number, mark.key_mark) == (5, 2)
    if isinstance(store, MemoryLedgerStore):
        store.kept = older
    else:
        file = tmp_path / "e" / "erasures.jsonl"
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(LedgerBroken):
        await ledger.mark()


async def test_an_older_copy_that_was_written_on_is_found_by_the_mark() -> None:
    store = MemoryLedgerStore()
    ledger = await opened(store)
    await ledger.adopt("A-1")
    older = list(store.kept)
    await ledger.adopt("A-2")
    last = await ledger.last()
    assert last is not None
    await ledger.set_mark(last, 2)
    store.kept = older
    await ledger.adopt("A-3")  # as long as before, and sound in itself
    with pytest.raises(LedgerBroken):
        await ledger.mark()


async def test_a_forged_mark_counts_for_nothing() -> None:
    store = MemoryLedgerStore()
    ledger = await opened(store)
    await ledger.adopt("A-1")
    last = await ledger.last()
    assert last is not None
    await ledger.set_mark(last, 1)
    assert store.marked is not None
    store.marked = msgspec.structs.replace(store.marked, key_mark=0)
    assert await ledger.mark() is None


async def test_the_ledger_of_another_key_store_is_refused(store: LedgerStore) -> None:
    await opened(store)
    with pytest.raises(LedgerForeign) as refused:
        await opened(store, Digests(bytes(32)))
    assert "erasure_ledger" in str(refused.value)


async def test_a_first_line_that_was_forged_is_refused() -> None:
    store = MemoryLedgerStore()
    await opened(store)
    store.kept[0] = msgspec.structs.replace(store.kept[0], at=store.kept[0].at.replace(year=2020))
    with pytest.raises(LedgerBroken):
        await opened(store)


@pytest.mark.parametrize("cut", [1, 20, 100])
async def test_half_a_line_that_a_power_cut_left_is_no_line(tmp_path: Path, cut: int) -> None:
    store = await FileLedgerStore.open(tmp_path / "e")
    ledger = await opened(store)
    await ledger.adopt("A-1")
    file = tmp_path / "e" / "erasures.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-cut])
    assert await kinds(ledger) == ["erase A-1", "done A-1"]
    await ledger.adopt("A-2")
    assert await kinds(ledger) == ["erase A-1", "done A-1", "erase A-2", "done A-2"]


async def test_files_that_others_may_read_are_refused_and_new_ones_are_private(tmp_path: Path) -> None:
    await opened(await FileLedgerStore.open(tmp_path / "e"))
    assert (tmp_path / "e").stat().st_mode & 0o077 == 0
    file = tmp_path / "e" / "erasures.jsonl"
    assert file.stat().st_mode & 0o077 == 0
    file.chmod(0o640)
    with pytest.raises(LedgerRefused):
        await FileLedgerStore.open(tmp_path / "e")


async def test_what_is_no_line_is_damage(tmp_path: Path) -> None:
    store = await FileLedgerStore.open(tmp_path / "e")
    ledger = await opened(store)
    await ledger.adopt("A-1")
    file = tmp_path / "e" / "erasures.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(LedgerBroken):
        await kinds(ledger)


async def test_the_ledger_tells_no_key(tmp_path: Path) -> None:
    store = await FileLedgerStore.open(tmp_path / "e")
    await (await opened(store)).adopt("A-1")
    content = (tmp_path / "e" / "erasures.jsonl").read_bytes()
    assert ROOT.hex().encode() not in content
    assert DIGESTS.ledger_key.hex().encode() not in content
