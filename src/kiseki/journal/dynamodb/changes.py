"""The stream of changes of the DynamoDB journal's table: its shards, and what they hold, read once for all followers.

Used by the DynamoDB journal only. What was read is kept for a while, so that many followers cost one call, and so does
whoever looks whether there is something new.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from kiseki.clients.dynamodb import DynamoDbClient, DynamoDbRefused
from kiseki.clients.dynamodb_generations import is_generation
from kiseki.clients.errors import NotMigrated
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.items import BY_SLICE
from kiseki.journal.dynamodb.position import Shard, Shards
from kiseki.journal.dynamodb.window import Change, Run, Window

__all__ = ["ChangeStream", "ChangesTrimmed", "StreamAbout"]

_RECORDS: Final = 1_000
_SHORT_BYTES: Final = 800_000
"""An answer of less than this is not cut off at the megabyte that one answer may hold."""
_RENEWED_AFTER: Final = 30.0
_KEPT_BYTES: Final = 32_000_000
_LOOKS_AT_ONCE: Final = 5
_LOOKS: Final = 10
"""Calls in a row that find nothing until an iterator counts as being at the tip. It passes through parts of a shard
that are empty, and nothing but the end of a closed shard says whether something follows them."""
_WINDOWS: Final = 16
"""Of one shard, for followers that are far apart."""
_TRIMMED: Final = frozenset({"TrimmedDataAccessException", "ResourceNotFoundException"})
_EXPIRED: Final = "ExpiredIteratorException"
_MADE_TOGETHER: Final = 60.0
"""Seconds between the making of a table and of its stream when one call made both."""


class ChangesTrimmed(Exception):
    """The stream has forgotten what comes after a cursor. Never leaves the journal."""

    def __init__(self, shard: str) -> None:
        super().__init__(f"the stream has no more of the shard {shard}")
        self.shard = shard


class StreamAbout(NamedTuple):
    """What is known of the stream, and of its table."""

    arn: str
    life: str
    made_at: float
    """Seconds of the epoch, AWS's time."""
    is_whole: bool
    """Whether all that is in the table went through this stream: both were made together."""
    has_index: bool
    items: int
    """About how many items the table has; DynamoDB counts every few hours."""


