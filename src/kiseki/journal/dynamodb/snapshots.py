"""The snapshots table of the DynamoDB journal. Used by the DynamoDB journal only."""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

from kiseki.clients.dynamodb import DynamoDbClient
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.items import ITEM_BYTES, item_bytes, number_of, text_of, timestamp
from kiseki.journal.port import CorruptJournal, JournalUnavailable, Snapshot

__all__ = ["DynamoDbSnapshots"]

_log = logging.getLogger(__name__)

_NAMES: Final = {"#stream": "stream", "#version": "version"}
_DELETED_AT_ONCE: Final = 25
_EXPANDED_AT_MOST: Final = 64_000_000


class DynamoDbSnapshots:
    """A SnapshotStore: key `stream` and `version`, which is the state schema and the sequence number."""

    def __init__(self, client: DynamoDbClient) -> None:
        self._client = client
        self._table = client.address.table("snapshots")

    async def load(self, stream: str, schema: str) -> Snapshot | None:
        """As `SnapshotStore.load_snapshot` says; a damaged one is none."""
        async for items in self._items(stream, schema, whole=True, limit=1):
            if items:
                return await asyncio.to_thread(_snapshot_of, items[0])
            return None
        return None

    async def save(self, snapshot: Snapshot, *, keep: int) -> None:
        """As `SnapshotStore.save_snapshot` says. Raises JournalUnavailable also when it is too large for an item."""
        item = await asyncio.to_thread(_item_of, snapshot)
        size = item_bytes(item)
        if size > ITEM_BYTES:
            raise JournalUnavailable(
                f"a snapshot of {snapshot.stream} has {size} compressed bytes; a DynamoDB item holds {ITEM_BYTES}"
            )
        with explained():
            await self._client.call("PutItem", {"TableName": self._table, "Item": item})
        kept = 0
        async for items in self._items(snapshot.stream, snapshot.schema, whole=False, limit=None):
            await self._delete(items[max(0, keep - kept) :])
            kept += len(items)

    async def delete(self, stream: str) -> None:
        """As `SnapshotStore.delete_snapshots` says."""
        async for items in self._items(stream, None, whole=False, limit=None):
            await self._delete(items)

    async def _delete(self, items: list[dict[str, Any]]) -> None:
        for start in range(0, len(items), _DELETED_AT_ONCE):
            with explained():
                await asyncio.gather(
                    *(
                        self._client.call("DeleteItem", {"TableName": self._table, "Key": key})
                        for key in items[start : start + _DELETED_AT_ONCE]
                    )
                )

    async def _items(
        self, stream: str, schema: str | None, *, whole: bool, limit: int | None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Newest first within a schema, in pages; their keys, or all of them with `whole`."""
        condition, values = "#stream = :stream", {":stream": {"S": stream}}
        if schema is not None:
            condition += " AND begins_with(#version, :schema)"
            values[":schema"] = {"S": _prefix(schema)}
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": condition,
            "ExpressionAttributeNames": _NAMES,
            "ExpressionAttributeValues": values,
            "ConsistentRead": True,
            "ScanIndexForward": False,
        }
        if limit is not None:
            request["Limit"] = limit
        if not whole:
            request["ProjectionExpression"] = "#stream, #version"
        while True:
            with explained():
                answer = await self._client.call("Query", request)
            yield answer.get("Items", [])
            if not answer.get("LastEvaluatedKey"):
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _prefix(schema: str) -> str:
    return schema.replace("%", "%25").replace("#", "%23") + "#"


def _item_of(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "stream": {"S": snapshot.stream},
        "version": {"S": f"{_prefix(snapshot.schema)}{snapshot.sequence_number:020d}"},
        "schema": {"S": snapshot.schema},
        "sequence-nr": {"N": str(snapshot.sequence_number)},
        "saved-at": {"S": timestamp(snapshot.saved_at)},
        "data": {"B": base64.b64encode(zlib.compress(snapshot.data, 6)).decode("ascii")},
    }


def _snapshot_of(item: Mapping[str, Any]) -> Snapshot | None:
    try:
        expander = zlib.decompressobj()
        data = expander.decompress(base64.b64decode(item["data"]["B"], validate=True), _EXPANDED_AT_MOST)
        if not expander.eof:
            raise ValueError("it ends too early")
        return Snapshot(
            stream=text_of(item, "stream"),
            sequence_number=number_of(item, "sequence-nr"),
            schema=text_of(item, "schema"),
            data=data,
            saved_at=datetime.fromisoformat(text_of(item, "saved-at")),
        )
    except (KeyError, TypeError, ValueError, zlib.error, CorruptJournal) as problem:
        # Snapshots shorten loading and nothing else, so the events are read instead.
        _log.warning("a snapshot is damaged and passed over: %s", problem)
        return None
