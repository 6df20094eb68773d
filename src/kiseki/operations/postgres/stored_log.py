"""`StoredLog`: the write-ahead log of one life of a cluster, in a place. Used by the protection and by recovery."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from kiseki.journal.postgres.feed import Place as FeedPlace
from kiseki.operations.backup.manifest import Manifest
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, OperationFailed
from kiseki.operations.places.port import Place
from kiseki.operations.postgres.base import first_segment
from kiseki.operations.postgres.cluster import Mark
from kiseki.operations.postgres.spool import Spool
from kiseki.operations.postgres.wal import (
    HEAD,
    INCREMENTS,
    Head,
    Segment,
    Shipped,
    chain_from,
    head_name,
    pack,
    shipped,
)

__all__ = ["StoredLog", "newest_head"]

_NAME: Final = 24
"""Characters of a file's name, as PostgreSQL gives it."""
_TIMELINE: Final = 8
"""Hex digits of a timeline's folder."""


class StoredLog:
    """The files of one cluster on one timeline. Raises PlaceUnavailable, NoRoom."""

    def __init__(self, place: Place, system: str, timeline: int, segment: int) -> None:
        self._place = place
        self._system = system
        self._timeline = timeline
        self._size = segment
        self.folder = f"{INCREMENTS}/{system}/{timeline:0{_TIMELINE}X}"

    async def files(self) -> list[Shipped]:
        """All that is there, in order."""
        return shipped(await self._place.names(f"{self.folder}/"), self._size)

    async def chain(self, first: Segment) -> list[Shipped]:
        """The files from a segment on. Raises BackupDamaged when one is missing, also at the end."""
        files = await self.files()
        head = await self.head()
        if head is None or head.timeline != self._timeline:
            return chain_from(first, files, self._place.label)
        newest = next((one for one in files if one.file == head.file), None)
        if newest is not None:
            # Of one that was copied twice, what the head says counts: times of a place may be coarse.
            files = [one for one in files if one == newest or not (one.partial and one.segment == newest.segment)]
        chain = chain_from(first, files, self._place.label)
        ended = Segment.parse(head.file[:_NAME], self._size)
        if ended is not None and first.number <= ended.number and chain[-1].segment.number < ended.number:
            raise BackupDamaged(
                f"the write-ahead log in {self._place.label} lacks {ended.name}, its newest file; take a new base now "
                "(the next step of the protection does)"
            )
        return chain

    async def ship(self, spool: Spool, *, whole: bool = False, begins: Segment | None = None) -> tuple[str, int]:
        """Copies what the place lacks of a spool: the newest file there now, and bytes that were written.

        What the place has is removed from the spool, but for the last whole file, by which the receiver knows where to
        go on. `whole`: only files that are written to the end; `begins`: none before it.
        """
        there = await self.files()
        known = {one.file for one in there}
        has = {one.segment: one.file for one in there if not one.partial}
        waiting = await asyncio.to_thread(spool.files, self._size)
        kept = max((segment for segment, _, partial in waiting if not partial), default=None)
        newest, copied = "", 0
        # Not in the spool: when that is full, this is what makes room in it.
        with explained_room(Path(tempfile.gettempdir()), "make room there"), tempfile.TemporaryDirectory() as packing:
            for segment, path, partial in waiting:
                if segment.timeline != self._timeline:
                    raise OperationFailed(f"the spool {spool.root} holds log of another timeline; run the same again")
                if partial and whole:
                    continue
                newest = has.get(segment, "")
                if not newest and (begins is None or segment >= begins):
                    packed = Path(packing) / "packed"
                    newest, size = await asyncio.to_thread(_pack, path, segment, packed, partial=partial)
                    if newest not in known:
                        await self._place.put(f"{self.folder}/{newest}", packed)
                        copied += size
                if not partial and segment != kept:
                    await asyncio.to_thread(spool.remove, path)
        if not newest and not whole:
            raise OperationFailed(
                f"the spool {spool.root} is empty: somebody removed what was in it; run the same again"
            )
        return newest, copied

    async def head(self) -> Head | None:
        """How far the place covers this cluster."""
        return await _head(self._place, self._system)

    async def set_head(self, mark: Mark, newest: str, feed: FeedPlace) -> None:
        """Says how far the place covers this cluster now, and removes what the newest file replaces."""
        head = Head(
            system=self._system,
            timeline=self._timeline,
            through=mark.at,
            lsn=mark.lsn,
            file=newest,
            segment=self._size,
            feed=".".join(str(number) for number in feed),
        )
        await self.add_to_head(head, newest)

    async def add_to_head(self, head: Head, newest: str) -> None:
        """Says what the newest file is, and removes what it replaces."""
        head = msgspec.structs.replace(head, file=newest)
        await self._place.write(head_name(self._system), msgspec.json.encode(head) + b"\n")
        for one in await self.files():
            if one.partial and one.file != newest and one.segment.name <= newest:
                await self._place.remove(one.stored.name)

    @staticmethod
    async def prune(place: Place, kept: Sequence[Manifest]) -> int:
        """Removes log that no kept base builds on; how many files."""
        first: dict[str, Segment] = {}
        for base in kept:
            segment = first_segment(base)
            folder = f"{INCREMENTS}/{base.made.references['system']}/{segment.timeline:0{_TIMELINE}X}"
            first[folder] = min(first.get(folder, segment), segment)
        systems = {folder.rpartition("/")[0] for folder in first}
        removed = 0
        for stored in await place.names(f"{INCREMENTS}/") if kept else ():
            folder, _, file = stored.name.rpartition("/")
            begins = first.get(folder)
            one = Segment.parse(file[:_NAME], begins.size) if begins is not None else None
            if folder in systems or (begins is not None and (one is None or one.number >= begins.number)):
                continue
            await place.remove(stored.name)
            removed += 1
        return removed


def _pack(path: Path, segment: Segment, target: Path, *, partial: bool) -> tuple[str, int]:
    try:
        checksum = pack(path, target)
    except FileNotFoundError:
        # It became whole since it was listed.
        partial = False
        checksum = pack(path.with_suffix(""), target)
    return f"{segment.name}{'.partial' if partial else ''}-{checksum}.gz", target.stat().st_size


async def newest_head(place: Place) -> Head | None:
    """Of all clusters that a place covers, how far it covers the one that was copied last."""
    systems = {
        stored.name.split("/")[1] for stored in await place.names(f"{INCREMENTS}/") if stored.name.endswith(HEAD)
    }
    heads = [head for system in sorted(systems) if (head := await _head(place, system)) is not None]
    return max(heads, key=lambda head: head.through, default=None)


async def _head(place: Place, system: str) -> Head | None:
    data = await place.read(head_name(system))
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Head)
    except msgspec.DecodeError as problem:
        raise BackupDamaged(
            f"{head_name(system)} in {place.label} can't be read; remove it, and step again"
        ) from problem
