"""Where audit records go and come from: the ports that files, a database table and standard output fill.

Used by the log (sinks, anchors) and by what reads it (sources).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from kiseki.kernel.errors import Unavailable
from kiseki.security.audit.record import SealedRecord

__all__ = ["AnchorStore", "AuditSink", "LineSource", "SinkFailed", "SourceLine"]


class SinkFailed(Unavailable):
    """A sink can't take records now. `written` of those it was given are surely in it, in order from the first."""

    code = "AUDIT_SINK_FAILED"

    def __init__(self, message: str, *, written: int = 0) -> None:
        super().__init__(message)
        self.written = written


class AuditSink(Protocol):
    """Takes the records of one writer, in order."""

    name: str
    """What to call it in messages and metrics."""

    async def latest(self) -> bytes | None:
        """The newest line of any other writer that is in it, durable from then on; None when there is none or it
        can't know. Raises SinkFailed."""
        ...

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        """Appends. With `durable` these and all before outlive a power cut when this returns; without records too.

        Ends within a bounded time, except for standard output. Raises SinkFailed.
        """
        ...

    async def close(self) -> None:
        """Releases what it holds."""
        ...


class SourceLine(NamedTuple):
    """A line as it was found."""

    line: bytes
    """Without a newline."""
    where: str
    """For messages: file and line, or row."""
    torn: bool = False
    """It has no end: whoever wrote it was killed, or the disk was full."""
    problem: str | None = None
    """What the place itself says is wrong, such as a column that differs from the line."""


class LineSource(Protocol):
    """Gives the lines of each writer in order, in bounded memory. All methods raise LinesUnreadable or SinkFailed."""

    async def writers(self) -> Sequence[str]:
        """All writers, in the order of their ids."""
        ...

    def lines(self, writer: str, after: int = 0) -> AsyncIterator[Sequence[SourceLine]]:
        """The lines of a writer, oldest first. The first `after` records may be left out where that is cheap."""
        ...

    async def first(self, writer: str) -> SourceLine | None:
        """Its first line."""
        ...

    async def newest(self, writer: str, most: int) -> Sequence[SourceLine]:
        """Its last `most` lines, oldest first."""
        ...

    async def recent(self, most: int) -> Sequence[str]:
        """The writers that wrote last, the newest first."""
        ...

    async def close(self) -> None:
        """Releases what it holds."""
        ...


class AnchorStore(LineSource, Protocol):
    """Keeps anchors: another place than the records, which whoever can change those can't change."""

    async def add(self, line: bytes, *, writer: str, index: int, at: datetime) -> None:
        """Appends an anchor, durable when this returns. Raises SinkFailed."""
        ...
