"""`Tables`: calls about whole tables and their backups, with each refusal as one line for an operator.

Used by the drivers of DynamoDB. What AWS says of a table that is being changed is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

from kiseki.clients.dynamodb import (
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbClient,
    DynamoDbRefused,
    TransactionCanceled,
)
from kiseki.clients.dynamodb_generations import OPERATIONS_TABLE, InForce, StorePart, in_force
from kiseki.clients.dynamodb_tables import TableDiffers, create_tables
from kiseki.operations.errors import BackupMissing, OperationFailed

__all__ = ["Tables", "opened_tables", "refusals"]

_T = TypeVar("_T")

_ATTEMPT_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 60.0
_PATIENCE: Final = 300.0
_FIRST_LOOK: Final = 0.05
_LAST_LOOK: Final = 5.0
_LATER: Final = frozenset(
    {
        "BackupInUseException",
        "ContinuousBackupsUnavailableException",
        "ResourceInUseException",
        "TableInUseException",
    }
)
"""A change of the table or of the backup is under way, and this one can come after it."""
_NO_TABLE: Final = frozenset({"ResourceNotFoundException", "TableNotFoundException"})


class Tables:
    """Calls for one address. Belongs to one event loop."""

    def __init__(self, client: DynamoDbClient, *, patience: float = _PATIENCE) -> None:
        """Changes of others are waited for `patience` seconds."""
        self.client = client
        self._patience = patience

    @property
    def address(self) -> DynamoDbAddress:
        """The tables of the service's own prefix."""
        return self.client.address

    async def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an operation. Raises OperationFailed, BackupMissing, DynamoDbUnavailable, and DynamoDbRefused
        for what only the caller can judge."""
        end = asyncio.get_running_loop().time() + self._patience
        pause = _FIRST_LOOK
        while True:
            try:
                return await self.client.call(operation, request)
            except DynamoDbRefused as problem:
                if problem.kind not in _LATER or asyncio.get_running_loop().time() + pause >= end:
                    raise self._explained(problem, operation, request) from problem
            # DynamoDB tells nobody when a change is done.
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_LOOK)

    async def describe(self, table: str) -> dict[str, Any] | None:
        """What AWS says of a table; None when there is none, or it is being deleted."""
        try:
            answer = await self.client.call("DescribeTable", {"TableName": table})
        except DynamoDbRefused as problem:
            if problem.kind in _NO_TABLE:
                return None
            raise self._explained(problem, "DescribeTable", {"TableName": table}) from problem
        found: dict[str, Any] = answer["Table"]
        return None if found["TableStatus"] == "DELETING" else found

    async def must_describe(self, table: str) -> dict[str, Any]:
        """What AWS says of a table. Raises OperationFailed when there is none."""
        found = await self.describe(table)
        if found is None:
            raise OperationFailed(self._no_table(table))
        return found

    async def names(self) -> list[str]:
        """The names of all tables of the account in this region."""
        names: list[str] = []
        request: dict[str, Any] = {}
        while True:
            answer = await self.call("ListTables", request)
            names += answer["TableNames"]
            if not answer.get("LastEvaluatedTableName"):
                return names
            request = {"ExclusiveStartTableName": answer["LastEvaluatedTableName"]}

    async def active(self, table: str, patience: float, tell: Callable[[float], None]) -> dict[str, Any]:
        """The table, once it and its indexes can be used. Raises OperationFailed when it is gone, or takes longer than
        `patience` seconds; `tell` is called with the seconds that were waited."""

        async def look() -> dict[str, Any] | None:
            found = await self.must_describe(table)
            indexes = found.get("GlobalSecondaryIndexes") or ()
            statuses = [found["TableStatus"], *(each["IndexStatus"] for each in indexes)]
            return found if all(status == "ACTIVE" for status in statuses) else None

        return await self.until(look, f"the table {table} is not ready", patience, tell)

    async def until(
        self,
        look: Callable[[], Awaitable[_T | None]],
        problem: str,
        patience: float,
        tell: Callable[[float], None] = lambda _: None,
    ) -> _T:
        """What `look` gives once it gives something. Raises OperationFailed after `patience` seconds."""
        now = asyncio.get_running_loop().time
        began = now()
        pause = _FIRST_LOOK
        while (found := await look()) is None:
            if now() - began >= patience:
                raise OperationFailed(
                    f"{problem} after {patience:g} s; look at it in the console of AWS, and run again"
                )
            tell(now() - began)
            # There is nothing to wait for but the clock: DynamoDB tells nobody.
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_LOOK)
        return found

    async def remove(self, table: str) -> None:
        """Deletes a table, protected or not; again is fine.

        Of one that is deleted while its point-in-time recovery is on, AWS keeps a last copy for 35 days: not of these.
        """
        found = await self.describe(table)
        if found is None:
            return
        recovery = (await self.call("DescribeContinuousBackups", {"TableName": table}))["ContinuousBackupsDescription"]
        if (recovery.get("PointInTimeRecoveryDescription") or {}).get("PointInTimeRecoveryStatus") == "ENABLED":
            off = {"PointInTimeRecoveryEnabled": False}
            await self.call("UpdateContinuousBackups", {"TableName": table, "PointInTimeRecoverySpecification": off})
        if found.get("DeletionProtectionEnabled"):
            await self.call("UpdateTable", {"TableName": table, "DeletionProtectionEnabled": False})
        try:
            await self.call("DeleteTable", {"TableName": table})
        except OperationFailed:
            if await self.describe(table) is not None:
                raise

    async def make_operations(self) -> None:
        """Makes the table of operations when it is not there."""
        try:
            await create_tables(self.client, [OPERATIONS_TABLE])
        except DynamoDbRefused as problem:
            table = self.address.table(OPERATIONS_TABLE.name)
            raise self._explained(problem, "CreateTable", {"TableName": table}) from problem

    async def in_force(self, part: StorePart) -> InForce:
        """Which generation of a part is in force. Raises DynamoDbUnavailable."""
        return await in_force(self.client, part)

    def _explained(self, problem: DynamoDbRefused, operation: str, request: Mapping[str, Any]) -> Exception:
        table = str(request.get("TableName") or request.get("TargetTableName") or _named(request))
        if problem.kind == "AccessDeniedException":
            where = f" on {table}" if table else ""
            return OperationFailed(
                f"this account may not do dynamodb:{operation}{where} in {self.address.region}; allow it, and run the "
                "same again"
            )
        if problem.kind in _NO_TABLE:
            return OperationFailed(self._no_table(table))
        if problem.kind == "BackupNotFoundException":
            return BackupMissing(f"AWS has no such backup of {table} any more; see `kiseki backup list` for others")
        if problem.kind in _LATER:
            return OperationFailed(
                f"{table} or its backup is being changed or deleted ({problem.kind}); wait, and run the same again"
            )
        return problem

    def _no_table(self, table: str) -> str:
        return (
            f"there is no DynamoDB table {table} in {self.address.region}; see that the URL names the right prefix and "
            "region, and that nobody deletes it"
        )


def _named(request: Mapping[str, Any]) -> str:
    """The table in an ARN."""
    arn = str(request.get("BackupArn") or request.get("ResourceArn") or "")
    _, _, rest = arn.partition(":table/")
    return rest.partition("/")[0]


@asynccontextmanager
async def opened_tables(address: DynamoDbAddress, *, patience: float = _PATIENCE) -> AsyncIterator[Tables]:
    """For the time of a piece of work. DynamoDbRefused of inside becomes OperationFailed."""
    client = DynamoDbClient(address, connections=16, attempt_timeout=_ATTEMPT_SECONDS, deadline=_CALL_SECONDS)
    try:
        with refusals():
            yield Tables(client, patience=patience)
    finally:
        await client.close()


@contextmanager
def refusals() -> Iterator[None]:
    """What AWS refuses inside, and nobody expected, becomes OperationFailed."""
    try:
        yield
    except (DynamoDbRefused, ConditionFailed, TransactionCanceled, TableDiffers) as problem:
        raise OperationFailed(str(problem)) from problem
