"""The journal in memory: the whole contract, and the hooks that make it slow or unreliable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import settings

from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import Commit, CommitMetadata, JournalUnavailable
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_conformance import (
    JournalConformance,
    JournalStore,
    SetClock,
    encoded,
    everything,
    metadata,
    whole_feed,
)
from kiseki.testing.journal_machine import OpenJournal, journal_machine


class TestMemoryJournal(JournalConformance):
    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.journal: MemoryJournal | None = None
        self.held: dict[str, asyncio.Event] = {}

    async def open_journal(self, clock: Clock) -> JournalStore:
        async def hold(commit: Commit) -> None:
            if commit.metadata.commit_id in self.held:
                await self.held[commit.metadata.commit_id].wait()

        if self.journal is None:
            self.journal = MemoryJournal(clock=clock, before_commit=hold)
        return self.journal

    async def open_other_life(self, clock: Clock) -> JournalStore:
        return MemoryJournal(clock=clock)

    async def begin_slow_append(
        self, journal: JournalStore, stream: str, events: Sequence[EncodedEvent], about: CommitMetadata
    ) -> Callable[[], Awaitable[None]]:
        self.held[about.commit_id] = asyncio.Event()
        appending = asyncio.ensure_future(journal.append(stream, 0, events, metadata=about))

        async def land() -> None:
            self.held[about.commit_id].set()
            await appending

        return land


def new_store() -> OpenJournal:
    async def open_journal(clock: Clock) -> JournalStore:
        return MemoryJournal(clock=clock)

    return open_journal


TestMemoryMachine = journal_machine(new_store, reopens=False).TestCase
TestMemoryMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)


async def test_a_commit_that_fails_is_not_there() -> None:
    async def fail(commit: Commit) -> None:
        raise JournalUnavailable("the disk is gone")

    journal = MemoryJournal(clock=SetClock(), before_commit=fail)
    with pytest.raises(JournalUnavailable, match="the disk is gone"):
        await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
    assert await whole_feed(journal) == []


async def test_a_commit_whose_reply_is_lost_is_there() -> None:
    replies = iter([JournalUnavailable("the line went dead"), None])

    async def lose(commit: Commit) -> None:
        problem = next(replies)
        if problem is not None:
            raise problem

    journal = MemoryJournal(clock=SetClock(), after_commit=lose)
    with pytest.raises(JournalUnavailable):
        await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
    commit = await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
    assert await whole_feed(journal) == [commit]


async def test_closing_waits_for_a_slow_commit() -> None:
    go_on = asyncio.Event()

    async def wait(commit: Commit) -> None:
        await go_on.wait()

    journal = MemoryJournal(clock=SetClock(), before_commit=wait)
    appending = asyncio.ensure_future(journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A")))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(journal.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    await closing
    assert isinstance(await appending, Commit)


async def test_refuses_what_is_no_streams_name() -> None:
    journal = MemoryJournal(clock=SetClock())
    for name in ("", "Thing", "Thing-", "1Thing-1", "Thing-1/2", "Thing-\x00", "Thing-\ud800", "Thing-" + "x" * 201):
        with pytest.raises(ValueError, match="not the name of a stream"):
            await journal.append(name, 0, [encoded("a")], metadata=metadata("A"))
        assert await everything(journal, name) == []
