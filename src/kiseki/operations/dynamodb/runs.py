"""Operations that are under way, so that what a killed one left is told from what another one is making.

Used by the drivers of DynamoDB. Each run has an item in the table of operations, which it renews as long as it lives.
What belongs to a run whose item was not renewed for ten minutes, by the clock here, is removed by the next run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb_generations import OPERATIONS_KEY, OPERATIONS_TABLE, generation_address
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import new_id
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.dynamodb.fence import Fencing, lift_fence
from kiseki.operations.dynamodb.parts import PARTS

__all__ = ["Run", "Runs"]

_RUN: Final = "run#"
_RENEWED_EVERY: Final = 60.0
_DEAD_AFTER: Final = timedelta(minutes=10)


class _Noted(NamedTuple):
    name: str
    renewed_at: datetime


class Run(NamedTuple):
    """One operation that makes tables or backups of its own."""

    name: str
    """What the names of all that it makes contain: `verify-<id>`, `r<id>` or `backup-<id>`."""


class Runs:
    """The runs of one service's tables."""

    def __init__(self, tables: Tables, *, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._table = tables.address.table(OPERATIONS_TABLE.name)

    @asynccontextmanager
    async def begun(self, kind: str) -> AsyncIterator[Run]:
        """A new run, after the remains of dead ones were removed. It counts as alive until the end of the block."""
        await self._tables.make_operations()
        await self.remove_remains()
        run = Run(f"{kind}{new_id(self._clock.now())}")
        await self._renew(run)
        renewing = asyncio.create_task(self._keep(run))
        try:
            yield run
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            with suppress(KisekiError):  # then it ends by itself, in ten minutes
                await self._tables.call("DeleteItem", self._key(run.name))

    async def remove_remains(self) -> None:
        """Removes tables and backups of runs that are dead, and of tables those whose run nobody knows."""
        # In this order: a run is noted before it makes a table, and its table is in force before its note goes.
        tables = await self._tables.names()
        noted = await self._noted()
        now = self._clock.now()
        alive = {each.name for each in noted if now - each.renewed_at < _DEAD_AFTER}
        kept: set[str] = set()
        for part in PARTS:
            force = await self._tables.in_force(part)
            kept |= {force.generation, *force.earlier}
        for table in tables:
            name = _run_of(table, self._tables.address.prefix)
            if name is not None and name not in alive and name not in kept:
                await self._tables.remove(table)
        dead = [each for each in noted if each.name not in alive]
        if any(each.name.startswith("backup-") for each in dead):
            await self._remove_backups({each.name for each in dead})
        for each in dead:
            if each.name.startswith("r"):
                await self._lift_fence(each.name)
            await self._tables.call("DeleteItem", self._key(each.name))

    async def _lift_fence(self, run: str) -> None:
        """A run that was killed between its fence and its switch left the live tables without writers."""
        for part in PARTS:
            generation = (await self._tables.in_force(part)).generation
            live = generation_address(self._tables.address, generation)
            for name in PARTS[part]:
                await lift_fence(self._tables, live.table(name), run, Fencing(), was_put=False)

    async def _remove_backups(self, dead: set[str]) -> None:
        request: dict[str, Any] = {"BackupType": "USER"}
        while True:
            answer = await self._tables.call("ListBackups", request)
            for each in answer["BackupSummaries"]:
                if each["BackupName"] in dead:
                    await self._tables.call("DeleteBackup", {"BackupArn": each["BackupArn"]})
            if not answer.get("LastEvaluatedBackupArn"):
                return
            request["ExclusiveStartBackupArn"] = answer["LastEvaluatedBackupArn"]

    async def _noted(self) -> list[_Noted]:
        found: list[_Noted] = []
        request: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True}
        while True:
            answer = await self._tables.call("Scan", request)
            for item in answer["Items"]:
                name = item[OPERATIONS_KEY]["S"]
                if name.startswith(_RUN):
                    found.append(_Noted(name.removeprefix(_RUN), datetime.fromisoformat(item["renewed-at"]["S"])))
            if not answer.get("LastEvaluatedKey"):
                return found
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def _keep(self, run: Run) -> None:
        while True:
            await asyncio.sleep(_RENEWED_EVERY)
            with suppress(KisekiError):  # the next time may get through
                await self._renew(run)

    async def _renew(self, run: Run) -> None:
        item = {**self._key(run.name)["Key"], "renewed-at": {"S": self._clock.now().isoformat()}}
        await self._tables.call("PutItem", {"TableName": self._table, "Item": item})

    def _key(self, name: str) -> dict[str, Any]:
        return {"TableName": self._table, "Key": {OPERATIONS_KEY: {"S": f"{_RUN}{name}"}}}


def _run_of(table: str, prefix: str) -> str | None:
    """The run that made a table, by its name; None for tables that no run makes."""
    found = re.fullmatch(
        rf"{re.escape(prefix)}-((?:verify-|r)[0-9]{{8}}T[0-9]{{6}}Z-[0-9a-f]{{6}})-"
        "(?:journal|claims|snapshots|keys|revocations)",
        table,
    )
    return found[1] if found else None
