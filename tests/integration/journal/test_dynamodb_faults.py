"""The DynamoDB journal when something fails, when many write at once, and when its stream is not enough."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.clients.errors import NotMigrated
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import (
    START,
    ClaimChange,
    ClaimTaken,
    Commit,
    CommitTooLarge,
    Conflict,
    CorruptJournal,
    JournalUnavailable,
    Snapshot,
)
from kiseki.journal.verify import verify
from kiseki.testing.journal_conformance import encoded, everything, metadata, whole_feed
from tests.integration.journal.dynamodb_parts import (
    TamperedClient,
    append,
    emulator_credentials,
    new_address,
    new_tables,
    opened,
)
from tests.integration.journal.sqlite_parts import Groups, RealClock
from tests.servers.emulator import AwsEmulator, NoEmulator
from tests.servers.processes import free_port


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator_credentials(monkeypatch)


@pytest.fixture
async def address(aws_endpoint: str, _credentials: None) -> DynamoDbAddress:
    return await new_tables(aws_endpoint)


@pytest.fixture
async def client(address: DynamoDbAddress) -> AsyncIterator[TamperedClient]:
    client = TamperedClient(address)
    yield client
    await client.close()


@pytest.fixture
def emulator(_credentials: None) -> Iterator[AwsEmulator]:
    """One of a test's own, to be frozen and killed."""
    try:
        emulator = AwsEmulator()
        emulator.__enter__()
    except NoEmulator as problem:
        pytest.skip(f"AWS tests need the emulator: {problem}")
    yield emulator
    emulator.stop()


async def change(address: DynamoDbAddress, stream: str, number: int, name: str, value: Any) -> None:
    """Changes an attribute of a commit behind the journal's back."""
    client = DynamoDbClient(address)
    try:
        await client.call(
            "UpdateItem",
            {
                "TableName": address.table("journal"),
                "Key": {"persistence-id": {"S": stream}, "sequence-nr": {"N": str(number)}},
                "UpdateExpression": "SET #name = :value",
                "ExpressionAttributeNames": {"#name": name},
                "ExpressionAttributeValues": {":value": value},
            },
        )
    finally:
        await client.close()


