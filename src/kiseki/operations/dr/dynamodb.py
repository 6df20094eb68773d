"""Replication of DynamoDB: global tables of two regions (MREC, version 2019.11.21). Used by `kiseki dr`.

Such tables take writes in both regions and keep the later one of two: a commit of a writer that lost its lease would
replace one of the writer after it. So the failover detaches first, by taking the region that is to write out of the
group (`Disassociate`), which deletes nothing on either side. Removing the other replica (`Delete`) would delete its
items, with all that was never replicated.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/globaltables-disassociate.html
Not seen on AWS: no emulator has this; tests compare the requests.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.application.system import SystemClock
from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient, DynamoDbRefused, DynamoDbUnavailable
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import START, JournalUnavailable, Position
from kiseki.journal.transfer.lines import stored
from kiseki.journal.transfer.walk import commits_of
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.dr.compare import differences
from kiseki.operations.dr.replication import FailoverRefused, Lag, Verified

__all__ = ["DynamoDbReplication", "SharedTables"]

_UNSAID: Final = "nobody said where the other site's journal is; give its settings with --other"
_LOOKBACK: Final = timedelta(hours=24)
_FOLLOWS: Final = 60.0
_LOOK: Final = 1.0
_DETACHES: Final = 900.0
_REPLICATED_BY: Final = "aws:rep:"
"""How attributes begin that replication adds."""


class SharedTables(NamedTuple):
    """The tables of a service in one region: those of the journal, and of keys where they lie there too."""

    address: DynamoDbAddress
    tables: tuple[str, ...]
    """Their full names."""
    compared: tuple[str, ...]
    """Of those, the ones whose items are compared besides the journal's."""


