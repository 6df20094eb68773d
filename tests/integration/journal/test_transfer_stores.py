"""A journal moves between stores, byte for byte, and a second run finishes what a first one began."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki.journal.port import Commit, CommitMetadata, IdempotencyRecord
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.transfer.exporting import export_journal
from kiseki.journal.transfer.importing import import_journal
from kiseki.journal.transfer.transferable import HeldClaim, TransferableJournal, TransferFailed, TransferTargetDiffers
from kiseki.journal.verify import verify
from kiseki.kernel.codec import EncodedEvent
from kiseki.testing.journal_conformance import SetClock, claimed, encoded, everything, metadata, whole_feed
from kiseki.testing.journal_tests.transfer import held_by, records_of
from tests.integration.journal.dynamodb_parts import emulator_credentials
from tests.integration.journal.postgres_parts import SlowAppend, new_journal
from tests.integration.journal.sqlite_parts import Groups, child, line_from, say
from tests.integration.journal.transfer_parts import (
    STORES,
    Open,
    by_stream,
    content,
    dynamodb,
    exported,
    exported_with_report,
    fill,
    imported,
    memory,
    postgres,
    silent,
    sqlite,
)

every_store = pytest.mark.parametrize("store", STORES)
every_pair = pytest.mark.parametrize(("source", "target"), list(product(STORES, STORES)))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens journals, on servers of the stores that the test's parameters name."""
    needed = request.node.callspec.params.values()
    url = request.getfixturevalue("postgres_url") if "postgres" in needed else ""
    endpoint = request.getfixturevalue("aws_endpoint") if "dynamodb" in needed else ""
    emulator_credentials(monkeypatch)
    stores: dict[str, Callable[[str], AbstractAsyncContextManager[TransferableJournal]]] = {
        "memory": lambda name: memory(),
        "sqlite": lambda name: sqlite(tmp_path / name),
        "postgres": lambda name: postgres(url),
        "dynamodb": lambda name: dynamodb(endpoint),
    }
    return lambda store, name: stores[store](name)


@every_pair
async def test_a_journal_moves_as_a_whole(place: Open, source: str, target: str) -> None:
    async with place(source, "source") as before, place(target, "target") as after:
        await fill(before)
        data, written = await exported_with_report(before)
        assert (written.counts.commits, written.counts.streams, written.appended_meanwhile) == (35, 7, False)
        assert (written.counts.claims, written.counts.records) == (28, 7)
        report = await imported(after, data)
        assert (report.counts, report.written) == (written.counts, 35)
        assert content(await exported(after)) == content(data)
        assert await held_by(after) == await held_by(before)
        assert await records_of(after) == await records_of(before)
        assert (await verify(after, lambda commits: None)).sound
        for stream in by_stream(data):
            assert await everything(after, stream) == await everything(before, stream)


@every_store
async def test_an_empty_journal_moves_too(place: Open, store: str) -> None:
    async with place(store, "source") as before, place(store, "target") as after:
        data = await exported(before)
        assert len(data.splitlines()) == 2
        assert (await imported(after, data)).counts.commits == 0
        assert await whole_feed(after) == []


async def test_documents_of_two_files_are_the_same_bytes(tmp_path: Path) -> None:
    async with sqlite(tmp_path / "source") as before, sqlite(tmp_path / "target") as after:
        await fill(before)
        await imported(after, await exported(before))
    rows = []
    for name in ("source", "target"):
        database = sqlite3.connect(tmp_path / name / "journal.db")
        statement = "SELECT stream, first_sequence, count, commit_id, committed_at, format, checksum, bytes, document"
        rows.append(database.execute(f"{statement} FROM commits ORDER BY 1, 2").fetchall())
        database.close()
    assert len(rows[0]) == 35
    assert rows[0] == rows[1]


@every_store
async def test_the_same_import_again_writes_nothing(place: Open, store: str) -> None:
    async with memory() as before, place(store, "target") as after:
        await fill(before)
        data = await exported(before)
        await imported(after, data)
        head = await after.head()
        report = await imported(after, data)
        assert (report.counts.commits, report.written) == (35, 0)
        assert await after.head() == head


