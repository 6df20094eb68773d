"""`prune`: removes old backups, and never the last one that was proved. Used by `kiseki backup prune`.

Copies of keys and of read models are the exception: they go when their time is over, whatever else there is, because an
erased person must not be in any of them for longer (docs/erasure.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import Catalog, Listed, refuse_wrong_clock
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import PartBackups, Progress

__all__ = ["PRIVATE", "Pruned", "going", "prune"]

PRIVATE: Final = frozenset({Part.KEYS, Part.READ_MODELS})
"""The parts whose copies have to go in time."""


class Pruned(NamedTuple):
    """What was removed, and what is left."""

    removed: tuple[str, ...]
    kept: int
    warnings: tuple[str, ...]
    """One line each; something is left to do when there are any."""


async def prune(
    part: Part, driver: PartBackups, catalog: Catalog, *, days: float, clock: Clock, progress: Progress
) -> Pruned:
    """Removes backups older than so many days, and what was never finished.

    Raises OperatorBusy, ClockWrong, PlaceUnavailable, and what the driver raises when copies kept elsewhere can't be
    removed: then the backup stays in the list, and the same again goes on.
    """
    async with catalog.place.lock(f"{part}.lock"):
        listed = await catalog.list(part)
        now = clock.now()
        refuse_wrong_clock(listed, now)
        cutoff = now - timedelta(days=days)
        old = going(part, listed, cutoff)
        for one in old:
            progress(f"removing {one.id}")
            if one.manifest is not None:
                await driver.forget(one.manifest)
            await catalog.remove(one)
    left = [one for one in listed if one not in old]
    return Pruned(removed=tuple(one.id for one in old), kept=len(left), warnings=tuple(_warnings(part, left, cutoff)))


def going(part: Part, listed: Sequence[Listed], cutoff: datetime) -> list[Listed]:
    """The backups that are to be removed: older than `cutoff`, as far as their part lets go of them."""
    newest_proved = max((one.id for one in listed if one.verified), default="")
    old = []
    for one in listed:
        if one.manifest is None:
            # Nobody makes one now: this holds the lock. A manifest that can't be read may yet be mended by hand.
            if not one.finished or part in PRIVATE:
                old.append(one)
        elif one.manifest.made.as_of < cutoff and (part in PRIVATE or one.id < newest_proved):
            old.append(one)
    return old


def _warnings(part: Part, left: Sequence[Listed], cutoff: datetime) -> list[str]:
    if not left:
        return [f"there is no backup of {part} left; `kiseki backup create --part {part}` makes one"]
    warnings = []
    if not any(one.verified for one in left):
        warnings.append(f"no backup of {part} was ever verified; run `kiseki backup verify`")
    elif any(one.manifest is not None and one.manifest.made.as_of < cutoff for one in left):
        warnings.append(
            f"a backup of {part} is over its age and stays, as no newer one is verified; run `kiseki backup create`"
        )
    return warnings
