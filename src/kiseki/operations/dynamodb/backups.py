"""On-demand backups of AWS: making those of several tables, waiting for them, and deleting them.

Used by the drivers of DynamoDB. AWS takes such a copy of a table at the moment of the call, and finishes it later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.kernel.errors import KisekiError
from kiseki.operations.backup.port import Progress
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.errors import BackupDamaged, BackupMissing, OperationFailed

__all__ = ["Copied", "copy_tables", "delete_copies", "delete_old_copies", "must_be_there"]

_FINISHES: Final = 3600.0
_OURS: Final = "backup-"


class Copied(NamedTuple):
    """One backup in AWS."""

    arn: str
    copied_at: datetime
    """UTC, AWS's clock."""


async def copy_tables(
    tables: Tables, live: DynamoDbAddress, names: Sequence[str], run: str, progress: Progress
) -> dict[str, Copied]:
    """Backs tables up, one after the other in this order; by name. What fails leaves none of them behind.

    Raises OperationFailed, DynamoDbUnavailable.
    """
    made: dict[str, Copied] = {}
    try:
        for name in names:
            table = live.table(name)
            progress(f"AWS copies {table}")
            answer = await _create(tables, table, run)
            made[name] = _copied(answer["BackupDetails"])
        for name, copy in made.items():
            await _finished(tables, live.table(name), copy.arn, progress)
        for name in names:
            await _remove_doubles(tables, live.table(name), run, made[name].arn)
    except BaseException:
        for copy in made.values():
            with suppress(KisekiError):  # the next run removes it, by the name of this one
                await _delete(tables, copy.arn)
        raise
    return made


async def delete_copies(tables: Tables, references: Mapping[str, str]) -> None:
    """Deletes the backups of a manifest; again is fine."""
    for reference in references.values():
        if reference.startswith("arn:"):
            await _delete(tables, reference)


async def delete_old_copies(tables: Tables, table_names: Sequence[str], *, older_than: timedelta, now: datetime) -> int:
    """Deletes kiseki's backups of tables that are older, whether a manifest knows them or not; how many."""
    count = 0
    for table in table_names:
        for each in await _copies_of(tables, table):
            if each["BackupName"].startswith(_OURS) and now - _moment(each) > older_than:
                await _delete(tables, each["BackupArn"])
                count += 1
    return count


async def must_be_there(tables: Tables, references: Mapping[str, str], names: Sequence[str]) -> dict[str, Copied]:
    """The backups of a manifest, by table. Raises BackupMissing, BackupDamaged."""
    found = {}
    for name in names:
        arn = references.get(name)
        if arn is None:
            raise BackupDamaged(f"the manifest names no backup of the table {name}; use another backup")
        answer = await tables.call("DescribeBackup", {"BackupArn": arn})
        details = answer["BackupDescription"]["BackupDetails"]
        if details["BackupStatus"] != "AVAILABLE":
            raise BackupMissing(f"the backup of {name} in AWS is {details['BackupStatus']}; use another backup")
        found[name] = _copied(details)
    return found


async def _create(tables: Tables, table: str, run: str) -> dict[str, Any]:
    return await tables.call("CreateBackup", {"TableName": table, "BackupName": run})


async def _finished(tables: Tables, table: str, arn: str, progress: Progress) -> None:
    async def look() -> bool | None:
        answer = await tables.call("DescribeBackup", {"BackupArn": arn})
        status = answer["BackupDescription"]["BackupDetails"]["BackupStatus"]
        if status == "DELETED":
            raise OperationFailed(f"somebody deleted the backup of {table} while it was made; run the same again")
        return True if status == "AVAILABLE" else None

    def tell(seconds: float) -> None:
        progress(f"AWS finishes the copy of {table}, {seconds:.0f} s")

    await tables.until(look, f"the backup of {table} is not finished", _FINISHES, tell)


async def _remove_doubles(tables: Tables, table: str, run: str, arn: str) -> None:
    """A call whose answer was lost and that was sent again has made two."""
    for each in await _copies_of(tables, table):
        if each["BackupName"] == run and each["BackupArn"] != arn:
            await _delete(tables, each["BackupArn"])


async def _copies_of(tables: Tables, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    request: dict[str, Any] = {"TableName": table, "BackupType": "USER"}
    while True:
        answer = await tables.call("ListBackups", request)
        found += answer["BackupSummaries"]
        if not answer.get("LastEvaluatedBackupArn"):
            return found
        request["ExclusiveStartBackupArn"] = answer["LastEvaluatedBackupArn"]


async def _delete(tables: Tables, arn: str) -> None:
    with suppress(BackupMissing):
        await tables.call("DeleteBackup", {"BackupArn": arn})


def _copied(details: Mapping[str, Any]) -> Copied:
    return Copied(details["BackupArn"], _moment(details))


def _moment(details: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(float(details["BackupCreationDateTime"]), UTC)
