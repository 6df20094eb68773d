# ruff: noqa: S101  # tests, though they are shipped
"""What a store adds so that it can be moved: its claims and idempotency records are listed and put back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import cast

import pytest

from kiseki.journal.port import ClaimTaken, IdempotencyRecord, IdempotencyTaken, Journal, JournalUnavailable
from kiseki.journal.transfer.transferable import HELD_PAGE, HeldClaim, TransferableJournal
from kiseki.testing.journal_tests.parts import SetClock, claim, claimed, encoded, idempotency, metadata, whole_feed
from kiseki.testing.journal_tests.store import StoreUnderTest

__all__ = ["TransferTests", "held_by", "records_of"]


class TransferTests(StoreUnderTest):
    """Claims and idempotency records are listed and put back."""

    async def test_an_empty_journal_holds_nothing(self) -> None:
        async with self.opened() as journal:
            assert await held_by(journal) == []
            assert await records_of(journal) == []
            await _transferable(journal).restore_held([], [])

    async def test_a_walk_from_the_beginning_meets_everything(self) -> None:
        async with self.opened() as journal:
            begin = await _transferable(journal).beginning()
            names = [f"{n}" for n in range(7)]
            for n, name in enumerate(names):
                await journal.append(f"Thing-{n % 3}", n // 3, [encoded("a")], metadata=metadata(name))
            known = {metadata(name).commit_id for name in names}
            for after in (begin, await _transferable(journal).beginning()):
                walked = await whole_feed(journal, after, limit=2)
                assert {commit.metadata.commit_id for commit in walked} == known

    async def test_a_journal_that_grows_stays_in_its_life(self) -> None:
        async with self.opened() as journal:
            life = await _transferable(journal).life()
            assert life
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            assert await _transferable(journal).life() == life
        other = await self.open_other_life(SetClock())
        try:
            assert await _transferable(other).life() not in ("", life)
        finally:
            await other.close()

    async def test_claims_are_listed_while_they_are_held(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v", "w"))
            await journal.append("Thing-2", 0, [encoded("b")], metadata=metadata("B"), claims=claimed("x"))
            await journal.append("Thing-1", 1, [encoded("c")], metadata=metadata("C"), claims=[claim("w", take=False)])
            assert await held_by(journal) == [
                HeldClaim("address", "v", "Thing-1"),
                HeldClaim("address", "x", "Thing-2"),
            ]

    async def test_records_are_listed_until_they_expire(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            records = [
                idempotency(f"key {hours}", f"Thing-{hours}", 1, expires_at=clock.now() + timedelta(hours=hours))
                for hours in (1, 2, 3)
            ]
            for record in records:
                about = metadata(record.key)
                await journal.append(record.stream, 0, [encoded("a")], metadata=about, idempotency=record)
            assert await records_of(journal) == records
            clock.advance(timedelta(hours=2))
            assert await records_of(journal) == records[2:]

    async def test_what_is_put_back_counts(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"))
            record = idempotency("key", "Thing-1", 1, expires_at=clock.now() + timedelta(hours=1))
            held = [HeldClaim("address", "v", "Thing-1"), HeldClaim("phone", "v", "Thing-2")]
            await _transferable(journal).restore_held(held, [record])
            assert await held_by(journal) == held
            assert await records_of(journal) == [record]
            assert await journal.recall("key") == record
            with pytest.raises(ClaimTaken):
                await journal.append("Thing-3", 0, [encoded("b")], metadata=metadata("B"), claims=claimed("v"))
            with pytest.raises(IdempotencyTaken):
                await journal.append("Thing-3", 0, [encoded("c")], metadata=metadata("C"), idempotency=record)
            await journal.append("Thing-1", 1, [encoded("d")], metadata=metadata("D"), claims=[claim("v", take=False)])
            await journal.append("Thing-3", 0, [encoded("e")], metadata=metadata("E"), claims=claimed("v"))
            assert len(await whole_feed(journal)) == 3

    async def test_the_same_again_is_fine_and_adds_what_is_missing(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            later = clock.now() + timedelta(hours=1)
            held = [HeldClaim("address", f"{n}", f"Thing-{n}") for n in range(4)]
            records = [idempotency(f"key {n}", f"Thing-{n}", n + 1, expires_at=later) for n in range(4)]
            store = _transferable(journal)
            await store.restore_held(held[:2], records[:1])
            await store.restore_held(held[1:] + held[:1], records + records)
            await store.restore_held(held, records)
            assert await held_by(journal) == held
            assert await records_of(journal) == records

    async def test_a_claim_of_another_stream_stays(self) -> None:
        async with self.opened() as journal:
            await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), claims=claimed("v"))
            store, mine = _transferable(journal), HeldClaim("address", "v", "Thing-1")
            with pytest.raises(ClaimTaken) as caught:
                await store.restore_held([HeldClaim("address", "v", "Thing-2")], [])
            assert caught.value.scope == "address"
            assert "v" not in str(caught.value).replace("value", "")
            with pytest.raises(ClaimTaken):
                await store.restore_held([HeldClaim("phone", "w", "Thing-1"), HeldClaim("phone", "w", "Thing-2")], [])
            assert mine in await held_by(journal)
            assert HeldClaim("address", "v", "Thing-2") not in await held_by(journal)

    async def test_a_key_that_did_something_else_stays_until_it_expires(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            store, soon = _transferable(journal), clock.now() + timedelta(hours=1)
            record = idempotency("key", "Thing-1", 1, expires_at=soon)
            await store.restore_held([], [record])
            others = [
                idempotency("key", "Thing-2", 1, expires_at=soon),
                idempotency("key", "Thing-1", 2, expires_at=soon),
                idempotency("key", "Thing-1", 1, expires_at=soon + timedelta(hours=1)),
            ]
            for other in others:
                with pytest.raises(IdempotencyTaken):
                    await store.restore_held([], [other])
                assert await records_of(journal) == [record]
            with pytest.raises(IdempotencyTaken):
                await store.restore_held([], others[:2])
            clock.advance(timedelta(hours=1))
            await store.restore_held([], [record])  # expired by now: left out
            assert await records_of(journal) == []
            assert await journal.recall("key") is None
            await store.restore_held([], others[2:])
            assert await records_of(journal) == others[2:]

    async def test_many_are_listed_once_each(self) -> None:
        clock = SetClock()
        async with self.opened(clock) as journal:
            store, later = _transferable(journal), clock.now() + timedelta(hours=1)
            # Scopes and digests that follow each other in the order of bytes and not in that of words.
            held = [
                HeldClaim(scope, f"{n:x}", f"Thing-{n}")
                for scope in ("A", "a", "a-b", "é")
                for n in range(HELD_PAGE // 3)
            ]
            records = [idempotency(f"key {n}", f"Thing-{n}", 1, expires_at=later) for n in range(HELD_PAGE + 20)]
            for start in range(0, len(held), HELD_PAGE):
                await store.restore_held(held[start : start + HELD_PAGE], [])
            for start in range(0, len(records), HELD_PAGE):
                await store.restore_held([], records[start : start + HELD_PAGE])
            assert await held_by(journal) == sorted(held, key=_order)
            assert await records_of(journal) == sorted(records, key=_key)

    async def test_a_closed_journal_lists_and_takes_nothing(self) -> None:
        journal = await self.open_journal(SetClock())
        await journal.close()
        with pytest.raises(JournalUnavailable):
            await held_by(journal)
        with pytest.raises(JournalUnavailable):
            await records_of(journal)
        with pytest.raises(JournalUnavailable):
            await _transferable(journal).restore_held([HeldClaim("address", "v", "Thing-1")], [])

    async def test_a_commit_does_not_overtake_what_is_put_back(self) -> None:
        """Claims that are taken and put back at once: one of the two holds it, and the other is told."""
        async with self.opened() as journal, self.opened() as other:
            for n in range(10):
                about, value = metadata(f"{n}"), f"v{n}"
                appending = journal.append(f"Thing-{n}", 0, [encoded("a")], metadata=about, claims=claimed(value))
                restoring = _transferable(other).restore_held([HeldClaim("address", value, f"Other-{n}")], [])
                outcomes = await asyncio.gather(appending, restoring, return_exceptions=True)
                refused = [outcome for outcome in outcomes if isinstance(outcome, ClaimTaken)]
                assert len(refused) == 1, outcomes
                (holder,) = [held.stream for held in await held_by(journal) if held.digest == value]
                assert holder == (f"Other-{n}" if isinstance(outcomes[0], ClaimTaken) else f"Thing-{n}")


def _transferable(journal: Journal) -> TransferableJournal:
    return cast(TransferableJournal, journal)


async def held_by(journal: Journal) -> list[HeldClaim]:
    """All claims that a journal lists, in one order."""
    return sorted([claim async for page in _transferable(journal).held_claims() for claim in page], key=_order)


async def records_of(journal: Journal) -> list[IdempotencyRecord]:
    """All idempotency records that a journal lists, in one order."""
    return sorted([record async for page in _transferable(journal).idempotency_records() for record in page], key=_key)


def _order(claim: HeldClaim) -> tuple[str, str, str]:
    return claim.scope, claim.digest, claim.stream


def _key(record: IdempotencyRecord) -> str:
    return record.key
