"""`Catalog`: the backups in a place, by part and age, with what was found when they were verified.

Used by every command about backups. Nothing is kept but in the place itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from kiseki.operations.backup.manifest import Manifest, Part, decode_manifest
from kiseki.operations.errors import BackupDamaged, BackupMissing, ClockWrong
from kiseki.operations.places.port import LAST, Place

__all__ = ["VERIFIED", "Catalog", "Listed", "Verification", "new_id", "refuse_wrong_clock"]

VERIFIED: Final = "verified.json"
_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
_LEEWAY: Final = timedelta(minutes=5)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when a backup was restored into a throw-away place and compared."""

    at: datetime
    sound: bool
    found: str
    """One line: what was compared with what, or what is wrong."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One backup in the list."""

    id: str
    part: Part
    manifest: Manifest | None
    """None when it was never finished, or its manifest can't be read."""
    problem: str | None
    verification: Verification | None
    bytes: int
    finished: bool

    @property
    def verified(self) -> bool:
        """Whether it was proved that it can be restored."""
        return self.manifest is not None and self.verification is not None and self.verification.sound


class Catalog:
    """What one place holds. Raises PlaceUnavailable."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def list(self, part: Part) -> Sequence[Listed]:
        """Backups of a part, oldest first; those that were not finished are among them."""
        sizes: dict[str, int] = {}
        finished: set[str] = set()
        for stored in await self.place.names(f"{part}/"):
            _, identity, *rest = stored.name.split("/")
            if rest and _ID.fullmatch(identity):
                sizes[identity] = sizes.get(identity, 0) + stored.size
                if rest == [LAST]:
                    finished.add(identity)
        return [await self._listed(part, identity, sizes[identity], identity in finished) for identity in sorted(sizes)]

    async def find(self, part: Part, identity: str | None) -> Manifest:
        """The backup of an id, or the newest whole one. Raises BackupMissing, BackupDamaged."""
        if identity is not None:
            data = await self.place.read(f"{part}/{identity}/{LAST}") if _ID.fullmatch(identity) else None
            if data is None:
                raise BackupMissing(
                    f"there is no backup {identity} of {part} in {self.place.label}; see `kiseki backup list`"
                )
            return decode_manifest(data, where=f"{part}/{identity}")
        whole = [listed.manifest for listed in await self.list(part) if listed.manifest is not None]
        if not whole:
            raise BackupMissing(
                f"there is no backup of {part} in {self.place.label}; `kiseki backup create` makes one, or check the "
                "settings `backup` and `backup_keys`"
            )
        return whole[-1]

    async def note(self, manifest: Manifest, verification: Verification) -> None:
        """Keeps what was found beside the backup."""
        await self.place.write(f"{manifest.part}/{manifest.id}/{VERIFIED}", msgspec.json.encode(verification) + b"\n")

    async def remove(self, listed: Listed) -> None:
        """Removes one from the place."""
        await self.place.remove(f"{listed.part}/{listed.id}")

    async def _listed(self, part: Part, identity: str, size: int, finished: bool) -> Listed:
        manifest, problem, verification = None, None, None
        if not finished:
            problem = "it was never finished"
        else:
            data = await self.place.read(f"{part}/{identity}/{LAST}")
            try:
                if data is not None:
                    manifest = decode_manifest(data, where=f"{part}/{identity}")
                else:
                    problem = "it was never finished"
            except BackupDamaged as damage:
                problem = str(damage)
            noted = await self.place.read(f"{part}/{identity}/{VERIFIED}")
            if noted is not None:
                try:
                    verification = msgspec.json.decode(noted, type=Verification)
                except msgspec.DecodeError:
                    problem = problem or "what was found when it was verified can't be read; verify it again"
        return Listed(
            id=identity,
            part=part,
            manifest=manifest,
            problem=problem,
            verification=verification,
            bytes=size,
            finished=finished,
        )


def new_id(now: datetime) -> str:
    """The id of a backup that is begun now: its time, and what keeps two of one second apart."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def refuse_wrong_clock(listed: Sequence[Listed], now: datetime) -> None:
    """Raises ClockWrong when a backup is from the future: then nobody can tell which are old."""
    for one in listed:
        if one.manifest is not None and one.manifest.finished_at > now + _LEEWAY:
            raise ClockWrong(
                f"the backup {one.id} of {one.part} is from {one.manifest.finished_at:%Y-%m-%d %H:%M:%S} UTC, and this "
                f"machine says it is {now:%Y-%m-%d %H:%M:%S} UTC; set the clock if that is wrong. If the backup's time "
                f"is, remove its folder {one.part}/{one.id} from the place by hand. Then run the same again"
            )
