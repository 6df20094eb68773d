"""What is needed where several apply events to one build: its owner, a Lambda that gets them pushed, and the sweeper.

Only the first owns it. Guards make every event count once; whoever moves a guard second reads again (`undisturbed`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from itertools import groupby
from typing import Final, TypeVar

from kiseki.journal.port import Commit, CommitMetadata, RecordedEvent
from kiseki.kernel.codec import EncodedEvent
from kiseki.projection.port import Build, BuildName, BuildState, GuardMoved
from kiseki.projection.projection import Projection

__all__ = ["commits_of", "current_builds", "undisturbed"]

_ATTEMPTS: Final = 10
T = TypeVar("T")


def current_builds(builds: Iterable[Build], projection: Projection) -> list[Build]:
    """Those of the catalog's builds that have to be kept up to date: first the newest of this version that is being
    built, then the one that answers its queries. That one may be retired, while another version is live.

    In this order, so that a build that takes over is not behind the one it replaces.
    """
    own = sorted((one for one in builds if one.name[:2] == (projection.name, projection.version)), key=_by_name)
    building = [one for one in own if one.state is BuildState.BUILDING][-1:]
    return building + [one for one in own if one.state is BuildState.LIVE or one.promoted_at is not None][-1:]


def _by_name(build: Build) -> BuildName:
    return build.name


def commits_of(events: Iterable[RecordedEvent]) -> list[Commit]:
    """The commits, or the parts of them, that these events of one stream belong to: `Commit.recorded` backwards."""
    commits = []
    for commit_id, grouped in groupby(events, key=lambda event: event.commit_id):
        parts = list(grouped)
        first = parts[0]
        metadata = CommitMetadata(
            commit_id=commit_id,
            committed_at=first.occurred_at,
            correlation_id=first.correlation_id,
            causation_id=first.causation_id,
            actor=first.actor,
        )
        encoded = tuple(EncodedEvent(one.event_id, one.type, one.version, one.data, one.subject) for one in parts)
        commits.append(
            Commit(stream=first.stream, first_sequence_number=first.sequence_number, metadata=metadata, events=encoded)
        )
    return commits


async def undisturbed(work: Callable[[], Awaitable[T]], *, pause: Callable[[int], Awaitable[None]] | None = None) -> T:
    """Does work on a build again while others move its guards, or park streams, in between.

    Raises GuardMoved when that goes on and on. `pause(n)` waits after the n-th time.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return await work()
        except GuardMoved:
            await (pause or _step_aside)(attempt)
    return await work()


async def _step_aside(attempt: int) -> None:
    # Two that are in step would disturb each other again and again.
    await asyncio.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311  # nothing secret
