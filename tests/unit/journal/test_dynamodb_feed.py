"""The feed of the DynamoDB journal against a DynamoDB in memory that does what no emulator does.

Its shards split and end, its records and iterators grow old, its index lags, its answers are empty now and then.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbAddress, DynamoDbRefused, DynamoDbUnavailable
from kiseki.clients.errors import NotMigrated
from kiseki.journal.dynamodb import feed as dynamodb_feed
from kiseki.journal.dynamodb.changes import ChangeStream
from kiseki.journal.dynamodb.items import commit_item, document_bytes
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import START, Commit, CorruptJournal, JournalUnavailable, Position
from kiseki.journal.transfer.notes import TransferNotes
from kiseki.journal.transfer.walk import JournalWalk
from kiseki.journal.verify import verify
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.testing.journal_conformance import SetClock, encoded, metadata, whole_feed

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
_BUCKETS = 8


def _method(operation: str) -> str:
    return re.sub("(?=[A-Z])", "_", operation).lower()


class _Shard:
    def __init__(self, number: int, parent: _Shard | None, buckets: list[int]) -> None:
        self.id = f"shard-{number:04}"
        self.parent = parent
        self.buckets = buckets
        self.records: list[tuple[datetime, dict[str, Any]]] = []
        self.trimmed = 0
        self.closed_at: datetime | None = None


class FakeDynamoDb:
    """What `DynamoDbClient` offers, for the journal's table and its stream."""

    def __init__(self, *, seed: int = 0, made: datetime = BEGIN) -> None:
        self.address = DynamoDbAddress("fake", "eu-west-1")
        self.time = made
        self.life = made
        self.stream_made = made
        self.table_extra: dict[str, Any] = {}
        self.random = random.Random(seed)
        self.items: dict[tuple[str, int], dict[str, Any]] = {}
        self.put_at: dict[tuple[str, int], datetime] = {}
        self.calls: Counter[str] = Counter()
        self.page = 1_000
        """Records in one answer at most."""
        self.holes = 0
        """Empty answers of a new iterator at most."""
        self.gap = 0
        """Empty answers between two records of one shard that were written hours apart."""
        self.index_lag = timedelta(0)
        self.scans_as_text = False
        """Whether a scan gives the items of a stream in another order than theirs."""
        self._sequence = 0
        self.shards = [_Shard(0, None, list(range(_BUCKETS)))]
        self._iterators: dict[str, tuple[_Shard, int, datetime, int]] = {}

    # What happens to it.

    def split(self, number: int) -> None:
        """An open shard ends; one or two others go on."""
        open_ones = [shard for shard in self.shards if shard.closed_at is None]
        shard = open_ones[number % len(open_ones)]
        shard.closed_at = self.time
        half = (len(shard.buckets) + 1) // 2
        for buckets in (shard.buckets[:half], shard.buckets[half:]):
            if buckets:
                self.shards.append(_Shard(len(self.shards), shard, buckets))
        self.random.shuffle(self.shards)

    def write_record(self, key: tuple[str, int], image: dict[str, Any] | None) -> None:
        self._sequence += 1
        bucket = crc32(key[0].encode()) % _BUCKETS
        (shard,) = (each for each in self.shards if each.closed_at is None and bucket in each.buckets)
        about: dict[str, Any] = {
            "SequenceNumber": f"{self._sequence:021}",
            "ApproximateCreationDateTime": int(self.time.timestamp()),
            "Keys": {"persistence-id": {"S": key[0]}, "sequence-nr": {"N": str(key[1])}},
        }
        if image is not None:
            about["NewImage"] = image
        shard.records.append((self.time, {"dynamodb": about}))

    def _trim(self) -> None:
        for shard in self.shards:
            while shard.records and shard.records[0][0] <= self.time - DAY:
                shard.records.pop(0)
                shard.trimmed += 1

    def _listed(self) -> list[_Shard]:
        return [each for each in self.shards if each.closed_at is None or each.closed_at > self.time - DAY]

    # What it answers.

    async def call(self, operation: str, request: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        self.calls[operation] += 1
        await asyncio.sleep(0)
        answer: dict[str, Any] = getattr(self, _method(operation))(request)
        return answer

    call_streams = call

    async def close(self) -> None:
        pass

    def _put_item(self, request: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(request["Item"])
        key = (item["persistence-id"]["S"], int(item["sequence-nr"]["N"]))
        if key in self.items:
            raise ConditionFailed("it is there", item=self.items[key])
        self.items[key], self.put_at[key] = item, self.time
        self.write_record(key, item)
        return {}

    def _query(self, request: Mapping[str, Any]) -> dict[str, Any]:
        values = request["ExpressionAttributeValues"]
        if "IndexName" in request:
            if not self._describe_table({})["Table"]["GlobalSecondaryIndexes"]:
                raise DynamoDbRefused("no such index", kind="ValidationException")
            rows = [
                (item["committed-at-id"]["S"], key)
                for key, item in self.items.items()
                if item["slice"] == values[":slice"]
                and values[":since"]["S"] <= item["committed-at-id"]["S"] <= values[":until"]["S"]
                and self.put_at[key] <= self.time - self.index_lag
            ]
            keys = [key for _, key in sorted(rows)]
        else:
            number = int(values[":number"]["N"])
            up = ">=" in request["KeyConditionExpression"]
            keys = sorted(
                key
                for key in self.items
                if key[0] == values[":stream"]["S"] and (key[1] >= number if up else key[1] <= number)
            )
            if not request["ScanIndexForward"]:
                keys.reverse()
        return self._page_of(keys, request)

    def _scan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        def order(key: tuple[str, int]) -> tuple[int, str, int | str]:
            return crc32(key[0].encode()), key[0], str(key[1]) if self.scans_as_text else key[1]

        return self._page_of(sorted(self.items, key=order), request)

    def _page_of(self, keys: list[tuple[str, int]], request: Mapping[str, Any]) -> dict[str, Any]:
        start = request.get("ExclusiveStartKey")
        if start:
            keys = keys[keys.index((start["persistence-id"]["S"], int(start["sequence-nr"]["N"]))) + 1 :]
        page = keys[: request.get("Limit", 1_000)]
        answer: dict[str, Any] = {"Items": [dict(self.items[key]) for key in page], "Count": len(page)}
        if len(page) < len(keys):
            answer["LastEvaluatedKey"] = {"persistence-id": {"S": page[-1][0]}, "sequence-nr": {"N": str(page[-1][1])}}
        if request.get("Select") == "COUNT":
            del answer["Items"]
        return answer

    def _describe_table(self, request: Mapping[str, Any]) -> dict[str, Any]:
        label = self.stream_made.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return {
            "Table": {
                "TableStatus": "ACTIVE",
                "CreationDateTime": self.life.timestamp(),
                "LatestStreamArn": f"arn:{label}",
                "LatestStreamLabel": label,
                "StreamSpecification": {"StreamEnabled": True},
                "GlobalSecondaryIndexes": [{"IndexName": "by-slice", "IndexStatus": "ACTIVE"}],
                "ItemCount": len(self.items),
                **self.table_extra,
            }
        }

    def _describe_stream(self, request: Mapping[str, Any]) -> dict[str, Any]:
        listed = self._listed()
        start = request.get("ExclusiveStartShardId")
        if start:
            listed = listed[[each.id for each in listed].index(start) + 1 :]
        page = listed[:2]
        description: dict[str, Any] = {
            "Shards": [
                {
                    "ShardId": each.id,
                    "SequenceNumberRange": {"EndingSequenceNumber": "9"} if each.closed_at else {},
                    **({"ParentShardId": each.parent.id} if each.parent else {}),
                }
                for each in page
            ]
        }
        if len(page) < len(listed):
            description["LastEvaluatedShardId"] = page[-1].id
        return {"StreamDescription": description}

    def _get_shard_iterator(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._trim()
        found = [each for each in self._listed() if each.id == request["ShardId"]]
        if not found:
            raise DynamoDbRefused("no such shard", kind="ResourceNotFoundException")
        (shard,) = found
        kind = request["ShardIteratorType"]
        if kind == "AFTER_SEQUENCE_NUMBER":
            known = [record["dynamodb"]["SequenceNumber"] for _, record in shard.records]
            if request["SequenceNumber"] not in known:
                raise DynamoDbRefused("trimmed", kind="TrimmedDataAccessException")
            place = shard.trimmed + known.index(request["SequenceNumber"]) + 1
        else:
            place = shard.trimmed + (len(shard.records) if kind == "LATEST" else 0)
        return {"ShardIterator": self._iterator(shard, place, self.random.randint(0, self.holes))}

    def _iterator(self, shard: _Shard, place: int, holes: int) -> str:
        name = f"iterator-{len(self._iterators)}"
        self._iterators[name] = shard, place, self.time, holes
        return name

    def _get_records(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._trim()
        shard, place, made, holes = self._iterators[request["ShardIterator"]]
        if self.time - made >= timedelta(minutes=15):
            raise DynamoDbRefused("expired", kind="ExpiredIteratorException")
        if place < shard.trimmed:
            raise DynamoDbRefused("trimmed", kind="TrimmedDataAccessException")
        if holes:
            return {"Records": [], "NextShardIterator": self._iterator(shard, place, holes - 1)}
        left = shard.records[place - shard.trimmed :]
        near = [at - left[0][0] < timedelta(hours=1) for at, _ in left]
        far = near.index(False) if self.gap and False in near else len(left)
        records = [record for _, record in left[:far]][: min(request["Limit"], self.page)]
        place += len(records)
        if len(records) == far < len(left):
            return {"Records": records, "NextShardIterator": self._iterator(shard, place, self.gap)}
        if shard.closed_at is not None and place == shard.trimmed + len(shard.records):
            return {"Records": records}
        return {"Records": records, "NextShardIterator": self._iterator(shard, place, 0)}


async def opened(fake: FakeDynamoDb, **options: Any) -> DynamoDbJournal:
    return await DynamoDbJournal.open(
        fake.address,
        clock=SetClock(),
        telemetry=NoTelemetry(),
        client=fake,  # type: ignore[arg-type]
        aws_time=lambda: fake.time,
        **{"shared": 0.0, "pause": 0.0, **options},
    )


class Writer:
    """Appends one event after the other, with the clock of a machine that is some seconds off."""

    def __init__(self, fake: FakeDynamoDb, journal: DynamoDbJournal) -> None:
        self.fake = fake
        self.journal = journal
        self.last: Counter[str] = Counter()
        self.commits: list[Commit] = []

    async def write(self, stream: str, *, skew: float = 0.0) -> Commit:
        name = f"{stream[6:]}.{self.last[stream]}"
        about = metadata(name, at=self.fake.time + timedelta(seconds=skew))
        commit = await self.journal.append(stream, self.last[stream], [encoded(name)], metadata=about)
        self.last[stream] += 1
        self.commits.append(commit)
        return commit

    async def write_many(self, count: int, *, streams: int = 5) -> None:
        for n in range(count):
            await self.write(f"Thing-{n % streams}")


class Follower:
    """Follows the feed, and fails when it skips something or turns the order of a stream around."""

    def __init__(self, journal: DynamoDbJournal) -> None:
        self.journal = journal
        self.position: Position = START
        self.last: Counter[str] = Counter()
        self.seen = 0

    async def step(self, limit: int) -> bool:
        page = await self.journal.feed(self.position, limit=limit)
        for commit in page.commits:
            assert commit.first_sequence_number <= self.last[commit.stream] + 1, "something was skipped"
            self.last[commit.stream] = max(self.last[commit.stream], commit.last_sequence_number)
        self.position = page.position
        self.seen += len(page.commits)
        return bool(page.commits)

    async def to_the_end(self) -> None:
        while await self.step(100):
            pass

    @property
    def phase(self) -> str:
        (found,) = re.findall('"phase":"([a-z]+)"', self.position)
        return str(found)


_streams = st.integers(0, 5).map(lambda n: f"Thing-{n}")
_writes = st.tuples(st.just("write"), _streams, st.sampled_from([0.0, 0.0, -120.0, 120.0]))
_splits = st.tuples(st.just("split"), st.integers(0, 7))
_waits = st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 3.0, 12.0, 22.5, 23.5, 25.0, 60.0]))
_follows = st.tuples(st.just("follow"), st.integers(0, 1), st.sampled_from([1, 2, 3, 10, 500]))
_restarts = st.tuples(st.just("restart"), st.integers(0, 1))
_steps = st.lists(
    st.one_of(_writes, _writes, _writes, _splits, _waits, _follows, _follows, _restarts), min_size=10, max_size=80
)


@given(steps=_steps, seed=st.integers(0, 1_000))
@settings(max_examples=300, deadline=None, derandomize=True)
async def test_nothing_is_skipped_whatever_happens_to_the_stream(steps: list[tuple[Any, ...]], seed: int) -> None:
    fake = FakeDynamoDb(seed=seed)
    fake.page, fake.holes, fake.index_lag = 1 + seed % 4, seed % 4, timedelta(minutes=seed % 30)
    fake.scans_as_text = seed % 2 == 1
    writer = Writer(fake, await opened(fake))
    followers = [Follower(await opened(fake)), Follower(writer.journal)]
    for kind, *arguments in steps:
        if kind == "write":
            await writer.write(arguments[0], skew=arguments[1])
        elif kind == "split":
            fake.split(arguments[0])
        elif kind == "wait":
            fake.time += timedelta(hours=arguments[0])
        elif kind == "follow":
            await followers[arguments[0]].step(arguments[1])
        else:
            followers[arguments[0]].journal = await opened(fake)
    for follower in followers:
        await follower.to_the_end()
        assert follower.last == writer.last
        assert (await follower.journal.lag(follower.position)).commits == 0
    followers[0].journal = await opened(fake)
    await writer.write("Thing-0")
    await followers[0].to_the_end()
    assert followers[0].last == writer.last


async def test_children_are_read_after_their_parents() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    follower = Follower(writer.journal)
    for number in range(6):
        await writer.write_many(10)
        fake.split(number)
    await writer.write_many(10)
    assert len(fake.shards) > 8
    await follower.to_the_end()
    assert follower.seen == 70
    await writer.write_many(5)
    await follower.to_the_end()
    assert follower.seen == 75
    # Of the shards that ended, and whose children are being read, nothing has to be remembered.
    assert follower.position.count("shard-") == sum(shard.closed_at is None for shard in fake.shards)


async def test_a_position_of_a_process_that_knows_younger_shards() -> None:
    fake = FakeDynamoDb()
    old, young = await opened(fake), await opened(fake)
    writer = Writer(fake, young)
    await old.feed(START)
    await writer.write_many(5)
    fake.split(0)
    await writer.write_many(5)
    follower = Follower(young)
    await follower.to_the_end()
    follower.journal = old
    await writer.write_many(3)
    await follower.to_the_end()
    assert follower.seen == 13


async def test_iterators_that_expired_are_made_anew() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    follower = Follower(writer.journal)
    for _ in range(3):
        await writer.write_many(5)
        await follower.to_the_end()
        fake.time += timedelta(minutes=16)
    assert follower.seen == 15


async def test_followers_share_what_was_read() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake, shared=60.0))
    await writer.write_many(50)
    followers = [Follower(writer.journal) for _ in range(10)]
    await asyncio.gather(*(follower.to_the_end() for follower in followers))
    assert [follower.seen for follower in followers] == [50] * 10
    assert fake.calls["GetRecords"] <= 11
    reads = fake.calls["GetRecords"]
    await asyncio.gather(*(follower.step(10) for follower in followers))
    assert fake.calls["GetRecords"] == reads  # that there is nothing is known too
    await writer.write("Thing-0")
    await asyncio.gather(*(follower.to_the_end() for follower in followers))
    assert [follower.seen for follower in followers] == [51] * 10
    assert fake.calls["GetRecords"] <= reads + 4


