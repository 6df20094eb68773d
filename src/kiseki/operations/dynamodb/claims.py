"""Makes restored claims fit a restored journal, although AWS copied the two tables at different moments.

Used by the driver of journals. Claims are always copied first. A commit that came between the two copies is in the
journal, and what it did to claims is not in the claims; its own item says what that was. So what commits did from some
minutes before the copy on is done again. That is harmless where the claims are there already: of each value the last
word of each stream counts, and at most one stream can have the last word that it holds it.

Unless the copy lacks a release of its last two minutes and has the take after it. Then two streams hold a value, and
the one that took it later is cut before that take.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.journal.dynamodb.held import KEY, HeldClaimKey, changed_claims_of, claim_key
from kiseki.journal.dynamodb.items import CHANGED_CLAIMS, INDEX_KEY, SLICES, place_of, text_of, timestamp
from kiseki.operations.dynamodb.calls import Tables
from kiseki.operations.dynamodb.gaps import drop_from, indexed_since, young_since
from kiseki.operations.errors import OperationFailed

__all__ = ["mend_claims"]

_BEFORE: Final = timedelta(minutes=20)
"""Before the copy of claims: a commit's time in the index may be some minutes off, and copies of AWS too."""
_BATCH: Final = 100
_AT_ONCE: Final = 8
_ROUNDS: Final = 10


class _Change(NamedTuple):
    """What a commit said of a value."""

    number: int
    value: HeldClaimKey
    holds: bool
    committed_at: str
    indexed: str


_Changes = dict[str, list[_Change]]
"""By stream, in its order."""
_Words = Mapping[HeldClaimKey, Mapping[str, _Change]]
"""By value, the last that each stream said of it."""


async def mend_claims(tables: Tables, restored: DynamoDbAddress, *, copied_at: datetime, as_of: datetime) -> int:
    """Brings the claims of restored tables to what their journal says; how many commits had to be dropped, because they
    took what the copy has no release of. Only what may be younger than `as_of` is dropped.

    Raises OperationFailed, CorruptJournal, DynamoDbUnavailable.
    """
    changes = await _changes(tables, restored.table("journal"), timestamp(copied_at - _BEFORE))
    young = young_since(as_of)
    held: dict[HeldClaimKey, str | None] = {}
    dropped = 0
    while True:
        words = _words(changes)
        await _look_up(tables, restored, [value for value in words if value not in held], held)
        cuts = _cuts(words, held, young)
        if not cuts:
            break
        # What a stream did after the take goes with it, and may have been a release of its own: so again.
        for stream, number in cuts.items():
            dropped += await drop_from(tables, restored.table("journal"), stream, number)
            changes[stream] = [change for change in changes[stream] if change.number < number]
    settled = list(words.items())
    for start in range(0, len(settled), _AT_ONCE):
        some = settled[start : start + _AT_ONCE]
        await asyncio.gather(*(_settle(tables, restored, value, said, held[value]) for value, said in some))
    return dropped


async def _changes(tables: Tables, table: str, since: str) -> _Changes:
    found: _Changes = defaultdict(list)
    for first in range(0, SLICES, _AT_ONCE):
        numbers = range(first, first + _AT_ONCE)
        await asyncio.gather(*(_collect(tables, table, number, since, found) for number in numbers))
    for changes in found.values():
        changes.sort(key=lambda change: change.number)
    return found


async def _collect(tables: Tables, table: str, number: int, since: str, found: _Changes) -> None:
    async for item in _changing(tables, table, number, since):
        place, committed_at, indexed = place_of(item), text_of(item, "committed-at"), text_of(item, INDEX_KEY)
        found[place.stream] += [
            _Change(place.first_sequence_number, value, holds, committed_at, indexed)
            for value, holds in changed_claims_of(item[CHANGED_CLAIMS])
        ]


