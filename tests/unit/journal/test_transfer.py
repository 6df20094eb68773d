"""Moving a journal: what the file looks like, what is refused of one that is not whole, and feeds that are not tidy."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from kiseki.journal.format import checksum
from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import (
    START,
    ClaimTaken,
    Commit,
    CorruptJournal,
    FeedPage,
    IdempotencyRecord,
    IdempotencyTaken,
    JournalUnavailable,
    Lag,
    Limits,
    Position,
    RecordedEvent,
)
from kiseki.journal.transfer.exporting import export_journal
from kiseki.journal.transfer.importing import import_journal
from kiseki.journal.transfer.notes import TransferNotes
from kiseki.journal.transfer.transferable import (
    HeldClaim,
    TransferFailed,
    TransferFileDamaged,
    TransferTargetDiffers,
    claims_by_value,
    records_by_key,
)
from kiseki.journal.transfer.walk import JournalWalk
from kiseki.testing.journal_conformance import SetClock, encoded, everything, metadata, whole_feed
from kiseki.testing.journal_tests.transfer import held_by
from tests.integration.journal.transfer_parts import (
    by_stream,
    content,
    exported,
    exported_with_report,
    fill,
    imported,
    parsed,
    silent,
)


def new_journal(**options: Any) -> MemoryJournal:
    return MemoryJournal(clock=SetClock(), **options)


async def a_file(streams: int = 3, commits: int = 3) -> bytes:
    journal = new_journal()
    await fill(journal, streams, commits)
    return await exported(journal)


async def refusal(data: bytes, kind: type[TransferFailed] = TransferFileDamaged) -> str:
    """The message with which a file is refused; nothing is written then."""
    journal = new_journal()
    with pytest.raises(kind) as caught:
        await imported(journal, data)
    assert await whole_feed(journal) == []
    assert await held_by(journal) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sealed(*lines: bytes, **counts: int) -> bytes:
    """A file with these lines and a last line that fits them."""
    body = b"".join(line + b"\n" for line in lines)
    kinds = [msgspec.json.decode(line)["kind"] for line in lines]
    end = {
        "kind": "end",
        "commits": kinds.count("commit"),
        "events": kinds.count("commit"),
        "streams": len({msgspec.json.decode(line)["stream"] for line in lines if b'"commit"' in line[:20]}),
        "claims": kinds.count("claim"),
        "records": kinds.count("idempotency"),
        **counts,
        "digest": hashlib.sha256(body).hexdigest(),
    }
    return body + msgspec.json.encode(end) + b"\n"


HEADER = b'{"kind":"kiseki-journal","format":1,"exported_at":"2026-03-01T12:00:00Z"}'


def commit_line(stream: str, sequence: int, name: str = "A", **changes: Any) -> bytes:
    event = {"id": name, "type": "ThingHappened", "version": 1, "data": {}}
    head = {"commit": name, "at": "2026-03-01T12:00:00Z", "correlation": "", "causation": None, "actor": ""}
    document = changes.pop("document", msgspec.json.encode({**head, "events": [event]}))
    line = {
        "kind": "commit",
        "stream": stream,
        "sequence": sequence,
        "format": 1,
        "checksum": checksum(stream, sequence, document),
        "document": msgspec.Raw(document),
    }
    return msgspec.json.encode(line | changes)


async def test_the_file_is_lines_of_json_that_people_and_jq_read() -> None:
    data = await a_file()
    lines = parsed(data)
    assert [line["kind"] for line in lines] == (
        ["kiseki-journal"] + ["commit"] * 9 + ["claim"] * 6 + ["idempotency"] * 3 + ["end"]
    )
    assert lines[0] == {"kind": "kiseki-journal", "format": 1, "exported_at": "2026-03-01T12:00:00.123456Z"}
    assert list(lines[1]) == ["kind", "stream", "sequence", "format", "checksum", "document"]
    assert (lines[1]["stream"], lines[1]["sequence"], lines[1]["format"]) == ("Thing-0", 1, 1)
    assert lines[1]["document"]["events"][0]["data"] == {"text": "plain", "n": 0}
    assert lines[10] == {"kind": "claim", "scope": "address", "digest": "0.1", "stream": "Thing-0"}
    assert lines[16] == {
        "kind": "idempotency",
        "key": "0.1",
        "command_hash": "hash of 0.1",
        "stream": "Thing-0",
        "sequence": 3,
        "expires_at": "2026-03-02T12:00:00.123456Z",
    }
    before_the_last = data[: data.rindex(b"\n", 0, -1) + 1]
    assert lines[-1] == {
        "kind": "end",
        "commits": 9,
        "events": 18,
        "streams": 3,
        "claims": 6,
        "records": 3,
        "digest": hashlib.sha256(before_the_last).hexdigest(),
    }
    assert "軌跡" in data.decode()


async def test_a_document_with_line_breaks_is_one_line_and_comes_back_as_it_was() -> None:
    journal, target = new_journal(), new_journal()
    odd = b'{ "a" :\n\r\n [1,\t2] ,"b":"\\u8ecc\xe8\xbb\x8c"}'
    await journal.append("Thing-1", 0, [encoded("a", data=odd)], metadata=metadata("A"))
    data = await exported(journal)
    assert len(data.splitlines()) == 3
    assert isinstance(parsed(data)[1]["document"], str)
    await imported(target, data)
    assert [bytes(event.data) for event in await everything(target, "Thing-1")] == [odd]


async def test_a_compressed_file_is_known_by_its_content() -> None:
    data, target = await a_file(), new_journal()
    await imported(target, gzip.compress(data))
    assert content(await exported(target)) == content(data)


async def test_a_file_cut_at_any_line_is_refused() -> None:
    data = await a_file()
    lines = data.splitlines(keepends=True)
    for kept in range(1, len(lines)):
        assert f"cut off after line {kept};" in await refusal(b"".join(lines[:kept]))
    assert "not even one line" in await refusal(b"")


async def test_a_file_cut_at_any_byte_is_refused() -> None:
    data = await a_file()
    for length in random.Random(1).sample(range(len(data)), 300):
        await refusal(data[:length])
    assert "cut off after line 19;" in await refusal(data[:-1])


async def test_a_compressed_file_cut_or_changed_at_any_byte_says_the_same_or_is_refused() -> None:
    data = await a_file()
    packed = gzip.compress(data)
    for length in random.Random(2).sample(range(2, len(packed)), 150):
        assert "cut off" in await refusal(packed[:length])
    for place in random.Random(3).sample(range(2, len(packed)), 150):
        changed = packed[:place] + bytes([packed[place] ^ 1 << place % 8]) + packed[place + 1 :]
        journal = new_journal()
        try:
            await imported(journal, changed)
        except TransferFailed:
            assert await whole_feed(journal) == []
        else:  # a byte of the header of gzip that says nothing
            assert place < 10
            assert content(await exported(journal)) == content(data)


async def test_a_file_with_any_byte_changed_is_refused() -> None:
    data = await a_file()
    for place in random.Random(4).sample(range(len(data)), 600):
        for bit in (0, 5, 7):
            await refusal(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], TransferFailed)


async def test_lines_that_are_moved_left_out_or_said_twice_are_refused() -> None:
    lines = (await a_file()).splitlines(keepends=True)
    for place in range(len(lines) - 1):
        await refusal(b"".join(lines[:place] + lines[place + 1 :]))
        await refusal(b"".join([*lines[: place + 1], *lines[place:]]))
        swapped = [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]
        await refusal(b"".join(swapped))
    assert "goes on after its last line, 20" in await refusal(b"".join([*lines, b"\n"]))
    assert "goes on after its last line, 20" in await refusal(b"".join([*lines, *lines]))


async def test_a_file_with_a_right_digest_is_still_looked_through() -> None:
    """As somebody's program might write it."""
    first, claim = commit_line("Thing-1", 1), b'{"kind":"claim","scope":"address","digest":"v","stream":"Thing-1"}'
    record = msgspec.json.encode(
        {
            "kind": "idempotency",
            "key": "k",
            "command_hash": "h",
            "stream": "Thing-1",
            "sequence": 1,
            "expires_at": "2030-01-01T00:00:00Z",
        }
    )
    target = new_journal()
    await imported(target, sealed(HEADER, first, commit_line("Thing-1", 2, "B"), claim, record))
    assert len(await whole_feed(target)) == 2

    refused = {
        "line 2 is damaged: the commit of 'Thing-1' is not what its checksum says": [
            sealed(HEADER, commit_line("Thing-1", 1, checksum="0" * 16)),
            sealed(HEADER, commit_line("Thing-1", 1, document=b'{"commit":1}')),
            sealed(HEADER, commit_line("Thing-1", 1, document=b'"no document"')),
        ],
        "line 2 is damaged: its document would be stored otherwise": [
            sealed(HEADER, commit_line("Thing-1", 1, document=commit_document(b" ")))
        ],
        "Thing-1 is not contiguous in the file: after sequence number 0 comes 2": [
            sealed(HEADER, commit_line("Thing-1", 2))
        ],
        "Thing-1 is not contiguous in the file: after sequence number 1 comes 1": [
            sealed(HEADER, first, commit_line("Thing-1", 1, "B")),
            sealed(HEADER, first, first),
        ],
        "not the name of a stream: 'Thing 1'": [sealed(HEADER, commit_line("Thing 1", 1))],
        "line 3 is damaged: it is not in its place": [
            sealed(HEADER, claim, first),
            sealed(HEADER, record, first),
            sealed(HEADER, record, claim),
        ],
        "says of a claim twice": [sealed(HEADER, claim, claim), sealed(HEADER, claim, claim.replace(b"g-1", b"g-2"))],
        "an idempotency record twice": [sealed(HEADER, record, record)],
        "line 2 is damaged: it is not what an export writes": [
            sealed(HEADER, b'{"kind":"other"}'),
            sealed(HEADER, commit_line("Thing-1", 0)),
            sealed(HEADER, commit_line("Thing-1", 1, more=1)),
            sealed(HEADER, record.replace(b'"sequence":1', b'"sequence":9223372036854775808')),
        ],
        "line 3 is damaged: it does not say what the file holds": [
            sealed(HEADER, first, commits=2),
            sealed(HEADER, first, events=2),
            sealed(HEADER, first, claims=1),
            sealed(HEADER, first, records=1),
            sealed(HEADER, first).replace(b'"claims":0', b'"claims": 0'),
        ],
        "does not say what the file holds": [sealed(HEADER, first, streams=2)],
        "line 1 is not the first line of a journal export": [
            sealed(first, HEADER),
            sealed(HEADER.replace(b"exported_at", b"at")),
            b"\x00\xff\n",
        ],
    }
    for message, files in refused.items():
        for data in files:
            assert message in await refusal(data), data
    assert "line 2 holds a commit of format 2; this kiseki reads 1" in await refusal(
        sealed(HEADER, commit_line("Thing-1", 1, format=2)), TransferFailed
    )
    later = HEADER.replace(b'"format":1', b'"format":2').replace(b"}", b',"more":[]}')
    assert "the file has format 2; this kiseki reads 1" in await refusal(sealed(later), TransferFailed)


