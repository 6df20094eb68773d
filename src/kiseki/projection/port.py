"""The contracts between the projector and a read-model database: one build of a projection, and the catalog of builds.

A build is one (projection, version, generation): its tables, guards, parked streams and position, kept together so
that one transaction changes them all. A database implements both Protocols; the projector and the updater use them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

import msgspec

from kiseki.journal.port import Position
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.projection.projection import Change, Projection

__all__ = [
    "Batch",
    "Build",
    "BuildCatalog",
    "BuildMissing",
    "BuildName",
    "BuildState",
    "Definition",
    "GuardMove",
    "GuardMoved",
    "Inspection",
    "Ownership",
    "OwnershipLost",
    "ParkedStream",
    "ProjectionStore",
    "Request",
    "RequestKind",
    "StatementFailed",
    "StreamProgress",
    "TransientFailure",
]


class BuildName(NamedTuple):
    """Names one build of a projection. Generations of a version count from 1; each rebuild is a new one."""

    projection: str
    version: int
    generation: int

    def __str__(self) -> str:
        return f"{self.projection}.v{self.version}.{self.generation}"


class BuildState(enum.StrEnum):
    """What a build is for: still catching up, the one that answers queries, or replaced and kept for a while."""

    BUILDING = "building"
    LIVE = "live"
    RETIRED = "retired"


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """A build as the catalog knows it. All times UTC."""

    name: BuildName
    state: BuildState
    created_at: datetime
    promoted_at: datetime | None
    """When it began to answer queries; None while it never did."""
    retired_at: datetime | None
    problem: str | None
    """Why a building one does not become live, for people."""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a build was made with, besides its tables: the aggregate types and events known and followed then.

    Labels are `aggregate:<type>` and `event:<name>`.
    """

    known: frozenset[str]
    followed: frozenset[str]

    def changed_since(self, earlier: Definition) -> list[str]:
        """Labels that both know and only one of the two follows: a build can't serve both, its history differs."""
        return sorted((self.known & earlier.known) & (self.followed ^ earlier.followed))

    def joined(self, earlier: Definition) -> Definition:
        """What the build has been made with after both."""
        return Definition(known=self.known | earlier.known, followed=self.followed | earlier.followed)


class ParkedStream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream whose event failed; it and all later ones wait. Holds no personal data."""

    stream: str
    sequence_number: int
    """The event that failed; during a retry the next one."""
    event_type: str
    """`?` when nobody knows."""
    code: str
    """UNKNOWN_EVENT, UNREADABLE, SUBJECT_KEY_MISSING, APPLY_FAILED, STATEMENT_FAILED or TRANSIENT_FAILURE."""
    detail: str
    """Where it failed, for developers: an exception's class and a place in code, never its message."""
    occurred_at: datetime
    """When the event was recorded."""
    parked_at: datetime
    attempts: int
    """How often it was parked, retries included."""


class StreamProgress(msgspec.Struct, frozen=True):
    """How far a build is in one stream: the guard (0 when nothing was applied), and where it is parked, behind it."""

    sequence_number: int = 0
    parked: ParkedStream | None = None


class GuardMove(msgspec.Struct, frozen=True):
    """Moves a stream's guard from the number it was read at, so that a second writer can't apply twice."""

    stream: str
    expected: int
    to: int
    retry: bool = False
    """The stream may be parked: its waiting events are applied. Otherwise its being parked refuses the batch."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction does to a build, in this order."""

    changes: Sequence[Change] = ()
    guards: Sequence[GuardMove] = ()
    park: Sequence[ParkedStream] = ()
    """Replaces what was recorded of a stream before. Its guard, moved by this batch or not, has to be one before the
    event that failed: otherwise another process has applied that event, or it is not the next one."""
    unpark: Sequence[ParkedStream] = ()
    """As they were read. A stream goes on when that is still what is recorded of it, or its guard has reached the place
    since, or nothing is recorded; otherwise another process has parked it again."""
    position: Position | None = None
    """The place in the feed up to which everything is applied, parked or passed by; None leaves it as it is."""
    scrub: bool = False
    """Personal data was removed: the database's own logs should not keep it longer than they must."""


class StatementFailed(KisekiError):
    """The database refused a statement for a reason in the statement or its values. Nothing was written.

    `detail` is safe to keep: class and name of the error, and the table's name; never a value.
    """

    code = "STATEMENT_FAILED"

    def __init__(self, detail: str) -> None:
        super().__init__(f"a projection's statement failed: {detail}")
        self.detail = detail


class TransientFailure(StatementFailed):
    """The transaction lost against another one (deadlock, serialisation); the same again may succeed."""

    code = "TRANSIENT_FAILURE"


class GuardMoved(Unavailable):
    """Another process moved a guard of the build, or parked its stream, since they were read.

    Nothing was written; read again. The same call of the projector does.
    """


class BuildMissing(Unavailable):
    """The catalog names a build that is not there (any more), or is of another format. It must be built again."""


class OwnershipLost(BuildMissing):
    """This process owned the builds of the projection version, and another one may own them now. Nothing was written.

    To this process the build is as good as gone, and what goes for BuildMissing goes for it too, but for one thing: the
    build itself is sound, so it is never removed. Whoever runs the projection lets go of all its builds, and tries to
    own them again.
    """