def _words(changes: _Changes) -> _Words:
    words: dict[HeldClaimKey, dict[str, _Change]] = defaultdict(dict)
    for stream, said in changes.items():
        for change in said:
            words[change.value][stream] = change
    return words


async def _look_up(
    tables: Tables, restored: DynamoDbAddress, values: list[HeldClaimKey], held: dict[HeldClaimKey, str | None]
) -> None:
    """Which stream holds each value in the copy of the claims."""

    async def look(value: HeldClaimKey) -> None:
        request = {"TableName": restored.table("claims"), "Key": _key(value), "ConsistentRead": True}
        there = (await tables.call("GetItem", request)).get("Item")
        held[value] = text_of(there, "stream") if there else None

    for start in range(0, len(values), _AT_ONCE):
        await asyncio.gather(*map(look, values[start : start + _AT_ONCE]))


def _cuts(words: _Words, held: Mapping[HeldClaimKey, str | None], young: str) -> dict[str, int]:
    """Where streams are cut, so that at most one holds each value: by stream, the first sequence number that goes."""
    cuts: dict[str, int] = {}
    for value, said in words.items():
        takes = _takes(said)
        holder = held[value]
        # Who holds it in the claims, and has said nothing since, took it before all of these.
        is_held_already = holder is not None and holder not in said
        for stream, take in takes if is_held_already else takes[1:]:
            if take.indexed >= young:
                cuts[stream] = min(take.number, cuts.get(stream, take.number))
    return cuts


def _takes(said: Mapping[str, _Change]) -> list[tuple[str, _Change]]:
    """The streams whose last word is that they hold it, in the order of their takes."""
    takes = [(stream, change) for stream, change in said.items() if change.holds]
    return sorted(takes, key=lambda each: (each[1].committed_at, each[0]))


async def _settle(
    tables: Tables, restored: DynamoDbAddress, value: HeldClaimKey, said: Mapping[str, _Change], held_by: str | None
) -> None:
    table, key, takes = restored.table("claims"), _key(value), _takes(said)
    if takes:
        holder = takes[-1][0]
        if held_by != holder:
            item = key | {"scope": {"S": value.scope}, "digest": {"S": value.digest}, "stream": {"S": holder}}
            await tables.call("PutItem", {"TableName": table, "Item": item})
    elif held_by in said:
        await tables.call("DeleteItem", {"TableName": table, "Key": key})


def _key(value: HeldClaimKey) -> dict[str, Any]:
    return {KEY: {"S": claim_key(value.scope, value.digest)}}


async def _changing(tables: Tables, table: str, number: int, since: str) -> AsyncIterator[dict[str, Any]]:
    """The commits of a slice since a time that changed claims."""
    keys: list[dict[str, Any]] = []
    async for item in indexed_since(tables, table, number, since):
        keys.append({name: item[name] for name in ("persistence-id", "sequence-nr")})
        if len(keys) == _BATCH:
            for each in await _with_claims(tables, table, keys):
                yield each
            keys = []
    if keys:
        for each in await _with_claims(tables, table, keys):
            yield each


async def _with_claims(tables: Tables, table: str, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in await _items(tables, table, keys) if CHANGED_CLAIMS in item]


async def _items(tables: Tables, table: str, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for attempt in range(_ROUNDS):
        wanted = {
            "Keys": keys,
            "ConsistentRead": True,
            "ProjectionExpression": "#stream, #number, #claims, #at, #indexed",
            "ExpressionAttributeNames": {
                "#stream": "persistence-id",
                "#number": "sequence-nr",
                "#claims": CHANGED_CLAIMS,
                "#at": "committed-at",
                "#indexed": INDEX_KEY,
            },
        }
        answer = await tables.call("BatchGetItem", {"RequestItems": {table: wanted}})
        found += answer["Responses"].get(table, ())
        keys = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
        if not keys:
            return found
        await asyncio.sleep(0.05 * 2**attempt)
    raise OperationFailed(f"{table} is throttled: it reads only parts; run the same again later")