def commit_document(blank: bytes) -> bytes:
    line: bytes = bytes(msgspec.json.decode(commit_line("Thing-1", 1), type=dict[str, msgspec.Raw])["document"])
    return line.replace(b":1", b":" + blank + b"1", 1)


async def test_a_file_without_line_breaks_is_refused_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiseki.journal.transfer.reader._LINE_BYTES", 10_000)
    assert "line 1 is damaged: it is too long" in await refusal(b"x" * 100_000)
    assert "line 2 is damaged: it is too long" in await refusal(HEADER + b"\n" + b" " * 100_000)
    assert "cut off after line 1" in await refusal(HEADER + b"\n" + b" " * 9_000)


async def test_what_is_over_the_limits_of_the_journal_is_refused_before_anything_is_written() -> None:
    data = await a_file()
    target = new_journal(limits=Limits(event_bytes=2_000))
    with pytest.raises(TransferFailed, match="limits of this journal are lower; nothing was written"):
        await imported(target, data)
    assert await whole_feed(target) == []


class Unreadable(io.BytesIO):
    def __init__(self, data: bytes, until: int) -> None:
        super().__init__(data)
        self.until = until

    def readline(self, size: int | None = -1) -> bytes:
        if self.tell() >= self.until:
            raise OSError(5, "Input/output error")
        return super().readline(size)