async def test_what_is_kept_in_memory_is_bounded_and_nothing_is_lost_by_it() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    fake.page = 10
    await writer.write_many(300)
    stream = ChangeStream(fake, shared=0.0, pause=0.0, grown=lambda: None, kept_bytes=20_000)  # type: ignore[arg-type]
    seen: list[int] = []
    for pace in (7, 3):
        cursor: str | None = None
        count = 0
        while (run := await stream.after("shard-0000", cursor, pace)).changes or not run.drained:
            count += len(run.changes)
            cursor = run.changes[-1].sequence if run.changes else cursor
            if count == 150:
                (first, *_), *_ = await stream.after("shard-0000", None, 5)  # somebody far behind
                assert int(first.sequence) == 1
        seen.append(count)
    assert seen == [300, 300]
    assert fake.calls["GetRecords"] > 2 * 300 / fake.page  # what was forgotten was read again


async def test_all_shards_get_their_turn_when_there_is_little_room() -> None:
    fake = FakeDynamoDb()
    fake.split(0)
    writer = Writer(fake, await opened(fake))
    await writer.write_many(40, streams=10)
    follower = Follower(writer.journal)
    for _ in range(20):
        await follower.step(1)
    buckets = {stream: crc32(stream.encode()) % _BUCKETS < _BUCKETS // 2 for stream in follower.last}
    assert set(buckets.values()) == {True, False}


async def test_an_old_journal_is_scanned_first_and_then_followed() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(40)
    fake.time += timedelta(hours=30)
    await writer.write_many(10)
    follower = Follower(writer.journal)
    assert (await (await opened(fake)).lag(START)).commits == 50 + 10  # what the stream remembers comes twice
    while await follower.step(3):
        if follower.seen < 60:
            await writer.write(f"Thing-{follower.seen % 5}")
            await writer.write(f"Later-{follower.seen}")
    assert fake.calls["Scan"] > 5
    assert follower.last == writer.last


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_a_scan_in_another_order_gives_streams_in_theirs(limit: int) -> None:
    fake = FakeDynamoDb()
    fake.scans_as_text = True
    writer = Writer(fake, await opened(fake))
    await writer.write_many(100, streams=3)
    fake.time += timedelta(hours=30)
    follower = Follower(writer.journal)
    while await follower.step(limit):
        pass
    assert follower.last == writer.last


async def test_a_scan_in_order_reads_nothing_twice() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(100, streams=3)
    fake.time += timedelta(hours=30)
    queries = fake.calls["Query"]
    for limit in (1, 2, 7, 100):
        assert len(await whole_feed(await opened(fake), limit=limit)) == 100
    assert fake.calls["Query"] == queries


@pytest.mark.parametrize(
    ("extra", "apart"), [({"RestoreSummary": {"RestoreInProgress": False}}, 0), ({}, 120)], ids=["restored", "late"]
)
async def test_a_stream_that_has_not_seen_all_is_not_enough(extra: dict[str, Any], apart: float) -> None:
    """A restored table, and one whose stream was made later, hold commits that never went through the stream."""
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    fake.shards[0].records.clear()
    fake.table_extra, fake.stream_made = extra, BEGIN + timedelta(seconds=apart)
    await writer.write_many(1)
    follower = Follower(await opened(fake))
    await follower.to_the_end()
    assert follower.last == writer.last


async def test_a_scan_that_takes_longer_than_the_stream_remembers() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(20)
    fake.time += timedelta(hours=30)
    follower = Follower(writer.journal)
    await follower.step(3)
    # Written behind where the scan is, or before it, and forgotten by the stream when the scan ends.
    await writer.write_many(20, streams=10)
    fake.time += timedelta(hours=50)
    await follower.to_the_end()
    assert follower.last == writer.last


async def test_after_an_outage_the_index_is_read_from_before_it() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    for _ in range(50):
        fake.time += timedelta(hours=1)
        await writer.write_many(5)
    follower = Follower(await opened(fake))
    await follower.to_the_end()
    before = follower.seen
    for _ in range(30):
        await writer.write_many(5)
        fake.time += timedelta(hours=1)
    scans = fake.calls["Scan"]
    follower.journal = await opened(fake)
    await follower.to_the_end()
    assert follower.last == writer.last
    assert fake.calls["Scan"] == scans
    # What the outage missed, twice where both index and stream give it, and what is within the lookback.
    assert 150 <= follower.seen - before <= 310


async def test_a_second_outage_right_after_the_first() -> None:
    """What the stream was to give after the index, and forgot meanwhile, is looked for in the index again."""
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write("Thing-0")
    follower = Follower(writer.journal)
    await follower.step(1)
    fake.time += timedelta(hours=23.5)
    await writer.write("Thing-0")
    fake.time += timedelta(hours=0.3)
    await follower.step(1)
    fake.time += timedelta(hours=25)
    await follower.to_the_end()
    assert follower.last == writer.last


async def test_a_time_that_was_reached_is_not_after_what_was_read() -> None:
    """A commit that came into a shard after that was found empty is older than the newest that was given."""
    fake = FakeDynamoDb()
    fake.split(0)
    writer = Writer(fake, await opened(fake))
    low = next(f"Thing-{n}" for n in range(99) if crc32(f"Thing-{n}".encode()) % _BUCKETS < _BUCKETS // 2)
    high = next(f"Thing-{n}" for n in range(99) if crc32(f"Thing-{n}".encode()) % _BUCKETS >= _BUCKETS // 2)
    drained = asyncio.Event()
    get = fake._get_records

    def get_slowly(request: Mapping[str, Any]) -> dict[str, Any]:
        answer = get(request)
        if not answer["Records"] and not drained.is_set():
            # Found empty: at once a commit comes into it, and hours later one into the other.
            drained.set()
            empty = fake._iterators[request["ShardIterator"]][0]
            first, second = (low, high) if 0 in empty.buckets else (high, low)
            for stream, hours in ((first, 0), (second, 10)):
                fake.time += timedelta(hours=hours)
                commit = Commit(
                    stream=stream,
                    first_sequence_number=1,
                    metadata=metadata(stream[6:], at=fake.time),
                    events=(encoded(stream[6:]),),
                )
                fake._put_item({"Item": commit_item(commit, document_bytes(commit)).item})
                writer.last[stream] = 1
        return answer

    fake._get_records = get_slowly  # type: ignore[method-assign]
    follower = Follower(writer.journal)
    await follower.step(1)
    assert (drained.is_set(), follower.seen) == (True, 1)
    fake.time += timedelta(hours=15)
    follower.journal = await opened(fake)
    await follower.to_the_end()
    assert follower.last == writer.last


async def test_without_the_index_an_outage_means_a_scan() -> None:
    fake = FakeDynamoDb()
    fake.table_extra = {"GlobalSecondaryIndexes": []}
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    follower = Follower(writer.journal)
    await follower.to_the_end()
    await writer.write_many(5)
    fake.time += timedelta(hours=50)
    await follower.to_the_end()
    assert follower.last == writer.last


async def test_a_quiet_journal_costs_nobody_a_new_start() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    follower = Follower(writer.journal)
    await follower.to_the_end()
    positions = set()
    for hour in range(100):
        fake.time += timedelta(minutes=30)
        if hour % 8 == 0:
            fake.split(0)
        await follower.step(10)
        positions.add(follower.position)
    assert follower.seen == 5
    assert fake.calls["Scan"] == 0
    assert len(positions) < 60  # it is written down by followers, so it does not change all the time
    await writer.write("Thing-0")
    follower.journal = await opened(fake)
    await follower.to_the_end()
    assert follower.seen == 6


async def test_the_position_stays_the_same_while_nothing_happens() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    follower = Follower(writer.journal)
    await follower.to_the_end()
    before = follower.position
    fake.time += timedelta(minutes=5)
    await follower.step(10)
    assert follower.position == before


async def test_records_that_are_no_commits_are_passed_over() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(3)
    fake.write_record(("Thing-0", 1), None)
    fake.write_record(("other", 1), {"persistence-id": {"S": "other"}, "odd": {"L": [{"NULL": True}]}})
    await writer.write_many(3)
    assert len(await whole_feed(writer.journal)) == 6
    assert len(await whole_feed(writer.journal, limit=1)) == 6
    assert (await writer.journal.lag(START)).commits == 6


async def test_a_damaged_commit_stops_the_feed_right_before_it() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(3, streams=1)
    await writer.write("Thing-0")
    fake.shards[0].records[-1][1]["dynamodb"]["NewImage"]["checksum"] = {"S": "0" * 16}
    page = await writer.journal.feed(START)
    assert [commit.first_sequence_number for commit in page.commits] == [1, 2, 3]
    with pytest.raises(CorruptJournal):
        await writer.journal.feed(page.position)


async def test_another_table_of_the_name_is_read_from_its_start() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(9)
    position = (await writer.journal.feed(START, limit=5)).position
    another = FakeDynamoDb(made=BEGIN + timedelta(hours=1))
    there = Writer(another, await opened(another))
    await there.write_many(7)
    assert len((await there.journal.feed(position)).commits) == 7
    assert (await there.journal.lag(position)).commits == 7
    for odd in ("1 ", "1 {}", "0 {}", "nonsense", '1 {"life":1}', "1 \ud800"):
        assert len((await there.journal.feed(Position(odd))).commits) == 7


async def test_a_table_that_was_made_anew_is_read_from_its_start() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(9)
    position = (await writer.journal.feed(START)).position
    fake.items.clear()
    fake.shards[0].records.clear()
    fake.life = fake.stream_made = BEGIN + timedelta(hours=1)
    await writer.journal.close()
    fake.write_record(("none", 1), None)
    stream = ChangeStream(fake, shared=0.0, pause=0.0, grown=lambda: None)  # type: ignore[arg-type]
    assert (await stream.after("shard-0000", None, 10)).changes
    fake.life = fake.stream_made = BEGIN + timedelta(hours=2)
    fake.shards[0].records.clear()
    await stream.about(anew=True)
    assert not (await stream.after("shard-0000", None, 10)).changes
    again = Writer(fake, await opened(fake))
    await again.write_many(3)
    assert len((await again.journal.feed(position)).commits) == 3


async def test_lag_counts_what_is_ahead_and_estimates_what_is_much() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(20)
    page = await writer.journal.feed(START, limit=7)
    fake.time += timedelta(minutes=1)
    await writer.write_many(3)
    lag = await writer.journal.lag(page.position)
    assert (lag.commits, lag.oldest) == (16, BEGIN)
    head = await writer.journal.head()
    assert (await writer.journal.lag(head)).commits == 0
    assert (await writer.journal.feed(head)).commits == ()
    fake.time += timedelta(hours=40)
    await writer.write_many(10)
    # By the index from before it, and once more what the stream still gives.
    assert 33 + 10 <= (await writer.journal.lag(page.position)).commits <= 2 * 33
    head = await writer.journal.head()
    assert (await writer.journal.feed(head)).commits == ()


async def test_a_table_without_a_stream_is_not_migrated() -> None:
    fake = FakeDynamoDb()
    fake.table_extra = {"StreamSpecification": None}
    journal = await opened(fake)
    with pytest.raises(NotMigrated, match="kiseki migrate"):
        await journal.head()
    with pytest.raises(NotMigrated):
        await journal.feed(START)


async def test_an_outage_is_one_of_the_journal_and_goes_by() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(3)
    follower = Follower(writer.journal)

    def fail(request: Mapping[str, Any]) -> dict[str, Any]:
        raise DynamoDbUnavailable("GetRecords: no answer in 2 s", retry_after=7)

    fake._get_records = fail  # type: ignore[method-assign]
    with pytest.raises(JournalUnavailable, match="no answer in 2 s") as caught:
        await follower.step(10)
    assert caught.value.retry_after == 7
    del fake._get_records
    await follower.to_the_end()
    assert follower.seen == 3


async def test_watchers_are_woken_by_what_others_write() -> None:
    fake = FakeDynamoDb()
    journal, other = await opened(fake, poll=0.01), Writer(fake, await opened(fake))
    woken = asyncio.Event()
    end = journal.watch(woken.set)
    try:
        async with asyncio.timeout(10):
            await woken.wait()  # once when it began to look
            follower = Follower(journal)
            for _ in range(3):
                await follower.to_the_end()
                woken.clear()
                await other.write("Thing-1")
                await woken.wait()
            fake.split(0)
            woken.clear()
            await other.write("Thing-1")
            await woken.wait()
    finally:
        end()
    await follower.to_the_end()
    assert follower.seen == 4
    looks = fake.calls["GetRecords"]
    await asyncio.sleep(0.05)
    assert fake.calls["GetRecords"] == looks  # with the last watcher the looking ends


async def test_nobody_is_woken_for_nothing() -> None:
    fake = FakeDynamoDb()
    journal = await opened(fake, poll=0.001)
    wakes = 0

    def wake() -> None:
        nonlocal wakes
        wakes += 1

    end = journal.watch(wake)
    while fake.calls["GetRecords"] < 20:
        await asyncio.sleep(0.001)
    end()
    assert wakes == 1


async def test_heads_are_those_since_a_moment() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write("Thing-old")
    fake.time += timedelta(hours=5)
    await writer.write("Thing-1")
    await writer.write("Thing-1")
    await writer.write("Thing-2")
    found: Counter[str] = Counter()
    async for page in writer.journal.heads(fake.time - timedelta(minutes=5)):
        for stream, number in page.items():
            found[stream] = max(found[stream], number)
    assert found == {"Thing-1": 2, "Thing-2": 1}


async def test_an_import_is_found_in_the_index_where_it_was_written() -> None:
    """Imported commits keep the time at which they were made. Whoever was there before and away after lacks none."""
    fake = FakeDynamoDb()
    journal = await opened(fake)
    writer = Writer(fake, journal)
    newcomer, regular = Follower(journal), Follower(journal)
    await newcomer.to_the_end()
    await writer.write_many(5)
    await regular.to_the_end()
    assert "cursors" in regular.position
    for n in range(50):
        await writer.write(f"Moved-{n % 5}", skew=timedelta(days=-300).total_seconds())
        await writer.write(f"Early-{n % 5}", skew=timedelta(days=300).total_seconds())
    fake.time += timedelta(hours=25)
    await writer.write("Thing-9")
    for follower in (newcomer, regular):
        follower.journal = await opened(fake)
        phases = set()
        while await follower.step(10):
            phases.add(follower.phase)
        assert (phases, follower.last) == ({"index", "stream"}, writer.last)
    assert fake.calls["Scan"] == 0


async def test_an_import_in_the_middle_of_a_stream_keeps_its_order_in_the_index() -> None:
    """Of one stream some commits stand where they were made, others where they were written."""
    fake = FakeDynamoDb()
    journal = await opened(fake)
    writer, follower = Writer(fake, journal), Follower(journal)
    await follower.to_the_end()
    for n in range(60):
        await writer.write(f"Thing-{n % 2}", skew=-(290.0, 310.0, 86_400.0, 0.0)[n % 4])
        fake.time += timedelta(seconds=20)
    fake.time += timedelta(hours=25)
    while await follower.step(3):
        pass
    assert follower.last == writer.last


async def test_what_was_imported_is_among_the_heads_since_then() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    fake.time += timedelta(hours=5)
    await writer.write("Thing-1", skew=timedelta(days=-300).total_seconds())
    pages = [page async for page in writer.journal.heads(fake.time - timedelta(minutes=5))]
    assert pages == [{"Thing-1": 1}]


async def test_an_import_that_is_tried_again_later_knows_its_own_commit() -> None:
    fake = FakeDynamoDb()
    journal = await opened(fake)
    about = metadata("A", at=BEGIN - timedelta(days=300))
    first = await journal.append("Thing-1", 0, [encoded("a")], metadata=about)
    fake.time += timedelta(hours=1)
    assert await (await opened(fake)).append("Thing-1", 0, [encoded("a")], metadata=about) == first
    assert len(fake.items) == 1


async def test_a_page_says_whether_the_feed_ended_there() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    empty = await writer.journal.feed(START)
    assert (empty.commits, empty.at_end) == ((), True)
    await writer.write_many(20)
    page = await writer.journal.feed(START, limit=7)
    assert page.at_end is False
    page = await writer.journal.feed(page.position)
    assert (len(page.commits), page.at_end) == (13, True)
    assert (await writer.journal.feed(page.position)).at_end is True
    # The scan and the index never end the feed, whatever they give last.
    fake.time += timedelta(hours=30)
    for position, operation in ((START, "Scan"), (page.position, "Query")):
        calls = fake.calls[operation]
        page = await writer.journal.feed(position)
        assert (len(page.commits) > 0, page.at_end) == (True, False)
        assert fake.calls[operation] > calls


async def test_the_end_is_reached_while_others_write_all_the_time() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(20)
    fake.time += timedelta(hours=1)
    get = fake._get_records
    written = 20

    def get_and_write(request: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal written
        answer = get(request)
        commit = Commit(
            stream=f"Other-{written}",
            first_sequence_number=1,
            metadata=metadata(f"{written}", at=fake.time),
            events=(encoded("a"),),
        )
        fake._put_item({"Item": commit_item(commit, document_bytes(commit)).item})
        written += 1
        return answer

    fake._get_records = get_and_write  # type: ignore[method-assign]
    await writer.write("Thing-0")
    page, pages = await writer.journal.feed(START, limit=10), 1
    while not page.at_end:
        assert page.commits
        page, pages = await writer.journal.feed(page.position, limit=10), pages + 1
        assert pages < 10
    assert page.commits


@pytest.mark.parametrize("gap", [1, 5, 9])
async def test_a_part_of_a_shard_that_is_empty_is_not_its_end(gap: int) -> None:
    fake = FakeDynamoDb()
    fake.gap = gap
    writer = Writer(fake, await opened(fake))
    for _ in range(3):
        await writer.write_many(5)
        fake.time += timedelta(hours=3)
    follower = Follower(await opened(fake))
    while not (page := await follower.journal.feed(follower.position)).at_end:
        follower.position, follower.seen = page.position, follower.seen + len(page.commits)
    assert follower.seen + len(page.commits) == 15
    lag = await (await opened(fake)).lag(START)
    assert (lag.commits, lag.exact) == (15, True)
    # Of whoever begins in the middle of it, too.
    middle = (await (await opened(fake)).feed(START, limit=5)).position
    assert len(await whole_feed(await opened(fake), middle)) == 10
    await follower.to_the_end()
    quiet = fake.calls["GetRecords"]
    await follower.step(10)
    assert fake.calls["GetRecords"] == quiet + 1  # where it was at the tip before, one look is enough


async def test_a_shard_is_not_asked_more_often_than_dynamodb_answers() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    loop = asyncio.get_running_loop()
    asked: list[float] = []
    get = fake._get_records

    def get_timed(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(loop.time())
        return get(request)

    fake._get_records = get_timed  # type: ignore[method-assign]
    await Follower(await opened(fake, pause=0.02)).to_the_end()
    spaces = [after - before for before, after in zip(asked[-6:], asked[-5:], strict=False)]
    assert all(space >= 0.015 for space in spaces)


async def test_what_was_found_does_not_wait_for_certainty_about_the_end() -> None:
    fake = FakeDynamoDb()
    fake.split(0)
    writer = Writer(fake, await opened(fake))
    await writer.write_many(5)
    fake.time += timedelta(hours=1)
    async with asyncio.timeout(30):
        page = await (await opened(fake, pause=600.0)).feed(START)
    assert (len(page.commits), page.at_end) == (5, False)
    # With more looks, it is certain.
    follower = Follower(await opened(fake))
    pages = 0
    while not (page := await follower.journal.feed(follower.position)).at_end:
        follower.position, pages = page.position, pages + 1
        assert pages < 10


async def test_a_whole_walk_meets_all_of_a_journal_whose_stream_seems_to_end() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(30)
    fake.holes = 1_000
    fake.random = random.Random(1)  # the first iterator has many
    assert not (await (await opened(fake)).feed(START)).commits
    with TransferNotes() as notes:
        walk = JournalWalk(await opened(fake), notes)
        pages = [page async for page in walk.pages()]
        assert sum(map(len, pages)) == 30
        assert await walk.behind() == 0
    report = await verify(await opened(fake), lambda commits: None)
    assert (report.sound, report.commits) == (True, 30)


async def test_a_whole_walk_meets_what_is_written_meanwhile() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(600)
    with TransferNotes() as notes:
        walk = JournalWalk(writer.journal, notes)
        met = 0
        async for page in walk.pages():
            met += len(page)
            if met < 700:
                await writer.write_many(50, streams=10)
        assert met == len(writer.commits)


async def test_lag_says_whether_it_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(20)
    journal = writer.journal
    assert ((await journal.lag(START)).commits, (await journal.lag(START)).exact) == (20, True)
    head = await journal.head()
    assert ((await journal.lag(head)).commits, (await journal.lag(head)).exact) == (0, True)
    monkeypatch.setattr(dynamodb_feed, "_COUNTED_AT_MOST", 10)
    monkeypatch.setattr(dynamodb_feed, "_READ_AT_ONCE", 5)
    assert (await journal.lag(START)).exact is False
    fake.time += timedelta(hours=30)
    for position in (START, head):
        assert (await (await opened(fake)).lag(position)).exact is False


@pytest.mark.parametrize("has_index", [True, False])
async def test_while_the_scan_goes_on_lag_is_not_under_what_it_will_give(
    monkeypatch: pytest.MonkeyPatch, has_index: bool
) -> None:
    """A restored table does not know how many items it has, and counting ends somewhere."""
    monkeypatch.setattr(dynamodb_feed, "_COUNTED_AT_MOST", 10)
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    await writer.write_many(60)
    fake.time += timedelta(hours=30)
    fake.table_extra = {"ItemCount": 0} | ({} if has_index else {"GlobalSecondaryIndexes": []})
    follower = Follower(await opened(fake))
    while follower.seen < 60:
        lag = await follower.journal.lag(follower.position)
        assert (lag.commits >= 60 - follower.seen, lag.exact) == (True, False)
        await follower.step(20)


async def test_while_the_index_is_read_lag_goes_down_with_it() -> None:
    fake = FakeDynamoDb()
    writer = Writer(fake, await opened(fake))
    follower = Follower(writer.journal)
    await follower.to_the_end()
    await writer.write_many(200, streams=40)
    fake.time += timedelta(hours=30)
    lag = await follower.journal.lag(follower.position)
    assert (lag.commits, lag.oldest, lag.exact) == (200, BEGIN, False)
    while await follower.step(20):
        lag = await follower.journal.lag(follower.position)
        assert lag.commits == 200 - follower.seen
