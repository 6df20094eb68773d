"""Putting restored tables in force: the fence, processes that go on writing, two operators, and what follows them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbUnavailable
from kiseki.clients.dynamodb_generations import generation_address, is_generation, resolved
from kiseki.journal.port import START, JournalUnavailable
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.manifest import Manifest
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.calls import opened_tables
from kiseki.operations.dynamodb.fence import Fencing, lift_fence, policy_of, put_fence
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from kiseki.operations.errors import OperationFailed, RestoreRefused
from kiseki.service.dynamodb_stores import DynamoDbStores
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, StoreUrl
from tests.integration.journal.dynamodb_parts import append, opened
from tests.integration.journal.sqlite_parts import RealClock
from tests.integration.operations.dynamodb.dynamodb_backup_parts import (
    Between,
    commits_of,
    contents,
    folder_in,
    manifest_of,
    refusal,
)

QUICK = Fencing(holds=0.2, pause=0.02)


async def backed_up(address: DynamoDbAddress, tmp_path: Path) -> tuple[Path, Manifest]:
    """A backup of three commits."""
    async with opened(address) as live:
        for after in range(3):
            await append(live, "user-a", after)
    folder = folder_in(tmp_path)
    return folder, manifest_of(await DynamoDbJournalBackups(address, clock=RealClock()).make(folder, nothing))


async def fences(address: DynamoDbAddress) -> list[str]:
    """The tables that have one."""
    found = []
    async with opened_tables(address) as tables:
        for name in ("journal", "claims", "snapshots"):
            arn = (await tables.must_describe(address.table(name)))["TableArn"]
            if "KisekiFence" in str(await policy_of(tables, arn)):
                found.append(name)
    return found


async def test_a_writer_that_lives_on_acknowledges_nothing_after_the_switch(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    between.apply_policies()
    acknowledged: list[tuple[str, int]] = []
    in_force, goes_on, wrote, rests = (asyncio.Event() for _ in range(4))
    goes_on.set()
    late: list[int] = []
    refused: set[bool] = set()

    async def notice(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "PutItem" and "generation" in request.get("Item", {}):
            in_force.set()
        if operation == "PutResourcePolicy" and request["ResourceArn"].endswith("claims"):
            goes_on.set()  # that of the journal stands then

    between.hooks.append(notice)

    async def write() -> None:
        async with opened(address) as journal:
            after = 0
            while True:
                if not goes_on.is_set():
                    rests.set()
                await goes_on.wait()
                try:
                    await append(journal, "user-b", after)
                except JournalUnavailable as problem:
                    refused.add("AccessDenied" in str(problem))
                    if in_force.is_set():
                        return
                else:
                    acknowledged.append(("user-b", after))
                    late.extend([after] if in_force.is_set() else [])
                    after += 1
                    wrote.set()
                await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    await wrote.wait()
    backups = DynamoDbJournalBackups(address, clock=RealClock(), fencing=QUICK)
    busy = await backups.stage(folder, manifest, nothing)
    wrote.clear()
    await wrote.wait()
    with pytest.raises(RestoreRefused, match=r"commits came to .* while this ran; stop kiseki"):
        await busy.switch()
    await busy.discard()
    assert await fences(address) == []
    refused.clear()
    wrote.clear()
    await wrote.wait()  # it goes on as before
    goes_on.clear()  # until the next fence stands
    await rests.wait()
    staged = await backups.stage(folder, manifest, nothing)
    switched = await staged.switch()
    await writer
    assert acknowledged
    assert late == []
    assert refused == {True}
    async with opened(address) as old, opened(await resolved(address, "journal")) as new:
        assert len((await commits_of(old))["user-b"]) == len(acknowledged)
        assert (await commits_of(new)).keys() == {"user-a"}
    assert not any("commits came to" in line for line in switched.left)
    assert any("event source mapping of the new stream: arn:" in line for line in switched.left)
    assert await fences(address) == ["journal", "claims", "snapshots"]


async def test_without_a_fence_nothing_is_switched(address: DynamoDbAddress, tmp_path: Path) -> None:
    """The emulator keeps policies and does not apply them."""
    folder, manifest = await backed_up(address, tmp_path)
    staged = await DynamoDbJournalBackups(
        address, clock=RealClock(), fencing=Fencing(within=0.3, holds=0.1, pause=0.02)
    ).stage(folder, manifest, nothing)
    with pytest.raises(RestoreRefused, match="goes on taking writes"):
        await staged.switch()
    await staged.discard()
    assert await resolved(address, "journal") == address
    assert await fences(address) == []
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    await (await backups.stage(folder, manifest, nothing)).switch()
    assert await resolved(address, "journal") != address


@pytest.mark.parametrize("others", [False, True])
async def test_a_fence_is_lifted_although_aws_takes_no_policy_for_some_seconds(
    address: DynamoDbAddress, between: Between, tmp_path: Path, others: bool
) -> None:
    """AWS refuses a second change of a policy for 15 seconds, and shows the first one late."""
    folder, manifest = await backed_up(address, tmp_path)
    if others:
        await _allow(address)
    staged = await DynamoDbJournalBackups(
        address, clock=RealClock(), fencing=Fencing(within=0.3, holds=0.1, pause=0.02)
    ).stage(folder, manifest, nothing)
    refused: Counter[tuple[str, str]] = Counter()
    changed: set[str] = set()

    async def slow(operation: str, request: Mapping[str, Any]) -> None:
        arn = str(request.get("ResourceArn"))
        if operation == "PutResourcePolicy" and arn not in changed:
            changed.add(arn)
        elif arn in changed and "ResourcePolicy" in operation and refused[operation, arn] < 3:
            refused[operation, arn] += 1
            late = operation == "GetResourcePolicy"
            raise refusal("PolicyNotFoundException" if late else "ValidationException", operation, request)

    between.hooks.append(slow)
    with pytest.raises(RestoreRefused, match="goes on taking writes"):
        await staged.switch()
    assert set(refused.values()) == {3}
    assert len(refused) == 6
    between.hooks.clear()
    await staged.discard()
    assert await fences(address) == []
    async with opened_tables(address) as tables:
        arn = (await tables.must_describe(address.table("journal")))["TableArn"]
        assert bool(await policy_of(tables, arn)) == others


async def test_a_fence_that_can_not_be_lifted_is_said_with_what_was_wrong_before(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    staged = await DynamoDbJournalBackups(
        address, clock=RealClock(), fencing=Fencing(within=0.1, holds=0.1, pause=0.02, lifts=0.1)
    ).stage(folder, manifest, nothing)
    between.refuse("AccessDeniedException", "DeleteResourcePolicy")
    with pytest.raises(OperationFailed) as problem:
        await staged.switch()
    assert f"{address.table('journal')} goes on taking writes" in str(problem.value)
    names = ", ".join(address.table(name) for name in ("journal", "claims", "snapshots"))
    assert f"{names} may take no writes still" in str(problem.value)
    assert "dynamodb:DeleteResourcePolicy" in str(problem.value)
    assert "\n" not in str(problem.value)
    await staged.discard()
    assert await fences(address) == ["journal", "claims", "snapshots"]


def test_aws_gets_more_than_twenty_seconds_to_take_a_fence_away() -> None:
    assert Fencing().lifts >= 20


async def test_a_fence_of_another_run_stays(address: DynamoDbAddress) -> None:
    table = address.table("journal")
    async with opened_tables(address) as tables:
        await put_fence(tables, table, "r1")
        await put_fence(tables, table, "r2")
        await lift_fence(tables, table, "r2", QUICK, was_put=True)
        assert await fences(address) == ["journal"]
        await lift_fence(tables, table, "r2", QUICK, was_put=True)
        assert await fences(address) == ["journal"]
        await lift_fence(tables, table, "r1", QUICK, was_put=True)
    assert await fences(address) == []


async def test_the_second_of_two_operators_is_refused(address: DynamoDbAddress, tmp_path: Path) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    first = await backups.stage(folder, manifest, nothing)
    second = await backups.stage(folder, manifest, nothing)
    await first.switch()
    in_force = await resolved(address, "journal")
    with pytest.raises(RestoreRefused, match="somebody else has put other tables"):
        await second.switch()
    await second.discard()
    assert await resolved(address, "journal") == in_force
    assert await fences(in_force) == []
    async with opened(in_force) as journal:
        await append(journal, "user-a", 3)


async def test_of_two_switches_at_one_moment_one_wins(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    first = await backups.stage(folder, manifest, nothing)
    second = await backups.stage(folder, manifest, nothing)
    before = asyncio.Barrier(2)

    async def together(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "PutItem" and "generation" in request.get("Item", {}):
            await before.wait()

    between.hooks.append(together)
    outcomes = await asyncio.gather(first.switch(), second.switch(), return_exceptions=True)
    assert sorted(isinstance(outcome, RestoreRefused) for outcome in outcomes) == [False, True]


async def test_a_switch_of_which_nobody_knows_keeps_both_and_the_fence(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    """The write may have landed: neither generation may be removed, nor the old one be written."""
    folder, manifest = await backed_up(address, tmp_path)
    staged = await DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True).stage(
        folder, manifest, nothing
    )

    async def silent(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "PutItem" and "generation" in request.get("Item", {}):
            raise DynamoDbUnavailable("PutItem: no answer in 10 s")

    between.hooks.append(silent)
    with pytest.raises(OperationFailed, match="nobody knows whether"):
        await staged.switch()
    await staged.discard()
    assert await fences(address) == ["journal", "claims", "snapshots"]
    async with opened(staged._staged.address) as journal:
        assert (await contents(journal)).commits == 3
    await staged._staged._opened.aclose()


async def test_a_switch_that_may_not_be_written_leaves_all_as_it_was(
    address: DynamoDbAddress, between: Between, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    staged = await DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True).stage(
        folder, manifest, nothing
    )

    async def refused(operation: str, request: Mapping[str, Any]) -> None:
        if operation == "PutItem" and "generation" in request.get("Item", {}):
            raise refusal("AccessDeniedException", operation, request)

    between.hooks.append(refused)
    with pytest.raises(OperationFailed, match=r"PutItem on .*-operations"):
        await staged.switch()
    await staged.discard()
    assert await fences(address) == []
    assert await resolved(address, "journal") == address


async def test_who_followed_the_old_tables_skips_nothing_of_the_new_ones(
    address: DynamoDbAddress, tmp_path: Path
) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    async with opened(address) as old:
        page = await old.feed(START)
        head = await old.head()
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    await (await backups.stage(folder, manifest, nothing)).switch()
    in_force = await resolved(address, "journal")
    assert is_generation(in_force)
    async with opened(in_force) as new:
        await append(new, "user-a", 3)
        for begin in (page.position, head, START):
            position, seen = begin, []
            while (found := await new.feed(position)).commits:
                seen += [commit.first_sequence_number for commit in found.commits]
                position = found.position
            assert sorted(set(seen)) == [1, 2, 3, 4]


async def test_a_second_restore_goes_on_from_the_first(address: DynamoDbAddress, tmp_path: Path) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    await (await backups.stage(folder, manifest, nothing)).switch()
    first = await resolved(address, "journal")
    async with opened(first) as journal:
        await append(journal, "user-c", 0)
    folder = folder_in(tmp_path)
    manifest = manifest_of(await backups.make(folder, nothing))
    switched = await (await backups.stage(folder, manifest, nothing)).switch()
    assert first.table("journal") in switched.kept
    second = await resolved(address, "journal")
    assert second not in (first, address)
    async with opened(second) as journal:
        assert (await contents(journal)).commits == 4
    async with opened(first) as journal:  # kept: only its own processes would write to it
        assert (await contents(journal)).commits == 4


async def test_processes_open_what_is_in_force(address: DynamoDbAddress, tmp_path: Path) -> None:
    folder, manifest = await backed_up(address, tmp_path)
    stores = DynamoDbStores(Settings())
    url = StoreUrl(
        "journal",
        StoreKind.DYNAMODB,
        f"dynamodb://{address.prefix}?region={address.region}&endpoint={address.endpoint}",
    )
    assert await stores.migrate(url) == []
    backups = DynamoDbJournalBackups(address, clock=RealClock(), writers_stopped=True)
    staged = await backups.stage(folder, manifest, nothing)
    await staged.switch()
    assert await stores.migrate(url) == []
    journal = await stores.journal(url, clock=RealClock(), telemetry=NoTelemetry())
    await append(journal, "user-d", 0)
    await journal.close()
    in_force = await resolved(address, "journal")
    assert in_force == generation_address(address, in_force.prefix.removeprefix(f"{address.prefix}-"))
    async with opened(in_force) as new, opened(address) as old:
        assert "user-d" in await commits_of(new)
        assert "user-d" not in await commits_of(old)


async def test_who_may_not_ask_which_tables_are_in_force_opens_none(address: DynamoDbAddress, between: Between) -> None:
    between.refuse("AccessDeniedException", "GetItem", address.table("operations"))
    with pytest.raises(DynamoDbUnavailable, match="allow the role this operation on the table"):
        await resolved(address, "journal")


async def _allow(address: DynamoDbAddress) -> None:
    """A policy that somebody else gave to every table."""
    async with opened_tables(address) as tables:
        for name in ("journal", "claims", "snapshots"):
            arn = (await tables.must_describe(address.table(name)))["TableArn"]
            reader = {"AWS": "arn:aws:iam::000000000000:root"}
            allow = {"Effect": "Allow", "Principal": reader, "Action": "dynamodb:GetItem", "Resource": arn}
            policy = json.dumps({"Version": "2012-10-17", "Statement": allow})
            await tables.call("PutResourcePolicy", {"ResourceArn": arn, "Policy": policy})
