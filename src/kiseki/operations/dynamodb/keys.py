"""`DynamoDbKeyBackups`: the KeyBackups of a key store on DynamoDB, with its revocations. Made by the composition of
operations.

A key that was destroyed is in every copy that is older, so copies live seven days at most: point-in-time recovery of
the keys is set to that, `prune` deletes backups in AWS in time, and each run deletes those that are over it, whether a
manifest knows them or not. A restore carries over whom the live store knows to be erased; the ledger of erasures, which
is replayed after it, knows them all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import generation_address
from kiseki.clients.dynamodb_tables import check_tables, create_tables
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched, nothing
from kiseki.operations.dynamodb.backups import Copying, copy_tables, delete_copies, delete_old_copies, must_be_there
from kiseki.operations.dynamodb.calls import Tables, opened_tables
from kiseki.operations.dynamodb.described import DescribedTables, describe, read_described, write_described
from kiseki.operations.dynamodb.fence import Fencing
from kiseki.operations.dynamodb.parts import PARTS, SPECS
from kiseki.operations.dynamodb.restored import (
    TableSource,
    put_back,
    remove_tables,
    restore_tables,
    switch_recovery_on,
    switch_streams_on,
)
from kiseki.operations.dynamodb.runs import Runs
from kiseki.operations.dynamodb.staging import StagedTables
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.key_store import KeyStore

__all__ = ["DynamoDbKeyBackups", "DynamoDbStagedKeys"]

_DAYS: Final = 7
"""How long copies of keys may be kept."""
_PAGE: Final = 500


class DynamoDbKeyBackups:
    """Backups that AWS keeps; a place holds their names, and what the tables are."""

    store = "dynamodb"

    def __init__(
        self,
        address: DynamoDbAddress,
        *,
        clock: Clock,
        writers_stopped: bool = False,
        fencing: Fencing | None = None,
        copying: Copying | None = None,
    ) -> None:
        """`writers_stopped`: the operator says that no process writes, so a switch need not see writes refused. Else
        it waits for that as `fencing` says. `copying`: how far copies may be from their request, AWS's unless said."""
        self._address = address
        self._clock = clock
        self._writers_stopped = writers_stopped
        self._fencing = fencing or Fencing()
        self._copying = copying or Copying.of(address)

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. Point-in-time recovery of the keys is switched on, for seven days, or shortened to that."""
        names = PARTS["keys"]
        async with opened_tables(self._address) as tables, Runs(tables, clock=self._clock).begun("backup-") as run:
            live = generation_address(self._address, (await tables.in_force("keys")).generation)
            described = await describe(tables, live, "keys", progress)
            for each in described.tables:
                if not each.recovery or each.recovery_days is None or each.recovery_days > _DAYS:
                    progress(f"setting point-in-time recovery of {each.table} to {_DAYS} days")
                    await switch_recovery_on(tables, each.table, _DAYS)
            await write_described(described, folder)
            old = await delete_old_copies(
                tables, [live.table(name) for name in names], older_than=timedelta(days=_DAYS), now=self._clock.now()
            )
            if old:
                progress(f"{old} backups of keys in AWS were over {_DAYS} days old, and are deleted")
            # Keys and revocations have nothing to do with each other, so neither has to be the later copy.
            copies = await copy_tables(tables, live, names, run.name, progress, apart=0.0)
        return Made(
            store=self.store,
            method="on-demand",
            as_of=self._copying.surely_in(copies.values()),
            references={name: copy.arn for name, copy in copies.items()},
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: deletes the backups in AWS."""
        async with opened_tables(self._address) as tables:
            await delete_copies(tables, manifest.made.references)

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[KeyStore]:
        """As KeyBackups: into tables of its own, gone at the end."""
        async with opened_tables(self._address) as tables, Runs(tables, clock=self._clock).begun("verify-") as run:
            place = generation_address(self._address, run.name)
            try:
                await _restore(tables, place, manifest, await read_described(folder), nothing)
                async with _opened(place) as keys:
                    yield keys
            finally:
                await remove_tables(tables, place, PARTS["keys"], alarms=False)

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> DynamoDbStagedKeys:
        """As KeyBackups: into tables of a new generation, with all that the live ones have, and with the erasures of
        now."""
        async with AsyncExitStack() as opened:
            tables = await opened.enter_async_context(opened_tables(self._address))
            run = await opened.enter_async_context(Runs(tables, clock=self._clock).begun("r"))
            force = await tables.in_force("keys")
            target = generation_address(self._address, run.name)
            try:
                described = await read_described(folder)
                await _restore(tables, target, manifest, described, progress)
                left = await _complete(tables, target, described, run.name, progress)
                progress("carrying erasures over")
                await _carry_erasures(tables, generation_address(self._address, force.generation), target)
            except BaseException:
                with suppress(KisekiError):  # the next run removes them; what was wrong first is what is said
                    await remove_tables(tables, target, PARTS["keys"], alarms=True, progress=progress)
                raise
            staged = StagedTables(
                "keys",
                tables,
                run.name,
                force,
                left=left,
                writers_stopped=self._writers_stopped,
                fencing=self._fencing,
                opened=opened.pop_all(),
                progress=progress,
            )
            return DynamoDbStagedKeys(staged)