async def test_opening_contacts_nobody_and_migrating_twice_is_fine(aws_endpoint: str) -> None:
    down = DynamoDbAddress("t", "eu-west-1", f"http://127.0.0.1:{free_port()}")
    client = DynamoDbClient(down, deadline=0.5)
    async with opened(down, client=client) as journal:
        for attempt in (journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A")), journal.check()):
            with pytest.raises(JournalUnavailable):
                await attempt
        with pytest.raises(JournalUnavailable):
            await journal.feed(START)
    await client.close()
    address = new_address(aws_endpoint)
    async with opened(address) as journal:
        for missing in (
            journal.head(),
            journal.feed(START),
            journal.check(),
            journal.recall("key"),
            journal.load_snapshot("Thing-1", "1-a"),
            append(journal, "Thing-1", 0),
            everything(journal, "Thing-1"),
        ):
            with pytest.raises(NotMigrated, match="kiseki migrate"):
                await missing
        assert len(await DynamoDbJournal.migrate(address)) == 3
        assert await DynamoDbJournal.migrate(address) == []
        await journal.check()
        await append(journal, "Thing-1", 0)
        assert await everything(journal, "Thing-1")


async def test_a_lost_reply_is_recognised(client: TamperedClient, address: DynamoDbAddress) -> None:
    lost = 0

    async def lose(operation: str, request: Mapping[str, Any]) -> None:
        nonlocal lost
        if operation in ("PutItem", "TransactWriteItems") and lost % 2 == 0:
            lost += 1
            # What the client does after an answer that did not come: the same again.
            await DynamoDbClient.call(client, operation, request)
        elif operation in ("PutItem", "TransactWriteItems"):
            lost += 1

    client.before = lose
    groups = Groups()
    async with opened(address, groups, client=client) as journal:
        plain = await append(journal, "Thing-1", 0)
        claims = [ClaimChange("address", "v", True)]
        client.before, lost = lose, 0
        keyed = await append(journal, "Thing-2", 0, claims=claims)
        assert [plain.stream, keyed.stream] == ["Thing-1", "Thing-2"]
        assert len(await whole_feed(journal)) == 2
        with pytest.raises(ClaimTaken):
            await append(journal, "Thing-3", 0, claims=claims)


async def test_what_landed_though_the_store_seemed_away_is_found_by_the_next_try(
    client: TamperedClient, address: DynamoDbAddress
) -> None:
    async def fail(operation: str, request: Mapping[str, Any]) -> None:
        client.after = None
        raise JournalUnavailable("the answer was lost")

    async with opened(address, client=client) as journal:
        about = metadata("A")
        for stream, rest in (("Thing-1", {}), ("Thing-2", {"claims": [ClaimChange("address", "v", True)]})):
            client.after = fail
            with pytest.raises(JournalUnavailable):
                await journal.append(stream, 0, [encoded("a")], metadata=about, **rest)  # type: ignore[arg-type]
            again = await journal.append(stream, 0, [encoded("a")], metadata=about, **rest)  # type: ignore[arg-type]
            assert again.metadata == about
        assert len(await whole_feed(journal)) == 2


async def test_two_journals_hammering_the_same_streams_and_claims(address: DynamoDbAddress) -> None:
    streams, rounds = 4, 8
    async with opened(address) as one, opened(address) as other:
        landed: list[Commit] = []
        refused: Counter[str] = Counter()

        async def write(journal: DynamoDbJournal, writer: int) -> None:
            for number in range(rounds):
                stream = f"Thing-{number % streams}"
                events = await everything(journal, stream)
                after = events[-1].sequence_number if events else 0
                changes = [ClaimChange("address", f"v{number % 3}", number % 2 == 0)] if writer % 2 else []
                try:
                    name = f"{writer}-{number}"
                    landed.append(
                        await journal.append(stream, after, [encoded(name)], metadata=metadata(name), claims=changes)
                    )
                except (Conflict, ClaimTaken) as problem:
                    refused[problem.code] += 1

        await asyncio.gather(*(write(one if writer < 4 else other, writer) for writer in range(8)))
        assert len(landed) + refused.total() == 8 * rounds
        assert refused["CONFLICT"] > 0
        report = await verify(one, lambda _: None)
        # Verifying begins with the scan, and the stream gives all that is this young once more.
        assert (report.sound, report.commits, report.repeats) == (True, len(landed), len(landed))
        expected = {(commit.stream, commit.first_sequence_number): commit for commit in landed}
        assert {(commit.stream, commit.first_sequence_number): commit for commit in await whole_feed(other)} == expected


async def test_a_commit_over_the_item_limit_is_refused_before_it_is_written(
    client: TamperedClient, address: DynamoDbAddress
) -> None:
    noise = base64.b64encode(random.Random(1).randbytes(180_000))
    async with opened(address, client=client) as journal:
        events = [encoded(f"e{n}", data=b'"' + noise + b'"') for n in range(4)]
        with pytest.raises(CommitTooLarge, match="409600"):
            await journal.append("Thing-1", 0, events, metadata=metadata("A"))
        assert client.calls == []
        await journal.append("Thing-1", 0, events[:2], metadata=metadata("A"))
        assert [bytes(event.data) for event in await everything(journal, "Thing-1")] == [
            bytes(event.data) for event in events[:2]
        ]


async def test_a_store_that_answers_nothing_is_unavailable_and_comes_back(emulator: AwsEmulator) -> None:
    address = await new_tables(emulator.endpoint)
    client = DynamoDbClient(address, attempt_timeout=1.0, deadline=2.0)
    async with opened(address, client=client, poll=0.05, shared=0.0) as journal:
        woken = asyncio.Event()
        end = journal.watch(woken.set)
        await append(journal, "Thing-1", 0)
        page = await journal.feed(START)
        emulator.freeze()
        try:
            outcomes = await asyncio.gather(
                append(journal, "Thing-1", 1),
                append(journal, "Thing-2", 0, claims=[ClaimChange("address", "v", True)]),
                everything(journal, "Thing-1"),
                journal.feed(page.position),
                journal.lag(page.position),
                journal.recall("key"),
                journal.check(),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes} == {JournalUnavailable}
        finally:
            emulator.thaw()
        async with asyncio.timeout(60):
            while True:
                try:
                    await append(journal, "Thing-1", 1)
                    await append(journal, "Thing-2", 0, claims=[ClaimChange("address", "v", True)])
                    assert len(await whole_feed(journal)) == 3
                    break
                except JournalUnavailable:
                    await asyncio.sleep(0.1)  # as its callers do
        woken.clear()
        async with opened(address) as other:
            await append(other, "Thing-2", 1)
        async with asyncio.timeout(60):
            await woken.wait()
        emulator.halt()
        with pytest.raises(JournalUnavailable):
            await append(journal, "Thing-1", 2)
        end()
    await client.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("document", {"S": "{}"}),
        ("checksum", {"S": "0" * 16}),
        ("count", {"N": "7"}),
        ("format", {"N": "9"}),
        ("commit-id", {"S": "other"}),
    ],
)
async def test_damage_is_found_and_never_read_over(address: DynamoDbAddress, name: str, value: Any) -> None:
    async with opened(address) as journal:
        for n in range(3):
            await append(journal, "Thing-1", n)
        await append(journal, "Thing-2", 0)
        await change(address, "Thing-1", 2, name, value)
        with pytest.raises(CorruptJournal):
            await everything(journal, "Thing-1")
        assert len(await everything(journal, "Thing-2")) == 1
        assert len(await everything(journal, "Thing-1", 2)) == 1
        # The stream of changes tells of the change too, and does not get past it.
        with pytest.raises(CorruptJournal):
            await whole_feed(journal)
        report = await verify(journal, lambda _: None)
        assert not report.sound


