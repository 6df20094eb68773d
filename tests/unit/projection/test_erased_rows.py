"""Erased rows: whether live builds have applied an erasing fact, and waiting until they have."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from kiseki.projection.erasure import ErasedRows
from kiseki.projection.port import Build, BuildMissing, BuildName, BuildState, ParkedStream, StreamProgress
from kiseki.users.read_model import user_accounts
from kiseki.users.user_account import user_account

NOW = datetime(2026, 3, 1, tzinfo=UTC)
A, B, OTHER = "UserAccount-a", "UserAccount-b", "Stock-1"
PARKED = ParkedStream(
    stream=B, sequence_number=1, event_type="E", code="C", detail="", occurred_at=NOW, parked_at=NOW, attempts=1
)


class Catalog:
    """Builds that are where a test says."""

    def __init__(self, *states: BuildState) -> None:
        self.at: dict[int, dict[str, int]] = {number: {} for number in range(len(states))}
        self.parked: dict[str, ParkedStream] = {}
        self.missing: set[int] = set()
        self.looked = asyncio.Event()
        self._states = states

    async def builds(self, projection: str | None = None) -> list[Build]:
        self.looked.set()
        return [
            Build(
                name=BuildName(projection="user_accounts", version=1, generation=number),
                state=state,
                created_at=NOW,
                promoted_at=NOW,
                retired_at=None,
                problem=None,
            )
            for number, state in enumerate(self._states)
        ]

    async def progress(self, name: BuildName, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        assert OTHER not in streams
        if name.generation in self.missing:
            raise BuildMissing("gone")
        at = self.at[name.generation]
        return {one: StreamProgress(sequence_number=at.get(one, 0), parked=self.parked.get(one)) for one in streams}


def rows(catalog: Any) -> ErasedRows:
    return ErasedRows(projections=[user_accounts], deciders=[user_account], builds=catalog, look_every=0.001)


async def test_a_live_build_that_is_behind_is_waited_for() -> None:
    catalog = Catalog(BuildState.LIVE)
    catalog.at[0] = {A: 2}
    waiting = asyncio.create_task(rows(catalog).until_applied({A: 3, OTHER: 5}))
    async with asyncio.timeout(5):
        await catalog.looked.wait()
    assert await rows(catalog).behind({A: 3, OTHER: 5}) == {A}
    async with asyncio.timeout(5):
        for _ in range(3):
            catalog.looked.clear()
            await catalog.looked.wait()
    assert not waiting.done()
    catalog.at[0] = {A: 3}
    async with asyncio.timeout(5):
        assert await waiting == set()
    assert await rows(catalog).behind({A: 3, OTHER: 5}) == set()


async def test_parked_streams_are_told_and_not_waited_for() -> None:
    catalog = Catalog(BuildState.LIVE)
    catalog.at[0] = {A: 3}
    catalog.parked = {B: PARKED}
    async with asyncio.timeout(5):
        assert await rows(catalog).until_applied({A: 3, B: 2}) == {B}


async def test_builds_that_answer_no_query_are_not_waited_for() -> None:
    catalog = Catalog(BuildState.BUILDING, BuildState.RETIRED, BuildState.LIVE)
    catalog.missing = {2}
    async with asyncio.timeout(5):
        assert await rows(catalog).until_applied({A: 3}) == set()
    async with asyncio.timeout(5):
        assert await rows(Catalog()).until_applied({A: 3}) == set()
