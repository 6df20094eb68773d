"""The feed of the DynamoDB journal: every commit at least once, in order within a stream, none skipped.

Used by the DynamoDB journal only. DynamoDB's stream of changes remembers 24 hours. Whoever starts at an older journal
first scans the table, and whoever comes back later than that first reads the index by time of writing; both then go on
with the stream from as far back as it remembers, which gives some commits again. `position` says what a place holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import msgspec

from kiseki.clients.dynamodb import DynamoDbClient
from kiseki.journal.dynamodb.changes import ChangeStream, StreamAbout
from kiseki.journal.dynamodb.explain import explained
from kiseki.journal.dynamodb.index import TimeIndex
from kiseki.journal.dynamodb.items import SLICES, commit_of, is_commit, place_of, timestamp
from kiseki.journal.dynamodb.position import FeedPlace, Phase, read_position, write_position
from kiseki.journal.dynamodb.reader import StreamReader
from kiseki.journal.dynamodb.walk import Walk
from kiseki.journal.dynamodb.window import Change
from kiseki.journal.port import Commit, CorruptJournal, FeedPage, Lag, Position

__all__ = ["Feed"]

_COUNTED_AT_MOST: Final = 10_000
_READ_AT_ONCE: Final = 1_000
_PAGE_BYTES: Final = 2_000_000
_INDEX_KEYS: Final = 100
_NOTED_AFTER: Final = 3_600.0
"""Seconds without a commit after which a place that is at the end moves on in time all the same."""
_INDEX_DELAY: Final = timedelta(hours=1)
"""More than the index by time of writing is ever behind the table. What is younger comes from the stream."""
_ALWAYS: Final = "0"
"""Before every time in text order."""


class _Page:
    """A page of the feed that is being filled."""

    def __init__(self, limit: int) -> None:
        self.commits: list[Commit] = []
        self._limit = limit
        self._bytes = 0
        self._ended = False

    @property
    def room(self) -> int:
        return self._limit - len(self.commits)

    @property
    def is_full(self) -> bool:
        return self._ended or self.room <= 0 or self._bytes >= _PAGE_BYTES

    def take(self, changes: Sequence[Change]) -> int:
        """How many of the changes went into the page. Raises CorruptJournal when the first of all can't be read."""
        for count, change in enumerate(changes):
            if not change.is_commit:
                continue
            if self.is_full:
                return count
            try:
                commit = change.commit()
            except CorruptJournal:
                if not self.commits:
                    raise
                self._ended = True  # the next page begins with it
                return count
            self.commits.append(commit)
            self._bytes += sum(len(bytes(event.data)) for event in commit.events)
        return len(changes)


