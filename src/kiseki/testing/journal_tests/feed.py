# ruff: noqa: S101  # tests, though they are shipped
"""The feed gives every commit, in order, to whoever follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

from kiseki.journal.port import (
    START,
    Commit,
)
from kiseki.testing.journal_tests.parts import NOON, SetClock, encoded, metadata, whole_feed
from kiseki.testing.journal_tests.store import StoreUnderTest

__all__ = ["FeedTests"]


class FeedTests(StoreUnderTest):
    """The feed gives every commit, in order, to whoever follows it."""

    async def test_the_feed_is_paged_in_order(self) -> None:
        async with self.opened() as journal:
            names: dict[str, list[str]] = {}
            for n in range(50):
                await journal.append(f"Thing-{n % 7}", n // 7, [encoded(f"e{n}")], metadata=metadata(f"{n}", at=NOON))
                names.setdefault(f"Thing-{n % 7}", []).append(metadata(f"{n}").commit_id)
            for limit in (1, 3, 7, 50, 500):
                assert _by_stream(await whole_feed(journal, limit=limit)) == names
            page = await journal.feed(START, limit=20)
            rest = await whole_feed(journal, page.position)
            assert _by_stream([*page.commits, *rest]) == names

    async def test_positions_of_a_caught_up_reader_go_on(self) -> None:
        async with self.opened() as journal:
            nothing = await journal.feed(START)
            assert nothing.commits == ()
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            first = await journal.feed(nothing.position)
            assert len(first.commits) == 1
            still = await journal.feed(first.position)
            assert still.commits == ()
            await journal.append("Thing-1", 1, [encoded("b")], metadata=metadata("B"))
            assert [c.metadata.commit_id for c in (await journal.feed(still.position)).commits] == [
                metadata("B").commit_id
            ]

    async def test_a_follower_misses_nothing_during_a_storm(self) -> None:
        streams, rounds = 12, 15
        async with self.opened() as journal, self.opened() as other:
            slow = [
                await self.begin_slow_append(journal, f"Slow-{n}", [encoded(f"slow{n}")], metadata(f"slow{n}"))
                for n in range(3)
            ]
            release = [land for land in slow if land is not None]
            expected = streams * rounds + len(release)
            seen: dict[tuple[str, int], Commit] = {}
            last: dict[str, int] = {}
            written = looked_in_vain = 0
            moved = asyncio.Event()

            async def follow() -> None:
                nonlocal looked_in_vain
                position = START
                while len(seen) < expected:
                    page = await journal.feed(position, limit=10)
                    for commit in page.commits:
                        place = (commit.stream, commit.first_sequence_number)
                        if place not in seen:
                            assert commit.first_sequence_number == last.get(commit.stream, 0) + 1
                            last[commit.stream] = commit.last_sequence_number
                        seen[place] = commit
                    position = page.position
                    looked_in_vain += not page.commits
                    moved.set()
                    await asyncio.sleep(0)

            async def write(n: int) -> None:
                nonlocal written
                for number in range(rounds):
                    await (journal if (n + number) % 2 else other).append(
                        f"Thing-{n}", number, [encoded(f"e{n}-{number}")], metadata=metadata(f"{n}-{number}")
                    )
                    written += 1
                    moved.set()

            async def until(*, writes: int = 0, looks: int = 0) -> None:
                while written < writes or looked_in_vain < looks:
                    if following.done():
                        following.result()  # it failed, and says how
                    moved.clear()
                    await moved.wait()

            following = asyncio.ensure_future(follow())
            following.add_done_callback(lambda _: moved.set())
            writing = asyncio.gather(*(write(n) for n in range(streams)))
            # The slow ones land early, in the middle, and when all others have. Before each, the follower comes to the
            # end of what it can see (which, on a good store, may be less than what was written).
            for land, when in zip(release, (streams, streams * rounds // 2, streams * rounds), strict=False):
                await until(writes=when)
                await until(looks=looked_in_vain + 2)
                await land()
            await writing
            async with asyncio.timeout(30):
                await following
            there = await whole_feed(other)
            assert {(commit.stream, commit.first_sequence_number): commit for commit in there} == seen

    async def test_positions_of_another_life_read_from_the_start(self) -> None:
        async with self.opened() as journal:
            for n in range(5):
                await journal.append("Thing-1", n, [encoded(f"a{n}")], metadata=metadata(f"A{n}"))
            foreign = await journal.head()
        life = await self.open_other_life(SetClock())
        try:
            known = await whole_feed(life)
            await life.append("Other-1", 0, [encoded("b")], metadata=metadata("B"))
            commits = (await life.feed(foreign)).commits
            assert list(commits[: len(known)]) == known
            assert commits[-1].metadata.commit_id == metadata("B").commit_id
            assert (await life.lag(foreign)).commits == len(known) + 1
        finally:
            await life.close()

    async def test_head_and_lag(self) -> None:
        async with self.opened() as journal:
            empty = await journal.head()
            assert (await journal.lag(START)).commits == 0
            assert (await journal.lag(empty)).oldest is None
            for n in range(6):
                at = NOON + timedelta(seconds=n)
                await journal.append("Thing-1", n, [encoded(f"a{n}")], metadata=metadata(f"A{n}", at=at))
            for position in (START, empty):
                lag = await journal.lag(position)
                assert (lag.commits, lag.oldest) == (6, NOON)
            page = await journal.feed(empty, limit=4)
            lag = await journal.lag(page.position)
            assert (lag.commits, lag.oldest) == (2, NOON + timedelta(seconds=4))
            head = await journal.head()
            assert await journal.lag(head) == await journal.lag((await journal.feed(page.position)).position)
            assert (await journal.lag(head)).commits == 0
            assert (await journal.feed(head)).commits == ()
            await journal.append("Thing-1", 6, [encoded("b")], metadata=metadata("B"))
            assert len((await journal.feed(head)).commits) == 1

    async def test_watchers_are_woken(self) -> None:
        async with self.opened() as journal, self.opened() as other:
            woken, ended = asyncio.Event(), asyncio.Event()
            journal.watch(ended.set)()
            end = journal.watch(woken.set)
            for n, writer in enumerate((journal, other)):
                woken.clear()
                await writer.append("Thing-1", n, [encoded(f"a{n}")], metadata=metadata(f"A{n}"))
                async with asyncio.timeout(20):
                    await woken.wait()
            end()
            assert not ended.is_set()


def _by_stream(commits: Iterable[Commit]) -> dict[str, list[str]]:
    """Ids of commits in the order they came; between streams there need be none."""
    found: dict[str, list[str]] = {}
    for commit in commits:
        found.setdefault(commit.stream, []).append(commit.metadata.commit_id)
    return found
