"""Verifying an audit log: whether anything in it was changed, removed, added or put elsewhere, up to the last anchor.

Used by `kiseki audit verify` and `export`. Every MAC and number of every writer is checked, then what others say about
it: the anchors, and the first record of a writer, which names the newest record of another one. Memory does not grow
with the log, only with the number of writers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Final

from kiseki.security.audit.anchor import Anchor, read_anchor
from kiseki.security.audit.key import AuditKeys
from kiseki.security.audit.record import FIRST_PREVIOUS, AuditRecord, Head, RecordProblem, read_line
from kiseki.security.audit.report import AuditReport, KeyDoubt
from kiseki.security.audit.sink import LineSource, SourceLine
from kiseki.security.audit.stdout_sink import unwrapped

__all__ = ["AuditReport", "verify_log"]

_YOUNG: Final = timedelta(minutes=3)
"""A writer that began less long ago may not have anchored yet."""


async def verify_log(
    source: LineSource,
    *,
    keys: AuditKeys,
    now: datetime,
    anchors: LineSource | None = None,
    since: datetime | None = None,
    on_record: Callable[[AuditRecord, bytes], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Reads the whole log, also one that is being written.

    `since`: records of before may be missing, moved to an archive, as far as anchors of before vouch for them.
    `on_record` gets every authentic record and its line, by writer and number; `progress` how many were read.
    Raises LinesUnreadable, SinkFailed.
    """
    report = AuditReport()
    verifier = _Verifier(source, anchors, keys=keys, now=now, since=since, report=report)
    await verifier.run(on_record or (lambda _record, _line: None), progress or (lambda _count: None))
    return report


class _Verifier:
    def __init__(
        self,
        source: LineSource,
        anchors: LineSource | None,
        *,
        keys: AuditKeys,
        now: datetime,
        since: datetime | None,
        report: AuditReport,
    ) -> None:
        self._source = source
        self._anchors = anchors
        self._keys = keys
        self._now = now
        self._since = since
        self._report = report
        self._named: dict[str, str] = {}
        """Writers that somebody names, and who."""
        self._claims: dict[str, list[tuple[Head, str]]] = {}
        """Records that somebody names."""
        self._doubt = KeyDoubt(report)

    async def run(self, on_record: Callable[[AuditRecord, bytes], None], progress: Callable[[int], None]) -> None:
        # Anchors first: a log that is being written is then always further than they are.
        anchored = list(await self._anchors.writers()) if self._anchors is not None else []
        if self._anchors is None:
            self._report.note("there are no anchors: records cut off at the end of a writer would go unnoticed")
        for writer in anchored:
            self._named[writer] = "its anchors"
        there = await self._source.writers()
        for writer in there:
            await self._look_at_first(writer)
        for writer in there:
            await _WriterCheck(
                writer,
                source=self._source,
                anchors=self._walk(writer),
                claims=self._claims.pop(writer, []),
                keys=self._keys,
                now=self._now,
                since=self._since,
                report=self._report,
                doubt=self._doubt,
            ).run(on_record, progress)
            self._report.writers += 1
        await self._missing(set(there))
        self._doubt.end()

    def _walk(self, writer: str) -> _AnchorWalk:
        return _AnchorWalk(
            self._anchors, writer, keys=self._keys, report=self._report, named=self._named, doubt=self._doubt
        )

    async def _look_at_first(self, writer: str) -> None:
        first = await self._source.first(writer)
        if first is None or first.torn:
            return
        try:
            record = read_line(unwrapped(first.line), self._keys)
        except RecordProblem:
            return  # the check of this writer says so
        if record.after is not None:
            self._claims.setdefault(record.after.writer, []).append((record.after, f"the start of writer {writer}"))

    async def _missing(self, there: set[str]) -> None:
        """Writers that somebody names and whose records are gone."""
        for writer, claims in self._claims.items():
            self._named.setdefault(writer, claims[0][1])
        # Some may have begun meanwhile.
        there = there | set(await self._source.writers())
        seen: set[str] = set()
        # Anchors of missing writers name further ones.
        while gone := set(self._named) - there - seen:
            for writer in sorted(gone):
                seen.add(writer)
                walk = self._walk(writer)
                newest: Anchor | None = None
                async for anchor in walk.all():
                    newest = anchor
                if self._since is not None and newest is not None and newest.at <= self._since:
                    continue
                if self._since is not None and newest is None and await self._began_before(writer):
                    continue
                known = f", which had at least {newest.number:,} records" if newest is not None else ""
                self._report.problem(
                    f"writer {writer}: all its records are missing{known}; {self._named[writer]} names it"
                )

    async def _began_before(self, writer: str) -> bool:
        """Whether the start of whoever names it was before `since`, so that what it names was too."""
        who = self._named[writer].rpartition(" ")[2]
        first = await self._source.first(who) if len(who) == len(writer) else None
        if first is None or self._since is None:
            return False
        try:
            return read_line(unwrapped(first.line), self._keys).at <= self._since
        except RecordProblem:
            return False


