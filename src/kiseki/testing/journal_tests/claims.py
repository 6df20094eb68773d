# ruff: noqa: S101  # tests, though they are shipped
"""Claims and idempotency records change with their commit, or not at all."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from kiseki.journal.port import (
    ClaimChange,
    ClaimTaken,
    Commit,
    Conflict,
    IdempotencyTaken,
)
from kiseki.testing.journal_tests.parts import (
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

__all__ = ["ClaimTests"]


class ClaimTests(StoreUnderTest):
    """Claims and idempotency records change with their commit, or not at all."""

    async def test_a_claimed_value_is_taken_until_it_is_released(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
            with pytest.raises(ClaimTaken) as caught:
                await journal.append("Thing-2", 0, [encoded("b")], metadata=metadata("B"), claims=claimed("w", "v"))
            assert caught.value.scope == "address"
            assert await everything(journal, "Thing-2") == []
            # Nothing of the refused commit remains, so the other value is free; other scopes never met.
            await journal.append("Thing-3", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("w"))
            await journal.append(
                "Thing-4", 0, [encoded("d")], metadata=metadata("D"), claims=[ClaimChange("phone", "v", True)]
            )
            await journal.append("Thing-1", 1, [encoded("e")], metadata=metadata("E"), claims=[claim("v", take=False)])
            await journal.append("Thing-2", 0, [encoded("f")], metadata=metadata("F"), claims=claimed("v"))

    async def test_claims_of_one_commit_change_in_their_order(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
            await journal.append(
                "Thing-1",
                1,
                [encoded("b")],
                metadata=metadata("B"),
                claims=[claim("v"), claim("v", take=False), claim("w"), claim("x"), claim("x", take=False)],
            )
            await journal.append("Thing-2", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("v", "x"))
            with pytest.raises(ClaimTaken):
                await journal.append("Thing-3", 0, [encoded("d")], metadata=metadata("D"), claims=claimed("w"))
            await journal.append(
                "Thing-1", 2, [encoded("e")], metadata=metadata("E"), claims=[claim("w", take=False), claim("w")]
            )
            with pytest.raises(ClaimTaken):
                await journal.append("Thing-3", 0, [encoded("f")], metadata=metadata("F"), claims=claimed("w"))

    async def test_only_the_holder_releases(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
            await journal.append(
                "Thing-2", 0, [encoded("b")], metadata=metadata("B"), claims=[claim("v", take=False), claim("unknown")]
            )
            with pytest.raises(ClaimTaken):
                await journal.append("Thing-3", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("v"))

    async def test_of_many_claims_for_one_value_exactly_one_lands(self) -> None:
        async with self.opened() as journal, self.opened() as other:
            outcomes = await outcomes_of(
                *(
                    (journal if n % 2 else other).append(
                        f"Thing-{n}", 0, [encoded(f"e{n}")], metadata=metadata(f"{n}"), claims=claimed("v")
                    )
                    for n in range(20)
                )
            )
            assert sorted(kind.__name__ for kind in kinds_of(outcomes)) == ["ClaimTaken"] * 19 + ["Commit"]
            assert len(await whole_feed(journal)) == 1

    async def test_a_conflict_comes_before_a_taken_claim(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
            await journal.append("Thing-2", 0, [encoded("b")], metadata=metadata("B"))
            with pytest.raises(Conflict):
                await journal.append("Thing-2", 0, [encoded("c")], metadata=metadata("C"), claims=claimed("v"))

    async def test_a_key_is_recalled_and_taken_until_it_expires(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            record = idempotency("key", "Thing-1", 2, expires_at=clock.now() + timedelta(hours=24))
            events = [encoded("a1"), encoded("a2")]
            await journal.append("Thing-1", 0, events, metadata=metadata("A"), idempotency=record)
            assert await journal.recall("key") == record
            assert await journal.recall("another") is None
            for stream, after in (("Thing-2", 0), ("Thing-1", 2), ("Thing-1", 0)):
                # A taken key comes before a conflict: the first answer is what the caller needs.
                with pytest.raises(IdempotencyTaken):
                    await journal.append(stream, after, [encoded("b")], metadata=metadata("B"), idempotency=record)
            assert len(await whole_feed(journal)) == 1
            clock.advance(timedelta(hours=24))
            assert await journal.recall("key") is None
            renewed = idempotency("key", "Thing-2", 1, expires_at=clock.now() + timedelta(hours=24))
            await journal.append("Thing-2", 0, [encoded("c")], metadata=metadata("C"), idempotency=renewed)
            assert await journal.recall("key") == renewed

    async def test_of_many_with_one_key_exactly_one_lands(self) -> None:
        clock = SetClock()
        later = clock.now() + timedelta(hours=1)
        async with self.opened(clock) as journal, self.opened(clock) as other:
            outcomes = await outcomes_of(
                *(
                    (journal if n % 2 else other).append(
                        f"Thing-{n}",
                        0,
                        [encoded(f"e{n}")],
                        metadata=metadata(f"{n}"),
                        idempotency=idempotency("key", f"Thing-{n}", 1, expires_at=later),
                    )
                    for n in range(20)
                )
            )
            assert sorted(kind.__name__ for kind in kinds_of(outcomes)) == ["Commit"] + ["IdempotencyTaken"] * 19
            (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Commit))
            record = await journal.recall("key")
            assert record is not None
            assert record.stream == winner.stream

    async def test_many_keys_expire_without_harm(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:

            async def append(day: int, n: int) -> None:
                record = idempotency(f"{day}-{n}", f"Thing-{n}", day, expires_at=clock.now() + timedelta(hours=24))
                await journal.append(
                    f"Thing-{n}", day, [encoded(f"{day}-{n}")], metadata=metadata(f"{day}-{n}"), idempotency=record
                )

            for day in range(3):
                await asyncio.gather(*(append(day, n) for n in range(100)))
                clock.advance(timedelta(hours=13))
            for day, kept in ((0, False), (1, False), (2, True)):
                for n in (0, 50, 99):
                    assert (await journal.recall(f"{day}-{n}") is not None) == kept
