"""Removing what is over the retention from lines of protection. For the protection of journals and of key stores."""

from __future__ import annotations

from datetime import datetime

from kiseki.operations.errors import ClockWrong
from kiseki.operations.places.port import Place
from kiseki.operations.sqlite.lines import LEEWAY, Base, Line, read_lines, whole_bases

__all__ = ["prune_covered", "prune_strictly"]


async def prune_covered(place: Place, what: str, cutoff: datetime) -> int:
    """Removes what no time since `cutoff` needs; how many things. A base is needed until a whole one of a later step is
    older than that, so the last whole one stays, whatever its age."""
    lines = await read_lines(place, what)
    whole = {line.prefix: await whole_bases(place, line, line.bases) for line in lines}
    bases = [(line, base) for line in lines for base in line.bases]
    # From the last one that serves every time since the cutoff. Without any, nothing goes.
    serving = [
        number for number, (line, base) in enumerate(bases) if base.at <= cutoff and base.name in whole[line.prefix]
    ]
    if not serving:
        return 0
    needed = bases[serving[-1] :]
    return await _keep(place, lines, needed, older_than=None)


async def prune_strictly(place: Place, what: str, cutoff: datetime, now: datetime) -> int:
    """Removes everything of before `cutoff`, even the last base; how many things.

    A base of the future was made by a clock that was wrong, so nobody knows its age: it goes too, once a step of a
    right time came after it. Raises ClockWrong when none did: then it may be the clock of now that is wrong.
    """
    lines = await read_lines(place, what)
    young = [(line, base) for line in lines for base in line.bases if cutoff <= base.at <= now + LEEWAY]
    newest = next((line for line in reversed(lines) if line.bases), None)
    if newest is not None:
        stays = any(line.prefix == newest.prefix for line, _ in young)
        _refuse_future(place, newest, now, stays=stays)
    return await _keep(place, lines, young, older_than=cutoff)


def _refuse_future(place: Place, line: Line, now: datetime, *, stays: bool) -> None:
    through = line.bases[-1].at if line.head is None else line.head.through
    newest = max(through, *(base.at for base in line.bases))
    if through <= now + LEEWAY and (stays or newest <= now + LEEWAY):
        return
    raise ClockWrong(
        f"{line.prefix} in {place.label} is of {newest:%Y-%m-%d %H:%M:%S} UTC, and this machine says it is "
        f"{now:%Y-%m-%d %H:%M:%S} UTC: nothing was removed. Set the clock if that is wrong, else run "
        "`kiseki backup protect --once`; then run the same again"
    )


async def _keep(
    place: Place, lines: list[Line], needed: list[tuple[Line, Base]], *, older_than: datetime | None
) -> int:
    removed = 0
    for line in lines:
        kept = [base for there, base in needed if there.prefix == line.prefix]
        if not kept:
            # A line that is being begun has no head yet; it is the last, and its base is needed.
            await place.remove(line.prefix)
            removed += 1 + len(line.increments)
            continue
        for base in line.bases:
            if base not in kept:
                await place.remove(f"{line.prefix}/{base.name}")
                removed += 1
        first = min(base.row for base in kept)
        for increment in line.increments:
            if increment.row <= first or (older_than is not None and increment.through < older_than):
                await place.remove(f"{line.prefix}/{increment.name}")
                removed += 1
    return removed
