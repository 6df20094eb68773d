"""`Walk`: reading DynamoDB's stream of changes forward over all of its shards, from where a place is.

Used by the feed of the DynamoDB journal: to give commits, to find the end, and to count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from kiseki.journal.dynamodb.changes import ChangeStream, ChangesTrimmed
from kiseki.journal.dynamodb.position import DONE, Shards
from kiseki.journal.dynamodb.window import Run
from kiseki.journal.port import JournalUnavailable

__all__ = ["Ahead", "Walk"]

_TRIMS_AT_MOST: Final = 3
_NEVER: Final = float("-inf")
_FRESH: Final = 5.0
"""Seconds before a walk began. A short answer that ends with a change no older than that counts as the shard's tip."""


class Ahead(NamedTuple):
    """What comes next in one shard."""

    shard: str
    run: Run


class Walk:
    """One reader's way through the shards: parents before their children, all others side by side."""

    def __init__(
        self,
        changes: ChangeStream,
        life: str,
        shards: Shards,
        cursors: Mapping[str, str],
        *,
        began_at: float,
        turn: int,
    ) -> None:
        """For `begin`."""
        self.began_at = began_at
        """AWS's time, in seconds, before anything was read."""
        self._begun_on_loop = asyncio.get_running_loop().time()
        self._changes = changes
        self._life = life
        self._shards = shards
        self._cursors = shards.compact(cursors)
        self._drained: set[str] = set()
        self._times: dict[str, float] = {}
        self._trims: dict[str, int] = {}
        self._turn = turn

    @classmethod
    async def begin(cls, changes: ChangeStream, cursors: Mapping[str, str], *, began_at: float, turn: int) -> Self:
        """A walk from where cursors are. `turn` is another number for each walk, so that with little room all shards
        get theirs. Raises JournalUnavailable."""
        about, shards = await changes.about()
        if any(shard not in shards for shard in cursors):
            # Somebody else has seen shards that are younger than this list, or they are gone.
            about, shards = await changes.about(anew=True)
        return cls(changes, about.life, shards, cursors, began_at=began_at, turn=turn)

    @property
    def is_at_end(self) -> bool:
        """Whether there was nothing more in any shard, but for what was written in the last seconds before the walk."""
        return not self._active()

    def cursors(self) -> dict[str, str]:
        """Where the walk is now."""
        return self._shards.compact(self._cursors)

    def reached(self) -> float:
        """AWS's time, in seconds: what was written before it has been passed. Minus infinity when that is not known."""
        newest = max(self._times.values(), default=_NEVER)
        return min([newest, self.began_at, *(self._times.get(shard, _NEVER) for shard in self._active())])

    async def ahead(self, room: int, *, waits: bool = True) -> list[Ahead]:
        """What comes next in the shards that have something, `room` changes in all; nothing only at the end.

        Without `waits`, nothing also when a look at each of them found nothing: that it is the end may take more looks.
        Nothing is passed by that: the caller says how much it took. Raises JournalUnavailable.
        """
        while active := self._active():
            start = self._turn % len(active)
            chosen = (active[start:] + active[:start])[:room]
            share = max(1, room // len(chosen))
            runs = await asyncio.gather(*(self._run(shard, share) for shard in chosen))
            found = []
            for shard, run in zip(chosen, runs, strict=True):
                if run.changes:
                    found.append(Ahead(shard, run))
                else:
                    await self.passed(Ahead(shard, run), 0)
            if found or not waits:
                return found
        return []

    async def passed(self, ahead: Ahead, count: int) -> None:
        """The first `count` changes of what was ahead are behind now. Raises JournalUnavailable."""
        shard, run = ahead
        if count:
            self._cursors[shard] = run.changes[count - 1].sequence
            self._times[shard] = run.changes[count - 1].created
        if count < len(run.changes):
            return
        if run.ended:
            self._cursors[shard] = DONE
            await self._renew()
        elif run.drained or self._was_tip(run):
            self._drained.add(shard)

    def _was_tip(self, run: Run) -> bool:
        """Whether the run ends at what was the tip when the walk began. Under load no shard would ever be found empty.

        DynamoDB does not promise that a short answer ends at the tip. But changes of a shard come in the order of their
        making, so what may be left out was made after the last of the run: in the last `_FRESH` seconds before the
        walk began, or since. A clock that is behind AWS's adds that much; one that is further ahead than `_FRESH` makes
        it never true. Neither loses anything: cursors are where the run ended, and the next walk goes on there.
        """
        looked_at_since = run.short is not None and run.short >= self._begun_on_loop
        return looked_at_since and bool(run.changes) and run.changes[-1].created >= self.began_at - _FRESH

    async def _run(self, shard: str, share: int) -> Run:
        try:
            return await self._changes.after(shard, self._cursors.get(shard), share)
        except ChangesTrimmed as trimmed:
            # The feed looked before: all that the stream has forgotten was given. So the shard begins anew, or is gone.
            self._trims[shard] = self._trims.get(shard, 0) + 1
            if self._trims[shard] > _TRIMS_AT_MOST:
                raise JournalUnavailable(f"{trimmed}, though DynamoDB lists it; try again") from trimmed
            self._cursors.pop(shard, None)
            await self._renew()
            return Run((), drained=False, ended=False)

    async def _renew(self) -> None:
        about, self._shards = await self._changes.about()
        if about.life != self._life:
            raise JournalUnavailable("the stream of the journal's table was replaced by another one; try again")

    def _active(self) -> list[str]:
        return [shard for shard in self._shards.readable(self._cursors) if shard not in self._drained]
