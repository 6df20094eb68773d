"""How old the last verified backups, the last copy of continuous protection and the last drill are.

Lines of `kiseki dr status`; what alarms look at too (`--json`, `--embedded-metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from kiseki.operations.backup.manifest import Part
from kiseki.operations.backups import Backups
from kiseki.operations.dr.status import StatusLine
from kiseki.operations.drill.report import DRILLS, TARGETS, DrillReport
from kiseki.operations.errors import OperationFailed
from kiseki.service.settings import Settings

__all__ = ["AGES", "age_metrics", "ages"]

AGES: Final[Mapping[str, str]] = {
    "backup_age_seconds": "Of the newest verified backup; of several parts the oldest. None unless each part has one.",
    "protection_age_seconds": "Since when nothing was copied continuously; of several the oldest.",
    "drill_age_seconds": "Of the last drill, if it passed.",
}
"""The metrics of `kiseki dr status --embedded-metrics`, in seconds. What has no age has no value, which is as bad as a
great age: alarms on these have to take missing values for breaching."""

_BACKUP_LINE: Final = "backup of "
_PROTECTION_LINE: Final = "protection of "
_DRILL_LINE: Final = "drill"

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
            name = f"{_PROTECTION_LINE}{protection.name}"
            if through is None:
                lines.append(StatusLine(name, "nothing is copied; run `kiseki backup protect`", good=False))
            else:
                lines.append(_aged(name, "everything up to", through, now, _PROTECTION))
        if Part.JOURNAL in backups.parts:
            lines.append(await _drill(backups, now))
        return lines


def age_metrics(lines: Sequence[StatusLine]) -> Mapping[str, float]:
    """What `AGES` documents, of the lines of `ages`."""
    names = dict(zip(AGES, (_BACKUP_LINE, _PROTECTION_LINE, _DRILL_LINE), strict=True))
    found: dict[str, float] = {}
    for metric, beginning in names.items():
        its = [line.age for line in lines if line.name.startswith(beginning)]
        known = [age for age in its if age is not None]
        if known and len(known) == len(its):
            found[metric] = max(known)
    return found


async def _backup(backups: Backups, part: Part, now: datetime) -> StatusLine:
    listed = await backups.catalog(part).list(part)
    proved = [one.manifest.made.as_of for one in listed if one.manifest is not None and one.verified]
    name = f"{_BACKUP_LINE}{part}"
    if not proved:
        return StatusLine(name, "none was ever verified; run `kiseki backup create`", good=False)
    return _aged(name, "the last verified one is of", max(proved), now, _BACKUP)


async def _drill(backups: Backups, now: datetime) -> StatusLine:
    place = backups.place(Part.JOURNAL)
    names = [stored.name for stored in await place.names(f"{DRILLS}/")]
    if not names:
        return StatusLine(_DRILL_LINE, "there was none; run `kiseki dr drill`", good=False)
    data = await place.read(names[-1])
    try:
        report = msgspec.json.decode(data or b"", type=DrillReport)
    except msgspec.DecodeError as problem:
        raise OperationFailed(f"the report {names[-1]} in {place.label} can't be read; remove it") from problem
    line = _aged(_DRILL_LINE, "the last one was on", report.at, now, _DRILL)
    if report.passed:
        return line
    return StatusLine(_DRILL_LINE, f"{line.value}, and it FAILED", good=False)


def _aged(name: str, what: str, at: datetime, now: datetime, limit: timedelta) -> StatusLine:
    age = now - at
    return StatusLine(
        name, f"{what} {at:%Y-%m-%d %H:%M:%S} UTC, {_readable(age)} ago", good=age <= limit, age=age.total_seconds()
    )


def _readable(age: timedelta) -> str:
    seconds = age.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3_600:.0f} h"
    return f"{seconds / 86_400:.0f} days"
