"""How two sites stand: who writes, since when, how old the last renewal is, how far the copy is behind.

Used by `kiseki dr status`. Others add lines of their own (`More`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec

from kiseki.journal.lease.port import LeaseRecord, LeaseStore
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.operations.dr.replication import Replication
from kiseki.service.settings import Settings

__all__ = ["DrStatus", "More", "StatusLine", "dr_status"]


class StatusLine(msgspec.Struct, frozen=True):
    """One line: what, its value, and whether somebody has to look at it."""

    name: str
    value: str
    good: bool = True
    age: float | None = None
    """In seconds, of what has an age."""


More = Callable[[], Awaitable[Sequence[StatusLine]]]
"""Further lines, such as the age of the last verified backup. Raises KisekiError."""


class DrStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known now."""

    lines: tuple[StatusLine, ...]

    @property
    def good(self) -> bool:
        """Whether nobody has to do anything."""
        return all(line.good for line in self.lines)


async def dr_status(
    settings: Settings,
    *,
    lease: LeaseStore | None,
    replication: Replication | None,
    now: datetime,
    more: Sequence[More] = (),
) -> DrStatus:
    """Asks all of them; what can't be asked is a line that is not good. `now` is UTC, for ages."""
    lines: list[StatusLine] = []
    if settings.site or settings.primary_region or settings.secondary_region or lease is not None:
        lines.append(StatusLine("this site", settings.site or "not named (site)", bool(settings.site)))
        regions = f"{settings.primary_region or '-'} (primary), {settings.secondary_region or '-'} (secondary)"
        lines.append(StatusLine("regions", regions))
        lines += await _safely("lease", lambda: _lease(lease, now))
    else:
        lines.append(StatusLine("regions", "one; nothing to fail over to (primary_region, secondary_region)"))
    if replication is not None:
        lines += await _safely("replication", lambda: _replication(settings, lease, replication))
    for each in more:
        lines += await _safely("more", each)
    return DrStatus(lines=tuple(lines))


async def _safely(name: str, ask: More) -> Sequence[StatusLine]:
    try:
        return await ask()
    except (KisekiError, Unavailable) as problem:
        return [StatusLine(name, str(problem), good=False)]


async def _lease(store: LeaseStore | None, now: datetime) -> Sequence[StatusLine]:
    if store is None:
        return [StatusLine("lease", "none is kept (lease): a forced failover would be unfenced", good=False)]
    record = await store.read()
    if record is None:
        return [StatusLine("lease", f"there is none in {store.label}; see `kiseki dr begin`", good=False)]
    since = f"{record.since:%Y-%m-%d %H:%M:%S} UTC"
    lines = [StatusLine("kept in", store.label)]
    if record.state == "handing-over":
        return [
            *lines,
            StatusLine(
                "writes",
                f"nobody: {record.holder} hands over to {record.target} since {since}, by {record.operator}; "
                "run the same failover again if that run has ended",
                good=False,
            ),
        ]
    lines.append(StatusLine("writes", f"{record.holder}, term {record.term}, since {since}"))
    lines.append(_renewal(record, now))
    return lines


def _renewal(record: LeaseRecord, now: datetime) -> StatusLine:
    if not record.writers:
        return StatusLine("last renewal", "no process has the lease", good=False)
    newest = max(record.writers.values(), key=lambda writer: writer.renewed_at)
    age = (now - newest.renewed_at).total_seconds()
    count = len(record.writers)
    have = "process has it" if count == 1 else "processes have it"
    return StatusLine(
        "last renewal",
        f"{age:.1f} s ago, of a lease of {newest.seconds:g} s; {count} {have}",
        good=age < newest.seconds,
    )


async def _replication(settings: Settings, store: LeaseStore | None, replication: Replication) -> Sequence[StatusLine]:
    record = None if store is None else await store.read()
    if record is not None and record.holder == settings.site and record.state == "active":
        return [StatusLine("replication", f"is looked at from the other site: {settings.site} is the one that writes")]
    lag = await replication.lag()
    measured = [
        *(() if lag.bytes is None else (f"{lag.bytes:,} bytes",)),
        *(() if lag.seconds is None else (f"{lag.seconds:.1f} s",)),
    ]
    behind = f"{' / '.join(measured)} behind" if measured else "not measured from here"
    return [StatusLine("replication", f"{behind}; {lag.detail}", good="NOT" not in lag.detail)]