async def test_a_file_that_the_disk_does_not_give_is_refused() -> None:
    data, target = await a_file(), new_journal()
    source = Unreadable(data, data.index(b"\n", 500))
    with pytest.raises(TransferFailed, match=r"can't be read after line \d: input/output error") as caught:
        await import_journal(target, source, clock=SetClock(), progress=silent)
    assert not isinstance(caught.value, TransferFileDamaged)
    assert await whole_feed(target) == []


class Changing(io.BytesIO):
    """A file that is another one when it is read again."""

    def __init__(self, first: bytes, second: bytes) -> None:
        super().__init__(first)
        self.second: bytes | None = second
        self.seeks = 0

    def seek(self, *arguments: int) -> int:
        self.seeks += 1
        if self.seeks == 3 and self.second is not None:
            super().seek(0)
            self.truncate()
            self.write(self.second)
        return super().seek(*arguments)


async def test_a_file_that_changes_meanwhile_is_noticed() -> None:
    data = await a_file()
    other, target = sealed(*data.splitlines()[:7], events=12), new_journal()
    with pytest.raises(TransferFailed, match=r"the file was changed while it was imported; this run wrote 6 of 9"):
        await import_journal(target, Changing(data, other), clock=SetClock(), progress=silent)
    assert (await imported(target, data)).written == 3