class DynamoDbReplication:
    """As Replication."""

    def __init__(self, primary: SharedTables | None, replica: SharedTables, *, unknown: str = _UNSAID) -> None:
        """`primary`: None when it is not known; `unknown` says why."""
        self._primary = primary
        self._replica = replica
        self._client = DynamoDbClient(replica.address)
        self._other = None if primary is None else DynamoDbClient(primary.address)
        self._unknown = unknown
        self._began = datetime.now(UTC)

    async def lag(self) -> Lag:
        """As Replication: what the tables say of each other; how late replication is only CloudWatch knows."""
        states = [await self._replicas(table) for table in self._replica.tables]
        words = [f"{table}: {_in_words(state)}" for table, state in zip(self._replica.tables, states, strict=True)]
        return Lag(detail=f"{', '.join(words)}; for the delay see ReplicationLatency in CloudWatch")

    async def promoted(self) -> bool:
        """As Replication: none of the tables is replicated any more."""
        return not any([await self._replicas(table) for table in self._replica.tables])

    async def mark(self) -> Position:
        """As Replication: the streams that were written to within the last day are compared, so nothing is noted."""
        return START

    async def check(self) -> None:
        """As Replication."""
        primary = self._known_primary()
        for table in self._replica.tables:
            there = await self._replicas(table)
            status = there.get(primary.address.region, "ACTIVE")
            if primary.address.region not in there:
                raise FailoverRefused(
                    f"{table} in {self._replica.address.region} is no replica of the one in {primary.address.region}"
                )
            if status != "ACTIVE":
                raise FailoverRefused(f"the replica of {table} is {status}; wait until it is ACTIVE")

    async def fence(self, term: int) -> str:
        """As Replication: DynamoDB compares no terms. A term in each append would be a transaction that all of them
        share: twice the price, and conflicts between all."""
        return "DynamoDB can't refuse by itself; the lease has been waited out, and the tables are detached"

    async def verify(self, since: Position) -> Verified:
        """As Replication: every commit of the streams that were written to within a day, and every claim and key.
        Replication has no order, so it is compared again and again until all is there."""
        end = asyncio.get_running_loop().time() + _FOLLOWS
        while True:
            difference, compared = await self._compare()
            if difference is None:
                return Verified(commits=compared, detail="streams of the last 24 hours; claims and keys are the same")
            if asyncio.get_running_loop().time() >= end:
                raise FailoverRefused(f"the tables differ after {_FOLLOWS:g} s: {difference}")
            await asyncio.sleep(_LOOK)

    async def newest(self) -> str:
        """As Replication."""
        return "what was replicated before the tables are detached is there; there is no order in it"

    async def promote(self, *, clean: bool) -> str:
        """As Replication: takes this region's replica of every table out of its group, and waits until it is out. Where
        nothing can be on its way any more they stay together, and replication goes the other way from now on."""
        if clean:
            return f"every writer has let go, so the tables of {self._replica.address.region} stay replicated"
        for table in self._replica.tables:
            if await self._replicas(table):
                await self._call(
                    self._client,
                    "UpdateTable",
                    {"TableName": table, "ReplicaUpdates": [{"Disassociate": _disassociation(self._replica.address)}]},
                )
        try:
            async with asyncio.timeout(_DETACHES):
                while not await self.promoted():  # noqa: ASYNC110  # of another machine
                    await asyncio.sleep(_LOOK)
        except TimeoutError as problem:
            raise FailoverRefused(
                f"the tables were not detached within {_DETACHES:g} s; run the same again, which goes on waiting"
            ) from problem
        return f"{', '.join(self._replica.tables)} in {self._replica.address.region} are replicated no more"

    async def admit(self, term: int) -> None:
        """As Replication: nothing to do."""

    async def close(self) -> None:
        """As Replication."""
        for client in (self._client, self._other):
            if client is not None:
                await client.close()

    async def _compare(self) -> tuple[str | None, int]:
        primary = self._known_primary()
        compared = 0
        async with _journal(primary.address) as ours, _journal(self._replica.address) as theirs:
            async for heads in ours.heads(self._began - _LOOKBACK):
                for stream in heads:
                    page = [stored(commit) async for commit in commits_of(ours, stream, after=0)]
                    if await differences(page, theirs):
                        return f"the stream {stream}", compared
                    compared += len(page)
        for table in self._replica.compared:
            assert self._other is not None  # noqa: S101  # there is one where there is a primary
            ours_digest = await self._digest(self._other, table)
            if ours_digest != await self._digest(self._client, table):
                return f"the items of {table}", compared
        return None, compared

    async def _digest(self, client: DynamoDbClient, table: str) -> tuple[int, int]:
        """Of all items of a table, in any order: their number, and a sum of hashes."""
        count = total = 0
        request: dict[str, Any] = {"TableName": table, "ConsistentRead": True}
        while True:
            answer = await self._call(client, "Scan", request)
            for item in answer.get("Items", ()):
                own = {name: value for name, value in item.items() if not name.startswith(_REPLICATED_BY)}
                text = msgspec.json.encode(own, order="sorted")
                total = (total + int.from_bytes(hashlib.sha256(text).digest(), "big")) % 2**256
                count += 1
            if "LastEvaluatedKey" not in answer:
                return count, total
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def _replicas(self, table: str) -> Mapping[str, str]:
        """The other regions of a table, and how its replica there is doing."""
        answer = await self._call(self._client, "DescribeTable", {"TableName": table})
        replicas = answer["Table"].get("Replicas", ())
        here = self._replica.address.region
        return {each["RegionName"]: each.get("ReplicaStatus", "") for each in replicas if each["RegionName"] != here}

    async def _call(self, client: DynamoDbClient, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await client.call(operation, request)
        except DynamoDbUnavailable as problem:
            raise JournalUnavailable(str(problem), retry_after=problem.retry_after) from problem
        except DynamoDbRefused as problem:
            raise FailoverRefused(str(problem)) from problem

    def _known_primary(self) -> SharedTables:
        if self._primary is None:
            raise JournalUnavailable(self._unknown)
        return self._primary


def _disassociation(address: DynamoDbAddress) -> dict[str, str]:
    return {"RegionName": address.region, "DisassociationMode": "WAIT_FOR_REPLICATION"}


def _in_words(replicas: Mapping[str, str]) -> str:
    return ", ".join(f"{region} {status}" for region, status in sorted(replicas.items())) or "not replicated"


@asynccontextmanager
async def _journal(address: DynamoDbAddress) -> AsyncIterator[DynamoDbJournal]:
    journal = await DynamoDbJournal.open(address, clock=SystemClock(), telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()
