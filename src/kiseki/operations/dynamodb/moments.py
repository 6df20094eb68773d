"""`point_in_time`: a journal on DynamoDB as it was at a second, without any backup, by AWS's continuous one.

Used by whoever restores to a second, with `DynamoDbJournalBackups`.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/PointInTimeRecovery.Tutorial.html
Not seen on AWS: the emulator restores what is there now, whatever second it is asked for; tests compare the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kiseki._version import __version__
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import generation_address
from kiseki.journal.format import FORMAT as COMMITS_FORMAT
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import new_id
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part
from kiseki.operations.dynamodb.calls import Tables, opened_tables
from kiseki.operations.errors import BackupMissing

__all__ = ["AT", "CLAIMS_BEFORE", "ON_DEMAND", "POINT_IN_TIME", "point_in_time"]

ON_DEMAND: Final = "on-demand"
POINT_IN_TIME: Final = "point-in-time"
AT: Final = "at"
"""In the references of a restore to a second: the second."""
CLAIMS_BEFORE: Final = timedelta(seconds=120)
"""How much earlier the claims are restored: their copy has to be the older one."""
_SURELY: Final = timedelta(seconds=60)
"""AWS says nothing of what two tables have at one second; so no more is believed of it than of a backup."""


async def point_in_time(address: DynamoDbAddress, at: datetime, clock: Clock) -> Manifest:
    """The journal at a second (UTC; parts of it are cut off), as a manifest that `DynamoDbJournalBackups` restores.

    It is in no place, and `prune` has nothing to do with it. Raises BackupMissing when point-in-time recovery is off or
    does not reach that second, OperationFailed, DynamoDbUnavailable.
    """
    second = at.astimezone(UTC).replace(microsecond=0)
    async with opened_tables(address) as tables:
        live = generation_address(address, (await tables.in_force("journal")).generation)
        names = {name: live.table(name) for name in ("claims", "journal")}
        await _must_reach(tables, names["claims"], second - CLAIMS_BEFORE)
        await _must_reach(tables, names["journal"], second)
    now = clock.now()
    return Manifest(
        format=FORMAT,
        id=new_id(now),
        part=Part.JOURNAL,
        kiseki=__version__,
        started_at=now,
        finished_at=now,
        made=Made(
            store="dynamodb",
            method=POINT_IN_TIME,
            as_of=second - _SURELY,
            versions={"commits": str(COMMITS_FORMAT)},
            references={**names, AT: second.isoformat()},
        ),
        files=(),
    )


async def _must_reach(tables: Tables, table: str, second: datetime) -> None:
    answer = await tables.call("DescribeContinuousBackups", {"TableName": table})
    found: Mapping[str, Any] = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription") or {}
    if found.get("PointInTimeRecoveryStatus") != "ENABLED":
        raise BackupMissing(
            f"point-in-time recovery of {table} is off, so it can't be restored to a second; restore a backup"
        )
    earliest, latest = (
        datetime.fromtimestamp(float(found[name]), UTC)
        for name in ("EarliestRestorableDateTime", "LatestRestorableDateTime")
    )
    if not earliest <= second <= latest:
        raise BackupMissing(
            f"{table} can be restored to {earliest:%Y-%m-%d %H:%M:%S} up to {latest:%Y-%m-%d %H:%M:%S} UTC, and not to "
            f"{second:%Y-%m-%d %H:%M:%S}; AWS is some five minutes behind"
        )
