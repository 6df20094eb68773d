"""`ProjectionRunner`: runs one version of one projection in this process, or stands by while another process does.

Used by the updater, which has one for each projection of the application.
"""

from __future__ import annotations

import asyncio
import logging

from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.projection.owned import OwnedBuilds
from kiseki.projection.pause import happens
from kiseki.projection.port import BuildMissing, Ownership, OwnershipLost
from kiseki.projection.settings import BuildProgress, RunnerParts
from kiseki.projection.subscription import Subscription

__all__ = ["BuildOwned", "ProjectionRunner"]

_log = logging.getLogger(__name__)


class BuildOwned(Unavailable):
    """Another process runs the projection; ask it by a request instead."""

    code = "BUILD_OWNED"


class ProjectionRunner:
    """Owns, catches up, follows, and sees to requests; one task runs it."""

    def __init__(self, subscription: Subscription, parts: RunnerParts) -> None:
        self._subscription = subscription
        self._projection = subscription.projection
        self._parts = parts
        self._settings = parts.settings
        self._clock = parts.clock
        self._backoff = parts.new_backoff()
        self._builds = OwnedBuilds(subscription, parts)
        self._ownership: Ownership | None = None
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._requests_due = True
        self._prune_at = 0.0
        self._waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"ProjectionRunner({self._projection!r})"

    def wake(self) -> None:
        """There may be something new in the journal."""
        self._wake.set()

    def wake_for_request(self) -> None:
        """There may be a new request in the catalog."""
        self._requests_due = True
        self._wake.set()

    def stop(self) -> None:
        """Ends `run` after the page it is at; for good."""
        self._stop.set()
        self._wake.set()

    async def check(self) -> None:
        """Raises DefinitionError when a build of this version was made from another definition, Unavailable."""
        await self._parts.builds.check(self._projection, self._subscription.definition)

    async def run(self) -> None:
        """Runs until `stop`. Raises DefinitionError when the projection's tables can't be made."""
        while not self._stop.is_set():
            pause = 0.0
            try:
                await self._run_while_owned()
            except DefinitionError:
                raise
            except BuildMissing as problem:
                _log.warning("%s", problem)
            except Unavailable as problem:
                _log.warning("projection %s waits: %s", self._projection.name, problem)
                pause = self._backoff.failed()
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("projection %s can't go on", self._projection.name)
                pause = self._backoff.failed()
            finally:
                await self._let_go()
            if pause:
                await happens(self._stop, pause)

    async def _run_while_owned(self) -> None:
        if not await self._acquire():
            return
        await self._builds.open()
        self._backoff.succeeded()
        while not self._stop.is_set():
            waiters, self._waiters = self._waiters, []
            self._wake.clear()
            try:
                worked = await self._round(measured=bool(waiters))
            except BaseException:
                self._waiters += waiters
                raise
            live = self._builds.live
            if self._builds.candidate is not None or live is None or not live.caught_up:
                self._waiters += waiters
            else:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
            if not worked:
                await self._idle()

    async def _acquire(self) -> bool:
        standing_by = False
        while not self._stop.is_set():
            self._ownership = await self._parts.builds.own(self._projection.name, self._projection.version)
            if self._ownership is not None:
                _log.info("%s %r", "takes over" if standing_by else "runs", self._projection)
                return True
            if not standing_by:
                _log.info("stands by for %r, which another process runs", self._projection)
                standing_by = True
            await happens(self._stop, self._settings.takeover_interval)
        return False

    async def _round(self, *, measured: bool) -> bool:
        worked = False
        if self._requests_due:
            self._requests_due = False
            try:
                worked = await self._builds.see_to_requests()
            except BuildMissing:
                raise
            except Unavailable as problem:
                # Requests stay pending, and the next poll looks again; following the feed has its own waits.
                _log.warning("projection %s can't see to requests now: %s", self._projection.name, problem)
        return await self._builds.round(measured=measured) or worked

    async def _idle(self) -> None:
        now = self._clock.monotonic()
        if now >= self._prune_at or self._builds.has_erased:
            self._prune_at = now + self._settings.prune_interval
            try:
                await self._builds.prune()
            except OwnershipLost:
                raise
            except Unavailable as problem:
                _log.warning("old builds of %r are not deleted now: %s", self._projection, problem)
        timeout = self._settings.poll_interval
        now = self._clock.monotonic()
        for follower in self._builds.followers:
            # Also one whose time to try again has come since the round: it must not wait for the next poll.
            if follower.failure is not None and follower.refusal is None:
                timeout = min(timeout, max(follower.retry_at - now, 0.0))
        if not await happens(self._wake, timeout):
            self._requests_due = True

    async def run_until_caught_up(self) -> tuple[BuildProgress, ...]:
        """Sees to pending requests, catches up and promotes, then lets go; what was reached.

        Raises BuildOwned when another process runs the projection, DefinitionError, Unavailable, CorruptJournal.
        """
        try:
            self._ownership = await self._parts.builds.own(self._projection.name, self._projection.version)
            if self._ownership is None:
                raise BuildOwned(f"another process runs projection {self._projection.name}")
            await self._builds.open()
            await self._builds.see_to_requests()
            worked = True
            while worked and not self._stop.is_set():
                worked = await self._builds.round()
                for follower in self._builds.followers:
                    if follower.failure is not None:
                        raise follower.failure
            return self._builds.progress()
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        # Shielded, so that a second cancellation doesn't leave a build open without its owner, or the reverse.
        await asyncio.shield(asyncio.ensure_future(self._close_and_release()))

    async def _close_and_release(self) -> None:
        ownership, self._ownership = self._ownership, None
        try:
            await self._builds.close()
        finally:
            if ownership is not None:
                await ownership.release()

    def caught_up(self) -> asyncio.Future[None]:
        """Done when all that the feed has now is applied to a live build and no other one is being built."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        return waiter

    def status(self) -> tuple[BuildProgress, ...]:
        """What this process does for the projection."""
        return self._builds.progress() or (
            BuildProgress(
                projection=self._projection.name,
                version=self._projection.version,
                generation=None,
                role="standby",
                caught_up=False,
                events_applied=0,
                waiting=None,
                problem=None,
            ),
        )
