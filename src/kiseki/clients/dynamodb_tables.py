"""What tables a store has on DynamoDB, making them and checking them. Used by the stores and by `kiseki migrate`.

Tables are only ever expanded: an index, a stream or a time to live that is missing is added, nothing is taken away.
Encryption at rest is DynamoDB's default. Recovery points are for the infrastructure to choose (the key store says why).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import msgspec

from kiseki.clients.dynamodb import DynamoDbClient
from kiseki.clients.dynamodb_errors import DynamoDbRefused, DynamoDbUnavailable
from kiseki.clients.errors import NotMigrated
from kiseki.kernel.errors import KisekiError

__all__ = ["IndexSpec", "Key", "TableDiffers", "TableSpec", "check_tables", "create_tables"]

Description: TypeAlias = Mapping[str, Any]

_PATIENCE: Final = 300.0
_FIRST_LOOK: Final = 0.05
_LAST_LOOK: Final = 2.0


class TableDiffers(KisekiError):
    """A table of this name is there and is another one: its keys can't be changed."""

    code = "TABLE_DIFFERS"


class Key(msgspec.Struct, frozen=True):
    """An attribute that is part of a key."""

    name: str
    type: Literal["S", "N", "B"] = "S"


class IndexSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A global secondary index."""

    name: str
    hash_key: Key
    range_key: Key | None = None
    projection: Literal["KEYS_ONLY", "ALL"] = "KEYS_ONLY"


class TableSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One table, paid for by request."""

    name: str
    """Without the prefix."""
    hash_key: Key
    range_key: Key | None = None
    indexes: tuple[IndexSpec, ...] = ()
    stream: Literal["KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE", "NEW_AND_OLD_IMAGES"] | None = None
    time_to_live: str | None = None
    """The attribute with the second of the epoch after which an item may go."""


async def create_tables(
    client: DynamoDbClient, specs: Sequence[TableSpec], *, patience: float = _PATIENCE
) -> list[str]:
    """Makes the tables that are missing and expands the others; the full names of those made or expanded, in order.

    Waits until all can be used, `patience` seconds at most for each step. New tables are protected from deletion,
    except on loopback. Several at once are fine, and so is again after an interruption.

    Raises TableDiffers, DynamoDbUnavailable, DynamoDbRefused.
    """
    changed = [await _create(client, spec, patience) for spec in specs]
    return [client.address.table(spec.name) for spec, is_changed in zip(specs, changed, strict=True) if is_changed]


async def check_tables(client: DynamoDbClient, specs: Sequence[TableSpec]) -> None:
    """Looks whether the tables are there and as they should be. Changes nothing.

    Raises NotMigrated, TableDiffers, DynamoDbUnavailable, DynamoDbRefused.
    """
    for spec in specs:
        name = client.address.table(spec.name)
        there = await _describe(client, name)
        if there is None:
            raise NotMigrated(f"there is no DynamoDB table {name}; run `kiseki migrate`")
        _must_match(name, spec, there)
        missing = [f"the index {index.name}" for index in _missing_indexes(spec, there)]
        missing += ["the stream"] if _lacks_stream(spec, there) else []
        missing += ["the time to live"] if await _lacks_time_to_live(client, name, spec) else []
        if missing:
            raise NotMigrated(f"the DynamoDB table {name} lacks {', '.join(missing)}; run `kiseki migrate`")


async def _create(client: DynamoDbClient, spec: TableSpec, patience: float) -> bool:
    name = client.address.table(spec.name)
    there = await _describe(client, name)
    is_changed = there is None
    if there is None:
        await _unless_in_use(client, "CreateTable", _creation(spec, name, protected=not client.address.is_loopback))
    there = await _ready(client, name, patience, lambda _: True)
    _must_match(name, spec, there)
    if _lacks_stream(spec, there):
        is_changed = True
        await _unless_in_use(client, "UpdateTable", {"TableName": name, "StreamSpecification": _stream(spec)})
        there = await _ready(client, name, patience, lambda now: not _lacks_stream(spec, now))
    # DynamoDB makes one index at a time.
    while missing := _missing_indexes(spec, there):
        is_changed = True
        index = missing[0]
        await _unless_in_use(client, "UpdateTable", _index_creation(name, index))
        there = await _ready(client, name, patience, partial(_has_index, spec, index))
    if await _lacks_time_to_live(client, name, spec):
        is_changed = True
        await _set_time_to_live(client, name, spec)
    return is_changed


async def _describe(client: DynamoDbClient, name: str) -> Description | None:
    try:
        answer = await client.call("DescribeTable", {"TableName": name})
    except DynamoDbRefused as problem:
        if problem.kind == "ResourceNotFoundException":
            return None
        raise
    table: Description = answer["Table"]
    return None if table["TableStatus"] == "DELETING" else table


async def _unless_in_use(client: DynamoDbClient, operation: str, request: Mapping[str, Any]) -> None:
    """Another process may be doing the same: then its work is waited for."""
    try:
        await client.call(operation, request)
    except DynamoDbRefused as problem:
        if problem.kind != "ResourceInUseException":
            raise


async def _ready(
    client: DynamoDbClient, name: str, patience: float, is_done: Callable[[Description], bool]
) -> Description:
    """The table, once it and its indexes can be used and it is as wanted."""
    status = "not there"
    pause = _FIRST_LOOK
    try:
        async with asyncio.timeout(patience):
            while True:
                table = await _describe(client, name)
                if table is not None:
                    parts = [table["TableStatus"], *(each["IndexStatus"] for each in _indexes(table))]
                    status = next((each for each in parts if each != "ACTIVE"), "ACTIVE")
                    if status == "ACTIVE" and is_done(table):
                        return table
                # There is nothing to wait for but the clock: DynamoDB tells nobody.
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_LOOK)
    except TimeoutError:
        raise DynamoDbUnavailable(
            f"the DynamoDB table {name} is still {status.lower()} after {patience:g} s; run `kiseki migrate` again"
        ) from None


