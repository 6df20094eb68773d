"""The items of a key store on DynamoDB: how keys, tombstones and erasures are written down. Used only by that store.

Reading raises KeyError, TypeError or ValueError for an item that this module did not write.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb_tables import Key, TableSpec
from kiseki.security.key_store import SubjectKeys, WrappedKey

__all__ = [
    "FEED",
    "KEYS_TABLE",
    "Entry",
    "base64_text",
    "entry_in",
    "entry_item",
    "item_key",
    "keys_in",
    "keys_item",
    "subject_in",
    "tombstone_item",
]

KEYS_TABLE: Final = TableSpec(name="keys", hash_key=Key("subject"), range_key=Key("number", "N"))
FEED: Final = "$erasures"
"""The subject under which erasures are listed; no stream has such a name."""


class Entry(NamedTuple):
    """One decided erasure."""

    number: int
    subject: str
    erased_at: str


def item_key(subject: str, number: int = 0) -> dict[str, Any]:
    """The key of a subject's item, or of another item under the same name."""
    return {"subject": {"S": subject}, "number": {"N": str(number)}}


def keys_item(subject: str, key: WrappedKey) -> dict[str, Any]:
    """A subject with its first key."""
    stored = {"M": {"id": {"S": key.key_id}, "wrapped": {"B": base64_text(key.wrapped)}}}
    return {**item_key(subject), "keys": {"L": [stored]}}


def entry_item(entry: Entry) -> dict[str, Any]:
    """An erasure in its place of the feed."""
    return {
        **item_key(FEED, entry.number),
        "erased-subject": {"S": entry.subject},
        "erased-at": {"S": entry.erased_at},
    }


def tombstone_item(entry: Entry) -> dict[str, Any]:
    """What takes the place of the erased subject's keys."""
    return {**item_key(entry.subject), "erased-at": {"S": entry.erased_at}, "erasure": {"N": str(entry.number)}}


def subject_in(item: Mapping[str, Any]) -> str:
    """Whose item it is."""
    subject = item["subject"]["S"]
    if not isinstance(subject, str):
        raise TypeError("no text")
    return subject


def keys_in(item: Mapping[str, Any]) -> SubjectKeys:
    """A subject's keys, or when it was erased."""
    if "erased-at" in item:
        return SubjectKeys((), datetime.fromisoformat(item["erased-at"]["S"]))
    stored = [each["M"] for each in item["keys"]["L"]]
    return SubjectKeys(
        tuple(WrappedKey(each["id"]["S"], base64.b64decode(each["wrapped"]["B"], validate=True)) for each in stored)
    )


def entry_in(item: Mapping[str, Any]) -> Entry:
    """An erasure of the feed."""
    return Entry(int(item["number"]["N"]), item["erased-subject"]["S"], item["erased-at"]["S"])


def base64_text(value: bytes) -> str:
    """Bytes as DynamoDB's JSON has them."""
    return base64.b64encode(value).decode()
