"""`PushedUpdater`: applies commits that are pushed, in batches, to the builds of an application's projections.

Used by the Lambda handler. Any number of them, and an updater, may work on the same builds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from kiseki.journal.port import CorruptJournal, Journal, RecordedEvent
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock, Protector, Telemetry
from kiseki.kernel.schema import UnknownEvent
from kiseki.projection.erasure import Erasures
from kiseki.projection.port import Build, BuildCatalog, BuildMissing, BuildName, BuildState, ProjectionStore
from kiseki.projection.projection import Projection
from kiseki.projection.projector import Projector
from kiseki.projection.records import commits_of, current_builds, undisturbed
from kiseki.projection.subscription import Subscription
from kiseki.service.lambda_records import Counts, Delivery

__all__ = ["NoBuild", "PushedUpdater"]

_log = logging.getLogger(__name__)
_FAILURES_IN_A_ROW: Final = 3
"""After so many streams of a build that can't be written, the rest is not tried: it is the build, not the stream."""


class NoBuild(Unavailable):
    """A projection has no build that events could be applied to."""

    code = "NO_BUILD"


class _Target(NamedTuple):
    build: Build
    store: ProjectionStore
    projector: Projector

    def __str__(self) -> str:
        return str(self.build.name)


class PushedUpdater:
    """Holds the builds open between batches. One task at a time uses it."""

    def __init__(
        self,
        *,
        projections: Iterable[Projection],
        deciders: Sequence[Decider[Any, Any, Any]],
        journal: Journal,
        builds: BuildCatalog,
        codec: EventCodec,
        protector: Protector,
        telemetry: Telemetry,
        clock: Clock,
        pause: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`pause(n)` waits after the n-th time that somebody else was quicker."""
        self._subscriptions = [Subscription(projection, deciders) for projection in projections]
        self._journal = journal
        self._builds = builds
        self._codec = codec
        self._erasures = Erasures(deciders=deciders, protector=protector)
        self._telemetry = telemetry
        self._clock = clock
        self._pause = pause
        self._targets: list[_Target] = []

    async def apply(self, deliveries: Sequence[Delivery], counts: Counts) -> int | None:
        """Applies a batch to every build; the place in it of the first delivery that has to come again, if any has.

        What comes before that place is applied or parked. Raises NoBuild, DefinitionError, and Unavailable when
        nothing could be done.
        """
        targets = await self._current()
        seen_to: set[BuildName] = set()
        scrub = await self._erasures.ensure([one.commit for one in deliveries if one.commit is not None])
        streams: dict[str, list[RecordedEvent]] = {}
        damaged = set()
        for delivery in deliveries:
            events = streams.setdefault(delivery.stream, [])
            if delivery.commit is None:
                damaged.add(delivery.stream)
            else:
                events += delivery.commit.recorded()
        failed: set[str] = set()
        while targets:
            for target in targets:
                failed.update(await self._apply_to(target, streams, damaged, counts, scrub=scrub))
                seen_to.add(target.build.name)
            # Meanwhile another build may have been made and have taken over, and it must not wait for its owner.
            targets = [target for target in await self._current() if target.build.name not in seen_to]
        return next((place for place, one in enumerate(deliveries) if one.stream in failed), None)

    async def _apply_to(
        self,
        target: _Target,
        streams: Mapping[str, Sequence[RecordedEvent]],
        damaged: Collection[str],
        counts: Counts,
        *,
        scrub: bool,
    ) -> Collection[str]:
        """The streams that could not be brought up to date in this build."""
        before = counts.applied
        started = self._clock.monotonic()
        events = [event for stream, of_stream in streams.items() if stream not in damaged for event in of_stream]
        apart: Sequence[str] = sorted(damaged)
        failed: Collection[str] = ()
        try:
            try:
                counts.applied += await self._undisturbed(lambda: target.projector.apply(events, scrub=scrub))
            except (Unavailable, CorruptJournal) as problem:
                _log.warning("%s: streams are applied one by one now: %s", target, problem)
                apart = list(streams)
            failed = await self._one_by_one(target, apart, streams, damaged, counts, scrub=scrub)
        except UnknownEvent as problem:
            # Its owner says so too, and does not let it take over before the application knows the event.
            _log.error("%s", problem)
        except BuildMissing as problem:
            _log.warning("%s: %s", target, problem)
            # The owner builds it again. Nobody queries one that is only being built.
            failed = () if target.build.state is BuildState.BUILDING else list(streams)
        offered = sum(len(of_stream) for of_stream in streams.values())
        applied = counts.applied - before
        counts.skipped += max(0, offered - applied) if not failed else 0
        if applied:
            self._telemetry.projected(target.build.name.projection, applied, self._clock.monotonic() - started)
        return failed

    async def _one_by_one(
        self,
        target: _Target,
        names: Sequence[str],
        streams: Mapping[str, Sequence[RecordedEvent]],
        damaged: Collection[str],
        counts: Counts,
        *,
        scrub: bool,
    ) -> set[str]:
        """Brings streams up to date, each by itself: one that can't be now holds up no other. Those that can't."""
        failed: set[str] = set()
        in_a_row = 0
        for place, stream in enumerate(names):
            try:
                if stream not in damaged:
                    counts.applied += await self._pushed(target, streams[stream], scrub=scrub)
                else:
                    counts.applied += await self._undisturbed(partial(target.projector.catch_up, stream))
                in_a_row = 0
            except BuildMissing:
                raise
            except Unavailable as problem:
                _log.warning("%s: %s comes again: %s", target, stream, problem)
                failed.add(stream)
                in_a_row += 1
            if in_a_row == _FAILURES_IN_A_ROW:
                failed.update(names[place:])
                break
        return failed

    async def _pushed(self, target: _Target, events: Sequence[RecordedEvent], *, scrub: bool) -> int:
        try:
            return await self._undisturbed(lambda: target.projector.apply(events, scrub=scrub))
        except CorruptJournal:
            # What came before these events is damaged where it is stored: the stream is parked there.
            return await self._undisturbed(partial(target.projector.catch_up, events[0].stream))

    async def _undisturbed(self, work: Callable[[], Awaitable[int]]) -> int:
        return await undisturbed(work, pause=self._pause)

    async def _current(self) -> Sequence[_Target]:
        """The builds there are now, open."""
        builds = await self._builds.builds()
        known = {(one.build.name, one.build.state): one for one in self._targets}
        current: list[_Target] = []
        for subscription in self._subscriptions:
            projection = subscription.projection
            own = current_builds(builds, projection)
            if not own:
                raise NoBuild(
                    f"projection {projection.name} version {projection.version} has no build yet; run `kiseki migrate` "
                    "and start the updater of this release (`kiseki updater`), which makes it"
                )
            for build in own:
                target = known.pop((build.name, build.state), None)
                if target is None:
                    try:
                        target = await self._open(subscription, build, beside_live=len(own) > 1)
                    except BuildMissing as problem:
                        if build.state is not BuildState.BUILDING:
                            raise
                        _log.warning("%s: %s", build.name, problem)  # its owner builds it again, from the start
                        continue
                    self._targets.append(target)
                current.append(target)
        for gone in known.values():
            await self._close(gone)
        self._targets = current
        return current

    async def _open(self, subscription: Subscription, build: Build, *, beside_live: bool) -> _Target:
        store = await self._builds.open(subscription.projection, build.name, subscription.definition)
        projector = Projector(
            subscription=subscription,
            store=store,
            journal=self._journal,
            codec=self._codec,
            telemetry=self._telemetry,
            clock=self._clock,
            refuse_unknown=beside_live and build.state is BuildState.BUILDING,
            found=self._seen_in_the_journal,
        )
        _log.info("applies to %s (%s)", build.name, build.state)
        return _Target(build, store, projector)

    async def _seen_in_the_journal(self, events: Sequence[RecordedEvent]) -> bool:
        return await self._erasures.ensure(commits_of(events))

    async def _close(self, target: _Target) -> None:
        with suppress(ValueError):
            self._targets.remove(target)
        try:
            await target.store.close()
        except Unavailable as problem:
            _log.warning("closing %s: %s", target, problem)

    async def close(self) -> None:
        """Lets go of all builds; again is fine."""
        for target in list(self._targets):
            await self._close(target)
