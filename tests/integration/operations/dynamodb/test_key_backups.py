"""Backups of keys on DynamoDB (the emulator): whole, gone in seven days, and never with a person who was erased."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import resolved
from kiseki.clients.dynamodb_tables import create_tables
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.calls import opened_tables
from kiseki.operations.dynamodb.described import read_described
from kiseki.operations.dynamodb.keys import DynamoDbKeyBackups
from kiseki.operations.dynamodb.parts import SPECS
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.identity.dynamodb_revocations import DynamoDbRevocations
from kiseki.security.key_store import KeyStore, WrappedKey
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import Between, folder_in, manifest_of
from tests.support import ManualClock

NOW = datetime.now(UTC)


@pytest.fixture
async def keys_address(address: DynamoDbAddress) -> DynamoDbAddress:
    await DynamoDbKeyStore.migrate(address)
    await DynamoDbRevocations.migrate(address)
    return address


def backups_of(address: DynamoDbAddress) -> DynamoDbKeyBackups:
    return DynamoDbKeyBackups(address, clock=RealClock(), writers_stopped=True)


def key_of(number: int) -> WrappedKey:
    return WrappedKey(f"key-{number}", b"wrapped %d" % number)


async def everything(store: KeyStore) -> dict[str, WrappedKey]:
    return {subject: key async for page in store.scan(100) for subject, key in page}


async def test_keys_come_back_and_the_erased_do_not(keys_address: DynamoDbAddress, tmp_path: Path) -> None:
    backups = backups_of(keys_address)
    store = await DynamoDbKeyStore.open(keys_address)
    await store.insert({f"user-{number}": key_of(number) for number in range(5)})
    await store.erase("user-0", NOW)
    revocations = await DynamoDbRevocations.open(keys_address)
    await revocations.revoke("issuer", "thief", at=NOW.timestamp(), forget_before=NOW.timestamp() - 600)
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing), Part.KEYS)
    async with backups.opened(folder, manifest) as copy:
        assert await everything(copy) == await everything(store)
        assert (await copy.erasures(None)).mark == 1

    await store.erase("user-1", NOW)
    staged = await backups.stage(folder, manifest, nothing)
    async with staged.opened() as there:
        assert (await there.load(["user-1"]))["user-1"].erased_at is not None
    await store.erase("user-2", NOW)
    await revocations.revoke("issuer", "later", at=NOW.timestamp(), forget_before=NOW.timestamp() - 600)
    switched = await staged.switch()
    assert any("within 7 days, switch point-in-time recovery of the old tables off" in line for line in switched.left)
    in_force = await resolved(keys_address, "keys")
    restored = await DynamoDbKeyStore.open(in_force)
    assert set(await everything(restored)) == {"user-3", "user-4"}
    assert (await restored.erasures(0)).subjects == ("user-0", "user-1", "user-2")
    assert set(await (await DynamoDbRevocations.open(in_force)).load(0)) == {("issuer", "thief"), ("issuer", "later")}
    async with opened_tables(in_force) as theirs:
        assert await create_tables(theirs.client, SPECS["keys"]) == []
    assert await resolved(keys_address, "journal") == keys_address
    for opened in (store, revocations, restored):
        await opened.close()


async def test_keys_can_be_recovered_seven_days_at_most(
    keys_address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    """Requests compared: the emulator does not keep the number of days."""
    said: list[str] = []
    folder = folder_in(tmp_path)
    backups = backups_of(keys_address)
    manifest = manifest_of(await backups.make(folder, said.append), Part.KEYS)
    assert f"setting point-in-time recovery of {keys_address.table('keys')} to 7 days" in said
    staged = await backups.stage(folder, manifest, nothing)
    days = {
        request["TableName"]: request["PointInTimeRecoverySpecification"]
        for operation, request in between.requests
        if operation == "UpdateContinuousBackups"
    }
    wanted = {"PointInTimeRecoveryEnabled": True, "RecoveryPeriodInDays": 7}
    for address in (keys_address, staged._staged.address):
        assert days[address.table("keys")] == days[address.table("revocations")] == wanted
    await staged.discard()
    off = {
        request["TableName"]
        for operation, request in between.requests
        if operation == "UpdateContinuousBackups"
        and not request["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]
    }
    assert off == {staged._staged.address.table(name) for name in ("keys", "revocations")}


async def test_copies_of_keys_that_nobody_knows_go_in_seven_days(keys_address: DynamoDbAddress, tmp_path: Path) -> None:
    """Of a run that was killed after it made them, and before a manifest knew them."""
    clock = ManualClock()
    clock.time = datetime.now(UTC)  # AWS stamps its backups by its own clock
    backups = DynamoDbKeyBackups(keys_address, clock=clock)
    made = await backups.make(folder_in(tmp_path), nothing)
    clock.advance(timedelta(days=7, minutes=1).total_seconds())
    said: list[str] = []
    again = await backups.make(folder_in(tmp_path), said.append)
    assert "2 backups of keys in AWS were over 7 days old, and are deleted" in said
    async with opened_tables(keys_address) as tables:
        left = [
            each["BackupArn"]
            for name in ("keys", "revocations")
            for each in (await tables.call("ListBackups", {"TableName": keys_address.table(name)}))["BackupSummaries"]
        ]
    assert sorted(left) == sorted(again.references.values())
    assert not set(left) & set(made.references.values())


async def test_a_key_store_that_is_gone_can_be_restored(keys_address: DynamoDbAddress, tmp_path: Path) -> None:
    backups = backups_of(keys_address)
    store = await DynamoDbKeyStore.open(keys_address)
    await store.insert({"user-1": key_of(1)})
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing), Part.KEYS)
    async with opened_tables(keys_address) as tables:
        for name in ("keys", "revocations"):
            await tables.remove(keys_address.table(name))
    switched = await (await backups.stage(folder, manifest, nothing)).switch()
    assert switched.kept == ""
    restored = await DynamoDbKeyStore.open(await resolved(keys_address, "keys"))
    assert await everything(restored) == {"user-1": key_of(1)}
    assert (await read_described(folder)).part == "keys"
    await store.close()
    await restored.close()
