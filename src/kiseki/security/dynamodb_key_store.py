"""A KeyStore in a DynamoDB table: `<prefix>-keys`, key `subject` + `number`.

A subject's item has number 0 and holds either its keys or its tombstone. Erasures are listed under the subject
`$erasures` with numbers 1, 2, 3 …, which is the feed of `erasures`. No transactions and no index are needed:

- An erasure is decided when its entry is there. Entry n + 1 is only put, on the condition that nothing is there, by one
  who saw entry n: there are no gaps, and every entry has its place for ever.
- It is carried out by putting the tombstone in place of the item with the keys. Before anyone puts entry n + 1, entry n
  is carried out; and whoever hears of the last entry carries it out first. So a crash between the two leaves nothing
  behind, and what was read after an erasure was heard, or after a mark was taken, knows the tombstone.

What a put replaces is gone from the table. It is not gone from recovery points (point-in-time recovery keeps up to 35
days) and backups of this table: give it few or none of the first, as short as the time that an erasure may take, and
after a restore erase again what was erased since. A stream on this table would show keys for a day: it has none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Self

from kiseki.clients.dynamodb import (
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbClient,
    DynamoDbRefused,
    DynamoDbUnavailable,
)
from kiseki.clients.dynamodb_tables import create_tables
from kiseki.clients.errors import NotMigrated
from kiseki.security.batched import BatchedCalls
from kiseki.security.dynamodb_key_items import (
    FEED,
    KEYS_TABLE,
    Entry,
    base64_text,
    entry_in,
    entry_item,
    item_key,
    keys_in,
    keys_item,
    subject_in,
    tombstone_item,
)
from kiseki.security.grouped import each
from kiseki.security.key_store import (
    Erasures,
    KeyStoreCorrupt,
    KeyStoreUnavailable,
    Rewrapped,
    SubjectKeys,
    WrappedKey,
)

__all__ = ["KEYS_TABLE", "DynamoDbKeyStore"]

_BATCH: Final = 100
"""As many items as DynamoDB gives in one call."""
_ROUNDS: Final = 8
_FIRST_PAUSE: Final = 0.025


class DynamoDbKeyStore:
    """Keeps keys in DynamoDB. Belongs to one event loop."""

    def __init__(self, client: DynamoDbClient) -> None:
        """`open` is the way in. The store closes the client."""
        self._client = client
        self._table = client.address.table(KEYS_TABLE.name)
        self._loads: BatchedCalls[str, dict[str, SubjectKeys]] = BatchedCalls(self._read, group=_BATCH)
        self._erasing = asyncio.Lock()
        self._carried_out = 0
        """Entries up to this one are known to be carried out."""
        self._closed = False

    @classmethod
    async def open(cls, address: DynamoDbAddress, *, connections: int = 16) -> Self:
        """The store on the address's table. Asks nothing, so it does not fail while DynamoDB is down; methods raise
        NotMigrated when there is no table."""
        return cls(DynamoDbClient(address, connections=connections))

    @staticmethod
    async def migrate(address: DynamoDbAddress) -> list[str]:
        """Makes the table when it is not there; the names of those made. Raises as `create_tables`."""
        client = DynamoDbClient(address)
        try:
            return await create_tables(client, [KEYS_TABLE])
        finally:
            await client.close()

    async def load(self, subjects: Collection[str]) -> dict[str, SubjectKeys]:
        """As KeyStore; concurrent calls share one read."""
        self._must_be_open()
        if not subjects:
            return {}
        known = await self._loads.ask(list(subjects))
        return {subject: known[subject] for subject in subjects if subject in known}

    async def insert(self, keys: Mapping[str, WrappedKey]) -> dict[str, SubjectKeys]:
        """As KeyStore, with a durable write for each subject: when it raises, some may have their key."""
        self._must_be_open()
        known = await each(lambda item: self._insert(*item), list(keys.items()))
        return dict(zip(keys, known, strict=True))

    async def erase(self, subject: str, at: datetime) -> None:
        """As KeyStore. When it raises, the erasure may be decided already; then it will be carried out."""
        self._must_be_open()
        async with self._erasing:  # those of one process need not get into each other's way
            known = await self._read([subject])
            if subject in known and known[subject].erased_at is not None:
                return
            erased_at = at.astimezone(UTC).isoformat(timespec="microseconds")
            entry = await self._last_entry()
            # Ends: every further turn is an erasure that somebody else got through.
            while entry is None or entry.subject != subject:
                entry = await self._append(Entry(entry.number + 1 if entry else 1, subject, erased_at))
                await self._carry_out(entry)

    async def erasures(self, after: int | None) -> Erasures:
        """As KeyStore. Costs half a read unit when there is nothing new."""
        self._must_be_open()
        if after is None:
            last = await self._last_entry()
            return Erasures((), last.number if last else 0)
        entries = await self._entries(after)
        if [entry.number for entry in entries] != list(range(after + 1, after + 1 + len(entries))):
            # A read of many pages can pass a place before its entry is put. A second one can't.
            entries = await self._entries(after)
            if [entry.number for entry in entries] != list(range(after + 1, after + 1 + len(entries))):
                raise KeyStoreCorrupt(f"the key store {self._table} lacks erasures after number {after}: restore it")
        if not entries:
            return Erasures((), after)
        await self._carry_out(entries[-1])
        return Erasures(tuple(dict.fromkeys(entry.subject for entry in entries)), entries[-1].number)

    async def scan(self, page: int) -> AsyncIterator[Sequence[tuple[str, WrappedKey]]]:
        """As KeyStore."""
        rows: list[tuple[str, WrappedKey]] = []
        request: dict[str, Any] = {
            "TableName": self._table,
            "ConsistentRead": True,
            "FilterExpression": "attribute_exists(#keys)",
            "ProjectionExpression": "#subject, #keys",
            "ExpressionAttributeNames": {"#subject": "subject", "#keys": "keys"},
        }
        while True:
            self._must_be_open()
            answer = await self._call("Scan", request)
            for item in answer["Items"]:
                subject = self._subject_in(item)
                rows += [(subject, key) for key in self._keys_in(item).keys]
            while len(rows) >= page:
                yield rows[:page]
                rows = rows[page:]
            if "LastEvaluatedKey" not in answer:
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        if rows:
            yield rows

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        """As KeyStore, with a durable write for each; those that were done stay done when it raises."""
        self._must_be_open()
        known = await self._read([change.subject for change in changes])
        return sum(await each(lambda change: self._replace(change, known.get(change.subject)), changes))

    async def tidy(self) -> None:
        """As KeyStore: nothing to do."""

    async def close(self) -> None:
        """As KeyStore."""
        self._closed = True
        await self._client.close()

    def _must_be_open(self) -> None:
        if self._closed:
            raise KeyStoreUnavailable(f"the key store {self._table} is closed")

    async def _call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.call(operation, request)
        except DynamoDbUnavailable as problem:
            raise KeyStoreUnavailable(f"the key store: {problem}", retry_after=problem.retry_after) from problem
        except DynamoDbRefused as problem:
            if problem.kind == "ResourceNotFoundException":
                raise NotMigrated(f"there is no DynamoDB table {self._table}; run `kiseki migrate`") from problem
            raise KeyStoreUnavailable(f"the key store: {problem}") from problem

    async def _read(self, subjects: Sequence[str]) -> dict[str, SubjectKeys]:
        known: dict[str, SubjectKeys] = {}
        unique = list(dict.fromkeys(subjects))
        for start in range(0, len(unique), _BATCH):
            keys = [item_key(subject) for subject in unique[start : start + _BATCH]]
            for attempt in range(_ROUNDS):
                wanted = {"Keys": keys, "ConsistentRead": True}
                answer = await self._call("BatchGetItem", {"RequestItems": {self._table: wanted}})
                for item in answer["Responses"].get(self._table, ()):
                    known[self._subject_in(item)] = self._keys_in(item)
                keys = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
                if not keys:
                    break
                await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**attempt))  # noqa: S311  # no secret
            else:
                raise KeyStoreUnavailable(f"the key store {self._table} is throttled: it reads only parts")
        return known

    async def _insert(self, subject: str, key: WrappedKey) -> SubjectKeys:
        there = await self._put_first(keys_item(subject, key))
        return SubjectKeys((key,)) if there is None else self._keys_in(there)

    async def _put_first(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """Puts an item where there is none; else the one that is there."""
        request = {
            "TableName": self._table,
            "Item": item,
            "ConditionExpression": "attribute_not_exists(#subject)",
            "ExpressionAttributeNames": {"#subject": "subject"},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            await self._call("PutItem", request)
        except ConditionFailed as problem:
            if problem.item is None:
                raise KeyStoreCorrupt(f"the key store {self._table}: DynamoDB does not say what is there") from problem
            return problem.item
        return None

    async def _last_entry(self) -> Entry | None:
        """The last erasure that was decided, carried out."""
        found = await self._query({"ScanIndexForward": False, "Limit": 1}, after=0)
        if not found["Items"]:
            return None
        entry = self._entry_in(found["Items"][0])
        await self._carry_out(entry)
        return entry

    async def _entries(self, after: int) -> list[Entry]:
        entries: list[Entry] = []
        start: dict[str, Any] = {}
        while True:
            found = await self._query(start, after=after)
            entries += [self._entry_in(item) for item in found["Items"]]
            if "LastEvaluatedKey" not in found:
                return entries
            start = {"ExclusiveStartKey": found["LastEvaluatedKey"]}

    async def _query(self, more: Mapping[str, Any], *, after: int) -> dict[str, Any]:
        request = {
            "TableName": self._table,
            "ConsistentRead": True,
            "KeyConditionExpression": "#subject = :feed AND #number > :after",
            "ExpressionAttributeNames": {"#subject": "subject", "#number": "number"},
            "ExpressionAttributeValues": {":feed": {"S": FEED}, ":after": {"N": str(after)}},
            **more,
        }
        return await self._call("Query", request)

    async def _append(self, entry: Entry) -> Entry:
        """Puts an entry at its place; the one that then is there, which may be another's."""
        there = await self._put_first(entry_item(entry))
        return entry if there is None else self._entry_in(there)

    async def _carry_out(self, entry: Entry) -> None:
        """Puts the tombstone in place of the keys, unless there is one; all entries before this one have theirs."""
        if entry.number <= self._carried_out:
            return
        known = await self._read([entry.subject])
        if entry.subject not in known or known[entry.subject].erased_at is None:
            request = {
                "TableName": self._table,
                "Item": tombstone_item(entry),
                "ConditionExpression": "attribute_not_exists(#erased)",
                "ExpressionAttributeNames": {"#erased": "erased-at"},
            }
            try:
                await self._call("PutItem", request)
            except ConditionFailed:
                pass  # another process did it: the first time is kept
        self._carried_out = max(self._carried_out, entry.number)

    async def _replace(self, change: Rewrapped, known: SubjectKeys | None) -> int:
        if known is None or change.old not in known.keys:
            return 0
        place = f"#keys[{known.keys.index(change.old)}]"
        request = {
            "TableName": self._table,
            "Key": item_key(change.subject),
            "UpdateExpression": f"SET {place}.#wrapped = :new",
            "ConditionExpression": f"{place}.#id = :id AND {place}.#wrapped = :old",
            "ExpressionAttributeNames": {"#keys": "keys", "#id": "id", "#wrapped": "wrapped"},
            "ExpressionAttributeValues": {
                ":id": {"S": change.old.key_id},
                ":old": {"B": base64_text(change.old.wrapped)},
                ":new": {"B": base64_text(change.wrapped)},
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            await self._call("UpdateItem", request)
        except ConditionFailed as problem:
            # It may be our own write, whose answer was lost.
            there = () if problem.item is None else self._keys_in(problem.item).keys
            return int(WrappedKey(change.old.key_id, change.wrapped) in there)
        return 1

    def _keys_in(self, item: Mapping[str, Any]) -> SubjectKeys:
        with self._reading():
            return keys_in(item)

    def _entry_in(self, item: Mapping[str, Any]) -> Entry:
        with self._reading():
            return entry_in(item)

    def _subject_in(self, item: Mapping[str, Any]) -> str:
        with self._reading():
            return subject_in(item)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as problem:
            raise KeyStoreCorrupt(
                f"an item of the key store {self._table} is damaged: stop, and restore it"
            ) from problem
