"""`Sweeper`: finds events that no stream brought, and applies them. Started by the composition root beside an updater.

A DynamoDB stream keeps a record for 24 hours, and a record that could not even be read is dropped. The journal's index
by time says which streams had commits lately; a stream whose guard is behind that, and stays behind, lost something.
This should find nothing, ever, so what it finds is logged as a warning.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, runtime_checkable

import msgspec

from kiseki.journal.port import Journal, RecordedEvent
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock, Protector, Telemetry
from kiseki.kernel.schema import UnknownEvent
from kiseki.projection.backoff import Backoff
from kiseki.projection.erasure import Erasures
from kiseki.projection.pause import happens
from kiseki.projection.port import Build, BuildCatalog, BuildMissing, BuildName, BuildState
from kiseki.projection.projection import Projection
from kiseki.projection.projector import Projector
from kiseki.projection.records import commits_of, current_builds, undisturbed
from kiseki.projection.subscription import Subscription

__all__ = ["Finding", "HasHeads", "Sweeper", "SweeperSettings"]

_log = logging.getLogger(__name__)


@runtime_checkable
class HasHeads(Protocol):
    """A journal that knows which streams had commits lately."""

    def heads(self, since: datetime) -> AsyncIterator[Mapping[str, int]]:
        """Streams with commits since a point in time, each with the first sequence number of its newest commit, in
        pages of bounded size; a stream may be in several. Raises CorruptJournal, JournalUnavailable.
        """
        ...


class SweeperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    interval: float = 60.0
    """Between two sweeps."""
    first_window: float = 25 * 3_600.0
    """How far back the first sweep of a build looks: longer than a stream keeps its records."""
    lookback: float = 900.0
    """How far a sweep looks back behind the begin of the one before: clocks differ, and an index is late."""
    grace: float = 10.0
    """How long a stream may be behind before that counts as a loss: what is on its way arrives within it."""
    at_once: int = 1_000
    """Streams of a build that one sweep looks after; more are left to the next one, which follows at once."""
    backoff_initial: float = 1.0
    """The first wait while something is unavailable; it doubles with every further one."""
    backoff_maximum: float = 60.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one sweep found in one build."""

    build: BuildName
    streams: tuple[str, ...]
    """Those that were behind, and stayed behind."""
    events: int
    """How many were applied."""
    complete: bool
    """Whether nothing was left to the next sweep."""


