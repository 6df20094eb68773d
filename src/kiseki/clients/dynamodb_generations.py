"""Which tables of a service are in force: those of its prefix, or those that a restore has put in their place.

DynamoDB can't rename tables. A restore makes tables under a prefix of their own, `<prefix>-r<when>-…`, and one item of
the table `<prefix>-operations` says which are in force. Used by whoever opens stores, and by restores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbAddress, DynamoDbClient, DynamoDbRefused
from kiseki.clients.dynamodb_errors import DynamoDbUnavailable
from kiseki.clients.dynamodb_tables import Key, TableSpec

__all__ = [
    "OPERATIONS_KEY",
    "OPERATIONS_TABLE",
    "GenerationChanged",
    "InForce",
    "StorePart",
    "generation_address",
    "in_force",
    "is_generation",
    "put_in_force",
    "resolved",
]

StorePart: TypeAlias = Literal["journal", "keys"]
"""What is restored as a whole: journal, claims and snapshots; or keys and revocations."""

OPERATIONS_KEY: Final = "name"
OPERATIONS_TABLE: Final = TableSpec(name="operations", hash_key=Key(OPERATIONS_KEY))
"""Which generation of each part is in force, and what operations are under way."""

_GENERATION: Final = re.compile(r".*-r[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")


class GenerationChanged(Exception):
    """Another generation was put in force meanwhile. Never leaves who switches."""


class InForce(NamedTuple):
    """The generation of a part that is in force."""

    generation: str = ""
    """Empty for the first: the tables of the service's own prefix."""
    earlier: tuple[str, ...] = ()
    """Those that were in force before, oldest first; the first of all is not among them."""


def generation_address(address: DynamoDbAddress, generation: str) -> DynamoDbAddress:
    """The tables of a generation."""
    return msgspec.structs.replace(address, prefix=f"{address.prefix}-{generation}") if generation else address


def is_generation(address: DynamoDbAddress) -> bool:
    """Whether a restore made the tables of an address, so that not all that is in them went through their stream."""
    return _GENERATION.fullmatch(address.prefix) is not None


async def in_force(client: DynamoDbClient, part: StorePart) -> InForce:
    """What is in force of a part; the first generation when there is no table `operations`, or nothing in it.

    Raises DynamoDbUnavailable, also when this may not be asked: whoever guessed could write to tables that were
    replaced.
    """
    table = client.address.table(OPERATIONS_TABLE.name)
    request = {"TableName": table, "Key": {OPERATIONS_KEY: {"S": part}}, "ConsistentRead": True}
    try:
        item = (await client.call("GetItem", request)).get("Item")
    except DynamoDbRefused as problem:
        if problem.kind == "ResourceNotFoundException":
            return InForce()
        raise DynamoDbUnavailable(f"{problem}; without it nobody knows which tables are in force") from problem
    return _read(item, table) if item else InForce()


async def resolved(address: DynamoDbAddress, part: StorePart) -> DynamoDbAddress:
    """The tables of a part that are in force. Raises as `in_force`."""
    client = DynamoDbClient(address, connections=1)
    try:
        return generation_address(address, (await in_force(client, part)).generation)
    finally:
        await client.close()


async def put_in_force(client: DynamoDbClient, part: StorePart, generation: str, *, instead_of: InForce) -> None:
    """Puts a generation in force, in one write, if what was in force still is. Again is fine.

    Raises GenerationChanged, DynamoDbUnavailable, DynamoDbRefused.
    """
    before = instead_of.generation
    earlier = [*instead_of.earlier, before] if before else list(instead_of.earlier)
    request: dict[str, Any] = {
        "TableName": client.address.table(OPERATIONS_TABLE.name),
        "Item": {
            OPERATIONS_KEY: {"S": part},
            "generation": {"S": generation},
            "earlier": {"L": [{"S": each} for each in earlier]},
        },
        "ConditionExpression": "#generation = :before" if before else "attribute_not_exists(#generation)",
        "ExpressionAttributeNames": {"#generation": "generation"},
    }
    if before:
        request["ExpressionAttributeValues"] = {":before": {"S": before}}
    try:
        await client.call("PutItem", request)
    except ConditionFailed as problem:
        # It may be our own write, whose answer was lost.
        if (await in_force(client, part)).generation != generation:
            raise GenerationChanged(f"another generation of {part} is in force") from problem


def _read(item: Mapping[str, Any], table: str) -> InForce:
    try:
        return InForce(item["generation"]["S"], tuple(each["S"] for each in item["earlier"]["L"]))
    except (KeyError, TypeError) as problem:
        raise DynamoDbUnavailable(
            f"the item of {table} that says which tables are in force can't be read; put right its `generation`"
        ) from problem
