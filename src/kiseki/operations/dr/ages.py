"""How old the last verified backups, the last copy of continuous protection and the last drill are.

Lines of `kiseki dr status`; what alarms look at too (`--json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from kiseki.operations.backup.manifest import Part
from kiseki.operations.backups import Backups
from kiseki.operations.dr.status import StatusLine
from kiseki.operations.drill.report import DRILLS, TARGETS, DrillReport
from kiseki.operations.errors import OperationFailed
from kiseki.service.settings import Settings

__all__ = ["ages"]

_BACKUP: Final = timedelta(hours=26)
"""A backup a day, and time to make it."""
_PROTECTION: Final = timedelta(seconds=TARGETS.rpo)
_DRILL: Final = timedelta(days=180)


async def ages(settings: Settings, now: datetime) -> Sequence[StatusLine]:
    """`now` is UTC. Raises what the places raise."""
    async with Backups.opened(settings) as backups:
        if not backups.parts:
            return [StatusLine("backups", "no place is set (backup, backup_keys)", good=False)]
        lines = [await _backup(backups, part, now) for part in backups.parts]
        for protection in backups.protections():
            through = await protection.through()
            name = f"protection of {protection.name}"
            if through is None:
                lines.append(StatusLine(name, "nothing is copied; run `kiseki backup protect`", good=False))
            else:
                lines.append(_aged(name, "everything up to", through, now, _PROTECTION))
        if Part.JOURNAL in backups.parts:
            lines.append(await _drill(backups, now))
        return lines


async def _backup(backups: Backups, part: Part, now: datetime) -> StatusLine:
    listed = await backups.catalog(part).list(part)
    proved = [one.manifest.made.as_of for one in listed if one.manifest is not None and one.verified]
    name = f"backup of {part}"
    if not proved:
        return StatusLine(name, "none was ever verified; run `kiseki backup create`", good=False)
    return _aged(name, "the last verified one is of", max(proved), now, _BACKUP)


async def _drill(backups: Backups, now: datetime) -> StatusLine:
    place = backups.place(Part.JOURNAL)
    names = [stored.name for stored in await place.names(f"{DRILLS}/")]
    if not names:
        return StatusLine("drill", "there was none; run `kiseki dr drill`", good=False)
    data = await place.read(names[-1])
    try:
        report = msgspec.json.decode(data or b"", type=DrillReport)
    except msgspec.DecodeError as problem:
        raise OperationFailed(f"the report {names[-1]} in {place.label} can't be read; remove it") from problem
    line = _aged("drill", "the last one was on", report.at, now, _DRILL)
    if report.passed:
        return line
    return StatusLine("drill", f"{line.value}, and it FAILED", good=False)


def _aged(name: str, what: str, at: datetime, now: datetime, limit: timedelta) -> StatusLine:
    age = now - at
    return StatusLine(name, f"{what} {at:%Y-%m-%d %H:%M:%S} UTC, {_readable(age)} ago", good=age <= limit)


def _readable(age: timedelta) -> str:
    seconds = age.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3_600:.0f} h"
    return f"{seconds / 86_400:.0f} days"
