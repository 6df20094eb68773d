# ruff: noqa: S101  # tests, though they are shipped
"""Commits are atomic, one lands at a place, and a lost reply does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

import pytest

from kiseki.journal.port import (
    ClaimTaken,
    Commit,
    Conflict,
    IdempotencyTaken,
)
from kiseki.testing.journal_tests.parts import (
    NOON,
    SetClock,
    claim,
    claimed,
    encoded,
    everything,
    idempotency,
    kinds_of,
    metadata,
    outcomes_of,
    whole_feed,
)
from kiseki.testing.journal_tests.store import StoreUnderTest

__all__ = ["ConflictTests"]


class ConflictTests(StoreUnderTest):
    """Commits are atomic, one lands at a place, and a lost reply does no harm."""

    async def test_an_append_behind_the_end_conflicts(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a1"), encoded("a2")], metadata=metadata("A"))
            for after in (0, 1):
                with pytest.raises(Conflict) as caught:
                    await journal.append("Thing-1", after, [encoded("b")], metadata=metadata(f"B{after}"))
                assert (caught.value.stream, caught.value.after) == ("Thing-1", after)
            assert len(await everything(journal, "Thing-1")) == 2

    async def test_an_append_beyond_the_end_conflicts(self) -> None:
        async with self.opened() as journal:
            with pytest.raises(Conflict):
                await journal.append("Thing-1", 1, [encoded("a")], metadata=metadata("A"))
            await journal.append("Thing-1", 0, [encoded("b1"), encoded("b2")], metadata=metadata("B"))
            for after in (3, 4, 1_000_000):
                with pytest.raises(Conflict):
                    await journal.append("Thing-1", after, [encoded("c")], metadata=metadata(f"C{after}"))
            await journal.append("Thing-1", 2, [encoded("d")], metadata=metadata("D"))
            assert [event.sequence_number for event in await everything(journal, "Thing-1")] == [1, 2, 3]

    async def test_of_many_at_one_place_exactly_one_lands(self) -> None:
        async with self.opened() as journal, self.opened() as other:
            for after in range(3):
                outcomes = await outcomes_of(
                    *(
                        (journal if n % 2 else other).append(
                            "Thing-1", after, [encoded(f"e{after}-{n}")], metadata=metadata(f"{after}-{n}")
                        )
                        for n in range(20)
                    )
                )
                assert sorted(kind.__name__ for kind in kinds_of(outcomes)) == ["Commit"] + ["Conflict"] * 19
                (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Commit))
                assert (await everything(journal, "Thing-1", after)) == winner.recorded()

    async def test_of_many_with_claims_at_one_place_exactly_one_lands(self) -> None:
        later = NOON + timedelta(hours=1)
        async with self.opened() as journal:
            for after in range(2):
                outcomes = await outcomes_of(
                    *(
                        journal.append(
                            "Thing-1",
                            after,
                            [encoded(f"e{after}-{n}")],
                            metadata=metadata(f"{after}-{n}"),
                            claims=claimed(f"{n}") if n % 3 else [],
                            idempotency=idempotency(f"{after}-{n}", "Thing-1", after + 1, expires_at=later)
                            if n % 2
                            else None,
                        )
                        for n in range(12)
                    )
                )
                assert sorted(kind.__name__ for kind in kinds_of(outcomes)) == ["Commit"] + ["Conflict"] * 11
                (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Commit))
                assert await everything(journal, "Thing-1", after) == winner.recorded()
                for n in range(12):
                    kept = await journal.recall(f"{after}-{n}")
                    assert (kept is not None) == (n % 2 == 1 and outcomes[n] is winner)

    async def test_a_place_is_not_taken_twice_by_commits_of_other_lengths(self) -> None:
        async with self.opened() as journal:
            outcomes = await outcomes_of(
                *(
                    journal.append(
                        "Thing-1",
                        after,
                        [encoded(f"{after}-{count}-{n}") for n in range(count)],
                        metadata=metadata(f"{after}-{count}"),
                    )
                    for after, count in [(0, 3), (1, 1), (0, 1), (2, 2), (3, 1), (0, 5), (1, 3)]
                )
            )
            landed = [outcome for outcome in outcomes if isinstance(outcome, Commit)]
            assert set(kinds_of(outcomes)) <= {Commit, Conflict}
            assert any(commit.first_sequence_number == 1 for commit in landed)
            recorded = await everything(journal, "Thing-1")
            assert [event.sequence_number for event in recorded] == list(range(1, len(recorded) + 1))
            assert sum(len(commit.events) for commit in landed) == len(recorded)

    async def test_one_callers_failure_is_nobody_elses(self) -> None:
        clock = SetClock()
        later = clock.now() + timedelta(hours=1)
        async with self.opened(clock) as journal:
            await journal.append(
                "Thing-0",
                0,
                [encoded("first")],
                metadata=metadata("first"),
                claims=claimed("taken"),
                idempotency=idempotency("used", "Thing-0", 1, expires_at=later),
            )
            appends: list[Awaitable[Commit]] = []
            expected: list[type] = []
            for n in range(30):
                stream, about = f"Thing-{n + 1}", metadata(f"{n}")
                events = [encoded(f"e{n}")]
                if n % 5 == 1:
                    appends.append(journal.append("Thing-0", 0, events, metadata=about))
                    expected.append(Conflict)
                elif n % 5 == 2:
                    appends.append(journal.append(stream, 0, events, metadata=about, claims=claimed("taken")))
                    expected.append(ClaimTaken)
                elif n % 5 == 3:
                    record = idempotency("used", stream, 1, expires_at=later)
                    appends.append(journal.append(stream, 0, events, metadata=about, idempotency=record))
                    expected.append(IdempotencyTaken)
                elif n % 5 == 4:
                    record = idempotency(f"key {n}", stream, 1, expires_at=later)
                    appends.append(
                        journal.append(
                            stream, 0, events, metadata=about, claims=claimed(f"value {n}"), idempotency=record
                        )
                    )
                    expected.append(Commit)
                else:
                    appends.append(journal.append(stream, 0, events, metadata=about))
                    expected.append(Commit)
            assert kinds_of(await outcomes_of(*appends)) == expected
            landed = {commit.stream for commit in await whole_feed(journal)}
            assert landed == {"Thing-0"} | {f"Thing-{n + 1}" for n in range(30) if expected[n] is Commit}

    async def test_plain_conflicts_in_a_crowd_hit_only_the_late(self) -> None:
        async with self.opened() as journal:
            for n in range(10):
                await journal.append(f"Thing-{n}", 0, [encoded(f"a{n}")], metadata=metadata(f"A{n}"))
            outcomes = await outcomes_of(
                *(
                    journal.append(f"Thing-{n % 10}", n // 10, [encoded(f"b{n}")], metadata=metadata(f"B{n}"))
                    for n in range(30)
                )
            )
            # After 0 comes too late, after 1 is right, and after 2 is a place that was there for nobody who had read.
            assert kinds_of(outcomes[:20]) == [Conflict] * 10 + [Commit] * 10
            assert set(kinds_of(outcomes[20:])) <= {Conflict, Commit}
            for n in range(10):
                recorded = await everything(journal, f"Thing-{n}")
                assert [event.sequence_number for event in recorded] == list(range(1, len(recorded) + 1))

    async def test_nothing_remains_of_a_commit_that_conflicted(self) -> None:
        clock = SetClock()
        later = clock.now() + timedelta(hours=1)
        async with self.opened(clock) as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            before = await journal.head()
            with pytest.raises(Conflict):
                await journal.append(
                    "Thing-1",
                    0,
                    [encoded("b1"), encoded("b2")],
                    metadata=metadata("B"),
                    claims=claimed("value"),
                    idempotency=idempotency("key", "Thing-1", 2, expires_at=later),
                )
            assert await journal.head() == before
            assert await journal.recall("key") is None
            await journal.append("Thing-2", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("value"))

    async def test_two_journals_on_one_store_see_each_other(self) -> None:
        async with self.opened() as journal, self.opened() as other:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            with pytest.raises(Conflict):
                await other.append("Thing-1", 0, [encoded("b")], metadata=metadata("B"))
            await other.append("Thing-1", 1, [encoded("c")], metadata=metadata("C"))
            assert await everything(journal, "Thing-1") == await everything(other, "Thing-1")
            assert len(await everything(journal, "Thing-1")) == 2
            assert await journal.head() == await other.head()

    async def test_the_same_commit_again_is_the_commit_that_is_there(self) -> None:
        async with self.opened() as journal:
            first = await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            again = await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            assert again == first
            await journal.append("Thing-1", 1, [encoded("b")], metadata=metadata("B"))
            assert await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A")) == first
            # What was written is what counts, not what the retry brings.
            changed = await journal.append("Thing-1", 0, [encoded("x"), encoded("y")], metadata=metadata("A"))
            assert changed == first
            assert [commit.metadata.commit_id for commit in await whole_feed(journal)] == [
                metadata("A").commit_id,
                metadata("B").commit_id,
            ]

    async def test_the_same_commit_twice_at_once_lands_once(self) -> None:
        later = NOON + timedelta(hours=1)
        async with self.opened() as journal:
            plain = await outcomes_of(
                *(journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A")) for _ in range(3))
            )
            record = idempotency("key", "Thing-2", 1, expires_at=later)
            keyed = await outcomes_of(
                *(
                    journal.append(
                        "Thing-2",
                        0,
                        [encoded("b")],
                        metadata=metadata("B"),
                        claims=claimed("value"),
                        idempotency=record,
                    )
                    for _ in range(3)
                )
            )
            assert plain == [plain[0]] * 3
            assert keyed == [keyed[0]] * 3
            assert kinds_of([*plain, *keyed]) == [Commit] * 6
            assert len(await whole_feed(journal)) == 2

    async def test_the_same_commit_again_with_claims_and_key(self) -> None:
        clock = SetClock()
        record = idempotency("key", "Thing-1", 1, expires_at=clock.now() + timedelta(hours=1))
        async with self.opened(clock) as journal:

            async def append() -> Commit:
                return await journal.append(
                    "Thing-1",
                    0,
                    [encoded("a")],
                    metadata=metadata("A"),
                    claims=claimed("value"),
                    idempotency=record,
                )

            first = await append()
            assert await append() == first
            # Even when the value has gone to another stream since.
            await journal.append(
                "Thing-1", 1, [encoded("b")], metadata=metadata("B"), claims=[claim("value", take=False)]
            )
            await journal.append("Thing-2", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("value"))
            assert await append() == first
            with pytest.raises(ClaimTaken):
                await journal.append("Thing-3", 0, [encoded("d")], metadata=metadata("D"), claims=claimed("value"))

    async def test_a_cancelled_caller_harms_nobody(self) -> None:
        async with self.opened() as journal:
            tasks = [
                asyncio.ensure_future(journal.append(f"Thing-{n}", 0, [encoded(f"e{n}")], metadata=metadata(f"{n}")))
                for n in range(10)
            ]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, Commit) for outcome in outcomes[1::2])
            # Those that were cancelled may have landed or not; the same append again is safe either way.
            for n in range(0, 10, 2):
                await journal.append(f"Thing-{n}", 0, [encoded(f"e{n}")], metadata=metadata(f"{n}"))
            assert len(await whole_feed(journal)) == 10
