# ruff: noqa: S101  # tests, though they are shipped
"""What was appended comes back as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kiseki.journal.port import (
    Commit,
    CommitMetadata,
)
from kiseki.testing.journal_tests.parts import NOON, encoded, everything, metadata, whole_feed
from kiseki.testing.journal_tests.store import StoreUnderTest

__all__ = ["WritingTests"]


class WritingTests(StoreUnderTest):
    """What was appended comes back as it was."""

    async def test_gives_back_what_was_appended(self) -> None:
        async with self.opened() as journal:
            about = metadata("A", at=NOON + timedelta(microseconds=1))
            events = [encoded("a1"), encoded("a2", subject="User-2", data=b'{"n":1}')]
            commit = await journal.append("Thing-1", 0, events, metadata=about)
            assert commit == Commit(stream="Thing-1", first_sequence_number=1, metadata=about, events=tuple(events))
            await journal.append("Thing-1", 2, [encoded("b1")], metadata=metadata("B"))
            recorded = await everything(journal, "Thing-1")
            assert recorded == [
                *commit.recorded(),
                *Commit(
                    stream="Thing-1", first_sequence_number=3, metadata=metadata("B"), events=(encoded("b1"),)
                ).recorded(),
            ]
            assert [event.sequence_number for event in recorded] == [1, 2, 3]
            assert recorded[1].subject == "User-2"
            assert recorded[0].occurred_at == NOON + timedelta(microseconds=1)
            assert await whole_feed(journal) == [
                commit,
                Commit(stream="Thing-1", first_sequence_number=3, metadata=metadata("B"), events=(encoded("b1"),)),
            ]

    async def test_a_stream_nobody_wrote_is_empty(self) -> None:
        async with self.opened() as journal:
            assert await everything(journal, "Thing-none") == []
            assert await everything(journal, "Thing-none", 5) == []
            assert await whole_feed(journal) == []

    async def test_streams_with_similar_names_are_apart(self) -> None:
        names = ["Thing-1", "Thing-10", "thing-1", "Thing-1.", "Thing-1-1", "Thing-~", "Thing-" + "z" * 200]
        async with self.opened() as journal:
            for number, name in enumerate(names):
                await journal.append(name, 0, [encoded(f"e{number}")], metadata=metadata(f"{number}"))
            for number, name in enumerate(names):
                assert [event.event_id for event in await everything(journal, name)] == [f"{f'e{number}':0>26}"]

    async def test_data_comes_back_byte_for_byte(self) -> None:
        data = [
            b'{"text":"\xe3\x81\x8d\xe3\x81\x9b\xe3\x81\x8d \xf0\x9f\x9b\xa4 O\'Brien \\"quoted\\" \\\\ \\n"}',
            rb'{"escaped":"\u0041\ud83d\udee4\u007f","slash":"\/"}',
            b'{"spaces" : [ 1.0, 1e2 , -0.0, 123456789012345678901234567890 ] , "none":null}',
            '{"combining":"e\u0301","joiner":"\u200d","edge":"\ufffd\U0010ffff"}'.encode(),
            b'{"sql":"\'; DROP TABLE commits; -- %s ?1 $1 :name"}',
            b"{}",
            b'{"large":"' + "\u8ecc\u8de1".encode() * 40_000 + b'"}',
        ]
        async with self.opened() as journal:
            events = [encoded(f"e{number}", data=one) for number, one in enumerate(data)]
            await journal.append("Thing-1", 0, events, metadata=metadata("A"))
            assert [bytes(event.data) for event in await everything(journal, "Thing-1")] == data
            (commit,) = await whole_feed(journal)
            assert [bytes(event.data) for event in commit.events] == data

    async def test_metadata_comes_back_as_it_was(self) -> None:
        about = CommitMetadata(
            commit_id="C" * 26,
            committed_at=datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            correlation_id='a "correlation" of \u8ecc\u8de1',
            causation_id="cause",
            actor="\u03b1",
        )
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=about)
            (commit,) = await whole_feed(journal)
            assert commit.metadata == about
            assert commit.metadata.committed_at.utcoffset() == timedelta(0)

    async def test_reads_after_a_number_in_the_middle_of_a_commit(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded(f"a{n}") for n in range(1, 6)], metadata=metadata("A"))
            await journal.append("Thing-1", 5, [encoded(f"b{n}") for n in range(6, 9)], metadata=metadata("B"))
            for after in range(10):
                numbers = [event.sequence_number for event in await everything(journal, "Thing-1", after)]
                assert numbers == list(range(after + 1, 9))

    async def test_long_streams_come_in_pages_without_gaps(self) -> None:
        async with self.opened() as journal:
            last = 0
            for count in [1] * 300 + [journal.limits.commit_events] * 3 + [2] * 300:
                events = [encoded(f"e{last + n}") for n in range(1, count + 1)]
                await journal.append("Thing-1", last, events, metadata=metadata(f"C{last}"))
                last += count
            for after in (0, 299, 300, 301, last - 600, last - 1, last):
                recorded = await everything(journal, "Thing-1", after)
                assert [event.sequence_number for event in recorded] == list(range(after + 1, last + 1))
                assert [event.event_id for event in recorded] == [
                    f"{f'e{number}':0>26}" for number in range(after + 1, last + 1)
                ]

    async def test_large_commits_are_read_in_pages(self) -> None:
        async with self.opened() as journal:
            data = b'{"large":"' + b"x" * 200_000 + b'"}'
            for number in range(20):
                events = [encoded(f"e{number}-{n}", data=data) for n in range(4)]
                await journal.append("Thing-1", number * 4, events, metadata=metadata(f"{number}"))
            sizes = []
            numbers: list[int] = []
            async for page in journal.read("Thing-1"):
                sizes.append(sum(len(bytes(event.data)) for event in page))
                numbers.extend(event.sequence_number for event in page)
            assert numbers == list(range(1, 81))
            assert len(await whole_feed(journal)) == 20
