"""On-demand backups of AWS: making those of several tables, waiting for them, and deleting them.

Used by the drivers of DynamoDB. Such a copy is not of one moment: it surely has what was written up to a minute before
the request, surely nothing of later than a minute after it, and of what lies between AWS chooses item by item.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CreateBackup.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.kernel.errors import KisekiError
from kiseki.operations.backup.port import Progress
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.errors import BackupDamaged, BackupMissing, OperationFailed

__all__ = ["Copied", "Copying", "copy_tables", "delete_copies", "delete_old_copies", "must_be_there"]

_FINISHES: Final = 3600.0
_OURS: Final = "backup-"


class Copied(NamedTuple):
    """One backup in AWS."""

    arn: str
    copied_at: datetime
    """When it was asked for: UTC, AWS's clock."""


class Copying(NamedTuple):
    """How far a copy may be from the moment at which it was asked for."""

    around: timedelta
    """On either side."""
    apart: float
    """Seconds from one request to the next, so that the later copy has all that the earlier one has."""

    @classmethod
    def of(cls, address: DynamoDbAddress) -> Copying:
        """As AWS says; an emulator on this machine copies in the moment of the request."""
        return _AT_ONCE if address.is_loopback else _AWS

    def surely_in(self, copies: Iterable[Copied]) -> datetime:
        """All that was written up to then is in every one of the copies (UTC, AWS's clock)."""
        return min(copy.copied_at for copy in copies) - self.around


_AWS: Final = Copying(timedelta(seconds=60), 130.0)
"""Twice a minute, and some seconds for requests that are on their way."""
_AT_ONCE: Final = Copying(timedelta(0), 0.0)


async def copy_tables(
    tables: Tables, live: DynamoDbAddress, names: Sequence[str], run: str, progress: Progress, *, apart: float
) -> dict[str, Copied]:
    """Backs tables up, in this order, each so many seconds after the one before; by name. So many seconds after the
    last one this returns, so whatever is copied next is later too. What fails leaves none of them behind.

    Raises OperationFailed, DynamoDbUnavailable.
    """
    made: dict[str, Copied] = {}
    try:
        for name in names:
            table = live.table(name)
            progress(f"AWS copies {table}")
            answer = await _create(tables, table, run)
            made[name] = _copied(answer["BackupDetails"])
            asked = asyncio.get_running_loop().time()
            await _finished(tables, table, made[name].arn, progress)
            await _passed(asked + apart, table, progress)
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


async def _passed(end: float, table: str, progress: Progress) -> None:
    """Waits until a time of the loop's clock: AWS shows nothing that could be waited for instead."""
    left = end - asyncio.get_running_loop().time()
    if left > 0:
        progress(f"waiting {left:.0f} s: until then more may come into the copy of {table}")
        await asyncio.sleep(left)


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
