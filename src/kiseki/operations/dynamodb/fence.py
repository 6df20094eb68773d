"""The fence: a resource-based policy that denies every write to a table, whoever asks. Used by switches.

AWS puts a policy in force some seconds after it was given, so a fence counts once writes are seen to be refused. For
15 seconds after a policy was given AWS may refuse another one, and answer with the one before: so taking a fence away
is tried for longer. A statement of kiseki has an id of its own, and what else the policy of the table says stays.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/access-control-resource-based.html
Not seen on AWS: the emulator keeps policies and does not apply them; tests apply them in its stead.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbRefused
from kiseki.kernel.errors import KisekiError
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.errors import RestoreRefused

__all__ = ["Fencing", "is_fence", "lift_fence", "policy_of", "put_fence", "wait_for_fence"]

_SID: Final = "KisekiFence"
_WRITES: Final = (
    "dynamodb:BatchWriteItem",
    "dynamodb:DeleteItem",
    "dynamodb:PartiQLDelete",
    "dynamodb:PartiQLInsert",
    "dynamodb:PartiQLUpdate",
    "dynamodb:PutItem",
    "dynamodb:UpdateItem",
)
"""A transaction needs the rights of the writes that are in it."""


class Fencing(NamedTuple):
    """How a fence is believed."""

    within: float = 120.0
    """Seconds that AWS gets to refuse writes."""
    holds: float = 10.0
    """Seconds for which every probe has to be refused: a policy does not reach all of AWS at once, and AWS gives no
    bound."""
    pause: float = 0.25
    """Seconds between probes, and between tries to take a fence away."""
    lifts: float = 30.0
    """Seconds for which it is tried to take a fence away."""


def is_fence(statement: Any) -> bool:
    """Whether a statement of a policy is a fence of kiseki."""
    return isinstance(statement, dict) and str(statement.get("Sid", "")).startswith(_SID)


async def policy_of(tables: Tables, arn: str) -> dict[str, Any] | None:
    """The policy of a table or stream; None when it has none."""
    try:
        answer = await tables.call("GetResourcePolicy", {"ResourceArn": arn})
    except DynamoDbRefused as problem:
        if problem.kind == "PolicyNotFoundException":
            return None
        raise
    policy: dict[str, Any] = json.loads(answer["Policy"])
    return policy


async def put_fence(tables: Tables, table: str, run: str) -> None:
    """Denies writes to a table from now on. Nothing when there is no such table."""
    found = await tables.describe(table)
    if found is None:
        return
    arn = found["TableArn"]
    policy = await policy_of(tables, arn) or {"Version": "2012-10-17", "Statement": []}
    # That of another run stays: it may be the one that wins.
    others = [each for each in _statements(policy) if not isinstance(each, dict) or each.get("Sid") != _sid(run)]
    fence = {"Sid": _sid(run), "Effect": "Deny", "Principal": "*", "Action": list(_WRITES), "Resource": arn}
    await _put(tables, arn, {**policy, "Statement": [*others, fence]})


async def wait_for_fence(tables: Tables, table: str, key: dict[str, Any], fencing: Fencing) -> None:
    """Returns once writes to a table are refused. `key` is one that no item has.

    Raises RestoreRefused when they are not in time.
    """
    if await tables.describe(table) is None:
        return
    now = asyncio.get_running_loop().time
    began = now()
    refused_since: float | None = None
    while refused_since is None or now() - refused_since < fencing.holds:
        if not await _refuses(tables, table, key):
            refused_since = None
            if now() - began >= fencing.within:
                raise RestoreRefused(
                    f"{table} goes on taking writes {fencing.within:g} s after a policy denies them, so processes that "
                    "run could go on acknowledging what is not restored; stop all of them, and run the same with "
                    "--writers-stopped. Nothing was changed"
                )
        elif refused_since is None:
            refused_since = now()
        await asyncio.sleep(fencing.pause)


async def lift_fence(tables: Tables, table: str, run: str, fencing: Fencing, *, was_put: bool) -> None:
    """Takes the fence of a run away. Nothing when there is none; where one was put just now, it is waited for, because
    AWS does not show it at once. Raises the last problem when it can't be taken away in time."""
    now = asyncio.get_running_loop().time
    end = now() + fencing.lifts
    while True:
        try:
            if await _lifted(tables, table, run) or not was_put or now() >= end:
                return
        except (DynamoDbRefused, KisekiError):
            if now() >= end:
                raise
        await asyncio.sleep(fencing.pause)


async def _lifted(tables: Tables, table: str, run: str) -> bool:
    """Takes a fence away; whether there was one to be seen, also of another run, or there is no table."""
    found = await tables.describe(table)
    if found is None:
        return True
    arn = found["TableArn"]
    policy = await policy_of(tables, arn)
    statements = [] if policy is None else _statements(policy)
    others = [each for each in statements if not isinstance(each, dict) or each.get("Sid") != _sid(run)]
    if policy is None or len(others) == len(statements):
        return any(map(is_fence, statements))
    if others:
        await _put(tables, arn, {**policy, "Statement": others})
    else:
        await tables.call("DeleteResourcePolicy", {"ResourceArn": arn})
    return True


async def _refuses(tables: Tables, table: str, key: dict[str, Any]) -> bool:
    """Whether a write is refused, by one that never lands: its condition does not hold."""
    name = next(iter(key))
    request = {
        "TableName": table,
        "Item": key,
        "ConditionExpression": "attribute_exists(#key)",
        "ExpressionAttributeNames": {"#key": name},
    }
    try:
        with suppress(ConditionFailed):
            await tables.client.call("PutItem", request)
    except DynamoDbRefused as problem:
        if problem.kind != "AccessDeniedException":
            raise
        return True
    return False


async def _put(tables: Tables, arn: str, policy: dict[str, Any]) -> None:
    await tables.call("PutResourcePolicy", {"ResourceArn": arn, "Policy": json.dumps(policy)})


def _statements(policy: dict[str, Any]) -> list[Any]:
    found = policy.get("Statement", [])
    return found if isinstance(found, list) else [found]


def _sid(run: str) -> str:
    """Ids of statements have letters and digits only."""
    return _SID + "".join(each for each in run if each.isalnum())