class Ownership(Protocol):
    """The right to write the builds of one projection version; it ends with the process at the latest.

    Where it can end before that, what is written or changed after its end raises OwnershipLost.
    """

    async def release(self) -> None:
        """Gives it up; again is fine."""
        ...


class ProjectionStore(Protocol):
    """One build of one projection, open for writing: by its owner, and by others that get events besides.

    Every method raises Unavailable when the database can't be used now (busy, full, down); nothing was written then.
    """

    @property
    def name(self) -> BuildName: ...

    async def position(self) -> Position:
        """The stored place in the feed; START for a new build."""
        ...

    async def progress(self, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """The guards and parked places of these streams, read in one state; every stream asked for is in it."""
        ...

    async def parked(self, *, after: str = "", limit: int = 500) -> Sequence[ParkedStream]:
        """Parked streams in the order of their names, those after a name."""
        ...

    async def write(self, batch: Batch) -> None:
        """Does all of a batch in one transaction.

        Others may write to the build meanwhile, owner or not. GuardMoved is raised when a guard is not where `guards`
        or `park` take it to be, a stream of `guards` is parked and not retried, or one of `unpark` was parked again:
        also when that comes about while this transaction waits for another one. It goes before what fails because of
        it.

        Raises StatementFailed or TransientFailure (because of `changes`), GuardMoved, OwnershipLost, Unavailable;
        nothing was written then.
        """
        ...

    async def flush(self) -> None:
        """What was written survives a loss of power when this returns."""
        ...

    async def close(self) -> None:
        """Finishes what is running and lets go of the build; again is fine."""
        ...


class RequestKind(enum.StrEnum):
    """What an operator can ask of whoever runs a projection."""

    RETRY = "retry"
    REBUILD = "rebuild"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's request, kept in the catalog until the owner of the projection version has seen to it."""

    id: int
    projection: str
    version: int
    kind: RequestKind
    stream: str | None
    """The only stream to retry; None for all parked ones."""
    requested_at: datetime
    finished_at: datetime | None
    outcome: str | None
    """One line for the operator, once finished."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A build seen from outside, without owning it."""

    position: Position
    parked_count: int
    parked: tuple[ParkedStream, ...]
    """The first hundred, by name."""


class BuildCatalog(Protocol):
    """All builds of a read-model database: which there are, which is live, who owns them, what was asked for.

    Every method raises Unavailable when the database can't be used now.
    """

    async def builds(self, projection: str | None = None) -> Sequence[Build]:
        """The builds (of one projection), by projection, version and generation."""
        ...

    async def create(self, projection: Projection, definition: Definition) -> Build:
        """Makes the next generation of a projection's version, building, with empty tables; for its owner.

        Raises DefinitionError when the tables can't be made.
        """
        ...

    async def check(self, projection: Projection, definition: Definition) -> None:
        """Raises DefinitionError when a build of this version was made with other tables or follows other events."""
        ...

    async def open(self, projection: Projection, name: BuildName, definition: Definition) -> ProjectionStore:
        """Opens a build for writing; for its owner. Raises DefinitionError as `check` does, BuildMissing."""
        ...

    async def promote(self, name: BuildName, *, unless_behind: BuildName | None = None) -> Mapping[str, int]:
        """Makes a build the live one of its projection, and retires the one before, in one transaction.

        `unless_behind` is another build of the same version. When that one has applied more of some streams, nothing is
        done, and these are given, or the first thousand of them by name, with the sequence number it is at. Nobody
        writes to it between the comparison and the change. One that is damaged or gone is not compared with: it answers
        no query either.
        """
        ...

    async def demote(self, name: BuildName) -> None:
        """Makes a build a building one again: no build of its version answers queries until it has caught up."""
        ...

    async def note(self, name: BuildName, problem: str | None) -> None:
        """Says why a building one does not become live, or that it is fine."""
        ...

    async def remove(self, name: BuildName) -> None:
        """Deletes a build; for its owner. Never a live one."""
        ...

    async def inspect(self, name: BuildName) -> Inspection:
        """What a build says of itself, read only. Raises BuildMissing."""
        ...

    async def progress(self, name: BuildName, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """As ProjectionStore.progress, read only, without owning the build. Raises BuildMissing."""
        ...

    async def guards(self, name: BuildName, *, after: str = "", limit: int = 500) -> Sequence[tuple[str, int]]:
        """Streams of which a build has applied something, with the sequence number it is at, in the order of their
        names, those after a name. Read only, without owning the build. Raises BuildMissing.
        """
        ...

    async def own(self, projection: str, version: int) -> Ownership | None:
        """The ownership of a projection version's builds, None while another one has it."""
        ...

    async def request(self, projection: str, version: int, kind: RequestKind, stream: str | None = None) -> Request:
        """Records a request and wakes whoever runs the projection."""
        ...

    async def requests(self, projection: str, version: int) -> Sequence[Request]:
        """The requests that are not finished, oldest first."""
        ...

    async def request_of(self, request_id: int) -> Request | None:
        """A request by its id, to see whether it is finished; None when it is long gone."""
        ...

    async def finish(self, request_id: int, outcome: str) -> None:
        """Records what became of a request."""
        ...

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` on the event loop soon after a request was made, by this process or another one.

        A hint that may be late, repeated or missed. Returns the function that ends it.
        """
        ...