class _AnchorWalk:
    """The authentic anchors of a writer in their order; what is wrong with them goes into the report."""

    def __init__(
        self,
        anchors: LineSource | None,
        writer: str,
        *,
        keys: AuditKeys,
        report: AuditReport,
        named: dict[str, str],
        doubt: KeyDoubt,
    ) -> None:
        self._doubt = doubt
        self._anchors = anchors
        self._writer = writer
        self._keys = keys
        self._report = report
        self._named = named

    @property
    def kept(self) -> bool:
        return self._anchors is not None

    async def all(self) -> AsyncIterator[Anchor]:
        if self._anchors is None:
            return
        last: Anchor | None = None
        # Not those that are added from now on: they may name records that were read as not yet there.
        newest = await self._newest(self._anchors)
        async for page in self._anchors.lines(self._writer):
            for found in page:
                anchor = self._read(found, last)
                if anchor is None:
                    continue
                if newest is not None and anchor.index > newest:
                    return
                last = anchor
                self._report.anchors += 1
                if self._report.last_anchor is None or anchor.at > self._report.last_anchor:
                    self._report.last_anchor = anchor.at
                for other in anchor.writers:
                    self._named.setdefault(other, f"an anchor of writer {self._writer}")
                yield anchor

    async def _newest(self, anchors: LineSource) -> int | None:
        for found in reversed(await anchors.newest(self._writer, 3)):
            try:
                if not found.torn:
                    return read_anchor(found.line, self._keys).index
            except RecordProblem:
                continue  # `_read` will say so
        return None

    def _read(self, found: SourceLine, last: Anchor | None) -> Anchor | None:
        report, where = self._report, f"anchor {found.where}"
        if found.torn:
            report.note(f"{where}: it was not written to its end")
            return None
        try:
            anchor = read_anchor(found.line, self._keys)
        except RecordProblem as problem:
            self._doubt.line(where, problem)
            return None
        self._doubt.authentic()
        if last is not None and anchor.mac == last.mac:
            return None  # stored twice, because it was in doubt whether it was
        index, previous = (last.index, last.mac) if last is not None else (0, FIRST_PREVIOUS)
        if anchor.writer != self._writer:
            report.problem(f"{where}: it is an anchor of writer {anchor.writer}")
            return None
        if anchor.index != index + 1 or anchor.previous != previous:
            report.problem(f"{where}: anchors before it are missing, or not in their order")
        return anchor


