"""The fence of a PostgreSQL journal, on a real server: appends of earlier terms, and late ones, are refused by it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.lease.port import NotTheWriter
from kiseki.testing.journal_conformance import claimed, idempotency, whole_feed
from tests.integration.journal.postgres_parts import append, connected, new_journal, opened, utc_now

LATER = timedelta(hours=1)


@pytest.fixture
async def address(postgres_url: str) -> PostgresAddress:
    return await new_journal(postgres_url)


@pytest.mark.parametrize("decided", [False, True])
async def test_an_append_of_an_earlier_term_is_refused(address: PostgresAddress, decided: bool) -> None:
    rest: dict[str, Any] = (
        {"claims": claimed("value"), "idempotency": idempotency("k", "Thing-1", 1, expires_at=utc_now() + LATER)}
        if decided
        else {}
    )
    async with opened(address) as old, opened(address) as new, opened(address) as alone:
        await old.permit(1, 60)
        await append(old, "Thing-0", 0)
        await new.fence(2)
        await new.permit(2, 60)
        with pytest.raises(NotTheWriter, match="in term 2, and refuses term 1"):
            await append(old, "Thing-1", 0, **rest)
        with pytest.raises(NotTheWriter, match="a process without a lease"):
            await append(alone, "Thing-1", 0, **rest)
        with pytest.raises(NotTheWriter, match="in term 2, and refuses term 1"):
            await old.fence(1)
        await append(new, "Thing-1", 0, **rest)
        assert await new.fenced_term() == 2
        await new.unfence()
        await append(alone, "Thing-2", 0)
        assert len(await whole_feed(new)) == 3


@pytest.mark.parametrize("decided", [False, True])
async def test_an_append_that_hangs_for_longer_than_its_lease_does_not_land(
    address: PostgresAddress, decided: bool
) -> None:
    """It was sent in time, and hung in the server behind a lock until the lease had lapsed."""
    rest: dict[str, Any] = {"claims": claimed("value")} if decided else {}
    async with opened(address) as journal, connected(address) as other:
        await append(journal, "Thing-0", 0)
        await journal.permit(1, 0.6)
        await other.execute("BEGIN; LOCK TABLE commits IN EXCLUSIVE MODE")
        hanging = asyncio.create_task(append(journal, "Thing-1", 0, **rest))
        done, _ = await asyncio.wait([hanging], timeout=1.0)
        assert not done
        await other.execute("ROLLBACK")
        with pytest.raises(NotTheWriter, match="after its lease had lapsed"):
            await hanging
        await journal.permit(1, 30)
        await append(journal, "Thing-1", 0, **rest)
        assert len(await whole_feed(journal)) == 2


async def test_raising_the_fence_waits_for_appends_under_way(address: PostgresAddress) -> None:
    async with opened(address) as journal, connected(address) as other:
        await append(journal, "Thing-0", 0)
        await other.execute("BEGIN; LOCK TABLE commits IN ROW EXCLUSIVE MODE")  # as an append has it
        raising = asyncio.create_task(journal.fence(5))
        done, _ = await asyncio.wait([raising], timeout=0.5)
        assert not done
        await other.execute("ROLLBACK")
        await raising


async def test_its_own_commit_is_found_again_behind_the_fence(address: PostgresAddress) -> None:
    """What landed before is said to have landed: the fence changes nothing that is there."""
    async with opened(address) as journal:
        first = await append(journal, "Thing-0", 0)
        await journal.fence(1)
        with pytest.raises(NotTheWriter):
            await append(journal, "Thing-0", 1)
        await journal.permit(1, 30)
        assert await append(journal, "Thing-0", 0) == first