async def test_a_failure_in_the_middle_says_what_was_written_and_a_second_run_goes_on() -> None:
    source = new_journal()
    await fill(source, streams=100, commits=9)
    data, refused = await exported(source), {"Thing-41"}

    async def refuse(commit: Commit) -> None:
        if commit.stream in refused and commit.first_sequence_number > 5:
            raise JournalUnavailable("the disk is full")

    target = new_journal(before_commit=refuse)
    with pytest.raises(
        TransferFailed, match=r"the disk is full; this run wrote \d+ of 900 commits: .* again"
    ) as caught:
        await imported(target, data)
    written = len(await whole_feed(target))
    assert f"wrote {written} of" in str(caught.value)
    assert 0 < written < 900
    refused.clear()
    assert (await imported(target, data)).written == 900 - written
    assert content(await exported(target)) == content(data)


async def test_a_lost_reply_is_no_difference() -> None:
    """The commit landed and nobody heard of it: the next run finds its own."""
    data, lost = await a_file(), [True]

    async def lose(commit: Commit) -> None:
        if commit.stream == "Thing-1" and lost:
            lost.clear()
            raise JournalUnavailable("the line went dead")

    target = Blind(clock=SetClock(), after_commit=lose)
    with pytest.raises(TransferFailed, match="the line went dead"):
        await imported(target, data)
    target.blind = True  # its feed shows nothing of that yet
    await imported(target, data)
    target.blind = False
    assert content(await exported(target)) == content(data)


class Blind(MemoryJournal):
    """A journal whose feed lags behind its streams for as long as a test says so."""

    blind = False

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        return FeedPage((), after) if self.blind else await super().feed(after, limit=limit)


async def test_a_feed_that_lags_is_no_difference() -> None:
    data = await a_file()
    target = Blind(clock=SetClock())
    target.blind = True
    assert (await imported(target, data)).written == 9


@pytest.mark.parametrize("lags", [False, True])
async def test_another_commit_in_the_way_is_named(lags: bool) -> None:
    data = await a_file()
    target = Blind(clock=SetClock())
    target.blind = lags
    await target.append("Thing-1", 0, [encoded("x")], metadata=metadata("X"))
    expected = "Thing-1 has moved on.*this run wrote 6 of 9" if lags else "Thing-1 in the journal is not what the file"
    with pytest.raises(TransferTargetDiffers, match=expected):
        await imported(target, data)