class _WriterCheck:
    """One writer: its chain, and what others say about it."""

    def __init__(
        self,
        writer: str,
        *,
        source: LineSource,
        anchors: _AnchorWalk,
        claims: list[tuple[Head, str]],
        keys: AuditKeys,
        now: datetime,
        since: datetime | None,
        report: AuditReport,
        doubt: KeyDoubt,
    ) -> None:
        self._doubt = doubt
        self._writer = writer
        self._source = source
        self._walk = anchors
        self._anchors = anchors.all()
        self._next: Anchor | None = None
        self._anchored = False
        self._vouched = 0
        """The newest record of before `since` that an anchor names."""
        self._claims = sorted(claims, key=lambda claim: claim[0].number)
        self._keys = keys
        self._now = now
        self._since = since
        self._report = report
        self._last: AuditRecord | None = None
        self._first_at: datetime | None = None
        self._unreadable = 0
        """Lines since the last authentic one that were not records."""
        self._torn: str | None = None

    async def run(self, on_record: Callable[[AuditRecord, bytes], None], progress: Callable[[int], None]) -> None:
        await self._advance()
        async for page in self._source.lines(self._writer):
            for found in page:
                await self._check(found, on_record)
            progress(self._report.records)
        await self._end()

    async def _check(self, found: SourceLine, on_record: Callable[[AuditRecord, bytes], None]) -> None:
        report = self._report
        if found.problem is not None:
            report.problem(f"{found.where}: {found.problem}")
        if found.torn:
            self._torn = found.where
            return
        line = unwrapped(found.line)
        try:
            record = read_line(line, self._keys)
        except RecordProblem as problem:
            self._unreadable += 1
            self._doubt.line(found.where, problem)
            return
        self._doubt.authentic()
        if record.writer != self._writer:
            self._unreadable += 1
            report.problem(f"{found.where}: it is a record of writer {record.writer}")
            return
        last = self._last
        number, mac = (last.number, last.mac) if last is not None else (0, FIRST_PREVIOUS)
        if record.number <= number:
            report.problem(
                f"{found.where}: record {record.number:,} stands behind record {number:,}, again or out of order"
            )
            return
        if record.number > number + 1:
            await self._gap(found.where, number + 1, record.number - 1)
        elif record.previous != mac:
            report.problem(f"{found.where}: record {record.number:,} does not follow the one before it")
        if self._torn is not None:
            report.note(f"{self._torn}: a line was not written to its end; the log goes on behind it")
            self._torn = None
        self._unreadable = 0
        self._last = record
        if self._first_at is None:
            self._first_at = record.at
        report.records += 1
        await self._compare(record, found.where)
        on_record(record, line)

    async def _gap(self, where: str, first: int, last: int) -> None:
        missing = last - first + 1
        if missing <= self._unreadable:
            return  # those that can't be read were told of
        if first == 1 and self._since is not None:
            # Anchors are read as far as the records are, so those that vouch for what is missing are the next ones.
            while self._next is not None and self._next.number <= last:
                await self._advance()
            if self._vouched >= last or (
                self._next is not None and self._next.at <= self._since and self._next.number >= last
            ):
                return
        which = f"record {first:,} is" if missing == 1 else f"records {first:,} to {last:,} are"
        self._report.problem(f"{where}: {which} missing before it")

    async def _compare(self, record: AuditRecord, where: str) -> None:
        while self._next is not None and self._next.number <= record.number:
            if self._next.number == record.number and self._next.head != record.mac:
                self._report.problem(f"{where}: record {record.number:,} is not the one that was anchored")
            await self._advance()
        while self._claims and self._claims[0][0].number <= record.number:
            head, who = self._claims.pop(0)
            if head.number == record.number and head.mac != record.mac:
                self._report.problem(f"{where}: record {record.number:,} is not the one that {who} names")

    async def _advance(self) -> None:
        if self._next is not None and self._since is not None and self._next.at <= self._since:
            self._vouched = max(self._vouched, self._next.number)
        self._next = await anext(self._anchors, None)
        self._anchored = self._anchored or self._next is not None

    async def _end(self) -> None:
        report, writer = self._report, self._writer
        number = self._last.number if self._last is not None else 0
        newest, at, who = 0, None, ""
        while self._next is not None:
            if self._since is None or self._next.at > self._since or self._last is not None:
                newest, at, who = self._next.number, self._next.at, "its anchor"
            await self._advance()
        for head, name in self._claims:
            if head.number > max(newest, number):
                newest, at, who = head.number, None, name
        if newest > number:
            when = f" of {at:%Y-%m-%d %H:%M:%S} UTC" if at is not None else ""
            report.problem(f"writer {writer}: it ends with record {number:,}, but {who}{when} names record {newest:,}")
        if self._torn is not None:
            report.note(f"{self._torn}: the last line was not written to its end (a crash, or a full disk)")
        if self._last is None:
            if not self._unreadable:
                report.note(f"writer {writer}: it has no record")
        elif self._last.kind != "audit.stopped":
            report.note(f"writer {writer}: it has no end; it is running, or was killed")
        if self._walk.kept and not self._anchored and self._last is not None:
            young = self._first_at is not None and self._now - self._first_at < _YOUNG
            if young:
                report.note(f"writer {writer}: it is not anchored yet")
            else:
                report.problem(
                    f"writer {writer}: no anchor names it: its anchors were removed, could not be written, "
                    "or it is not one of this service"
                )
