"""How far read models really are, measured from outside: journal against stored position and guards, reading only.

Used by metrics, health, the console and the command line, in any process; no updater needs to run.
"""

from __future__ import annotations

import msgspec

from kiseki.journal.port import START, Journal, Position
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock
from kiseki.projection.port import (
    BuildCatalog,
    BuildName,
    BuildState,
    Inspection,
    ParkedStream,
    Request,
    RequestKind,
)
from kiseki.projection.projection import Projection
from kiseki.projection.subscription import Subscription

__all__ = [
    "Audit",
    "ProjectionStatus",
    "audit_projection",
    "projection_status",
    "request_rebuild",
    "request_retry",
]


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One build, seen from outside."""

    name: BuildName
    state: BuildState
    commits_behind: int
    """Commits of the journal after the build's position, those of streams it does not follow included."""
    seconds_behind: float
    """The age of the oldest of them; 0 when there is none."""
    parked_count: int
    parked: tuple[ParkedStream, ...]
    """The first hundred, by stream."""
    problem: str | None
    """Why a building one does not become live, or why a build can't be read."""


async def projection_status(
    *, journal: Journal, builds: BuildCatalog, clock: Clock, retired: bool = False
) -> list[ProjectionStatus]:
    """The live and building builds of all projections, with `retired` also those that were replaced.

    Raises Unavailable when the journal or the catalog can't be read.
    """
    found = []
    for build in await builds.builds():
        if build.state is BuildState.RETIRED and not retired:
            continue
        try:
            inspection = await builds.inspect(build.name)
            problem = build.problem
        except Unavailable as unreadable:
            # One build that can't be read must not hide the others; it counts as having everything before it.
            inspection = Inspection(position=START, parked_count=0, parked=())
            problem = str(unreadable)
        lag = await journal.lag(inspection.position)
        age = (clock.now() - lag.oldest).total_seconds() if lag.oldest is not None else 0.0
        found.append(
            ProjectionStatus(
                name=build.name,
                state=build.state,
                commits_behind=lag.commits,
                seconds_behind=max(0.0, age),
                parked_count=inspection.parked_count,
                parked=inspection.parked,
                problem=problem,
            )
        )
    return found


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """Guards compared with the journal, stream by stream. A caught-up build has none behind and none ahead."""

    streams: int
    """How many followed streams the journal has."""
    behind: tuple[str, ...]
    """Streams with events that are neither applied nor parked."""
    ahead: tuple[str, ...]
    """Streams with more applied than the journal has: the read model belongs to another journal. Rebuild it."""


async def audit_projection(
    *, journal: Journal, builds: BuildCatalog, name: BuildName, subscription: Subscription, begin: Position = START
) -> Audit:
    """Reads the whole feed and compares. For tests, and after a restore; it costs what reading the journal costs.

    `begin` is where that begins: the journal's `beginning`, where the end of its feed can't be told for
    sure. Raises BuildMissing, CorruptJournal, Unavailable.
    """
    last: dict[str, int] = {}
    position = begin
    while (page := await journal.feed(position)).commits:
        position = page.position
        for commit in page.commits:
            if subscription.follows(commit.stream):
                last[commit.stream] = max(last.get(commit.stream, 0), commit.last_sequence_number)
    behind, ahead = [], []
    streams = sorted(last)
    for start in range(0, len(streams), 1_000):
        progress = await builds.progress(name, streams[start : start + 1_000])
        for stream, one in progress.items():
            if one.sequence_number > last[stream]:
                ahead.append(stream)
            elif one.sequence_number < last[stream] and one.parked is None:
                behind.append(stream)
    return Audit(streams=len(streams), behind=tuple(behind), ahead=tuple(ahead))


async def request_retry(builds: BuildCatalog, projection: Projection, stream: str | None = None) -> Request:
    """Asks whoever runs the projection to retry its parked streams, or one of them. Raises Unavailable.

    `builds.request_of(request.id)` tells when it is done. When no updater runs, `Updater.run_until_caught_up` does it.
    """
    return await builds.request(projection.name, projection.version, RequestKind.RETRY, stream)


async def request_rebuild(builds: BuildCatalog, projection: Projection) -> Request:
    """Asks for a new generation beside the live one, which it replaces when it has caught up. Raises Unavailable.

    The request is finished when building begins; `projection_status` shows the progress.
    """
    return await builds.request(projection.name, projection.version, RequestKind.REBUILD)