async def test_a_hole_in_a_stream_is_found(address: DynamoDbAddress) -> None:
    client = DynamoDbClient(address)
    async with opened(address) as journal, opened(address) as other:
        for n in range(4):
            await append(journal, "Thing-1", n)
        key = {"persistence-id": {"S": "Thing-1"}, "sequence-nr": {"N": "2"}}
        await client.call("DeleteItem", {"TableName": address.table("journal"), "Key": key})
        for reader in (journal, other):
            with pytest.raises(CorruptJournal, match="sequence number 2"):
                await everything(reader, "Thing-1")
            with pytest.raises(CorruptJournal, match="sequence number 2"):
                await everything(reader, "Thing-1", 1)
    await client.close()


async def test_reading_from_the_end_gives_no_page(address: DynamoDbAddress) -> None:
    async with opened(address) as journal, opened(address) as other:
        for n in range(3):
            await append(journal, "Thing-1", n)
        for reader in (journal, other):
            for after in (3, 4, 100):
                assert [page async for page in reader.read("Thing-1", after)] == []


async def test_only_the_newest_snapshots_are_kept(address: DynamoDbAddress) -> None:
    client = DynamoDbClient(address)
    async with opened(address) as journal:
        for number in range(1, 6):
            for schema in ("1-a", "1-a#", "2-b"):
                await journal.save_snapshot(
                    Snapshot(
                        stream="Thing-1",
                        sequence_number=number,
                        schema=schema,
                        data=b"state",
                        saved_at=RealClock().now(),
                    ),
                    keep=2,
                )
        items = (await client.call("Scan", {"TableName": address.table("snapshots")}))["Items"]
        kept = sorted((item["schema"]["S"], int(item["sequence-nr"]["N"])) for item in items)
        assert kept == [(schema, number) for schema in ("1-a", "1-a#", "2-b") for number in (4, 5)]
        await journal.delete_snapshots("Thing-1")
        assert (await client.call("Scan", {"TableName": address.table("snapshots")}))["Items"] == []
    await client.close()