async def test_the_same_id_with_other_content_is_named() -> None:
    data = await a_file()
    target = Blind(clock=SetClock())
    target.blind = True
    await target.append("Thing-1", 0, [encoded("x"), encoded("y")], metadata=metadata("1.0"))
    with pytest.raises(TransferTargetDiffers, match="Thing-1 has another commit with the same id at sequence number 1"):
        await imported(target, data)


class Rewriting(MemoryJournal):
    """A journal that does not keep what it is told."""

    wrong: Callable[[Commit], Commit | None] = staticmethod(lambda commit: commit)

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        page = await super().feed(after, limit=limit)
        changed = (self.wrong(commit) for commit in page.commits)
        return FeedPage(tuple(commit for commit in changed if commit is not None), page.position)

    async def read(self, stream: str, after: int = 0) -> AsyncIterator[Sequence[RecordedEvent]]:
        async for page in super().read(stream, after):
            yield [event for event in page if event.stream != "Thing-1" or event.sequence_number < 3]

    async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
        async for page in super().held_claims():
            yield [claim for claim in page if claim.digest != self.forgotten]

    async def idempotency_records(self) -> AsyncIterator[Sequence[IdempotencyRecord]]:
        async for page in super().idempotency_records():
            yield [record for record in page if record.key != self.forgotten]

    forgotten = ""


async def test_a_journal_that_reads_back_otherwise_is_noticed() -> None:
    data = await a_file()

    def other_actor(commit: Commit) -> Commit:
        about = msgspec.structs.replace(commit.metadata, actor="another")
        return msgspec.structs.replace(commit, metadata=about) if commit.metadata.commit_id.endswith("2.1") else commit

    def lost(commit: Commit) -> Commit | None:
        return None if commit.stream == "Thing-1" and commit.first_sequence_number > 2 else commit

    for wrong, message in ((other_actor, "Thing-2 is not what the file says"), (lost, "Thing-1 is not what the file")):
        target = Rewriting(clock=SetClock())
        target.wrong = wrong
        with pytest.raises(TransferTargetDiffers, match=f"9 commits were written, but read back .*{message}"):
            await imported(target, data)
    for forgotten, message in (("2.2", "Thing-2 holds a value for address"), ("1.1", "an idempotency record|Thing-1")):
        target = Rewriting(clock=SetClock())
        target.forgotten = forgotten
        with pytest.raises(TransferTargetDiffers, match=message):
            await imported(target, data)


async def test_what_was_there_before_is_read_back_too() -> None:
    """A commit that the first look saw and the last one does not: nothing was written, and it is still noticed."""

    class Losing(Rewriting):
        looks = 0

        async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
            self.looks += after == START
            return await super().feed(after, limit=limit)

    def lost(commit: Commit) -> Commit | None:
        gone = target.looks > 2 and commit.stream == "Thing-1" and commit.first_sequence_number > 2
        return None if gone else commit

    data, target = await a_file(), Losing(clock=SetClock())
    target.wrong = lost
    await imported(target, data)
    target.looks = 1
    with pytest.raises(TransferTargetDiffers, match=r"0 commits were written, but read back .*Thing-1"):
        await imported(target, data)


async def test_what_a_store_cannot_hold_is_one_line() -> None:
    async def refuse(commit: Commit) -> None:
        if commit.stream == "Thing-2":
            raise ValueError("PostgreSQL holds no NUL")

    target = new_journal(before_commit=refuse)
    with pytest.raises(TransferFailed, match="PostgreSQL holds no NUL; this run wrote 6 of 9 commits"):
        await imported(target, await a_file())


async def test_records_that_expired_meanwhile_are_left_out() -> None:
    data, clock = await a_file(), SetClock()
    clock.moment = clock.moment.replace(day=3)
    target = MemoryJournal(clock=clock)
    report = await imported(target, data, clock)
    assert report.counts.records == 3
    assert [page async for page in target.idempotency_records()] == []