@every_store
@pytest.mark.parametrize("there", [1, 17, 34])
async def test_an_import_goes_on_from_what_is_there(place: Open, store: str, there: int) -> None:
    async with memory() as before, place(store, "target") as after:
        await fill(before)
        for commit in (await whole_feed(before))[:there]:
            await after.append(commit.stream, commit.first_sequence_number - 1, commit.events, metadata=commit.metadata)
        await after.restore_held((await held_by(before))[:there], (await records_of(before))[: there % 7])
        data = await exported(before)
        assert (await imported(after, data)).written == 35 - there
        assert content(await exported(after)) == content(data)


_names = st.text("abcABC019._~-", min_size=1, max_size=8)
_words = st.text(max_size=20).filter(lambda text: "\x00" not in text)
_digests = _words.filter(bool)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=8,
)
_blanks = st.sampled_from(["", " ", "\n", "\r\n\t"])


@st.composite
def _events(draw: st.DrawFn) -> tuple[EncodedEvent, ...]:
    return tuple(
        EncodedEvent(
            draw(_words),
            draw(_words),
            draw(st.integers(1, 2**31)),
            # Valid JSON as others may have written it: blanks, line breaks and escapes stay as they are.
            msgspec.Raw(b'{"a":%s%s}' % (draw(_blanks).encode(), msgspec.json.encode(draw(_json)))),
            draw(st.none() | _words),
        )
        for _ in range(draw(st.integers(1, 4)))
    )


@st.composite
def _histories(draw: st.DrawFn) -> list[Commit]:
    last: dict[str, int] = {}
    commits = []
    for number in range(draw(st.integers(0, 12))):
        stream = f"Thing-{draw(st.sampled_from(['1', '2', 'a', 'A']) | _names)}"
        events = draw(_events())
        about = CommitMetadata(
            commit_id=f"{number:0>26}",
            committed_at=draw(st.datetimes(timezones=st.just(SetClock().now().tzinfo))),
            correlation_id=draw(_words),
            causation_id=draw(st.none() | _words),
            actor=draw(_words),
        )
        first = last.get(stream, 0) + 1
        commits.append(Commit(stream=stream, first_sequence_number=first, metadata=about, events=events))
        last[stream] = commits[-1].last_sequence_number
    return commits


_held = st.dictionaries(st.tuples(_words, _digests), _names.map(lambda name: f"Thing-{name}"), max_size=5)
_records = st.dictionaries(_digests, st.tuples(_words, _names, st.integers(1, 2**40), st.integers(-5, 50)), max_size=5)


@given(_histories(), _held, _records)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_journal_comes_back_through_another_store(
    history: list[Commit], held: dict[tuple[str, str], str], kept: dict[str, tuple[str, str, int, int]]
) -> None:
    claims = [HeldClaim(*value, stream) for value, stream in held.items()]
    clock = SetClock()
    records = [
        IdempotencyRecord(
            key=key,
            command_hash=command_hash,
            stream=f"Thing-{name}",
            sequence_number=number,
            expires_at=clock.now() + timedelta(hours=hours, microseconds=number % 7),
        )
        for key, (command_hash, name, number, hours) in kept.items()
    ]

    async def move(directory: Path) -> None:
        async with memory() as first, sqlite(directory / "2") as second:
            for commit in history:
                await first.append(
                    commit.stream, commit.first_sequence_number - 1, commit.events, metadata=commit.metadata
                )
            await first.restore_held(claims, records)
            data = await exported(first)
            await imported(second, data)
            again = await exported(second)
            assert content(again) == content(data)
            async with memory() as third:
                await imported(third, again)
                assert content(await exported(third)) == content(data)
                for stream in {commit.stream for commit in history}:
                    assert await everything(third, stream) == await everything(first, stream)
                assert await records_of(third) == await records_of(first)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(move(Path(directory)))