class DynamoDbStagedKeys:
    """A StagedKeys: tables of a generation that is not in force yet."""

    def __init__(self, staged: StagedTables) -> None:
        self._staged = staged

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[KeyStore]:
        """As StagedKeys."""
        async with _opened(self._staged.address) as keys:
            yield keys

    async def switch(self) -> Switched:
        """As Staged. Revocations that are live stay: they are newer."""
        switched = await self._staged.switch(before=self._carry, after=_nothing_to_tell)
        if not switched.kept:
            return switched
        line = (
            f"within {_DAYS} days, switch point-in-time recovery of the old tables off and delete them: they hold "
            "keys, and AWS keeps a table that is deleted with it on for 35 days"
        )
        return switched._replace(left=(*switched.left, line))

    async def discard(self) -> None:
        """As Staged."""
        await self._staged.discard()

    async def _carry(self) -> None:
        """Of those who were erased or signed out since it was staged."""
        tables, live, target = self._staged.tables, self._staged.live, self._staged.address
        await _carry_erasures(tables, live, target)
        await _carry_revocations(tables, live, target)


async def _nothing_to_tell() -> list[str]:
    return []


@asynccontextmanager
async def _opened(address: DynamoDbAddress) -> AsyncIterator[DynamoDbKeyStore]:
    store = await DynamoDbKeyStore.open(address)
    try:
        yield store
    finally:
        await store.close()


async def _restore(
    tables: Tables, target: DynamoDbAddress, manifest: Manifest, described: DescribedTables, progress: Progress
) -> None:
    copies = await must_be_there(tables, manifest.made.references, PARTS["keys"])
    sources = [TableSource(name, copies[name].arn) for name in PARTS["keys"]]
    like = {name: described.of(name) for name in PARTS["keys"]}
    await restore_tables(tables, sources, target, like=like, progress=progress)
    await switch_streams_on(tables, target, like)


async def _complete(
    tables: Tables, target: DynamoDbAddress, described: DescribedTables, generation: str, progress: Progress
) -> list[str]:
    progress("putting back what AWS does not restore")
    left = []
    for each in described.tables:
        left += await put_back(tables, each, target.table(each.name), generation)
        await switch_recovery_on(tables, target.table(each.name), min(each.recovery_days or _DAYS, _DAYS))
    async with opened_tables(target) as theirs:
        await create_tables(theirs.client, SPECS["keys"])
        await check_tables(theirs.client, SPECS["keys"])
    return left


async def _carry_erasures(tables: Tables, live: DynamoDbAddress, target: DynamoDbAddress) -> None:
    """Whom the live store knows to be erased is erased in the restored one too. Nothing when there is no live one.

    Raises KeyStoreUnavailable, KeyStoreCorrupt.
    """
    if await tables.describe(live.table("keys")) is None:
        return
    async with _opened(live) as before, _opened(target) as restored:
        known = set((await restored.erasures(0)).subjects)
        missing = [subject for subject in (await before.erasures(0)).subjects if subject not in known]
        for start in range(0, len(missing), _PAGE):
            some = missing[start : start + _PAGE]
            for subject, keys in (await before.load(some)).items():
                if keys.erased_at is not None:
                    await restored.erase(subject, keys.erased_at)


async def _carry_revocations(tables: Tables, live: DynamoDbAddress, target: DynamoDbAddress) -> None:
    if await tables.describe(live.table("revocations")) is None:
        return
    request: dict[str, Any] = {"TableName": live.table("revocations"), "ConsistentRead": True}
    while True:
        answer = await tables.call("Scan", request)
        for item in answer["Items"]:
            await _put(tables, target.table("revocations"), item)
        if not answer.get("LastEvaluatedKey"):
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


async def _put(tables: Tables, table: str, item: Mapping[str, Any]) -> None:
    await tables.call("PutItem", {"TableName": table, "Item": item})
