"""How a commit gets into the DynamoDB journal: one conditional put, or one transaction when more rides along.

Used by the DynamoDB journal only. The condition that nothing is at the place yet is the lock; that the place is the
one after the stream's last event is known from what was read or appended before, or else read first.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.clients.dynamodb import CancellationReason, ConditionFailed, DynamoDbClient, TransactionCanceled
from kiseki.journal.decisions import conflict
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.held import (
    KEY,
    ClaimAction,
    changed_claims,
    claim_actions,
    claim_put,
    record_key,
    record_of,
    record_put,
)
from kiseki.journal.dynamodb.items import (
    CommitItem,
    commit_item,
    commit_of,
    document_bytes,
    item_of,
    number_of,
    text_of,
)
from kiseki.journal.port import (
    ClaimChange,
    ClaimTaken,
    Commit,
    CommitTooLarge,
    IdempotencyRecord,
    IdempotencyTaken,
    JournalUnavailable,
)
from kiseki.kernel.ports import Clock

__all__ = ["Appender", "Landed", "StreamEnds"]

_TRANSACTION_ITEMS: Final = 100
_IN_THREAD_FROM: Final = 64_000
"""Bytes of a document whose compression would keep the event loop for milliseconds."""
_TRIES: Final = 8
_FIRST_PAUSE: Final = 0.02
_FREE: Final = "attribute_not_exists(#stream)"
_NAMES: Final = {"#stream": "persistence-id"}

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html
_FINE: Final = "None"
_FAULT: Final = "ConditionalCheckFailed"
_UNCERTAIN: Final = frozenset({"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"})
_CODES: Final = _UNCERTAIN | {_FINE, _FAULT}


class Landed(NamedTuple):
    """A commit that is in the journal, and whether it was not before."""

    commit: Commit
    is_new: bool


class StreamEnds:
    """Where streams were last seen to end; a bounded memory, so that most appends need no read before them.

    That a commit ends at a number stays true for ever, because items are never deleted.
    """

    def __init__(self, *, streams: int = 65_536) -> None:
        """Keeps the ends of the `streams` that were met last."""
        self._streams = streams
        self._ends: OrderedDict[str, int] = OrderedDict()

    def is_end(self, stream: str, number: int) -> bool:
        """Whether it is certain that a commit ends at this number, or that a stream begins after it."""
        return number == 0 or self._ends.get(stream) == number

    def note(self, stream: str, number: int) -> None:
        """A commit of the stream ends there."""
        if number > self._ends.get(stream, 0):
            self._ends[stream] = number
        if stream in self._ends:
            self._ends.move_to_end(stream)
        if len(self._ends) > self._streams:
            self._ends.popitem(last=False)


class _Wish(NamedTuple):
    """One append on its way."""

    commit: Commit
    stored: CommitItem
    actions: Sequence[ClaimAction]
    idempotency: IdempotencyRecord | None


class Appender:
    """Appends to one set of tables."""

    def __init__(
        self, client: DynamoDbClient, *, clock: Clock, aws_time: Callable[[], datetime], ends: StreamEnds
    ) -> None:
        self._client = client
        self._journal = client.address.table("journal")
        self._claims = client.address.table("claims")
        self._clock = clock
        self._aws_time = aws_time
        self._ends = ends

    async def append(
        self, commit: Commit, claims: Sequence[ClaimChange], idempotency: IdempotencyRecord | None
    ) -> Landed:
        """As `Journal.append` says, for a commit that is within the limits of all stores. Raises what that raises."""
        document = document_bytes(commit)
        actions = claim_actions(claims)
        item = partial(commit_item, commit, document, written_at=self._aws_time(), claims=changed_claims(actions))
        stored = item() if len(document) < _IN_THREAD_FROM else await asyncio.to_thread(item)
        wish = _Wish(commit, stored, actions, idempotency)
        if len(wish.actions) + (idempotency is not None) >= _TRANSACTION_ITEMS:
            raise CommitTooLarge(
                f"{commit.stream}: {len(wish.actions)} claims in one commit; a DynamoDB transaction holds "
                f"{_TRANSACTION_ITEMS} items, the commit and an idempotency record among them"
            )
        with explained():
            landed = await self._append(wish)
        self._ends.note(commit.stream, landed.commit.last_sequence_number)
        return landed

    async def _append(self, wish: _Wish) -> Landed:
        commit = wish.commit
        after = commit.first_sequence_number - 1
        if not self._ends.is_end(commit.stream, after) and not await self._ends_at(commit.stream, after):
            # In the middle of a commit, or beyond the end, nothing can be that is the caller's own.
            if wish.idempotency is not None and await self._is_taken(wish.idempotency.key):
                raise _taken()
            raise conflict(commit)
        if wish.actions or wish.idempotency is not None:
            return await self._transact(wish)
        try:
            await self._client.call(
                "PutItem",
                {
                    "TableName": self._journal,
                    "Item": wish.stored.item,
                    "ConditionExpression": _FREE,
                    "ExpressionAttributeNames": _NAMES,
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                },
            )
        except ConditionFailed as refusal:
            own = await self._own(wish, refusal.item)
            if own is None:
                raise conflict(commit) from refusal
            return own
        return Landed(commit, is_new=True)

    async def _transact(self, wish: _Wish) -> Landed:
        """A transaction that is canceled tells of every action whether it was at fault, or just met another writer.

        The first fault in the order of the contract is the answer. Where an earlier one is not certain, because its
        item was being written by another, the same is tried again.
        """
        actions = list(wish.actions)
        for attempt in range(_TRIES):
            try:
                await self._client.call("TransactWriteItems", self._transaction(wish, actions))
            except TransactionCanceled as refusal:
                answer = await self._judge(wish, actions, refusal)
                if isinstance(answer, Landed):
                    return answer
                # Values that the stream does not hold are not its to release. It can't get to hold one before the
                # place is taken, so leaving the action out changes nothing.
                actions = [action for action in actions if action not in answer]
                if not answer:
                    await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**attempt))  # noqa: S311  # no secret
            else:
                return Landed(wish.commit, is_new=True)
        raise JournalUnavailable(f"{wish.commit.stream}: its claims or idempotency key are being written by others")

    def _transaction(self, wish: _Wish, actions: Sequence[ClaimAction]) -> dict[str, Any]:
        put: dict[str, Any] = {
            "TableName": self._journal,
            "Item": wish.stored.item,
            "ConditionExpression": _FREE,
            "ExpressionAttributeNames": _NAMES,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        items = [{"Put": put}]
        if wish.idempotency is not None:
            items.append(record_put(self._claims, wish.idempotency, self._clock.now(), self._aws_time()))
        items += [claim_put(self._claims, wish.commit.stream, action) for action in actions]
        # The token makes the client's own repetitions one transaction; any other content is another one.
        token = hashlib.blake2b(msgspec.json.encode(items), digest_size=16).hexdigest()
        return {"TransactItems": items, "ClientRequestToken": token}

    async def _judge(
        self, wish: _Wish, actions: Sequence[ClaimAction], refusal: TransactionCanceled
    ) -> Landed | Sequence[ClaimAction]:
        """The commit if it is there; else what to leave out of the next try. Raises the first certain fault."""
        reasons = list(refusal.reasons)
        of_claims = 2 if wish.idempotency is not None else 1
        if len(reasons) != of_claims + len(actions) or any(reason.code not in _CODES for reason in reasons):
            raise refusal
        if reasons[0].code in _UNCERTAIN:
            return ()
        is_free = reasons[0].code == _FINE
        if not is_free:
            own = await self._own(wish, reasons[0].item)
            if own is not None:
                return own
        if wish.idempotency is not None and reasons[1].code != _FINE:
            if reasons[1].code in _UNCERTAIN:
                return ()
            raise _taken() from refusal
        if not is_free:
            raise conflict(wish.commit) from refusal
        return _vain(actions, reasons[of_claims:], refusal)

    async def _own(self, wish: _Wish, there: dict[str, Any] | None) -> Landed | None:
        """The caller's own commit, when that is what was found at its place."""
        commit = wish.commit
        if not there:
            there = await self._item_at(commit.stream, commit.first_sequence_number)
        if there is None or text_of(there, "commit-id") != commit.metadata.commit_id:
            return None
        if text_of(there, "checksum") == wish.stored.checksum:
            return Landed(commit, is_new=False)
        return Landed(commit_of(there), is_new=False)

    async def _item_at(self, stream: str, first_sequence_number: int) -> dict[str, Any] | None:
        key = {"persistence-id": {"S": stream}, "sequence-nr": {"N": str(first_sequence_number)}}
        request = {"TableName": self._journal, "Key": key, "ConsistentRead": True}
        return item_of(await self._client.call("GetItem", request))

    async def _ends_at(self, stream: str, number: int) -> bool:
        """Whether a commit of the stream ends at this number."""
        if number < 0:
            return False
        answer = await self._client.call(
            "Query",
            {
                "TableName": self._journal,
                "KeyConditionExpression": "#stream = :stream AND #number <= :number",
                "ProjectionExpression": "#number, #count",
                "ExpressionAttributeNames": {**_NAMES, "#number": "sequence-nr", "#count": "count"},
                "ExpressionAttributeValues": {":stream": {"S": stream}, ":number": {"N": str(number)}},
                "ConsistentRead": True,
                "ScanIndexForward": False,
                "Limit": 1,
            },
        )
        items = answer.get("Items", ())
        if not items or number_of(items[0], "sequence-nr") + number_of(items[0], "count") - 1 != number:
            return False
        self._ends.note(stream, number)
        return True

    async def _is_taken(self, key: str) -> bool:
        request = {"TableName": self._claims, "Key": {KEY: {"S": record_key(key)}}, "ConsistentRead": True}
        return record_of(item_of(await self._client.call("GetItem", request)), self._clock.now()) is not None


def _vain(
    actions: Sequence[ClaimAction], reasons: Sequence[CancellationReason], refusal: TransactionCanceled
) -> list[ClaimAction]:
    """The releases of what the stream does not hold. Raises ClaimTaken when another holds what it takes."""
    vain = []
    for action, reason in zip(actions, reasons, strict=True):
        if reason.code in _UNCERTAIN:
            return []
        if reason.code == _FAULT:
            if action.takes:
                raise ClaimTaken(action.scope) from refusal
            vain.append(action)
    return vain


def _taken() -> IdempotencyTaken:
    return IdempotencyTaken("a commit with this idempotency key exists")
