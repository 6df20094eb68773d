"""`Erasures`: makes sure that the keys of erased subjects are destroyed, whatever happened to who recorded the fact.
`ErasedRows`: whether the read models that answer queries have applied it.

The command side destroys the keys right after the commit; a crash in between leaves the fact without the deed. Whoever
follows the journal therefore does it again, before it applies the page, once for all projections of a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from kiseki.journal.port import Commit
from kiseki.kernel.decider import Decider
from kiseki.kernel.personal import Erased
from kiseki.kernel.ports import Protector
from kiseki.projection.port import BuildCatalog, BuildMissing, BuildName, BuildState, RequestKind
from kiseki.projection.projection import Projection
from kiseki.projection.subscription import Subscription

__all__ = ["ErasedRows", "Erasures"]

_AT_ONCE: Final = 1_000
_LOOK_EVERY: Final = 0.1


class Erasures:
    """Destroys the keys of the subjects that erasing events name; shared by all projections of an updater.

    Remembers the last `remember` subjects it has seen to, so that each projection that passes the same event does
    not ask the key store again. Forgetting one costs a question, nothing else.
    """

    def __init__(
        self, *, deciders: Iterable[Decider[Any, Any, Any]], protector: Protector, remember: int = 10_000
    ) -> None:
        # By name alone: a version that only a newer application knows erases no less.
        self._types = frozenset(
            event_type.event_type.name
            for decider in deciders
            for event_type in decider.event_types
            if event_type.event_type.erases_subject
        )
        self._protector = protector
        self._remember = remember
        self._done: dict[str, None] = {}
        self._lock = asyncio.Lock()

    async def ensure(self, commits: Sequence[Commit]) -> bool:
        """Destroys what is left of the keys of every subject that these commits erase; whether there was such a one.

        Raises Unavailable; then it must be called again before the commits are applied.
        """
        subjects = {
            event.subject or commit.stream: None
            for commit in commits
            for event in commit.events
            if event.type in self._types
        }
        if not subjects:
            return False
        async with self._lock:
            missing = [subject for subject in subjects if subject not in self._done]
            if missing:
                await self._destroy(missing)
        return True

    async def _destroy(self, subjects: Sequence[str]) -> None:
        # Reading is cheaper than a durable write, and after a restart all but the last erasures are already done.
        known = await self._protector.ciphers(subjects)
        for subject in subjects:
            if not isinstance(known.get(subject), Erased):
                await self._protector.erase(subject)
            self._done[subject] = None
        while len(self._done) > self._remember:
            del self._done[next(iter(self._done))]


class ErasedRows:
    """Looks from outside whether live builds have applied erasing facts; whoever replays erasures asks before a
    process serves. A build that is restored from before an erasure still has the person's rows until it has."""

    def __init__(
        self,
        *,
        projections: Iterable[Projection],
        deciders: Sequence[Decider[Any, Any, Any]],
        builds: BuildCatalog,
        look_every: float = _LOOK_EVERY,
    ) -> None:
        """`look_every`: seconds between two looks of `until_applied`."""
        self._subscriptions = {projection.name: Subscription(projection, deciders) for projection in projections}
        self._builds = builds
        self._look_every = look_every

    async def behind(self, facts: Mapping[str, int]) -> set[str]:
        """The streams whose fact, of this sequence number, some live build is still to apply; parked ones are for an
        operator. Raises Unavailable."""
        waiting, _ = await self._look(facts)
        return waiting

    async def until_applied(self, facts: Mapping[str, int]) -> set[str]:
        """Returns when all have applied them, except the streams that are parked, which are given.

        Waits for whatever is unavailable, and for an updater, in whatever process it runs.
        """
        parked: set[str] = set()
        waiting = set(facts)
        while waiting:
            waiting, more = await self._look({stream: facts[stream] for stream in waiting})
            parked |= more
            if waiting:
                await asyncio.sleep(self._look_every)
        return parked

    async def reached(self, streams: Collection[str]) -> dict[str, int]:
        """The highest sequence number of each stream that a live build has applied. Raises Unavailable."""
        found = dict.fromkeys(streams, 0)
        for _, progress in await self._live(streams):
            for stream, number in progress.items():
                found[stream] = max(found[stream], number)
        return found

    async def build_anew(self, streams: Collection[str]) -> None:
        """Asks the updater, in whatever process it runs, for new builds in place of the live ones that have applied
        something of these streams; returns when those are live."""
        old = {name for name, progress in await self._live(streams) if any(progress.values())}
        for name in old:
            await self._builds.request(name.projection, name.version, RequestKind.REBUILD)
        while old & {one.name for one in await self._builds.builds() if one.state is BuildState.LIVE}:  # noqa: ASYNC110
            await asyncio.sleep(self._look_every)  # whoever owns the projection may be another process

    async def _live(self, streams: Collection[str]) -> list[tuple[BuildName, dict[str, int]]]:
        found = []
        for build in await self._builds.builds():
            subscription = self._subscriptions.get(build.name.projection)
            if build.state is not BuildState.LIVE or subscription is None:
                continue
            followed = [stream for stream in streams if subscription.follows(stream)]
            numbers: dict[str, int] = {}
            try:
                for start in range(0, len(followed), _AT_ONCE):
                    progress = await self._builds.progress(build.name, followed[start : start + _AT_ONCE])
                    numbers |= {stream: one.sequence_number for stream, one in progress.items()}
            except BuildMissing:
                continue
            found.append((build.name, numbers))
        return found

    async def _look(self, facts: Mapping[str, int]) -> tuple[set[str], set[str]]:
        waiting: set[str] = set()
        parked: set[str] = set()
        if not facts:
            return waiting, parked
        for build in await self._builds.builds():
            subscription = self._subscriptions.get(build.name.projection)
            if build.state is not BuildState.LIVE or subscription is None:
                continue
            streams = [stream for stream in facts if subscription.follows(stream)]
            try:
                for start in range(0, len(streams), _AT_ONCE):
                    progress = await self._builds.progress(build.name, streams[start : start + _AT_ONCE])
                    for stream, one in progress.items():
                        if one.sequence_number < facts[stream]:
                            (waiting if one.parked is None else parked).add(stream)
            except BuildMissing:
                continue  # it answers no query either, and is built again
        return waiting, parked
