"""Copies as AWS may make them: not of one moment, with a later commit and without an earlier one. The emulator copies
in the moment of the request, so what AWS leaves out is taken out of the live table just before it is copied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import ClaimChange
from kiseki.journal.transfer.transferable import HeldClaim
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.backups import Copying
from kiseki.operations.dynamodb.calls import Tables, opened_tables
from kiseki.operations.dynamodb.described import describe, read_described, write_described
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from kiseki.operations.dynamodb.keys import DynamoDbKeyBackups
from kiseki.operations.errors import BackupDamaged
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.identity.dynamodb_revocations import DynamoDbRevocations
from kiseki.testing.journal_conformance import encoded, metadata
from tests.integration.journal.dynamodb_parts import append, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import (
    Between,
    commits_of,
    contents,
    folder_in,
    held,
    manifest_of,
    value,
)

LATER = timedelta(minutes=10)
"""Later than anything that may be a matter of clocks."""
MINUTE = timedelta(seconds=60)


def backups_of(address: DynamoDbAddress) -> DynamoDbJournalBackups:
    return DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)


def changed(number: int, *, take: bool) -> list[ClaimChange]:
    return [ClaimChange("email", value(number), take=take)]


async def copied(
    address: DynamoDbAddress,
    between: Between,
    folder: Path,
    *,
    meanwhile: Callable[[DynamoDbJournal], Awaitable[None]],
    lacking: list[tuple[str, int]],
) -> Manifest:
    """A backup: `meanwhile` happens between the copies of the two tables, and the one of the journal lacks some."""

    taken_out: list[dict[str, Any]] = []

    async def before_the_journal(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup" and request["TableName"] == address.table("journal"):
            between.hooks.clear()
            async with opened(address) as live:
                await meanwhile(live)
            async with opened_tables(address) as tables:
                for stream, number in lacking:
                    taken_out.append((await tables.call("GetItem", place(address, stream, number)))["Item"])
                    await tables.call("DeleteItem", place(address, stream, number))

    between.hooks.append(before_the_journal)
    manifest = manifest_of(await backups_of(address).make(folder, nothing))
    async with opened_tables(address) as tables:
        for item in taken_out:
            await tables.call("PutItem", {"TableName": address.table("journal"), "Item": item})
    return manifest


def place(address: DynamoDbAddress, stream: str, number: int) -> dict[str, Any]:
    key = {"persistence-id": {"S": stream}, "sequence-nr": {"N": str(number)}}
    return {"TableName": address.table("journal"), "Key": key}


def as_of(manifest: Manifest, moment: datetime) -> Manifest:
    return msgspec.structs.replace(manifest, made=msgspec.structs.replace(manifest.made, as_of=moment))


def test_aws_gets_two_minutes_and_more_between_two_copies() -> None:
    aws = Copying.of(DynamoDbAddress("shop", "eu-west-1"))
    assert aws.around == MINUTE
    assert aws.apart > 2 * aws.around.total_seconds()
    assert Copying.of(DynamoDbAddress("shop", "eu-west-1", "http://127.0.0.1:4566")) == Copying(timedelta(0), 0.0)
    assert Copying.of(DynamoDbAddress("shop", "eu-west-1", "http://dynamodb.test:4566")) == aws


async def test_the_journal_is_asked_for_later_than_its_claims(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    now = asyncio.get_running_loop().time
    asked: list[tuple[str, float]] = []
    said: list[str] = []

    async def note(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup":
            asked.append((request["TableName"], now()))

    between.hooks.append(note)
    backups = DynamoDbJournalBackups(address, clock=RealClock(), copying=Copying(MINUTE, 0.3))
    made = await backups.make(folder_in(tmp_path), said.append)
    assert [table for table, _ in asked] == [address.table("claims"), address.table("journal")]
    assert asked[1][1] - asked[0][1] >= 0.3
    assert now() - asked[1][1] >= 0.3  # the keys are copied next, and have to be the later copy too
    assert len([line for line in said if line.startswith("waiting")]) == 2
    async with opened_tables(address) as tables:
        assert made.as_of == await _asked_at(tables, made.references["journal"]) - MINUTE


async def test_of_keys_no_more_is_believed(address: DynamoDbAddress, tmp_path: Path) -> None:
    await DynamoDbKeyStore.migrate(address)
    await DynamoDbRevocations.migrate(address)
    backups = DynamoDbKeyBackups(address, clock=RealClock(), copying=Copying(MINUTE, 0.0))
    made = await backups.make(folder_in(tmp_path), nothing)
    async with opened_tables(address) as tables:
        asked = [await _asked_at(tables, arn) for arn in made.references.values()]
    assert made.as_of == min(asked) - MINUTE
    assert manifest_of(made, Part.KEYS).made.references.keys() == {"keys", "revocations"}


@pytest.mark.parametrize(("missing", "left"), [(3, 2), (1, 0)])
async def test_what_follows_a_young_gap_is_dropped(
    address: DynamoDbAddress, between: Between, tmp_path: Path, missing: int, left: int
) -> None:
    async def meanwhile(live: DynamoDbJournal) -> None:
        for after in range(5):
            await append(live, "user-a", after, claims=changed(after, take=True))
            await append(live, "user-b", after)

    folder, said = folder_in(tmp_path), list[str]()
    manifest = await copied(address, between, folder, meanwhile=meanwhile, lacking=[("user-a", missing)])
    backups = backups_of(address)
    between.requests.clear()
    staged = await backups.stage(folder, manifest, said.append)
    dropped = 5 - missing
    assert any(line.startswith(f"{dropped} commits of the last minutes are not restored") for line in said)
    table = staged._staged.address.table("journal")
    changes = [
        operation
        for operation, request in between.requests
        if request.get("TableName") == table and (operation == "DeleteItem" or "StreamSpecification" in request)
    ]
    assert changes == ["DeleteItem"] * dropped + ["UpdateTable"]
    async with staged.opened() as restored:
        found = await commits_of(restored)
        assert {stream: len(commits) for stream, commits in found.items()} == (
            {"user-a": left, "user-b": 5} if left else {"user-b": 5}
        )
        assert await held(restored) == {value(number): "user-a" for number in range(left)}
        await append(staged_journal(restored), "user-a", left)
    await staged.discard()
    async with (
        opened(address) as live,
        backups.opened(folder, manifest) as restored,
        surveyed(restored, "the backup", nothing) as survey,
    ):
        comparison = await survey.compare(live, nothing)
        assert (survey.contents.commits, comparison.newer_commits) == (5 + left, 5 - left)
        assert comparison.differing == ()


@pytest.mark.parametrize("ago", [0, 4])
async def test_an_older_gap_is_damage(address: DynamoDbAddress, between: Between, tmp_path: Path, ago: int) -> None:
    """Also where commits around it are young: what follows it was there, so it had to be there too."""

    async def meanwhile(live: DynamoDbJournal) -> None:
        for after in range(5):
            about = metadata(f"a.{after}", at=datetime.now(UTC) - timedelta(minutes=ago if after == 3 else 0))
            await live.append("user-a", after, [encoded(f"a.{after}")], metadata=about)

    folder = folder_in(tmp_path)
    manifest = await copied(address, between, folder, meanwhile=meanwhile, lacking=[("user-a", 3)])
    backups = backups_of(address)
    surely_in = datetime.now(UTC) + (timedelta(minutes=3) if ago else LATER)
    async with backups.opened(folder, as_of(manifest, surely_in)) as restored:
        with pytest.raises(BackupDamaged, match="user-a has no commit that begins with sequence number 3"):
            await contents(restored)


@pytest.mark.parametrize("imported", [False, True])
async def test_a_take_without_the_release_before_it_is_cut(
    address: DynamoDbAddress, between: Between, tmp_path: Path, imported: bool
) -> None:
    """The first one holds 0; the second one takes it, and then releases 1, which the third one takes."""
    async with opened(address) as live:
        if imported:  # held for long: no commit of late says so
            await append(live, "user-a", 0)
            await live.restore_held([HeldClaim("email", value(0), "user-a")], [])
        else:
            await append(live, "user-a", 0, claims=changed(0, take=True))
        await append(live, "user-b", 0, claims=changed(1, take=True))
        await append(live, "user-c", 0)

    async def meanwhile(live: DynamoDbJournal) -> None:
        await append(live, "user-a", 1, claims=changed(0, take=False))
        await append(live, "user-b", 1)
        await append(live, "user-b", 2, claims=changed(0, take=True))
        await append(live, "user-b", 3, claims=changed(1, take=False))
        await append(live, "user-c", 1, claims=changed(1, take=True))
        await append(live, "user-c", 2, claims=changed(2, take=True))

    folder = folder_in(tmp_path)
    manifest = await copied(address, between, folder, meanwhile=meanwhile, lacking=[("user-a", 2)])
    backups = backups_of(address)
    async with backups.opened(folder, manifest) as restored:
        found = await commits_of(restored)
        assert {stream: len(commits) for stream, commits in found.items()} == {"user-a": 1, "user-b": 2, "user-c": 1}
        assert await held(restored) == {value(0): "user-a", value(1): "user-b"}
    async with backups.opened(folder, as_of(manifest, datetime.now(UTC) + LATER)) as restored:
        assert (await contents(restored)).commits == 8  # nothing that AWS promised is cut
        assert await held(restored) == {value(0): "user-b", value(1): "user-c", value(2): "user-c"}


async def test_point_in_time_recovery_is_on_after_a_restore(address: DynamoDbAddress, tmp_path: Path) -> None:
    """Also where the backup says that it was off."""
    folder = folder_in(tmp_path)
    backups = backups_of(address)
    manifest = manifest_of(await backups.make(folder, nothing))
    kept = await read_described(folder)
    off = tuple(msgspec.structs.replace(each, recovery=False) for each in kept.tables)
    await write_described(msgspec.structs.replace(kept, tables=off), folder)
    staged = await backups.stage(folder, manifest, nothing)
    async with opened_tables(address) as tables:
        there = await describe(tables, staged._staged.address, "journal", nothing)
    assert [each.name for each in there.tables if each.recovery] == ["journal", "claims"]
    await staged.discard()


async def _asked_at(tables: Tables, arn: str) -> datetime:
    answer = await tables.call("DescribeBackup", {"BackupArn": arn})
    return datetime.fromtimestamp(float(answer["BackupDescription"]["BackupDetails"]["BackupCreationDateTime"]), UTC)


def staged_journal(restored: object) -> DynamoDbJournal:
    assert isinstance(restored, DynamoDbJournal)
    return restored
