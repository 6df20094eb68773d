"""`OwnedBuilds`: the builds of one projection version, while this process owns them. Used by the runner.

The live build answers queries. Beside it, during a rebuild or after a new version was deployed, a candidate catches up
and then takes over. Both are stepped by one task, so that while a candidate is promoted the live one stands still.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import timedelta

from kiseki.kernel.errors import Unavailable
from kiseki.projection.follower import Follower
from kiseki.projection.port import (
    Build,
    BuildMissing,
    BuildName,
    BuildState,
    OwnershipLost,
    ProjectionStore,
    RequestKind,
)
from kiseki.projection.projector import Projector
from kiseki.projection.settings import BuildProgress, RunnerParts
from kiseki.projection.subscription import Subscription

__all__ = ["OwnedBuilds"]

_log = logging.getLogger(__name__)


class OwnedBuilds:
    """Opens, steps, promotes, rebuilds and prunes the builds of a projection version. One task at a time uses it.

    Unless said otherwise its methods raise Unavailable, and BuildMissing when a build's file is gone; then it is closed
    and opened anew.
    """

    def __init__(self, subscription: Subscription, parts: RunnerParts) -> None:
        self.live: Follower | None = None
        self.candidate: Follower | None = None
        self.problem: str | None = None
        """Why the candidate does not go on or does not become live."""
        self._held_back_by: Collection[str] = ()
        """Streams that are parked in the candidate and were further in the live build."""
        self._subscription = subscription
        self._projection = subscription.projection
        self._parts = parts
        self._builds = parts.builds

    @property
    def has_erased(self) -> bool:
        """Whether personal data was removed since builds were last deleted."""
        return any(follower.erased for follower in self.followers)

    @property
    def followers(self) -> list[Follower]:
        """The open ones."""
        return [follower for follower in (self.live, self.candidate) if follower is not None]

    async def open(self) -> None:
        """Opens what there is of this version, or makes its first build. Raises DefinitionError."""
        builds = await self._builds.builds(self._projection.name)
        own = [build for build in builds if build.name.version == self._projection.version]
        served = [build for build in own if build.promoted_at is not None][-1:]
        building = [build for build in own if build.state is BuildState.BUILDING]
        if served and not await self._still_answers(served[0]):
            # A way back to this version: the demoted build is nearly there; one that was being built besides is not.
            building += served
            served = []
        if served:
            self.live = await self._opened(served[0], beside_live=False)
        if building:
            self.candidate = await self._opened(building[-1], beside_live=self.live is not None)
            if building[-1].problem is not None:
                await self._builds.note(building[-1].name, None)  # a new start is a new try
            for build in building[:-1]:
                await self._builds.remove(build.name)
        if self.live is None and self.candidate is None:
            await self._create()

    async def _still_answers(self, build: Build) -> bool:
        """Whether queries may go on using the newest build of this version; if not it is demoted.

        While another version was live nobody may have kept this one up to date, and it must not answer with old rows.
        """
        if build.state is BuildState.LIVE:
            return True
        try:
            position = (await self._builds.inspect(build.name)).position
        except BuildMissing:
            return True  # found again, and seen to, when it is opened
        lag = await self._parts.journal.lag(position)
        if lag.commits or not lag.exact:
            await self._builds.demote(build.name)
            return False
        await self._builds.promote(build.name)
        return True

    async def _opened(self, build: Build, *, beside_live: bool) -> Follower | None:
        """The follower of a build, None when it is not there any more.

        `beside_live`: queries of this version have another one meanwhile.

        One that can't be opened now is opened by a later step; a rebuild may replace it meanwhile.
        """
        follower = self._follower(build, refuse_unknown=beside_live)
        try:
            await follower.opened()
        except OwnershipLost:
            raise  # the build is there, and another process's
        except BuildMissing as problem:
            _log.warning("%s; it is built again", problem)
            await self._builds.demote(build.name)  # so that an older generation does not answer in its place
            await self._builds.remove(build.name)
            return None
        except Unavailable as problem:
            _log.warning("%s is not opened now: %s", build.name, problem)
        return follower

    def _follower(self, build: Build, *, refuse_unknown: bool) -> Follower:
        parts = self._parts

        async def open_store() -> ProjectionStore:
            return await self._builds.open(self._projection, build.name, self._subscription.definition)

        def new_projector(store: ProjectionStore) -> Projector:
            return Projector(
                subscription=self._subscription,
                store=store,
                journal=parts.journal,
                codec=parts.codec,
                telemetry=parts.telemetry,
                clock=parts.clock,
                attempts=parts.settings.attempts,
                # Beside a live build an incomplete one is of no use. Without one, queries of this version have nothing
                # else, and one stream that waits must not keep all the others from them.
                refuse_unknown=refuse_unknown,
            )

        return Follower(
            build=build,
            open_store=open_store,
            new_projector=new_projector,
            subscription=self._subscription,
            journal=parts.journal,
            erasures=parts.erasures,
            backoff=parts.new_backoff(),
            clock=parts.clock,
            telemetry=parts.telemetry,
            page_commits=parts.settings.page_commits,
            applied=self._applied,
        )

    async def _create(self) -> BuildName:
        build = await self._builds.create(self._projection, self._subscription.definition)
        self.candidate = await self._opened(build, beside_live=self.live is not None)
        self.problem, self._held_back_by = None, ()
        _log.info("builds %s", build.name)
        return build.name

    async def round(self, *, measured: bool = False) -> bool:
        """One page of each build, and the promotion when it is due; whether anything was done.

        `measured` as in Follower.step, for the live build. What is unavailable is noted in the followers and waited
        for. Raises only BuildMissing.
        """
        worked = False
        if self.live is not None:
            worked = await self.live.step(measured=measured)
        candidate = self.candidate
        if candidate is not None:
            # Beside a live one it has to be as far as that is now; the first one has to get there at all under load.
            worked |= await candidate.step(measured=True, afresh=self.live is not None)
            if candidate.refusal is not None:
                await candidate.guarded(self._note_refusal)
            elif candidate.caught_up:
                # The live build has not moved since its step above, so the candidate is at least as far.
                worked |= await candidate.guarded(self._promote)
        return worked

    async def _note_refusal(self) -> bool:
        if self.candidate is not None:
            await self._note(self.candidate.refusal)
        return False

    async def _note(self, problem: str | None) -> None:
        if self.candidate is not None and problem != self.problem:
            await self._builds.note(self.candidate.build.name, problem)
            self.problem = problem
            if problem is not None:
                _log.error("%s does not become live: %s", self.candidate.build.name, problem)

    async def _promote(self) -> bool:
        candidate, replaced = self.candidate, self.live
        if candidate is None:
            return False
        store, _ = await candidate.opened()
        progress = await store.progress(self._held_back_by)
        if any(one.parked is not None for one in progress.values()):
            return False
        # Once queries use it, a loss of power must not set it back to where it was long ago.
        await store.flush()
        compared_with = replaced.build.name if replaced is not None else None
        behind = await self._builds.promote(candidate.build.name, unless_behind=compared_with)
        if behind:
            if not await self._is_no_measure(candidate, behind):
                return self.problem is None
            _log.warning("%s has applied more than the journal holds, as after a restore", compared_with)
            await self._builds.promote(candidate.build.name)
        self.live, self.candidate, self.problem, self._held_back_by = candidate, None, None, ()
        candidate.parks_unknown()
        _log.info("%s is live", candidate.build.name)
        self._applied()
        if replaced is not None:
            await replaced.close()
        return True

    async def _is_no_measure(self, candidate: Follower, behind: Mapping[str, int]) -> bool:
        """Brings the candidate forward in streams of which the live build has more, because somebody pushed it there.

        Whether that can't be done although none of them is parked: then the live build belongs to another journal, or
        to one before a restore, and how far it is says nothing.
        """
        progress = await candidate.catch_up(behind)
        self._held_back_by = parked = [stream for stream, one in progress.items() if one.parked is not None]
        await self._note(
            f"{len(parked)} of its parked streams would go back in time; mend their cause and run projection retry, or "
            "raise the version"
            if parked
            else None
        )
        return not parked and any(progress[stream].sequence_number < number for stream, number in behind.items())

    async def see_to_requests(self) -> bool:
        """Does what operators asked for; whether there was anything."""
        requests = await self._builds.requests(self._projection.name, self._projection.version)
        for request in requests:
            if request.kind is RequestKind.RETRY:
                outcome = await self._retry(request.stream)
            else:
                outcome = await self._rebuild()
            await self._builds.finish(request.id, outcome)
        return bool(requests)

    async def _retry(self, stream: str | None) -> str:
        freed = stuck = 0
        for follower in self.followers:
            freed_here, stuck_here = await follower.retry_parked(stream)
            freed, stuck = freed + freed_here, stuck + stuck_here
        outcome = f"{freed} parked streams go on, {stuck} stay parked"
        _log.info("%s was retried as asked: %s", self._projection.name, outcome)
        return outcome

    async def _rebuild(self) -> str:
        candidate = self.candidate
        if candidate is not None:
            if self.problem is None and candidate.failure is None:
                return f"{candidate.build.name} is already being built"
            self.candidate = None
            await candidate.close()
            await self._builds.remove(candidate.build.name)
        return f"builds {await self._create()}"

    async def prune(self) -> None:
        """Deletes builds that were replaced, or given up unfinished, longer ago than they are kept.

        After an erasure all of them: nobody follows them, so it would not reach their rows.
        """
        erased = [follower for follower in self.followers if follower.erased]
        keep = 0.0 if erased else self._parts.settings.keep_retired
        before = self._parts.clock.now() - timedelta(seconds=keep)
        in_use = {follower.build.name for follower in self.followers}
        for build in await self._builds.builds(self._projection.name):
            since = build.retired_at if build.state is BuildState.RETIRED else build.created_at
            if build.state is BuildState.LIVE or build.name in in_use or since is None or since >= before:
                continue
            if build.name.version == self._projection.version:
                await self._builds.remove(build.name)
                continue
            # A version that another process still runs is its owner's to prune.
            ownership = await self._builds.own(self._projection.name, build.name.version)
            if ownership is not None:
                try:
                    await self._builds.remove(build.name)
                finally:
                    await ownership.release()
        for follower in erased:
            follower.erased = False

    async def close(self) -> None:
        """Lets go of all builds."""
        followers = self.followers
        self.live = self.candidate = self.problem = None
        self._held_back_by = ()
        for follower in followers:
            try:
                await follower.close()
            except Unavailable as problem:
                _log.warning("closing %s: %s", follower.build.name, problem)

    def progress(self) -> tuple[BuildProgress, ...]:
        """What is being done for each open build."""
        return tuple(self._progress_of(follower) for follower in self.followers)

    def _progress_of(self, follower: Follower) -> BuildProgress:
        failure = follower.failure
        waiting = None
        if failure is not None:
            waiting = str(failure) if isinstance(failure, Unavailable) else type(failure).__name__
        return BuildProgress(
            projection=self._projection.name,
            version=self._projection.version,
            generation=follower.build.name.generation,
            role="live" if follower is self.live else "building",
            caught_up=follower.caught_up,
            events_applied=follower.events_applied,
            waiting=waiting,
            problem=self.problem if follower is self.candidate else follower.refusal,
        )

    def _applied(self) -> None:
        self._parts.applied(self._projection.name)
