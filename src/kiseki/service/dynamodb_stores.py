"""The stores on DynamoDB. Used by `stores`; needs the extra `kiseki[aws]`."""

from __future__ import annotations

from collections.abc import Sequence

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.clients.dynamodb_generations import OPERATIONS_TABLE, StorePart, resolved
from kiseki.clients.dynamodb_tables import create_tables
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.identity.dynamodb_revocations import DynamoDbRevocations
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.store_family import ReadModels
from kiseki.service.store_urls import StoreUrl

__all__ = ["DynamoDbStores"]


class DynamoDbStores:
    """The StoreFamily of DynamoDB, which holds no read models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def migrate(self, url: StoreUrl) -> Sequence[str]:
        """As StoreFamily."""
        operations = [f"made or expanded the table {name}" for name in await _make_operations(url)]
        if url.setting == "journal":
            return [*operations, *await DynamoDbJournal.migrate(await _in_force(url, "journal"))]
        address = await _in_force(url, "keys")
        made = [f"made or expanded the table {name}" for name in await DynamoDbRevocations.migrate(address)]
        return [*operations, *await DynamoDbKeyStore.migrate(address), *made]

    async def journal(self, url: StoreUrl, *, clock: Clock, telemetry: Telemetry) -> DynamoDbJournal:
        """As StoreFamily."""
        return await DynamoDbJournal.open(
            await _in_force(url, "journal"),
            clock=clock,
            telemetry=telemetry,
            connections=self._settings.dynamodb_connections,
            poll=self._settings.stream_poll,
        )

    async def keys(self, url: StoreUrl) -> DynamoDbKeyStore:
        """As StoreFamily."""
        return await DynamoDbKeyStore.open(
            await _in_force(url, "keys"), connections=self._settings.dynamodb_connections
        )

    async def revocations(self, url: StoreUrl) -> DynamoDbRevocations:
        """As StoreFamily."""
        return await DynamoDbRevocations.open(await _in_force(url, "keys"))

    async def read_models(self, url: StoreUrl, *, clock: Clock) -> ReadModels:
        """As StoreFamily. Raises SettingsError: there are none."""
        raise SettingsError(f"{url.setting} can't be on DynamoDB; set it to sqlite: or postgresql://user@host/database")


async def _in_force(url: StoreUrl, part: StorePart) -> DynamoDbAddress:
    """The tables that are in force now: a restore may have put others in their place. One read."""
    return await resolved(DynamoDbAddress.parse(url.text), part)


async def _make_operations(url: StoreUrl) -> Sequence[str]:
    client = DynamoDbClient(DynamoDbAddress.parse(url.text))
    try:
        return await create_tables(client, [OPERATIONS_TABLE])
    finally:
        await client.close()
