"""Which DynamoDB tables a failover is about: those that are in force, at both sites the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbUnavailable
from kiseki.clients.dynamodb_generations import InForce, StorePart, put_in_force
from kiseki.journal.port import START
from kiseki.kernel.errors import Unavailable
from kiseki.operations.dr.dynamodb import DynamoDbReplication
from kiseki.operations.dr.replication import FailoverRefused
from kiseki.operations.dr.sites import replication_of
from kiseki.operations.dynamodb.calls import opened_tables
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings
from tests.integration.operations.dynamodb.dynamodb_backup_parts import Between, refusal

GENERATION = "r20261124T162217Z-1844f9"
KEYS = "r20261124T162218Z-1844f9"


async def put(address: DynamoDbAddress, part: StorePart, generation: str) -> None:
    async with opened_tables(address) as tables:
        await tables.make_operations()
        await put_in_force(tables.client, part, generation, instead_of=InForce())


def settings_of(address: DynamoDbAddress) -> Settings:
    url = f"dynamodb://{address.prefix}?region={address.region}&endpoint={address.endpoint}"
    return Settings(journal=url, read_model="sqlite:")


@pytest.fixture
def there(address: DynamoDbAddress) -> DynamoDbAddress:
    return msgspec.structs.replace(address, region="us-east-1")


async def replication(address: DynamoDbAddress, there: DynamoDbAddress | None) -> DynamoDbReplication:
    here = settings_of(address)
    async with opened_secrets(here) as secrets:
        found = await replication_of(here, None if there is None else settings_of(there), secrets)
    assert isinstance(found, DynamoDbReplication)
    await found.close()
    return found


async def test_restored_tables_are_those_of_a_failover(address: DynamoDbAddress, there: DynamoDbAddress) -> None:
    before = await replication(address, there)
    names = ("journal", "claims", "snapshots", "keys", "revocations")
    assert before._replica.tables == tuple(map(address.table, names))
    for site in (address, there):
        await put(site, "journal", GENERATION)
        await put(site, "keys", KEYS)
    found = await replication(address, there)
    journal = [f"{address.prefix}-{GENERATION}-{name}" for name in names[:3]]
    keys = [f"{address.prefix}-{KEYS}-{name}" for name in names[3:]]
    assert found._replica.tables == (*journal, *keys)
    assert found._replica.compared == (journal[1], keys[0])
    assert found._primary is not None
    assert found._primary.address == msgspec.structs.replace(found._replica.address, region="us-east-1")
    assert (await replication(address, None))._replica == found._replica


async def test_a_restore_at_one_site_alone_is_refused(address: DynamoDbAddress, there: DynamoDbAddress) -> None:
    await put(there, "journal", GENERATION)
    with pytest.raises(FailoverRefused, match=f"{GENERATION}-journal.*in us-east-1: since a restore they are no repl"):
        await replication(address, there)
    await put(address, "journal", GENERATION)
    await put(address, "keys", KEYS)
    with pytest.raises(FailoverRefused, match="since a restore they are no replicas"):
        await replication(address, there)


async def test_without_an_answer_of_the_other_site_only_a_forced_failover_goes_on(
    address: DynamoDbAddress, there: DynamoDbAddress, between: Between
) -> None:
    asked: list[str] = []

    async def silent(operation: str, request: Mapping[str, Any]) -> None:
        asked.append(operation)
        if len(asked) == 3:  # two of this site's, then of the other one
            raise DynamoDbUnavailable("GetItem: no answer in 10 s")

    between.hooks.append(silent)
    found = await replication(address, there)
    for step in (found.check(), found.verify(START)):
        with pytest.raises(Unavailable, match=r"which tables are in force at the other site: .*no answer in 10 s"):
            await step
    between.hooks.clear()
    between.refuse("AccessDeniedException", "GetItem")
    with pytest.raises(Unavailable, match="nobody knows which tables are in force"):
        await replication(address, None)


async def test_who_may_not_ask_at_the_other_site_is_told(
    address: DynamoDbAddress, there: DynamoDbAddress, between: Between
) -> None:
    asked: list[str] = []

    async def refused(operation: str, request: Mapping[str, Any]) -> None:
        asked.append(operation)
        if len(asked) == 3:
            between.hooks.clear()
            raise refusal("AccessDeniedException", operation, request)

    between.hooks.append(refused)
    with pytest.raises(FailoverRefused, match=r"at the other site: .*nobody knows which tables are in force"):
        await replication(address, there)