class Sweeper:
    """Sweeps the builds that a process keeps up to date. What others apply meanwhile does not disturb it."""

    def __init__(
        self,
        *,
        projections: Iterable[Projection],
        deciders: Sequence[Decider[Any, Any, Any]],
        journal: Journal,
        heads: HasHeads,
        builds: BuildCatalog,
        codec: EventCodec,
        protector: Protector,
        telemetry: Telemetry,
        clock: Clock,
        settings: SweeperSettings | None = None,
        runs: Callable[[str], bool] = lambda projection: True,
        found: Callable[[Finding], None] = lambda finding: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`runs` says whether this process runs the projection of a name: who stands by does not sweep. `found` is
        called with what was found, if anything."""
        self._subscriptions = [Subscription(projection, deciders) for projection in projections]
        self._journal = journal
        self._heads = heads
        self._builds = builds
        self._codec = codec
        self._erasures = Erasures(deciders=deciders, protector=protector)
        self._telemetry = telemetry
        self._clock = clock
        self._settings = settings or SweeperSettings()
        self._runs = runs
        self._found = found
        self._backoff = Backoff(
            initial=self._settings.backoff_initial, maximum=self._settings.backoff_maximum, jitter=jitter
        )
        self._swept: dict[BuildName, datetime] = {}
        self._stop = asyncio.Event()
        self._done: asyncio.Event | None = None

    async def run(self) -> None:
        """Sweeps until `stop`; waits for whatever is unavailable."""
        self._done = asyncio.Event()
        try:
            while not self._stop.is_set():
                await happens(self._stop, await self._sweep_safely())
        finally:
            self._done.set()

    async def stop(self) -> None:
        """Ends `run` after the stream it is at; returns when it has ended. For good."""
        self._stop.set()
        if self._done is not None:
            await self._done.wait()

    async def _sweep_safely(self) -> float:
        """One sweep; the seconds until the next one."""
        try:
            findings = await self.sweep()
        except Unavailable as problem:
            _log.warning("the sweep waits: %s", problem)
            return self._backoff.failed()
        except Exception:  # noqa: BLE001  # logged, and tried again
            _log.exception("the sweep can't go on")
            return self._backoff.failed()
        self._backoff.succeeded()
        return self._settings.interval if all(finding.complete for finding in findings) else 0.0

    async def sweep(self, since: datetime | None = None) -> list[Finding]:
        """Looks at all streams with commits since a point in time, and applies what was lost; what was found.

        Without `since` it goes on where the last sweep of each build began. Raises Unavailable, CorruptJournal.
        """
        started = self._clock.now()
        targets = await self._targets()
        if not targets:
            return []
        earliest = since or min(self._since(build, started) for _, build in targets)
        behind = await self._behind(targets, earliest)
        if any(behind.values()) and await happens(self._stop, self._settings.grace):
            return []
        findings = []
        for subscription, build in targets:
            finding = await self._sweep_build(subscription, build, behind[build.name])
            if finding.complete:
                self._swept[build.name] = started
            if finding.streams:
                findings.append(finding)
        return findings

    async def _targets(self) -> list[tuple[Subscription, Build]]:
        builds = await self._builds.builds()
        targets = [
            (subscription, build)
            for subscription in self._subscriptions
            if self._runs(subscription.projection.name)
            for build in current_builds(builds, subscription.projection)
        ]
        names = {build.name for _, build in targets}
        self._swept = {name: at for name, at in self._swept.items() if name in names}
        return targets

    def _since(self, build: Build, now: datetime) -> datetime:
        swept = self._swept.get(build.name)
        if swept is None:
            return now - timedelta(seconds=self._settings.first_window)
        return swept - timedelta(seconds=self._settings.lookback)

    async def _behind(
        self, targets: Sequence[tuple[Subscription, Build]], since: datetime
    ) -> dict[BuildName, dict[str, int]]:
        """For each build the streams whose guard is before their newest commit, with its first sequence number."""
        behind: dict[BuildName, dict[str, int]] = {build.name: {} for _, build in targets}
        async for heads in self._heads.heads(since):
            for subscription, build in targets:
                suspects = behind[build.name]
                if len(suspects) > self._settings.at_once:
                    continue
                concerned = {stream: first for stream, first in heads.items() if subscription.concerns(stream)}
                suspects.update(await self._still_behind(build, concerned))
        return behind

    async def _still_behind(self, build: Build, heads: Mapping[str, int]) -> dict[str, int]:
        if not heads:
            return {}
        try:
            progress = await self._builds.progress(build.name, list(heads))
        except BuildMissing as problem:
            _log.warning("%s is not swept: %s", build.name, problem)
            return {}
        return {
            stream: first
            for stream, first in heads.items()
            if progress[stream].sequence_number < first and progress[stream].parked is None
        }

    async def _sweep_build(self, subscription: Subscription, build: Build, suspects: Mapping[str, int]) -> Finding:
        complete = len(suspects) <= self._settings.at_once
        if not complete and build.state is BuildState.BUILDING:
            # It is far behind, so it is catching up; what the feed gives it needs no sweep.
            return Finding(build=build.name, streams=(), events=0, complete=True)
        chosen = dict(sorted(suspects.items())[: self._settings.at_once])
        lost = await self._still_behind(build, chosen)
        if not lost:
            return Finding(build=build.name, streams=(), events=0, complete=complete)
        started = self._clock.monotonic()
        events, looked_after = await self._apply(subscription, build, lost)
        finding = Finding(
            build=build.name,
            streams=tuple(looked_after),
            events=events,
            complete=complete and len(looked_after) == len(lost),
        )
        _log.warning(
            "%s: %d streams were behind for more than %g s and nothing brought their events, of which %d were applied "
            "now; look for records that the event source mapping discarded",
            build.name,
            len(lost),
            self._settings.grace,
            events,
        )
        self._telemetry.projected(build.name.projection, events, self._clock.monotonic() - started)
        self._found(finding)
        return finding

    async def _apply(
        self, subscription: Subscription, build: Build, streams: Collection[str]
    ) -> tuple[int, Sequence[str]]:
        """How many events were applied, and the streams that were seen to before it was told to stop."""
        store = await self._builds.open(subscription.projection, build.name, subscription.definition)
        count = 0
        seen_to: list[str] = []
        try:
            projector = Projector(
                subscription=subscription,
                store=store,
                journal=self._journal,
                codec=self._codec,
                telemetry=self._telemetry,
                clock=self._clock,
                refuse_unknown=build.state is BuildState.BUILDING,
                found=self._seen_in_the_journal,
            )
            for stream in sorted(streams):
                if self._stop.is_set():
                    break
                try:
                    count += await undisturbed(partial(projector.catch_up, stream))
                except UnknownEvent as problem:
                    _log.error("%s", problem)  # its owner does not let it take over like this
                seen_to.append(stream)
        finally:
            await store.close()
        return count, seen_to

    async def _seen_in_the_journal(self, events: Sequence[RecordedEvent]) -> bool:
        return await self._erasures.ensure(commits_of(events))