class Told(MemoryJournal):
    """A journal whose feed says what a test makes it say; its streams are as they were written."""

    def __init__(self, feed: Sequence[Commit]) -> None:
        super().__init__(clock=SetClock())
        self.told = feed

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        start = int(after or 0)
        page = tuple(self.told[start : start + min(limit, 4)])
        return FeedPage(page, Position(f"{start + len(page)}"))

    async def lag(self, after: Position) -> Lag:
        return Lag(len(self.told) - int(after or 0), None)


async def told(order: Callable[[list[Commit]], list[Commit]]) -> tuple[MemoryJournal, Told]:
    """A journal, and one that holds the same and whose feed shows it in another way."""
    tidy = new_journal()
    await fill(tidy, 4, 4)
    commits = await whole_feed(tidy)
    untidy = Told(order(commits))
    for there in commits:
        await untidy.append(there.stream, there.first_sequence_number - 1, there.events, metadata=there.metadata)
    await untidy.restore_held(await held_by(tidy), [r async for page in tidy.idempotency_records() for r in page])
    return tidy, untidy


def _last_only(commits: list[Commit]) -> list[Commit]:
    return commits[-4:]


UNTIDY: dict[str, Callable[[list[Commit]], list[Commit]]] = {
    "everything twice": lambda commits: [commit for commit in commits for _ in range(2)],
    "from the start again": lambda commits: commits + commits[:9] + commits,
    "streams one after another": lambda commits: sorted(commits, key=lambda commit: commit.stream),
    "newest first": lambda commits: commits[::-1],
    "with gaps": _last_only,
    "in no order": lambda commits: random.Random(5).sample(commits, len(commits)),
}


@pytest.mark.parametrize("order", UNTIDY)
async def test_an_export_holds_every_commit_once_and_in_order_whatever_the_feed_repeats(order: str) -> None:
    tidy, untidy = await told(UNTIDY[order])
    data = await exported(untidy)
    assert content(data) == content(await exported(tidy))
    for numbers in by_stream(data).values():
        assert numbers == sorted(numbers)
    assert (await imported(new_journal(), data)).written == 16


async def test_a_gap_of_many_pages_is_filled_too() -> None:
    tidy = new_journal()
    for n in range(1_300):
        await tidy.append("Thing-1", n, [encoded(f"{n}")], metadata=metadata(f"{n}"))
    untidy = Told((await whole_feed(tidy))[-1:])
    for n in range(1_300):
        await untidy.append("Thing-1", n, [encoded(f"{n}")], metadata=metadata(f"{n}"))
    assert content(await exported(untidy)) == content(await exported(tidy))
    with TransferNotes() as notes:
        assert [len(page) async for page in JournalWalk(untidy, notes).pages()] == [500, 500, 300]


async def test_a_gap_that_the_stream_has_too_is_an_error() -> None:
    tidy, _ = await told(_last_only)
    commits = await whole_feed(tidy)
    with pytest.raises(TransferFailed, match=r"Thing-\d is not contiguous: after sequence number 0 .*journal verify"):
        await exported(Told(commits[-4:]))
    overlapping = msgspec.structs.replace(commits[1], first_sequence_number=2, events=commits[1].events * 2)
    with pytest.raises(TransferFailed, match=r"Thing-1 is not contiguous: after sequence number 2 .* begins with 2"):
        await exported(Told([commits[1], overlapping]))


async def test_a_damaged_journal_is_not_exported() -> None:
    class Damaged(MemoryJournal):
        async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
            raise CorruptJournal("the commit of Thing-1 at sequence number 1 is damaged")

    with pytest.raises(CorruptJournal):
        await exported(Damaged(clock=SetClock()))


async def test_what_is_appended_meanwhile_is_exported_or_told() -> None:
    class Busy(MemoryJournal):
        appends_at = "feed"

        async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
            if self.appends_at == "feed" and after == START:
                page = await super().feed(after, limit=limit)
                await self.append("Late-1", 0, [encoded("late")], metadata=metadata("late"))
                return page
            return await super().feed(after, limit=limit)

        async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
            if self.appends_at == "claims":
                await self.append("Late-1", 0, [encoded("late")], metadata=metadata("late"))
            async for page in super().held_claims():
                yield page

    for appends_at, commits, told_of in (("feed", 10, False), ("claims", 9, True)):
        journal = Busy(clock=SetClock())
        journal.appends_at = ""
        await fill(journal, 3, 3)
        journal.appends_at = appends_at
        data, report = await exported_with_report(journal)
        assert (report.counts.commits, report.appended_meanwhile) == (commits, told_of)
        assert (await imported(new_journal(), data)).written == commits


