"""The claims table of the DynamoDB journal: items for claims and idempotency records, and what a commit does to them.

Used by the DynamoDB journal only. Pure: nothing here calls DynamoDB. All of it is in one table under keys that can't
be mistaken for one another; records end by themselves (TTL), claims have no end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from kiseki.journal.dynamodb.items import moment_of, number_of, text_of, timestamp
from kiseki.journal.port import ClaimChange, CorruptJournal, IdempotencyRecord
from kiseki.journal.transfer.transferable import HeldClaim

__all__ = [
    "CLAIMS",
    "EXPIRES_AT",
    "KEY",
    "MARK",
    "RECORDS",
    "ClaimAction",
    "HeldClaimKey",
    "changed_claims",
    "changed_claims_of",
    "claim_actions",
    "claim_key",
    "claim_put",
    "held_claim_of",
    "record_key",
    "record_of",
    "record_put",
]

KEY: Final = "key"
EXPIRES_AT: Final = "expires-at"
"""The TTL attribute, in whole seconds. DynamoDB deletes late, so `expires` (exact text) is what is compared."""
MARK: Final = "mark#writable"
"""The key of the item by which a check proves that the store can be written."""

CLAIMS: Final = "claim#"
RECORDS: Final = "idempotency#"
"""How the keys of claims and of idempotency records begin."""

_NAMES: Final = {"#key": KEY}


class HeldClaimKey(NamedTuple):
    """A value that can be held within a scope."""

    scope: str
    digest: str


class ClaimAction(NamedTuple):
    """What one commit does to one value, all its changes taken together."""

    scope: str
    digest: str
    takes: bool
    """Whether it takes the value at some point, so that no other stream may hold it."""
    holds: bool
    """Whether the stream holds it afterwards."""


def _part(text: str) -> str:
    return text.replace("%", "%25").replace("#", "%23")


def claim_key(scope: str, digest: str) -> str:
    """The key of a claim's item."""
    return f"{CLAIMS}{_part(scope)}#{_part(digest)}"


def record_key(key: str) -> str:
    """The key of an idempotency record's item."""
    return f"{RECORDS}{key}"


def claim_actions(changes: Iterable[ClaimChange]) -> list[ClaimAction]:
    """The changes of one commit by value, in the order in which the values come first.

    DynamoDB takes one action for an item in a transaction, and looks at the state before it. That is enough: once a
    change takes the value, all that matters is that no other holds it before, and what the last change does.
    """
    actions: dict[tuple[str, str], ClaimAction] = {}
    for change in changes:
        value = (change.scope, change.digest)
        before = actions.get(value)
        takes = change.take or (before is not None and before.takes)
        actions[value] = ClaimAction(change.scope, change.digest, takes, change.take)
    return list(actions.values())


def changed_claims(actions: Sequence[ClaimAction]) -> dict[str, Any] | None:
    """The attribute of a commit's item that says what the commit does to claims; None when it does nothing."""
    if not actions:
        return None
    return {
        "L": [
            {"M": {"scope": {"S": each.scope}, "digest": {"S": each.digest}, "holds": {"BOOL": each.holds}}}
            for each in actions
        ]
    }


def changed_claims_of(attribute: Mapping[str, Any]) -> list[tuple[HeldClaimKey, bool]]:
    """Of each value that a commit changed, whether its stream holds it afterwards. Raises CorruptJournal."""
    try:
        return [
            (HeldClaimKey(each["M"]["scope"]["S"], each["M"]["digest"]["S"]), bool(each["M"]["holds"]["BOOL"]))
            for each in attribute["L"]
        ]
    except (KeyError, TypeError) as problem:
        raise CorruptJournal(
            "an item of the journal has claims that can't be read; run `kiseki journal verify`"
        ) from problem


def claim_put(table: str, stream: str, action: ClaimAction) -> dict[str, Any]:
    """The action of a transaction. One that only releases has the condition that the stream holds the value."""
    key = {KEY: {"S": claim_key(action.scope, action.digest)}}
    free = "attribute_not_exists(#key) OR " if action.takes else ""
    about = {
        "TableName": table,
        "ConditionExpression": f"{free}#stream = :stream",
        "ExpressionAttributeNames": {"#stream": "stream", **(_NAMES if action.takes else {})},
        "ExpressionAttributeValues": {":stream": {"S": stream}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if not action.holds:
        return {"Delete": {"Key": key, **about}}
    item = key | {"scope": {"S": action.scope}, "digest": {"S": action.digest}, "stream": {"S": stream}}
    return {"Put": {"Item": item, **about}}


def record_put(table: str, record: IdempotencyRecord, now: datetime, aws_now: datetime) -> dict[str, Any]:
    """The action of a transaction, on the condition that there is no unexpired record of the key.

    When DynamoDB may delete it goes by `aws_now`, and everything else by `now`.
    """
    ends = aws_now + (record.expires_at - now)
    return {
        "Put": {
            "TableName": table,
            "Item": {
                KEY: {"S": record_key(record.key)},
                "record-key": {"S": record.key},
                "command-hash": {"S": record.command_hash},
                "stream": {"S": record.stream},
                "sequence-nr": {"N": str(record.sequence_number)},
                "expires": {"S": timestamp(record.expires_at)},
                EXPIRES_AT: {"N": str(math.ceil(ends.timestamp()))},
            },
            "ConditionExpression": "attribute_not_exists(#key) OR #expires <= :now",
            "ExpressionAttributeNames": {"#expires": "expires", **_NAMES},
            "ExpressionAttributeValues": {":now": {"S": timestamp(now)}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def record_of(item: Mapping[str, Any] | None, now: datetime) -> IdempotencyRecord | None:
    """The record of an item, unless there is none or it has expired. Raises CorruptJournal."""
    if not item:
        return None
    expires_at = moment_of(item, "expires")
    if expires_at <= now:
        return None
    return IdempotencyRecord(
        key=text_of(item, "record-key"),
        command_hash=text_of(item, "command-hash"),
        stream=text_of(item, "stream"),
        sequence_number=number_of(item, "sequence-nr"),
        expires_at=expires_at,
    )


def held_claim_of(item: Mapping[str, Any]) -> HeldClaim:
    """The claim of an item. Raises CorruptJournal."""
    return HeldClaim(text_of(item, "scope"), text_of(item, "digest"), text_of(item, "stream"))
