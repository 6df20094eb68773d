"""Builds that follow a DynamoDB journal become live when they are complete, however little the store says of that."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zlib import crc32

import pytest

from kiseki.journal.dynamodb import feed
from kiseki.projection.port import BuildName
from kiseki.projection.status import request_rebuild
from tests.integration.projection.parts import TOTALS, Place, Storage, running, until
from tests.integration.projection.test_promotion import Promoting
from tests.unit.journal.test_dynamodb_feed import _BUCKETS, FakeDynamoDb, _Shard, opened
from tests.unit.projection.parts import Counted, Facts, World

FIRST, SECOND = BuildName("totals", 1, 1), BuildName("totals", 1, 2)
STREAMS = 70


@pytest.fixture(autouse=True)
def _little_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_COUNTED_AT_MOST", 100)
    monkeypatch.setattr(feed, "_READ_AT_ONCE", 50)


@pytest.fixture
def storage(sqlite: Storage) -> Storage:
    return sqlite


@pytest.fixture
def fake() -> FakeDynamoDb:
    return FakeDynamoDb()


@pytest.fixture
async def place(storage: Storage, fake: FakeDynamoDb) -> Place:
    place = Place(await World.new(), storage, await storage.open())
    place.journal = await opened(fake)
    return place


async def happen(facts: Facts, fake: FakeDynamoDb, count: int, *, apart: float = 0.0) -> None:
    for number in range(count):
        await facts.happen(f"Counter-{number % STREAMS}", Counted(1))
        fake.time += timedelta(seconds=apart)


def facts_of(place: Place) -> Facts:
    return Facts(place.journal, place.world.codec, place.world.clock)


async def guards(place: Place, name: BuildName) -> dict[str, int]:
    streams = [f"Counter-{number}" for number in range(400)]
    progress = await place.models.builds.progress(name, streams)
    return {stream: one.sequence_number for stream, one in progress.items() if one.sequence_number}


async def test_a_rebuild_on_a_restored_table_is_complete_when_it_takes_over(place: Place, fake: FakeDynamoDb) -> None:
    await happen(facts_of(place), fake, 700)
    await place.updater(TOTALS).run_until_caught_up()
    # Its stream is new and empty, and how many items there are is not counted yet.
    fake.time += timedelta(days=2)
    fake.stream_made = fake.life = fake.time
    fake.shards = [_Shard(100, None, list(range(_BUCKETS)))]
    fake.table_extra = {"RestoreSummary": {"RestoreInProgress": False}, "ItemCount": 0}
    place.journal = await opened(fake)
    promoting = Promoting(place)
    seen: list[int] = []

    async def look() -> None:
        seen.append(sum((await guards(place, SECOND)).values()))

    promoting.before = look  # type: ignore[method-assign]
    await request_rebuild(place.models.builds, TOTALS.projection)
    async with running(place.updater(TOTALS, page_commits=50)):
        await until(lambda: is_second(place))
    assert seen == [700]
    assert promoting.refused == []


async def test_the_first_build_is_complete_when_it_becomes_live(place: Place, fake: FakeDynamoDb) -> None:
    # Little for hours, and then much at once: what is counted first says little of what follows.
    facts = facts_of(place)
    await happen(facts, fake, 110, apart=600.0)
    await happen(facts, fake, 600)
    fake.time += timedelta(seconds=1)
    promoting = Promoting(place)
    seen: list[int] = []

    async def look() -> None:
        seen.append(sum((await guards(place, FIRST)).values()))

    promoting.before = look  # type: ignore[method-assign]
    async with running(place.updater(TOTALS, page_commits=50)):
        await until(place.live)
    assert seen == [710]


async def test_what_is_new_in_one_shard_does_not_pass_for_what_is_old_in_another(
    place: Place, fake: FakeDynamoDb
) -> None:
    fake.split(0)
    place.journal = journal = await opened(fake)
    left = next(shard for shard in fake.shards if shard.closed_at is None).buckets
    names = [f"Counter-{number}" for number in range(400)]
    some = [name for name in names if crc32(name.encode()) % _BUCKETS in left][:50]
    others = [name for name in names if crc32(name.encode()) % _BUCKETS not in left][:50]
    facts = facts_of(place)
    for number in range(330):
        await facts.happen(others[number % 50], Counted(1))
    for number in range(150):
        await facts.happen(some[number % 50], Counted(1))
    promoting = Promoting(place)
    back: list[dict[str, int]] = []

    async def compare() -> None:
        replaced = await place.live()
        if replaced is not None:
            before, after = await guards(place, replaced), await guards(place, SECOND)
            back.append({name: number for name, number in before.items() if after.get(name, 0) < number})

    updater = place.updater(TOTALS)
    async with running(updater):
        await updater.caught_up()
        promoting.before = compare  # type: ignore[method-assign]
        lag = journal.lag

        async def written_before(after: Any) -> Any:
            found = await lag(after)
            if not back:
                for number in range(40):
                    await facts.happen(some[number % 50], Counted(1))
            return found

        journal.lag = written_before  # type: ignore[method-assign]
        await request_rebuild(place.models.builds, TOTALS.projection)
        await until(lambda: is_second(place))
    assert back[-1:] == [{}]
    assert promoting.refused == []


async def is_second(place: Place) -> bool:
    return await place.live() == SECOND
