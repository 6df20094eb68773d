"""`StagedTables`: restored tables beside the live ones, and the switch that puts them in force.

Used by the drivers of DynamoDB. Tables can't be renamed, so a switch is one conditional write of which generation is in
force (`clients/dynamodb_generations`); processes look when they open their stores. Those that run go on with the tables
that they opened. So these are fenced first, and the switch is not made before AWS is seen to refuse writes to them;
where an endpoint does not apply policies, somebody has to stop the writers and say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbRefused, DynamoDbUnavailable
from kiseki.clients.dynamodb_generations import (
    GenerationChanged,
    InForce,
    StorePart,
    generation_address,
    put_in_force,
)
from kiseki.clients.dynamodb_tables import TableSpec
from kiseki.kernel.errors import KisekiError
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.dynamodb.calls import Tables, refusals
from kiseki.operations.dynamodb.fence import Fencing, lift_fence, put_fence, wait_for_fence
from kiseki.operations.dynamodb.parts import PARTS, SPECS
from kiseki.operations.dynamodb.restored import remove_tables
from kiseki.operations.errors import OperationFailed, RestoreRefused

__all__ = ["StagedTables", "switched_meanwhile"]


class StagedTables:
    """One generation that is not in force yet. Belongs to one event loop."""

    def __init__(
        self,
        part: StorePart,
        tables: Tables,
        run: str,
        instead_of: InForce,
        *,
        left: list[str],
        writers_stopped: bool,
        fencing: Fencing,
        opened: AsyncExitStack,
        progress: Progress,
    ) -> None:
        """`left` are lines for the operator; `opened` is let go of at the end."""
        self.part = part
        self.tables = tables
        self.instead_of = instead_of
        self._run = run
        self._left = left
        self._writers_stopped = writers_stopped
        self._fencing = fencing
        self._opened = opened
        self._progress = progress
        self._fenced: set[str] = set()
        """The tables that were given a fence, or may have been."""
        self._settled = False
        """Whether nothing is left to discard: in force, perhaps in force, or discarded."""

    @property
    def address(self) -> DynamoDbAddress:
        """The restored tables."""
        return generation_address(self.tables.address, self._run)

    @property
    def live(self) -> DynamoDbAddress:
        """The tables that are in force until the switch."""
        return generation_address(self.tables.address, self.instead_of.generation)

    async def switch(
        self, *, before: Callable[[], Awaitable[None]], after: Callable[[], Awaitable[list[str]]]
    ) -> Switched:
        """Fences the live tables, awaits `before`, puts the restored ones in force, and awaits `after`, whose lines are
        for the operator. Raises RestoreRefused, OperationFailed, Unavailable; then the live ones are as they were."""
        with refusals():
            if await self.tables.in_force(self.part) != self.instead_of:
                raise switched_meanwhile(self.part)
            try:
                await self._fence()
                await before()
            except BaseException as problem:
                await self._lift(problem)
                raise
            self._settled = True
            try:
                await put_in_force(self.tables.client, self.part, self._run, instead_of=self.instead_of)
            except (GenerationChanged, DynamoDbRefused) as problem:
                self._settled = False
                await self._lift(problem)
                if isinstance(problem, DynamoDbRefused):
                    raise
                raise switched_meanwhile(self.part) from problem
            except DynamoDbUnavailable as problem:
                # They may be in force: what lifted the fence now could let both generations be written, and what
                # discarded them could remove the live ones. The next run sees which it is.
                raise OperationFailed(
                    f"nobody knows whether the restored tables are in force ({problem}); the old ones take no writes. "
                    "Once DynamoDB answers, see `generation` in the table operations; ten minutes later the same again "
                    "removes what is not in force and lets the old tables be written"
                ) from problem
            left = [*await self._to_do(), *await _told(after)]
            there = [self.live.table(name) for name in PARTS[self.part]]
            kept = [table for table in there if await self.tables.describe(table) is not None]
        await self._opened.aclose()
        return Switched(f"the tables {', '.join(kept)} (they take no writes)" if kept else "", tuple(left))

    async def discard(self) -> None:
        """As Staged."""
        if self._settled:
            return
        with refusals():
            await remove_tables(self.tables, self.address, PARTS[self.part], alarms=True, progress=self._progress)
        self._settled = True
        await self._opened.aclose()

    async def _fence(self) -> None:
        for spec in SPECS[self.part]:
            table = self.live.table(spec.name)
            try:
                await put_fence(self.tables, table, self._run)
            except (DynamoDbRefused, OperationFailed):
                raise  # there is none
            except BaseException:
                self._fenced.add(table)
                raise
            self._fenced.add(table)
        if not self._writers_stopped:
            for spec in SPECS[self.part]:
                await wait_for_fence(self.tables, self.live.table(spec.name), _nobodys(spec), self._fencing)

    async def _lift(self, because: BaseException) -> None:
        """Lets the live tables be written again. Raises OperationFailed, with what was wrong before, when it can't."""
        names = [self.live.table(name) for name in PARTS[self.part]]
        found = await asyncio.gather(
            *(lift_fence(self.tables, name, self._run, self._fencing, was_put=name in self._fenced) for name in names),
            return_exceptions=True,
        )
        kept = {name: problem for name, problem in zip(names, found, strict=True) if problem is not None}
        if kept:
            raise OperationFailed(
                f"{because}; and {', '.join(kept)} may take no writes still: the statement KisekiFence could not be "
                f"taken out of their policies ({next(iter(kept.values()))}); do it, or run this again in ten minutes"
            ) from because

    async def _to_do(self) -> list[str]:
        restored = self.address
        left = [
            "restart every process: one that runs uses the old tables until then",
            f"allow their roles the tables {restored.prefix}-*, where policies name tables",
        ]
        for name in PARTS[self.part]:
            stream = (await self.tables.must_describe(restored.table(name))).get("LatestStreamArn")
            if stream:
                left.append(f"an updater that is a Lambda needs an event source mapping of the new stream: {stream}")
        return [*left, *self._left]


async def _told(after: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """The lines; it is switched, so what fails now is one of them."""
    try:
        return await after()
    except KisekiError as problem:
        return [f"whether the old tables got commits meanwhile is not known: {problem}"]


def switched_meanwhile(part: StorePart) -> RestoreRefused:
    """The refusal of whoever comes second."""
    return RestoreRefused(
        f"somebody else has put other tables of {part} in force meanwhile; nothing was changed by this run. Look at "
        "what is live now before you restore again"
    )


def _nobodys(spec: TableSpec) -> dict[str, Any]:
    """A key that no item has."""
    keys = [spec.hash_key, *([spec.range_key] if spec.range_key else [])]
    return {key.name: {key.type: "0" if key.type == "N" else "kiseki#fence"} for key in keys}
