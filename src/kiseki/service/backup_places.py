"""`mixed_places`: whether backups, and what they are of, are kept apart. Used by checks and by every backup command."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from kiseki.security.secrets.findings import is_inside
from kiseki.service.settings import Settings
from kiseki.service.sqlite_stores import DataDirectory

__all__ = ["MixedPlaces", "mixed_places"]

_PLACES = ("backup", "backup_keys", "backup_read_models")


class MixedPlaces(NamedTuple):
    """Two things that have to be apart and are not: what is wrong, and the remedy."""

    problem: str
    remedy: str


def mixed_places(settings: Settings) -> Iterator[MixedPlaces]:
    """Everything about the places of backups that would break a promise.

    Copies of keys end within 7 days, so they are not beside copies that are kept longer; the ledger of erasures is in
    no backup; and a backup that lies in the data directory is lost with it.
    """
    places = {name: text for name in _PLACES if (text := str(getattr(settings, name)))}
    for one, other in combinations(places, 2):
        if _overlap(places[one], places[other]):
            yield MixedPlaces(
                f"{one} and {other} are one place, or one is inside the other, and their copies end at different times",
                f"set {other} to a place of its own",
            )
    data = DataDirectory(settings.data_dir).path
    ledger = settings.erasure_ledger
    for name, text in places.items():
        folder = _folder(text)
        if folder is None:
            continue
        if is_inside(str(folder), data):
            yield MixedPlaces(
                f"{name} is in the data directory, so a lost disk would take the backups along",
                f"set {name} to a folder of another disk, or to s3://bucket/prefix?region=eu-west-1",
            )
        if ledger and "://" not in ledger and _overlap(text, ledger):
            yield MixedPlaces(
                f"{name} and erasure_ledger are one place, or one is inside the other, and the ledger is in no backup",
                "set erasure_ledger to a place of its own",
            )


def _folder(text: str) -> Path | None:
    return None if text.startswith("s3:") else Path(text.removeprefix("file://").removeprefix("file:"))


def _overlap(one: str, other: str) -> bool:
    folders = _folder(one), _folder(other)
    if folders[0] is not None and folders[1] is not None:
        return is_inside(str(folders[0]), folders[1]) or is_inside(str(folders[1]), folders[0])
    if (folders[0] is None) != (folders[1] is None):
        return False
    first, second = (text.partition("?")[0].rstrip("/") + "/" for text in (one, other))
    return first.startswith(second) or second.startswith(first)
