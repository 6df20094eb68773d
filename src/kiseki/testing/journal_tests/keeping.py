# ruff: noqa: S101  # tests, though they are shipped
"""Limits, snapshots, and how a journal ends."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from kiseki.journal.port import (
    Commit,
    CommitTooLarge,
    JournalUnavailable,
    Snapshot,
)
from kiseki.kernel.codec import EncodedEvent
from kiseki.testing.journal_tests.parts import NOON, SetClock, encoded, everything, kinds_of, metadata, whole_feed
from kiseki.testing.journal_tests.store import StoreUnderTest

__all__ = ["KeepingTests"]


class KeepingTests(StoreUnderTest):
    """Limits, snapshots, and how a journal ends."""

    async def test_limits_are_checked_before_writing(self) -> None:
        async with self.opened() as journal:
            limits = journal.limits

            def of_size(size: int) -> EncodedEvent:
                return encoded("e", data=b'"' + b"x" * (size - 2) + b'"')

            too_large: list[list[EncodedEvent]] = [
                [],
                [of_size(limits.event_bytes + 1)],
                [encoded(f"e{n}") for n in range(limits.commit_events + 1)],
                [of_size(limits.event_bytes)] * (limits.commit_bytes // limits.event_bytes + 1),
            ]
            for events in too_large:
                with pytest.raises(CommitTooLarge):
                    await journal.append("Thing-1", 0, events, metadata=metadata("A"))
            assert await whole_feed(journal) == []
            largest = [of_size(limits.event_bytes)] * (limits.commit_bytes // limits.event_bytes)
            await journal.append("Thing-1", 0, largest, metadata=metadata("B"))
            many = [encoded(f"e{n}") for n in range(limits.commit_events)]
            await journal.append("Thing-2", 0, many, metadata=metadata("C"))
            assert [bytes(event.data) for event in await everything(journal, "Thing-1")] == [
                bytes(event.data) for event in largest
            ]
            assert len(await everything(journal, "Thing-2")) == limits.commit_events

    async def test_snapshots_are_kept_by_stream_and_schema(self) -> None:
        async with self.opened() as journal, self.opened() as other:

            def snapshot(stream: str, number: int, schema: str) -> Snapshot:
                data = f"{stream} {number} {schema}".encode() + bytes(range(256)) * 20
                return Snapshot(stream=stream, sequence_number=number, schema=schema, data=data, saved_at=NOON)

            assert await journal.load_snapshot("Thing-1", "1-a") is None
            for number in (1_000, 2_000, 3_000):
                await journal.save_snapshot(snapshot("Thing-1", number, "1-a"), keep=2)
                assert await other.load_snapshot("Thing-1", "1-a") == snapshot("Thing-1", number, "1-a")
            await journal.save_snapshot(snapshot("Thing-1", 500, "2-b"), keep=2)
            await journal.save_snapshot(snapshot("Thing-2", 700, "1-a"), keep=2)
            assert await journal.load_snapshot("Thing-1", "1-a") == snapshot("Thing-1", 3_000, "1-a")
            assert await journal.load_snapshot("Thing-1", "2-b") == snapshot("Thing-1", 500, "2-b")
            assert await journal.load_snapshot("Thing-1", "3-c") is None
            # One that comes late does not hide a newer one, and the same one again replaces it.
            await journal.save_snapshot(snapshot("Thing-1", 2_500, "1-a"), keep=2)
            assert await journal.load_snapshot("Thing-1", "1-a") == snapshot("Thing-1", 3_000, "1-a")
            changed = msgspec.structs.replace(snapshot("Thing-1", 3_000, "1-a"), data=b"changed")
            await journal.save_snapshot(changed, keep=2)
            assert await journal.load_snapshot("Thing-1", "1-a") == changed
            await journal.delete_snapshots("Thing-1")
            assert await other.load_snapshot("Thing-1", "1-a") is None
            assert await other.load_snapshot("Thing-1", "2-b") is None
            assert await other.load_snapshot("Thing-2", "1-a") == snapshot("Thing-2", 700, "1-a")
            await journal.delete_snapshots("Thing-none")

    async def test_a_journal_that_works_says_so(self) -> None:
        async with self.opened() as journal:
            before = await journal.head()
            await journal.check()
            assert await journal.head() == before

    async def test_closing_finishes_what_was_accepted(self) -> None:
        journal, other = await self.open_journal(SetClock()), await self.open_journal(SetClock())
        appends = [
            asyncio.ensure_future(journal.append(f"Thing-{n}", 0, [encoded(f"e{n}")], metadata=metadata(f"{n}")))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        if other is not journal:
            await journal.close()
            assert len(await whole_feed(other)) == 50
        await other.close()
        assert kinds_of(await asyncio.gather(*appends)) == [Commit] * 50
        with pytest.raises(JournalUnavailable):
            await journal.append("Thing-late", 0, [encoded("late")], metadata=metadata("late"))
        with pytest.raises(JournalUnavailable):
            await journal.check()
        await journal.close()
