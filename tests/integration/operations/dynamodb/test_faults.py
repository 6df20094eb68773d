"""What goes wrong with backups on DynamoDB (the emulator): killed runs, rights, regions, throttling, tables that go."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kiseki.clients.aws_json import AwsJsonClient, AwsRefused
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import resolved
from kiseki.kernel.errors import Unavailable
from kiseki.operations.backup.manifest import Manifest, encode_manifest
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb import backups as dynamodb_backups
from kiseki.operations.dynamodb.calls import opened_tables
from kiseki.operations.dynamodb.described import TABLES_FILE
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from kiseki.operations.dynamodb.moments import point_in_time
from kiseki.operations.errors import BackupDamaged, BackupMissing, OperationFailed
from tests.integration.journal.dynamodb_parts import append, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import (
    Between,
    contents,
    folder_in,
    refusal,
)
from tests.integration.operations.dynamodb.test_switch import backed_up, fences
from tests.support import ManualClock

SCRIPT = Path(__file__).with_name("killed_run.py")
ROOT = Path(__file__).parents[4]


async def killed(address: DynamoDbAddress, folder: Path, manifest: Manifest, what: str, at: str) -> None:
    """Runs it until it is dead."""
    kept = folder.parent / f"{folder.name}.json"
    await asyncio.to_thread(kept.write_bytes, encode_manifest(manifest))
    url = f"dynamodb://{address.prefix}?region={address.region}&endpoint={address.endpoint}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.operations.dynamodb.killed_run", url, folder, kept, what, at, cwd=ROOT
    )
    assert await process.wait() == -signal.SIGKILL


async def remains(address: DynamoDbAddress) -> tuple[list[str], int]:
    """Tables beside the live ones, and backups in AWS of the live journal and claims."""
    live = {address.table(name) for name in ("journal", "claims", "snapshots", "operations")}
    async with opened_tables(address) as tables:
        names = [name for name in await tables.names() if name.startswith(f"{address.prefix}-")]
        copies = [
            len((await tables.call("ListBackups", {"TableName": address.table(name)}))["BackupSummaries"])
            for name in ("journal", "claims")
        ]
    return [name for name in names if name not in live], sum(copies)


@pytest.mark.parametrize(
    ("what", "at", "tables_left", "copies_left"),
    [
        ("make", "CreateBackup", False, 3),
        ("verify", "RestoreTableFromBackup", True, 2),
        ("switch", "UpdateTimeToLive", True, 2),
        ("switch", "in-force", True, 2),
    ],
)
async def test_what_a_killed_run_left_is_removed_by_the_next(
    address: DynamoDbAddress, tmp_path: Path, what: str, at: str, tables_left: bool, copies_left: int
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    await killed(address, folder_in(tmp_path) if what == "make" else folder, manifest, what, at)
    left, copies = await remains(address)
    assert (bool(left), copies) == (tables_left, copies_left)
    assert bool(await fences(address)) == (at == "in-force")
    assert await resolved(address, "journal") == address

    clock = ManualClock()
    clock.time = datetime.now(UTC)
    backups = DynamoDbJournalBackups(address, clock=clock, writers_stopped=True)
    async with backups.opened(folder, manifest):  # another operator's run may be alive still
        assert set((await remains(address))[0]) > set(left)
    clock.advance(timedelta(minutes=10, seconds=1).total_seconds())
    async with backups.opened(folder, manifest) as journal:
        assert (await contents(journal)).commits == 3
    assert await remains(address) == ([], 2)
    assert await fences(address) == []


@pytest.mark.parametrize(
    ("operation", "table"),
    [
        ("CreateBackup", "journal"),
        ("DescribeBackup", ""),
        ("UpdateContinuousBackups", "journal"),
        ("DescribeContinuousBackups", "journal"),
        ("ListTagsOfResource", ""),
        ("GetResourcePolicy", ""),
        ("ListTables", ""),
    ],
)
async def test_rights_that_are_missing_are_named(
    address: DynamoDbAddress, between: Between, tmp_path: Path, operation: str, table: str
) -> None:
    between.refuse("AccessDeniedException", operation, address.table(table) if table else "")
    with pytest.raises(OperationFailed, match=f"dynamodb:{operation}.*in eu-west-1; allow it"):
        await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    between.hooks.clear()
    assert (await remains(address))[1] == 0
    await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    assert (await remains(address))[1] == 2


async def test_another_region_has_no_such_tables(address: DynamoDbAddress, tmp_path: Path) -> None:
    there = msgspec.structs.replace(address, region="us-east-1")
    with pytest.raises(OperationFailed, match=f"there is no DynamoDB table {address.prefix}-journal in us-east-1"):
        await DynamoDbJournalBackups(there, clock=RealClock()).make(folder_in(tmp_path), nothing)


async def test_a_backup_of_another_region_is_not_there(address: DynamoDbAddress, tmp_path: Path) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    there = msgspec.structs.replace(address, region="us-east-1")
    with pytest.raises(BackupMissing, match="AWS has no such backup"):
        await DynamoDbJournalBackups(there, clock=RealClock()).stage(folder, manifest, nothing)


async def test_throttling_that_lasts_is_said_and_leaves_nothing(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    async def throttled(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup" and request["TableName"] == address.table("journal"):
            raise Unavailable(f"CreateBackup on {request['TableName']}: ThrottlingException")

    between.hooks.append(throttled)
    with pytest.raises(Unavailable, match="ThrottlingException"):
        await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    between.hooks.clear()
    assert (await remains(address))[1] == 0


async def test_a_table_that_is_being_changed_is_waited_for(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    refused: list[str] = []

    async def busy(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup" and len(refused) < 3:
            refused.append(request["TableName"])
            raise refusal("ContinuousBackupsUnavailableException", operation, request)

    between.hooks.append(busy)
    await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    assert len(refused) == 3


async def test_a_table_that_is_deleted_meanwhile(address: DynamoDbAddress, between: Between, tmp_path: Path) -> None:
    async def deleted(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "CreateBackup" and request["TableName"] == address.table("journal"):
            raise refusal("TableNotFoundException", operation, request)

    between.hooks.append(deleted)
    with pytest.raises(OperationFailed, match=r"there is no DynamoDB table .*-journal in eu-west-1"):
        await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    between.hooks.clear()
    assert (await remains(address))[1] == 0


async def test_a_call_whose_answer_was_lost_leaves_one_copy(
    address: DynamoDbAddress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    create = dynamodb_backups._create

    async def twice(*given: Any) -> Any:
        await create(*given)
        return await create(*given)

    monkeypatch.setattr(dynamodb_backups, "_create", twice)
    made = await DynamoDbJournalBackups(address, clock=RealClock()).make(folder_in(tmp_path), nothing)
    async with opened_tables(address) as tables:
        for name in ("journal", "claims"):
            found = (await tables.call("ListBackups", {"TableName": address.table(name)}))["BackupSummaries"]
            assert [each["BackupArn"] for each in found] == [made.references[name]]


async def test_a_restore_that_fails_leaves_no_tables(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    between.refuse("AccessDeniedException", "UpdateContinuousBackups")
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    with pytest.raises(OperationFailed, match="dynamodb:UpdateContinuousBackups"):
        await backups.stage(folder, manifest, nothing)
    between.hooks.clear()
    assert (await remains(address))[0] == []
    await (await backups.stage(folder, manifest, nothing)).discard()


async def test_a_right_of_cloudwatch_that_is_missing_hides_nothing(
    address: DynamoDbAddress, between: Between, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)

    async def refused(*_: object) -> None:
        raise AwsRefused("monitoring in eu-west-1: DescribeAlarms: AccessDenied", kind="AccessDenied")

    monkeypatch.setattr(AwsJsonClient, "call", refused)
    between.refuse("AccessDeniedException", "UpdateContinuousBackups")
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    said: list[str] = []
    with pytest.raises(OperationFailed, match="dynamodb:UpdateContinuousBackups"):
        await backups.stage(folder, manifest, said.append)
    between.hooks.clear()
    assert (await remains(address))[0] == []
    staged = await backups.stage(folder, manifest, said.append)
    said.clear()
    await staged.discard()
    assert (await remains(address))[0] == []
    assert [line for line in said if "are not deleted" in line and "cloudwatch:DescribeAlarms" in line]


@pytest.mark.parametrize("refused", ["DeleteTable", "DescribeTable"])
async def test_what_can_not_be_removed_hides_nothing(
    address: DynamoDbAddress, between: Between, tmp_path: Path, refused: str
) -> None:
    folder, manifest = await backed_up(address, tmp_path)

    async def hook(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "UpdateContinuousBackups":
            between.hooks.clear()
            between.refuse("AccessDeniedException", refused)
            raise refusal("AccessDeniedException", operation, request)

    between.hooks.append(hook)
    with pytest.raises(OperationFailed, match="dynamodb:UpdateContinuousBackups"):
        await DynamoDbJournalBackups(address, clock=RealClock()).stage(folder, manifest, nothing)
    between.hooks.clear()
    assert (await remains(address))[0] != []


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"part":"journal","tables":[]}'])
async def test_a_description_that_is_damaged(address: DynamoDbAddress, tmp_path: Path, damage: bytes) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    await asyncio.to_thread((folder / TABLES_FILE).write_bytes, damage)
    with pytest.raises(BackupDamaged, match=TABLES_FILE):
        await DynamoDbJournalBackups(address, clock=RealClock()).stage(folder, manifest, nothing)
    assert (await remains(address))[0] == []


async def test_tables_that_are_gone_are_restored(address: DynamoDbAddress, tmp_path: Path) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    async with opened_tables(address) as tables:
        for name in ("journal", "claims", "snapshots"):
            await tables.remove(address.table(name))
    await (await DynamoDbJournalBackups(address, clock=RealClock()).stage(folder, manifest, nothing)).switch()
    async with opened(await resolved(address, "journal")) as journal:
        await append(journal, "user-a", 3)
        assert (await contents(journal)).commits == 4


async def test_a_restore_to_a_second(address: DynamoDbAddress, between: Between, tmp_path: Path) -> None:
    """Requests compared; the emulator restores what is there now. Not seen on AWS."""
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    with pytest.raises(BackupMissing, match="is off, so it can't be restored to a second"):
        await point_in_time(address, datetime.now(UTC), RealClock())
    folder, _ = await backed_up(address, tmp_path)
    with pytest.raises(BackupMissing, match=r"can be restored to .* AWS is some five minutes behind"):
        await point_in_time(address, datetime.now(UTC) - timedelta(days=1), RealClock())
    second = datetime.now(UTC).replace(microsecond=0)
    between.requests.clear()
    manifest = await _within_reach(address, second)
    staged = await backups.stage(folder_in(tmp_path), manifest, nothing)
    asked = {
        request["SourceTableName"]: request["RestoreDateTime"]
        for operation, request in between.requests
        if operation == "RestoreTableToPointInTime"
    }
    assert asked == {
        address.table("journal"): second.timestamp(),
        address.table("claims"): second.timestamp() - 120,
    }
    assert manifest.made.as_of == second - timedelta(seconds=60)
    await staged.switch()
    async with opened(await resolved(address, "journal")) as journal:
        assert (await contents(journal)).commits == 3
    assert folder.exists()
    await backups.forget(manifest)


async def _within_reach(address: DynamoDbAddress, second: datetime) -> Manifest:
    """As AWS would answer of a table whose continuous backup is older than the emulator's, which is always new."""
    described = {
        "PointInTimeRecoveryStatus": "ENABLED",
        "EarliestRestorableDateTime": second.timestamp() - 3600,
        "LatestRestorableDateTime": second.timestamp(),
    }
    from kiseki.operations.dynamodb.calls import Tables

    through = Tables.call

    async def call(tables: Tables, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if operation == "DescribeContinuousBackups":
            return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": described}}
        return await through(tables, operation, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tables, "call", call)
        manifest = await point_in_time(address, second, RealClock())
    assert json.loads(encode_manifest(manifest))["made"]["method"] == "point-in-time"
    return manifest