async def test_a_damaged_snapshot_is_none(address: DynamoDbAddress) -> None:
    client = DynamoDbClient(address)
    async with opened(address) as journal:
        now = RealClock().now()
        snapshot = Snapshot(stream="Thing-1", sequence_number=7, schema="1-a", data=b"state", saved_at=now)
        await journal.save_snapshot(snapshot, keep=1)
        assert await journal.load_snapshot("Thing-1", "1-a") == snapshot
        table = {"TableName": address.table("snapshots")}
        (item,) = (await client.call("Scan", table))["Items"]
        await client.call("PutItem", {**table, "Item": {**item, "data": {"B": "AAAA"}}})
        assert await journal.load_snapshot("Thing-1", "1-a") is None
        too_large = Snapshot(
            stream="Thing-1",
            sequence_number=8,
            schema="1-a",
            data=random.Random(1).randbytes(500_000),
            saved_at=now,
        )
        with pytest.raises(JournalUnavailable, match="409600"):
            await journal.save_snapshot(too_large, keep=1)
    await client.close()


class AwsTime:
    """DynamoDB's time as the journal is told it: ahead of what the emulator shows."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def test_an_old_journal_is_scanned_while_others_go_on_writing(address: DynamoDbAddress) -> None:
    time = AwsTime()
    async with opened(address, aws_time=time) as journal, opened(address) as other:
        for n in range(60):
            await append(journal, f"Thing-{n % 6}", n // 6)
        time.ahead = timedelta(hours=30)
        assert (await journal.lag(START)).commits == 2 * 60  # the stream here remembers all, and gives it once more
        last: Counter[str] = Counter()
        position, written = START, 0
        while True:
            page = await journal.feed(position, limit=7)
            if not page.commits:
                break
            position = page.position
            for commit in page.commits:
                assert commit.first_sequence_number <= last[commit.stream] + 1
                last[commit.stream] = max(last[commit.stream], commit.last_sequence_number)
            if written < 20:
                await append(other, f"New-{written}", 0)
                await append(other, f"Thing-{written % 6}", 10 + written // 6)
                written += 1
        assert last == {
            **{f"New-{n}": 1 for n in range(20)},
            **{f"Thing-{n}": 10 + sum(m % 6 == n for m in range(20)) for n in range(6)},
        }
        assert (await journal.lag(position)).commits == 0


async def test_after_an_outage_that_the_stream_did_not_outlast_the_index_says_what_was_missed(
    client: TamperedClient, address: DynamoDbAddress
) -> None:
    time = AwsTime()
    async with opened(address, aws_time=time, client=client) as journal:
        for n in range(10):
            await append(journal, "Thing-1", n)
        position = (await journal.feed(START)).position
        for n in range(10):
            await append(journal, "Thing-1", 10 + n)
            await append(journal, f"New-{n}", 0)
        time.ahead = timedelta(hours=30)
        lag = await journal.lag(position)
        client.calls.clear()
        last: Counter[str] = Counter({"Thing-1": 10})
        given = await whole_feed(journal, position, limit=7)
        assert (len(given), lag.commits, lag.exact) == (30 + 20, 30 + 20, False)  # by the index, and by the stream
        for commit in given:
            assert commit.first_sequence_number <= last[commit.stream] + 1
            last[commit.stream] = max(last[commit.stream], commit.last_sequence_number)
        assert last == {"Thing-1": 20, **{f"New-{n}": 1 for n in range(10)}}
        assert "Scan" not in client.calls


async def test_heads_say_where_streams_that_grew_are(address: DynamoDbAddress) -> None:
    async with opened(address) as journal:
        for n in range(5):
            await append(journal, "Thing-1", n)
        await append(journal, "Thing-2", 0)
        found: dict[str, int] = {}
        async for page in journal.heads(RealClock().now()):
            found |= page
        assert found == {"Thing-1": 5, "Thing-2": 1}
        async for page in journal.heads(RealClock().now() + timedelta(minutes=11)):
            pytest.fail(f"nothing is that young: {page}")