class ChangeStream:
    """Reads the stream of one table."""

    def __init__(
        self,
        client: DynamoDbClient,
        *,
        shared: float,
        pause: float,
        grown: Callable[[], None],
        kept_bytes: int = _KEPT_BYTES,
    ) -> None:
        """That there is nothing new is believed for `shared` seconds, unless `expect` was called since. While it is not
        known whether a shard goes on, it is looked at every `pause` seconds, after the first few times: DynamoDB
        answers five calls a second for each shard. `grown` is called when something new was found where there was
        nothing before."""
        self._client = client
        self._table = client.address.table("journal")
        self._shared = shared
        self._pause = pause
        self._grown = grown
        self._kept_bytes = kept_bytes
        self._now = asyncio.get_running_loop().time
        self._about: StreamAbout | None = None
        self._shards = Shards(())
        self._renewed_at = float("-inf")
        self._renewing = asyncio.Lock()
        self._windows: dict[str, list[Window]] = {}
        self._expected_at = float("-inf")

    def expect(self) -> None:
        """Something was written, so what is at the tips is not known any more."""
        self._expected_at = self._now()

    async def about(self, *, anew: bool = False) -> tuple[StreamAbout, Shards]:
        """The stream and its shards, at most half a minute old. Raises JournalUnavailable, NotMigrated."""
        asked_at = self._now()
        async with self._renewing:
            begun_since = self._renewed_at >= asked_at
            if self._about is None or self._now() - self._renewed_at > _RENEWED_AFTER or (anew and not begun_since):
                began = self._now()
                with explained():
                    about = await self._describe_table()
                    shards = await self._describe_stream(about.arn)
                if self._about is not None and about.arn != self._about.arn:
                    self._windows.clear()
                self._about, self._shards, self._renewed_at = about, shards, began
                for gone in [shard for shard in self._windows if shard not in shards]:
                    del self._windows[gone]
            return self._about, self._shards

    async def _describe_table(self) -> StreamAbout:
        table = (await self._client.call("DescribeTable", {"TableName": self._table}))["Table"]
        arn, label = table.get("LatestStreamArn"), table.get("LatestStreamLabel")
        if not arn or not label or not (table.get("StreamSpecification") or {}).get("StreamEnabled"):
            raise NotMigrated(f"the DynamoDB table {self._table} has no stream; run `kiseki migrate`")
        made_at = datetime.fromisoformat(label).replace(tzinfo=UTC).timestamp()
        together = abs(made_at - float(table.get("CreationDateTime", 0))) <= _MADE_TOGETHER
        indexes = table.get("GlobalSecondaryIndexes") or ()
        return StreamAbout(
            arn=arn,
            life=hashlib.blake2b(f"{arn} {table.get('TableId', '')}".encode(), digest_size=8).hexdigest(),
            made_at=made_at,
            is_whole=together and not table.get("RestoreSummary") and not is_generation(self._client.address),
            has_index=any(
                each.get("IndexName") == BY_SLICE and each.get("IndexStatus") == "ACTIVE" for each in indexes
            ),
            items=int(table.get("ItemCount", 0)),
        )

    async def _describe_stream(self, arn: str) -> Shards:
        shards: list[Shard] = []
        request = {"StreamArn": arn}
        while True:
            description = (await self._client.call_streams("DescribeStream", request))["StreamDescription"]
            shards += [
                Shard(
                    each["ShardId"],
                    each.get("ParentShardId"),
                    "EndingSequenceNumber" in (each.get("SequenceNumberRange") or {}),
                )
                for each in description.get("Shards", ())
            ]
            last = description.get("LastEvaluatedShardId")
            if not last:
                return Shards(shards)
            request = {"StreamArn": arn, "ExclusiveStartShardId": last}

    async def after(self, shard: str, cursor: str | None, limit: int) -> Run:
        """Up to `limit` changes of a shard after a sequence number, or from its begin.

        Fewer, and none, may come also when there are more: `drained` says whether there are not.
        Raises ChangesTrimmed, JournalUnavailable.
        """
        about, _ = await self.about()
        window, place = self._window(about.arn, shard, cursor)
        window.used_at = self._now()
        is_empty = self._is_known_empty(window)
        if place == len(window.changes) and not window.ended and not is_empty:
            await self._grow(window)
            is_empty = window.at_tip
            known = window.place(cursor)
            if known is None:  # others read on meanwhile, and it was forgotten
                return Run((), drained=False, ended=False)
            place = known
        changes = window.changes[place : place + limit]
        all_of_it = place + len(changes) == len(window.changes)
        ended = all_of_it and window.ended
        short = window.looked_at if all_of_it and window.short else None
        return Run(changes, drained=ended or (all_of_it and is_empty), ended=ended, short=short)

    async def look(self) -> None:
        """Looks at the tips that nobody reads on from just now, so that `grown` is called when there is something."""
        about, shards = await self.about()
        looks = []
        is_first_look = False
        for shard in shards:
            windows = self._windows.setdefault(shard.id, [])
            if not windows:
                if shard.closed:
                    continue
                windows.append(Window(about.arn, shard.id, None, latest=True))
                is_first_look = True
            window = max(windows, key=lambda each: (each.at_tip, each.used_at))
            if not window.ended and (window.at_tip or window.latest):
                looks.append(self._grow(window))
        for outcome in await asyncio.gather(*looks, return_exceptions=True):
            # A window that was trimmed is made anew by whoever reads on from it.
            if isinstance(outcome, BaseException) and not isinstance(outcome, ChangesTrimmed):
                raise outcome
        if is_first_look:
            self._grown()  # nobody knows what came before it

    def _is_known_empty(self, window: Window) -> bool:
        is_fresh = self._now() - window.looked_at < self._shared
        return window.at_tip and is_fresh and window.looked_at >= self._expected_at

    def _window(self, arn: str, shard: str, cursor: str | None) -> tuple[Window, int]:
        """The window that leads furthest from a cursor, and where in it; a new one when none knows it."""
        windows = self._windows.setdefault(shard, [])
        best: tuple[Window, int] | None = None
        for window in windows:
            place = window.place(cursor)
            if place is not None and (best is None or len(window.changes) - place > len(best[0].changes) - best[1]):
                best = window, place
        if best is None:
            best = Window(arn, shard, cursor), 0
            if len(windows) >= _WINDOWS:
                windows.remove(min(windows, key=lambda window: window.used_at))
            windows.append(best[0])
        return best

    async def _grow(self, window: Window) -> None:
        """One more call at the tip of a window, shared by all who wait for it."""
        seen = window.calls
        async with window.lock:
            if window.calls != seen:
                return
            was_at_tip = window.at_tip or window.latest
            if not window.settled and window.vain >= _LOOKS_AT_ONCE:
                await asyncio.sleep(window.looked_at + self._pause - self._now())
            looked_at = self._now()
            with explained():
                try:
                    changes = await self._records(window)
                except DynamoDbRefused as problem:
                    if problem.kind not in _TRIMMED:
                        raise
                    windows = self._windows.get(window.shard, [])
                    if window in windows:
                        windows.remove(window)
                    self._renewed_at = float("-inf")
                    raise ChangesTrimmed(window.shard) from problem
            window.calls += 1
            window.looked_at = looked_at
            window.add(changes)
            window.at_tip = window.settled and not changes
            window.short = len(changes) < _RECORDS and sum(change.bytes for change in changes) < _SHORT_BYTES
        if window.ended:
            self._renewed_at = float("-inf")  # where it ended, its children begin
        self._forget()
        if was_at_tip and changes:
            self._grown()

    async def _records(self, window: Window) -> list[Change]:
        """What comes next; nothing at the tip, and where nothing was found so far."""
        while True:
            is_new = window.iterator is None
            if window.iterator is None:
                window.iterator = await self._new_iterator(window)
                window.settled, window.vain = window.latest, 0
            try:
                request = {"ShardIterator": window.iterator, "Limit": _RECORDS}
                answer = await self._client.call_streams("GetRecords", request)
            except DynamoDbRefused as problem:
                if problem.kind != _EXPIRED or is_new:
                    raise
                window.iterator = None
                continue
            window.iterator = answer.get("NextShardIterator")
            window.ended = window.iterator is None
            records = answer.get("Records", ())
            if records or window.ended:
                window.vain = 0
                return [Change(record) for record in records]
            window.vain += 1
            window.settled |= window.vain >= _LOOKS
            if window.settled or window.vain >= _LOOKS_AT_ONCE:
                return []

    async def _new_iterator(self, window: Window) -> str:
        request = {"StreamArn": window.arn, "ShardId": window.shard}
        if window.tip is not None:
            request |= {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": window.tip}
        else:
            request["ShardIteratorType"] = "LATEST" if window.latest else "TRIM_HORIZON"
        return str((await self._client.call_streams("GetShardIterator", request))["ShardIterator"])

    def _forget(self) -> None:
        """Keeps memory bounded: drops what was not used for longest."""
        while True:
            held = [window for windows in self._windows.values() for window in windows if window.changes]
            if sum(window.bytes for window in held) <= self._kept_bytes:
                return
            oldest = min(held, key=lambda window: window.used_at)
            if len(held) > 1 and len(self._windows[oldest.shard]) > 1:
                self._windows[oldest.shard].remove(oldest)
            else:
                oldest.drop_half()