class Holding(MemoryJournal):
    """A feed that holds its last commits back for as long as an append before them is under way."""

    held = 3
    looks = 1

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        page = await super().feed(after, limit=limit)
        if not self.held or after == START:
            kept = page.commits[: len(page.commits) - self.held]
            return FeedPage(kept, self._position(len(kept))) if after == START else page
        return FeedPage((), after)

    async def lag(self, after: Position) -> Lag:
        if after != START:
            self.looks -= 1
            if self.looks == 0:
                self.held = 0
        return await super().lag(after)


async def test_what_a_feed_holds_back_is_waited_for() -> None:
    holding = Holding(clock=SetClock())
    holding.held, holding.looks = 0, -1
    await fill(holding, 3, 3)
    whole = content(await exported(holding))
    holding.held, holding.looks = 3, 3
    assert content(await exported(holding)) == whole
    holding.held, holding.looks = 3, -1
    with pytest.raises(TransferFailed, match="3 commits can't be read yet, because an append before them"):
        await export_journal(holding, io.BytesIO(), clock=SetClock(), progress=silent, patience=0)


class Generated(MemoryJournal):
    """A journal of any size that takes no room: its feed makes up what it holds, and appending forgets."""

    def __init__(self, commits: int, *, full: bool) -> None:
        super().__init__(clock=SetClock())
        self.size = commits
        self.full = full

    def made_up(self, number: int) -> Commit:
        return Commit(
            stream=f"Thing-{number // 2}",
            first_sequence_number=number % 2 + 1,
            metadata=metadata(f"{number}"),
            events=(encoded(f"{number}"),),
        )

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        start = int(after or 0)
        end = min(start + limit, self.size) if self.full else start
        return FeedPage(tuple(self.made_up(number) for number in range(start, end)), Position(f"{end}"))

    async def append(self, stream: str, after: int, events: Any, **rest: Any) -> Commit:
        self.full = True
        return Commit(stream=stream, first_sequence_number=after + 1, metadata=rest["metadata"], events=tuple(events))

    async def lag(self, after: Position) -> Lag:
        return Lag(self.size - int(after or 0), None)


async def test_memory_does_not_grow_with_the_journal(tmp_path: Any) -> None:
    """Ten times as many commits and streams; notes go to a temporary file once they outgrow SQLite's cache."""

    async def peaks(commits: int) -> tuple[int, int]:
        with (tmp_path / f"{commits}").open("wb+") as file:
            tracemalloc.start()
            try:
                await export_journal(Generated(commits, full=True), file, clock=SetClock(), progress=silent)
                exporting = tracemalloc.get_traced_memory()[1]
                file.flush()
                tracemalloc.reset_peak()
                target = Generated(commits, full=False)
                report = await import_journal(target, file, clock=SetClock(), progress=silent)
                assert report.written == commits
                return exporting, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    small, large = await peaks(2_000), await peaks(20_000)
    assert large[0] < 1.5 * small[0]
    assert large[1] < 1.5 * small[1]


def test_what_stores_share_refuses_contradictions() -> None:
    held = [HeldClaim("a", "1", "Thing-1"), HeldClaim("b", "1", "Thing-2")]
    assert claims_by_value([*held, *held]) == {("a", "1"): "Thing-1", ("b", "1"): "Thing-2"}
    with pytest.raises(ClaimTaken):
        claims_by_value([*held, HeldClaim("a", "1", "Thing-2")])
    record = IdempotencyRecord(
        key="k", command_hash="h", stream="Thing-1", sequence_number=1, expires_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert records_by_key([record, record]) == {"k": record}
    with pytest.raises(IdempotencyTaken):
        records_by_key([record, msgspec.structs.replace(record, command_hash="other")])
