"""`Follower`: brings one build from its stored position to the end of the feed, a page at a time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from functools import partial

from kiseki.journal.port import Journal, Position
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.kernel.schema import UnknownEvent
from kiseki.projection.backoff import Backoff
from kiseki.projection.erasure import Erasures
from kiseki.projection.port import Build, BuildMissing, ParkedStream, ProjectionStore, StreamProgress
from kiseki.projection.projector import Projector
from kiseki.projection.records import undisturbed
from kiseki.projection.subscription import Subscription

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

# Codes of streams whose cause lies outside event and projection: a new start may find it gone.
_RETRIED_AT_START = frozenset({"UNKNOWN_EVENT", "SUBJECT_KEY_MISSING"})


class Follower:
    """Follows the feed into one build. One task at a time calls it."""

    def __init__(
        self,
        *,
        build: Build,
        open_store: Callable[[], Awaitable[ProjectionStore]],
        new_projector: Callable[[ProjectionStore], Projector],
        subscription: Subscription,
        journal: Journal,
        erasures: Erasures,
        backoff: Backoff,
        clock: Clock,
        telemetry: Telemetry,
        page_commits: int,
        applied: Callable[[], None],
    ) -> None:
        """`page_commits` commits are read and applied at once; `applied` is called after each page that was."""
        self.build = build
        self.caught_up = False
        """Whether the last step got to where the feed ended when the step began."""
        self.failure: Exception | None = None
        """Why the last step did not succeed; None when it did."""
        self.refusal: str | None = None
        """Why it will not go on before the next start: the application does not know an event."""
        self.retry_at = 0.0
        """The monotonic time, in seconds, before which a step does nothing, because something is unavailable."""
        self.erased = False
        """Whether a page removed personal data since this was set to False."""
        self.events_applied = 0
        """Since it was opened."""
        self._open_store = open_store
        self._new_projector = new_projector
        self._open: tuple[ProjectionStore, Projector] | None = None
        self._subscription = subscription
        self._journal = journal
        self._erasures = erasures
        self._backoff = backoff
        self._clock = clock
        self._telemetry = telemetry
        self._page_commits = page_commits
        self._applied = applied
        self._position: Position | None = None
        self._behind: int | None = None
        """Commits that are left of those there were when it was measured."""
        self._counts = True
        """Whether that says when the feed's end is reached: its commits have one order, and new ones come last."""
        self._retried_at_start = False

    async def opened(self) -> tuple[ProjectionStore, Projector]:
        """The build's store, and the projector that writes to it; opens them when they are not.

        Raises BuildMissing, DefinitionError, Unavailable.
        """
        if self._open is None:
            store = await self._open_store()
            self._open = store, self._new_projector(store)
        return self._open

    def parks_unknown(self) -> None:
        """From now on an event that the application does not know parks its stream: nothing else answers queries."""
        if self._open is not None:
            self._open[1].parks_unknown()

    async def step(self, *, measured: bool, afresh: bool = True) -> bool:
        """Applies the next page; whether there was one. What is unavailable is waited for, and never parked.

        `caught_up` is certain when a page was empty; with `measured` it is found also while new commits keep coming:
        when the page is all there was before it, or, unless `afresh`, when all there was at an earlier step is applied.
        Raises BuildMissing.
        """
        if self.refusal is not None or self._clock.monotonic() < self.retry_at:
            return False
        return await self.guarded(lambda: self._page(measured=measured, afresh=afresh))

    async def guarded(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Runs a piece of work on the build; when it fails, notes why and when to try again, and gives False.

        Raises BuildMissing.
        """
        try:
            worked = await work()
        except BuildMissing:
            raise
        except UnknownEvent as problem:
            self.refusal = str(problem)
            self.caught_up = False
            _log.error("%s", problem)  # says what is wrong; a traceback would add nothing
            return False
        except Unavailable as problem:
            self._wait(problem, problem.code)
            _log.warning("%s waits: %s", self.build.name, problem)
            return False
        except Exception as problem:  # noqa: BLE001
            # CorruptJournal, or a defect: going on could skip an event, so this too is waited for, and is loud.
            self._wait(problem, problem.code if isinstance(problem, KisekiError) else "INTERNAL")
            _log.exception("%s can't go on", self.build.name)
            return False
        self.failure = None
        self._backoff.succeeded()
        return worked

    def _wait(self, problem: Exception, code: str) -> None:
        self.failure = problem
        self.caught_up = False
        # What the store says is what counts after a failure, not what was last seen.
        self._position = self._behind = None
        self.retry_at = self._clock.monotonic() + self._backoff.failed()
        self._telemetry.projection_retry(self.build.name.projection, code)

    async def _page(self, *, measured: bool, afresh: bool) -> bool:
        store, projector = await self.opened()
        if not self._retried_at_start:
            await self.retry_parked(at_start=True)
            self._retried_at_start = True
        if self._position is None:
            self._position = await store.position()
        started = self._clock.monotonic()
        if measured and self._counts and (afresh or self._behind is None):
            self._behind = (await self._journal.lag(self._position)).commits
        page = await self._journal.feed(self._position, limit=self._page_commits)
        self._counts = page.at_end is None
        if not page.commits:
            if page.position != self._position:
                await projector.apply((), page.position)
                self._position = page.position
            self.caught_up = True
            return False
        erases = await self._erasures.ensure(page.commits)
        concerns = self._subscription.concerns
        events = [event for commit in page.commits if concerns(commit.stream) for event in commit.recorded()]
        count = await undisturbed(partial(projector.apply, events, page.position, scrub=erases))
        self._position = page.position
        self.erased |= erases
        self.caught_up = page.at_end is True
        if measured and self._counts and self._behind is not None:
            self._behind -= len(page.commits)
            self.caught_up = self._behind <= 0
            if self.caught_up:
                self._behind = None
        self.events_applied += count
        self._telemetry.projected(self.build.name.projection, count, self._clock.monotonic() - started)
        self._applied()
        return True

    async def retry_parked(self, stream: str | None = None, *, at_start: bool = False) -> tuple[int, int]:
        """Retries parked streams (one, or all; at the start only those whose cause may have gone by starting).

        Gives how many go on again, and how many stay parked. Raises Unavailable, CorruptJournal.
        """
        _, projector = await self.opened()
        freed = stuck = 0
        async for parked in self.parked(stream):
            if at_start and parked.code not in _RETRIED_AT_START:
                continue
            if await undisturbed(partial(projector.retry, parked.stream)):
                freed += 1
                self._applied()
            else:
                stuck += 1
        return freed, stuck

    async def catch_up(self, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """Applies what the journal holds of these streams already; how far they are then.

        Raises UnknownEvent when told to refuse, Unavailable.
        """
        store, projector = await self.opened()
        progress = await store.progress(streams)
        for stream in streams:
            if progress[stream].parked is None:
                count = await undisturbed(partial(projector.catch_up, stream))
                self.events_applied += count
                self._applied()
        return await store.progress(streams)

    async def parked(self, stream: str | None = None) -> AsyncIterator[ParkedStream]:
        """The parked streams, or the one of this name if it is parked. Raises Unavailable."""
        store, _ = await self.opened()
        if stream is not None:
            progress = await store.progress([stream])
            one = progress[stream].parked
            if one is not None:
                yield one
            return
        after = ""
        while page := await store.parked(after=after):
            after = page[-1].stream
            for one in page:
                yield one

    async def close(self) -> None:
        """Lets go of the build. Raises Unavailable."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened[0].close()
