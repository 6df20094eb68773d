"""`verify` sees every way in which a journal can differ from what was written."""

from __future__ import annotations

from typing import Any

import pytest

from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import Commit, CorruptJournal, FeedPage, Position
from kiseki.journal.verify import VerifyReport, verify
from kiseki.testing.journal_conformance import SetClock, encoded, metadata


def commit(stream: str, first: int, name: str, events: int = 1) -> Commit:
    return Commit(
        stream=stream,
        first_sequence_number=first,
        metadata=metadata(name),
        events=tuple(encoded(f"{name}{n}") for n in range(events)),
    )


class Told(MemoryJournal):
    """A journal whose feed says what a test makes it say."""

    def __init__(self, feed: list[Commit | CorruptJournal]) -> None:
        super().__init__(clock=SetClock())
        self.told = feed

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        start = int(after or 0)
        page = self.told[start : start + limit]
        for found in page:
            if isinstance(found, CorruptJournal):
                raise found
        return FeedPage(tuple(page), Position(f"{start + len(page)}"))  # type: ignore[arg-type]


async def report_on(*feed: Any, written: tuple[Commit, ...] = ()) -> VerifyReport:
    journal = Told(list(feed))
    for there in written:
        await journal.append(there.stream, there.first_sequence_number - 1, there.events, metadata=there.metadata)
    return await verify(journal, lambda commits: None)


async def test_a_sound_journal() -> None:
    journal = MemoryJournal(clock=SetClock())
    for n in range(1_200):
        await journal.append(f"Thing-{n % 100}", n // 100 * 2, [encoded("a"), encoded("b")], metadata=metadata(f"{n}"))
    seen: list[int] = []
    report = await verify(journal, seen.append)
    assert report.sound
    assert (report.commits, report.events, report.streams, report.repeats) == (1_200, 2_400, 100, 0)
    assert report.head == await journal.head()
    assert seen == [500, 1_000, 1_200]


async def test_an_empty_journal_is_sound() -> None:
    report = await report_on()
    assert (report.sound, report.commits) == (True, 0)


async def test_a_gap() -> None:
    report = await report_on(commit("Thing-1", 1, "a", 2), commit("Thing-1", 4, "b"), commit("Thing-1", 5, "c"))
    assert (report.sound, report.complete) == (False, True)
    assert report.problems == ("Thing-1 lacks sequence numbers 3 to 3",)


async def test_a_stream_without_its_beginning() -> None:
    report = await report_on(commit("Thing-1", 3, "a"))
    assert report.problems == ("Thing-1 lacks sequence numbers 1 to 2",)


@pytest.mark.parametrize("across_pages", [False, True])
async def test_two_commits_at_one_place(across_pages: bool) -> None:
    between = [commit("Other-1", n, f"o{n}") for n in range(1, 600 if across_pages else 2)]
    first = commit("Thing-1", 1, "a", 3)
    report = await report_on(first, *between, commit("Thing-1", 2, "b"), written=(first,))
    assert report.problems == ("Thing-1 has two commits with sequence number 2",)


async def test_a_commit_that_the_feed_says_twice_is_no_problem() -> None:
    first, second = commit("Thing-1", 1, "a", 3), commit("Thing-1", 4, "b")
    report = await report_on(first, second, first, second, second, written=(first, second))
    assert report.sound
    assert (report.commits, report.events, report.repeats) == (2, 4, 3)


async def test_a_command_that_was_applied_twice() -> None:
    report = await report_on(commit("Thing-1", 1, "a"), commit("Other-1", 1, "a"), commit("Thing-1", 2, "a"))
    assert report.problems == (f"Thing-1 has commit {metadata('a').commit_id} twice",)


async def test_damage_ends_the_walk_after_all_that_is_before_it() -> None:
    damage = CorruptJournal("the commit of Thing-1 is damaged")
    sound = [commit("Thing-1", n, f"{n}") for n in range(1, 700)]
    report = await report_on(*sound, damage, commit("Thing-1", 701, "z"))
    assert (report.sound, report.complete, report.commits) == (False, False, 699)
    assert report.problems == ("the commit of Thing-1 is damaged",)


async def test_nonsense() -> None:
    report = await report_on(commit("Thing-1", 1, "a", 0), commit("nonsense", 1, "b"))
    assert len(report.problems) == 2
    assert "without events" in report.problems[0]
    assert "no stream's name" in report.problems[1]


async def test_the_list_of_problems_is_bounded() -> None:
    report = await report_on(*(commit(f"Thing-{n}", 2, "a") for n in range(1_000)))
    assert len(report.problems) == 100
    assert report.problems_found == 1_000