def _must_match(name: str, spec: TableSpec, there: Description) -> None:
    types = {each["AttributeName"]: each["AttributeType"] for each in there["AttributeDefinitions"]}
    pairs: list[tuple[str, TableSpec | IndexSpec, Description]] = [("", spec, there)]
    present = {each["IndexName"]: each for each in _indexes(there)}
    pairs += [(f"the index {each.name} of ", each, present[each.name]) for each in spec.indexes if each.name in present]
    for what, wanted, found in pairs:
        if _keys_of(found, types) != _keys(wanted):
            raise TableDiffers(
                f"{what}the DynamoDB table {name} has the key {_written(_keys_of(found, types))} and should have "
                f"{_written(_keys(wanted))}: choose another prefix, or find out whose table it is"
            )
        held = found["Projection"]["ProjectionType"] if isinstance(wanted, IndexSpec) else None
        if isinstance(wanted, IndexSpec) and wanted.projection == "ALL" != held:
            raise TableDiffers(f"{what}the DynamoDB table {name} holds {held} and should hold ALL: make the index anew")
    stream = there.get("StreamSpecification") or {}
    if spec.stream is not None and stream.get("StreamEnabled"):
        held = stream.get("StreamViewType")
        if held not in (spec.stream, "NEW_AND_OLD_IMAGES"):
            raise TableDiffers(
                f"the stream of the DynamoDB table {name} holds {held} and should hold {spec.stream}: end it, and run "
                "`kiseki migrate`"
            )


def _lacks_stream(spec: TableSpec, there: Description) -> bool:
    return spec.stream is not None and not (there.get("StreamSpecification") or {}).get("StreamEnabled")


def _missing_indexes(spec: TableSpec, there: Description) -> list[IndexSpec]:
    present = {each["IndexName"] for each in _indexes(there)}
    return [each for each in spec.indexes if each.name not in present]


def _has_index(spec: TableSpec, index: IndexSpec, there: Description) -> bool:
    return index not in _missing_indexes(spec, there)


async def _lacks_time_to_live(client: DynamoDbClient, name: str, spec: TableSpec) -> bool:
    if spec.time_to_live is None:
        return False
    answer = await client.call("DescribeTimeToLive", {"TableName": name})
    found = answer["TimeToLiveDescription"]
    if found["TimeToLiveStatus"] not in ("ENABLED", "ENABLING"):
        return True
    if found["AttributeName"] != spec.time_to_live:
        raise TableDiffers(f"the DynamoDB table {name} lets items go by another attribute than {spec.time_to_live}")
    return False


async def _set_time_to_live(client: DynamoDbClient, name: str, spec: TableSpec) -> None:
    try:
        await client.call(
            "UpdateTimeToLive",
            {
                "TableName": name,
                "TimeToLiveSpecification": {"Enabled": True, "AttributeName": spec.time_to_live},
            },
        )
    except DynamoDbRefused:
        # Refused when another process was faster; a second look says.
        if await _lacks_time_to_live(client, name, spec):
            raise


def _creation(spec: TableSpec, name: str, *, protected: bool) -> dict[str, Any]:
    keys = [*_keys(spec), *(key for index in spec.indexes for key in _keys(index))]
    request: dict[str, Any] = {
        "TableName": name,
        "KeySchema": _key_schema(spec),
        "AttributeDefinitions": _definitions(keys),
        "BillingMode": "PAY_PER_REQUEST",
        "DeletionProtectionEnabled": protected,
    }
    if spec.indexes:
        request["GlobalSecondaryIndexes"] = [_index(each) for each in spec.indexes]
    if spec.stream is not None:
        request["StreamSpecification"] = _stream(spec)
    return request


def _index_creation(name: str, index: IndexSpec) -> dict[str, Any]:
    return {
        "TableName": name,
        "AttributeDefinitions": _definitions(_keys(index)),
        "GlobalSecondaryIndexUpdates": [{"Create": _index(index)}],
    }


def _index(index: IndexSpec) -> dict[str, Any]:
    return {
        "IndexName": index.name,
        "KeySchema": _key_schema(index),
        "Projection": {"ProjectionType": index.projection},
    }


def _stream(spec: TableSpec) -> dict[str, Any]:
    return {"StreamEnabled": True, "StreamViewType": spec.stream}


def _keys(spec: TableSpec | IndexSpec) -> tuple[Key, ...]:
    return (spec.hash_key,) if spec.range_key is None else (spec.hash_key, spec.range_key)


def _key_schema(spec: TableSpec | IndexSpec) -> list[dict[str, str]]:
    kinds = ("HASH", "RANGE")
    return [{"AttributeName": key.name, "KeyType": kind} for key, kind in zip(_keys(spec), kinds, strict=False)]


def _definitions(keys: Sequence[Key]) -> list[dict[str, str]]:
    return [{"AttributeName": key.name, "AttributeType": key.type} for key in dict.fromkeys(keys)]


def _keys_of(found: Description, types: Mapping[str, str]) -> tuple[Key, ...]:
    schema = sorted(found["KeySchema"], key=lambda each: str(each["KeyType"]))  # HASH, RANGE
    return tuple(
        msgspec.convert({"name": each["AttributeName"], "type": types[each["AttributeName"]]}, Key) for each in schema
    )


def _indexes(table: Description) -> Sequence[Description]:
    indexes: Sequence[Description] = table.get("GlobalSecondaryIndexes") or ()
    return indexes


def _written(keys: Sequence[Key]) -> str:
    return " + ".join(f"{key.name} ({key.type})" for key in keys)
