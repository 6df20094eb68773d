"""How the updater works, what its runners share, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kiseki.journal.port import Journal
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.projection.backoff import Backoff
from kiseki.projection.erasure import Erasures
from kiseki.projection.port import BuildCatalog

__all__ = ["BuildProgress", "RunnerParts", "UpdaterSettings"]


class UpdaterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    page_commits: int = 500
    """Commits read and applied in one transaction."""
    poll_interval: float = 1.0
    """How often it looks without having been woken."""
    takeover_interval: float = 0.1
    """How often a standby looks whether the owner is gone."""
    backoff_initial: float = 0.1
    """The first wait while something is unavailable; it doubles with every further one."""
    backoff_maximum: float = 30.0
    attempts: int = 5
    """Tries of an event whose transaction loses against others, before its stream is parked."""
    keep_retired: float = 86_400.0
    """A build that was replaced is kept this long, for a quick way back; then it is deleted, because no erasure of
    personal data reaches it."""
    prune_interval: float = 3_600.0
    """How often it looks for builds to delete."""


class RunnerParts(msgspec.Struct, frozen=True, kw_only=True):
    """What all runners of a process share."""

    journal: Journal
    builds: BuildCatalog
    codec: EventCodec
    erasures: Erasures
    telemetry: Telemetry
    clock: Clock
    settings: UpdaterSettings
    jitter: Callable[[], float]
    """Gives numbers from 0 to 1."""
    applied: Callable[[str], None]
    """Called with a projection's name after something new can be seen in it."""

    def new_backoff(self) -> Backoff:
        """One for each thing that can be unavailable by itself."""
        return Backoff(initial=self.settings.backoff_initial, maximum=self.settings.backoff_maximum, jitter=self.jitter)


class BuildProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What this process does for a build. What was really achieved is measured by `projection_status`."""

    projection: str
    version: int
    generation: int | None
    """None while this process stands by, or starts."""
    role: str
    """standby, live or building."""
    caught_up: bool
    events_applied: int
    """Since this process opened the build."""
    waiting: str | None
    """Why it makes no progress now: something is unavailable and will be tried again."""
    problem: str | None
    """Why it will not go on, or not become live, before somebody does something."""