@every_store
async def test_large_commits_move(place: Open, store: str) -> None:
    async with place(store, "source") as before, place(store, "target") as after:
        limits = before.limits
        large = b'"' + b"x" * (limits.event_bytes - 2) + b'"'
        for n in range(6):
            fullest = [encoded(f"{n}.{k}", data=large) for k in range(limits.commit_bytes // limits.event_bytes)]
            await before.append(f"Thing-{n}", 0, fullest, metadata=metadata(f"a{n}"))
            many = [encoded(f"{n}.{k}") for k in range(limits.commit_events)]
            await before.append(f"Thing-{n}", len(fullest), many, metadata=metadata(f"b{n}"))
        data = await exported(before)
        await imported(after, data)
        assert content(await exported(after)) == content(data)


@every_store
async def test_other_content_is_refused_before_anything_is_written(place: Open, store: str) -> None:
    """Whatever the journal holds that the file does not say: the message names the stream, and all stays as it is."""
    async with memory() as before:
        await fill(before)
        data = await exported(before)
        first = (await whole_feed(before))[0]
    changed = msgspec.structs.replace(first.metadata, actor="another")
    others: dict[str, tuple[CommitMetadata, str, tuple[EncodedEvent, ...]]] = {
        "another stream": (metadata("X"), "Other-1", first.events),
        "another commit": (metadata("X"), first.stream, first.events),
        "the same id with other content": (changed, first.stream, first.events),
        "another cut": (first.metadata, first.stream, (*first.events, encoded("b"))),
    }
    for n, (what, (about, stream, events)) in enumerate(others.items()):
        async with place(store, f"{n}") as after:
            await after.append(stream, 0, events, metadata=about)
            there = await exported(after)
            with pytest.raises(TransferTargetDiffers, match=rf"{stream} .*nothing was written"):
                await imported(after, data)
            assert await exported(after) == there, what


@every_store
async def test_a_journal_that_went_on_is_refused(place: Open, store: str) -> None:
    async with memory() as before, place(store, "target") as after:
        await fill(before)
        data = await exported(before)
        await imported(after, data)
        last = len(await everything(after, "Thing-3"))
        await after.append("Thing-3", last, [encoded("new")], metadata=metadata("new"))
        with pytest.raises(TransferTargetDiffers, match="events of Thing-3 that the file has not"):
            await imported(after, data)


@every_store
async def test_a_claim_that_the_file_does_not_have_is_refused(place: Open, store: str) -> None:
    async with memory() as before, place(store, "target") as after:
        await before.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
        data = await exported(before)
        await after.restore_held([HeldClaim("address", "v", "Thing-2")], [])
        with pytest.raises(TransferTargetDiffers, match=r"Thing-2 holds a value for address.*nothing was written"):
            await imported(after, data)
        assert await whole_feed(after) == []


async def test_an_export_waits_for_an_append_that_is_under_way(postgres_url: str) -> None:
    """What was acknowledged behind a slow transaction is not in the feed yet, and must not be missing in the file."""
    address = await new_journal(postgres_url)
    journal = await PostgresJournal.open(address, clock=SetClock(), telemetry=Groups())
    try:
        await journal.check()
        slow = await SlowAppend.begin(address, "Slow-1")
        await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
        with pytest.raises(TransferFailed, match="1 commits can't be read yet"):
            await export_journal(journal, io.BytesIO(), clock=SetClock(), progress=silent, patience=0)
        exporting = asyncio.ensure_future(exported(journal))
        await slow.land()
        async with asyncio.timeout(60):
            assert by_stream(await exporting) == {"Slow-1": [1], "Thing-1": [1]}
    finally:
        await journal.close()


async def import_and_tell(path: Path, file: str, waits: str) -> None:
    """Imports and says after every page how many commits were written; waits there to be killed, or goes on."""

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance_to(done: int) -> None:
            if what == "writing":
                say(done)
                if waits == "waits":
                    os.read(0, 1)

        yield advance_to

    async with sqlite(path, SetClock()) as journal:
        source = io.BytesIO(await asyncio.to_thread(Path(file).read_bytes))
        await import_journal(journal, source, clock=SetClock(), progress=progress)


@pytest.mark.parametrize(("waits", "pages"), [("waits", 1), ("waits", 2), ("goes on", 1), ("goes on", 3)])
async def test_an_import_that_was_killed_is_finished_by_the_next(tmp_path: Path, waits: str, pages: int) -> None:
    file = tmp_path / "export"
    async with memory() as before:
        await fill(before, streams=300, commits=9, held=False)
        data = await exported(before)
        file.write_bytes(data)
    importer = await child(import_and_tell, tmp_path / "target", str(file), waits)
    for page in range(1, pages + 1):
        assert await line_from(importer) == f"{page * 500}"
        if waits == "waits" and page < pages:
            assert importer.stdin is not None
            importer.stdin.write(b"\n")
    importer.send_signal(signal.SIGKILL)
    assert await importer.wait() == -signal.SIGKILL
    async with sqlite(tmp_path / "target") as after:
        there = len(await whole_feed(after))
        assert pages * 500 <= there < 2_700
        assert (await verify(after, lambda commits: None)).sound
        report = await imported(after, data)
        assert (report.written, report.counts.commits) == (2_700 - there, 2_700)
        assert content(await exported(after)) == content(data)
