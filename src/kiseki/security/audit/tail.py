"""The newest records of all writers in the order of time, and those that come. Used by `kiseki audit tail`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final

from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.record import AuditRecord, RecordProblem, read_line
from kiseki.security.audit.sink import LineSource, SourceLine
from kiseki.security.audit.stdout_sink import unwrapped

__all__ = ["Tail"]

_WRITERS: Final = 64
"""Writers that are looked at: those that wrote last."""
_PAGE: Final = 200
_MOST_TOLD: Final = 1_000


class Tail:
    """Reads a log at its end. Lines that are not authentic are told of, and left out."""

    def __init__(self, source: LineSource, *, keys: AuditKeys, suspicious: Callable[[str], None]) -> None:
        """`suspicious` hears of each line that is not authentic."""
        self._source = source
        self._keys = keys
        self._suspicious = suspicious
        self._seen: dict[str, int] = {}
        self._told: set[bytes] = set()

    async def newest(self, most: int) -> list[AuditRecord]:
        """The last `most` records, oldest first. Raises LinesUnreadable, SinkFailed."""
        found: list[AuditRecord] = []
        for writer in await self._source.recent(_WRITERS):
            lines = await self._source.newest(writer, max(most, 1))
            found = heapq.nlargest(most, [*found, *self._records(writer, lines)], key=_order)
        return sorted(found, key=_order)

    async def follow(self, *, poll: float = 0.5) -> AsyncIterator[list[AuditRecord]]:
        """Records that came since `newest`, for ever; looks every `poll` seconds. Raises as `newest`."""
        while True:
            new: list[AuditRecord] = []
            for writer in await self._source.recent(_WRITERS):
                new += await self._since(writer)
            if new:
                yield sorted(new, key=_order)
            await asyncio.sleep(poll)

    async def _since(self, writer: str) -> list[AuditRecord]:
        seen = self._seen.get(writer, 0)
        lines = await self._source.newest(writer, _PAGE)
        if len(lines) == _PAGE and _number(lines[0], self._keys) > seen + 1:
            found: list[AuditRecord] = []
            async for page in self._source.lines(writer, after=seen):
                found += self._records(writer, page)
            return found
        return self._records(writer, lines)

    def _records(self, writer: str, lines: Sequence[SourceLine]) -> list[AuditRecord]:
        """Those that are new."""
        found = []
        last = self._seen.get(writer, 0)
        for each in lines:
            if each.torn:
                continue
            try:
                record = read_line(unwrapped(each.line), self._keys)
            except RecordProblem as problem:
                if each.line not in self._told and len(self._told) < _MOST_TOLD:
                    self._told.add(each.line)
                    self._suspicious(f"{each.where}: {problem}")
                continue
            if record.writer == writer and record.number > last:
                last = record.number
                found.append(record)
        self._seen[writer] = last
        return found


def _number(line: SourceLine, keys: AuditKeys) -> int:
    try:
        return read_line(unwrapped(line.line), keys).number
    except RecordProblem:
        return 0


def _order(record: AuditRecord) -> tuple[datetime, str, int]:
    return record.at, record.writer, record.number