class Feed:
    """Gives the feed of one table, and measures it."""

    def __init__(
        self,
        client: DynamoDbClient,
        changes: ChangeStream,
        index: TimeIndex,
        reader: StreamReader,
        *,
        now: Callable[[], datetime],
        remembered: timedelta,
        lookback: timedelta,
    ) -> None:
        """`now` is AWS's time. What is younger than `remembered` is still in the stream. `lookback`: how far a commit's
        time in the index may be before it was written, by the time between a decision and its commit and by clocks."""
        self._client = client
        self._table = client.address.table("journal")
        self._changes = changes
        self._index = index
        self._reader = reader
        self._time = now
        self._remembered = remembered.total_seconds()
        self._lookback = lookback
        self._known_end: FeedPlace | None = None
        self._walks = 0

    async def page(self, after: Position, limit: int) -> FeedPage:
        """As `Journal.feed` says. Raises what that raises."""
        about, _ = await self._changes.about()
        begin = place = read_position(after, about.life) or self._start(about)
        while True:
            if place.phase is Phase.HISTORY:
                commits, place = await self._history(place, limit)
            elif place.phase is Phase.INDEX:
                commits, place = await self._by_time(place, limit)
            elif self._is_forgotten(place):
                place = self._resumed(place, about)
                continue
            else:
                commits, place, at_end = await self._follow(place, limit)
                if not commits:
                    return FeedPage((), after if place == begin and after else write_position(place), at_end=True)
                return FeedPage(tuple(commits), write_position(place), at_end=at_end)
            if commits:
                return FeedPage(tuple(commits), write_position(place), at_end=False)

    async def beginning(self) -> Position:
        """Where a walk begins that has to meet all of the journal, even if it is young: with the scan.

        Where the stream ends can't be told for sure, and where the table ends can.
        """
        about, _ = await self._changes.about()
        return write_position(self._whole(about))

    async def life(self) -> str:
        """Which stream of which table this is."""
        about, _ = await self._changes.about(anew=True)
        return about.life

    async def head(self) -> Position:
        """The place after the newest commit.

        Reads ahead from the last head that was known; when that is more than 10,000 commits, the place is before it.
        """
        about, _ = await self._changes.about()
        begin = self._known_end
        if begin is None or begin.life != about.life or self._is_forgotten(begin):
            begin = FeedPlace(life=about.life, phase=Phase.STREAM, at=about.made_at)
        walk = await self._walk(begin)
        count = 0
        while count < _COUNTED_AT_MOST and (found := await walk.ahead(_READ_AT_ONCE)):
            for ahead in found:
                await walk.passed(ahead, len(ahead.run.changes))
                count += len(ahead.run.changes)
        place = self._moved(begin, walk)
        if walk.is_at_end and self._now() - place.at > _NOTED_AFTER:
            place = msgspec.structs.replace(place, at=walk.began_at)
        self._known_end = place
        return write_position(place)

    async def lag(self, after: Position) -> Lag:
        """As `Journal.lag` says: exact up to 10,000 commits that the stream remembers, else about right.

        While the scan or the index is read, it is at least what was counted of what these, and then the stream, give.
        """
        about, _ = await self._changes.about()
        place = read_position(after, about.life) or self._start(about)
        if place.phase is Phase.STREAM and self._is_forgotten(place):
            place = self._resumed(place, about)
        if place.phase is Phase.STREAM:
            return await self._stream_lag(place)
        if place.phase is Phase.HISTORY:
            since, ahead = _ALWAYS, await self._scan_lag(place, about)
        else:
            since, until = place.since, self._until(place)
            ahead = 0
            if since < until:
                ahead = await self._index.count(
                    since, until, first=place.slice, key=place.key, at_most=_COUNTED_AT_MOST
                )
        # What the stream remembers comes after it, some of it once more.
        following = await self._stream_lag(_followed(place))
        oldest = following.oldest
        if ahead and about.has_index:
            oldest = await self._index.oldest(since)
        return Lag(ahead + following.commits, oldest, exact=False)

    async def _scan_lag(self, place: FeedPlace, about: StreamAbout) -> int:
        """About how many commits the scan has still to give; not fewer than its next call sees."""
        total = about.items
        if about.has_index:
            counted = await self._index.count(_ALWAYS, at_most=_COUNTED_AT_MOST)
            total = counted if counted <= _COUNTED_AT_MOST else max(counted, total)
        # DynamoDB counts items every few hours, and those of a restored table not at once.
        request = self._scan(place, _READ_AT_ONCE) | {"Select": "COUNT"}
        with explained():
            seen = int((await self._client.call("Scan", request)).get("Count", 0))
        return max(total - place.given, seen)

    async def _stream_lag(self, place: FeedPlace) -> Lag:
        walk = await self._walk(place)
        count = 0
        oldest: dict[str, datetime] = {}
        first_created, last_created = float("inf"), 0.0
        while count < _COUNTED_AT_MOST and (found := await walk.ahead(_READ_AT_ONCE)):
            for ahead in found:
                commits = [change for change in ahead.run.changes if change.is_commit]
                if commits:
                    oldest.setdefault(ahead.shard, commits[0].committed_at())
                    first_created = min(first_created, commits[0].created)
                    last_created = max(last_created, commits[-1].created)
                count += len(commits)
                await walk.passed(ahead, len(ahead.run.changes))
        if count >= _COUNTED_AT_MOST and not walk.is_at_end:
            # What comes after is as dense as what was counted.
            spent = max(1.0, last_created - first_created)
            count += int(count * max(0.0, self._now() - last_created) / spent)
        return Lag(count, min(oldest.values(), default=None), exact=walk.is_at_end)

    def _now(self) -> float:
        return self._time().timestamp()

    def _start(self, about: StreamAbout) -> FeedPlace:
        """Where the journal begins: in the stream, if that remembers all of it."""
        if about.is_whole and self._now() - about.made_at < self._remembered:
            return FeedPlace(life=about.life, phase=Phase.STREAM, at=about.made_at)
        return self._whole(about)

    def _whole(self, about: StreamAbout) -> FeedPlace:
        return FeedPlace(life=about.life, phase=Phase.HISTORY, at=about.made_at, began=self._now())

    def _is_forgotten(self, place: FeedPlace) -> bool:
        """Whether the stream may have forgotten something that was written after the place."""
        return self._now() - place.at >= self._remembered

    def _since(self, at: float) -> str:
        return timestamp(datetime.fromtimestamp(at, UTC) - self._lookback)

    def _until(self, place: FeedPlace) -> str:
        """Up to where the index phase reads the index."""
        return timestamp(datetime.fromtimestamp(place.began, UTC) - _INDEX_DELAY)

    def _resumed(self, place: FeedPlace, about: StreamAbout) -> FeedPlace:
        """Where a place goes on that the stream has forgotten."""
        if not about.has_index:
            return FeedPlace(life=place.life, phase=Phase.HISTORY, at=place.at, began=self._now())
        return FeedPlace(
            life=place.life,
            phase=Phase.INDEX,
            at=place.at,
            cursors=place.cursors,
            began=self._now(),
            since=self._since(place.at),
        )

    async def _history(self, place: FeedPlace, limit: int) -> tuple[list[Commit], FeedPlace]:
        """One page of the scan, which sees all from before it began."""
        with explained():
            answer = await self._client.call("Scan", self._scan(place, limit))
        scanned = [commit_of(item) for item in answer.get("Items", ()) if is_commit(item)]
        commits = await self._in_order(scanned, place)
        key: Mapping[str, Any] | None = answer.get("LastEvaluatedKey")
        if not key:
            return commits, _followed(place)
        stream = place_of(key).stream
        reached = max([commit.last_sequence_number for commit in commits if commit.stream == stream], default=0)
        if reached == 0 and place.key is not None and place_of(place.key).stream == stream:
            reached = place.reached
        given = place.given + len(scanned)
        return commits, msgspec.structs.replace(place, key=dict(key), reached=reached, given=given)

    def _scan(self, place: FeedPlace, limit: int) -> dict[str, Any]:
        request: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True, "Limit": limit}
        if place.key:
            request["ExclusiveStartKey"] = place.key
        return request

    async def _in_order(self, scanned: Sequence[Commit], place: FeedPlace) -> list[Commit]:
        """The commits of a page of the scan.

        DynamoDB keeps the items of a stream together and in order, but promises the order for queries only. So it is
        looked at, and a stream that comes in another order is read from where it was.
        """
        going_on = place_of(place.key).stream if place.key else None
        ordered: list[Commit] = []
        for stream, group in groupby(sorted(scanned, key=_by_place), key=attrgetter("stream")):
            reached = place.reached if stream == going_on else 0
            commits = [commit for commit in group if commit.first_sequence_number > reached]
            ends = [reached, *(commit.last_sequence_number for commit in commits)]
            if any(commit.first_sequence_number != end + 1 for commit, end in zip(commits, ends, strict=False)):
                commits = await self._read(stream, reached, ends[-1])
            ordered += commits
        return ordered

    async def _read(self, stream: str, after: int, until: int) -> list[Commit]:
        commits: list[Commit] = []
        async for page in self._reader.pages(stream, after):
            commits += page
            if commits[-1].last_sequence_number >= until:
                break
        return commits

    async def _by_time(self, place: FeedPlace, limit: int) -> tuple[list[Commit], FeedPlace]:
        """One page of the index, up to an hour before the phase began."""
        until = self._until(place)
        if place.since >= until:
            return [], _followed(place)
        page = await self._index.page(place.slice, place.since, until, place.key, min(limit, _INDEX_KEYS))
        if page.key:
            return list(page.commits), msgspec.structs.replace(place, key=page.key)
        if place.slice + 1 < SLICES:
            return list(page.commits), msgspec.structs.replace(place, key=None, slice=place.slice + 1)
        return list(page.commits), _followed(place)

    async def _follow(self, place: FeedPlace, limit: int) -> tuple[list[Commit], FeedPlace, bool]:
        """One page of the stream, from all shards that can be read, and whether the stream ends there.

        It ends before a commit that can't be read.
        """
        walk = await self._walk(place)
        page = _Page(limit)
        # What was found does not wait for certainty about shards that seem to have nothing.
        while not page.is_full and (found := await walk.ahead(page.room, waits=not page.commits)):
            for ahead in found:
                await walk.passed(ahead, page.take(ahead.run.changes))
        moved = self._moved(place, walk)
        if walk.is_at_end and not page.commits and self._now() - moved.at > _NOTED_AFTER:
            moved = msgspec.structs.replace(moved, at=walk.began_at)
        return page.commits, moved, walk.is_at_end

    async def _walk(self, place: FeedPlace) -> Walk:
        self._walks += 1
        return await Walk.begin(self._changes, place.cursors, began_at=self._now(), turn=self._walks)

    def _moved(self, place: FeedPlace, walk: Walk) -> FeedPlace:
        return msgspec.structs.replace(place, at=max(place.at, walk.reached()), cursors=walk.cursors())


def _by_place(commit: Commit) -> tuple[str, int]:
    return commit.stream, commit.first_sequence_number


def _followed(place: FeedPlace) -> FeedPlace:
    """In the stream, which gives what the scan or the index did not. Cursors that it has forgotten begin anew."""
    if place.phase is Phase.HISTORY:
        return FeedPlace(life=place.life, phase=Phase.STREAM, at=place.began)
    at = place.began - _INDEX_DELAY.total_seconds()
    return FeedPlace(life=place.life, phase=Phase.STREAM, at=max(place.at, at), cursors=place.cursors)
