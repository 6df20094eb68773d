"""A line of protection: bases, and increments between them, of one life of one store; as it lies in a place.

<what>/<line>/base-<row>/…                     a whole copy, as of a row
<what>/<line>/<row before>-<last row>.json.gz  what came after a row, up to another one
<what>/<line>/head.json                        how far the line goes, replaced at each step

Each increment names the checksum of the one before, and the head that of the last: a missing or altered one is found.
Used by the protection of journals and of key stores.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kiseki.operations.backup.manifest import Contents, StoredFile, digest_of
from kiseki.operations.errors import BackupDamaged
from kiseki.operations.places.port import LAST, Place

__all__ = [
    "Base",
    "Head",
    "Increment",
    "Line",
    "base_name",
    "fetched_base",
    "increment_name",
    "is_base_due",
    "new_line",
    "prune_lines",
    "publish_base",
    "read_lines",
    "write_head",
]

_BASE: Final = re.compile(r"base-([0-9]{20})-([0-9]{8}T[0-9]{6})")
_INCREMENT: Final = re.compile(r"([0-9]{20})-([0-9]{20})\.json\.gz")
_HEAD: Final = "head.json"
_BASE_EVERY: Final = timedelta(days=1)
_LEEWAY: Final = timedelta(minutes=5)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a line goes."""

    life: str
    """Of which journal and life, or of which key store, the line is."""
    row: int
    """The last row that is in it."""
    row_hash: str
    """Of that row as it is stored: whether the live store still has it."""
    through: datetime
    """Everything durable at this time (UTC) is in it."""
    last_sha256: str = ""
    """Of the newest increment."""
    last_name: str = ""
    contents: Contents | None = None
    """What a journal holds that is put together from all of it."""
    last_id: int = 0
    """Of a key store: the last of its rows that is in it. `row` counts steps then."""
    erasures: int = 0
    """Of a key store: the last erasure that is in it."""
    audit: Mapping[str, int] = {}
    """The newest record of each writer of the audit log, at the time."""


class _BaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    head: Head
    files: tuple[StoredFile, ...]


class Base(NamedTuple):
    """A whole copy."""

    name: str
    row: int
    at: str
    """When it was made, as its name says: sorts like time."""


class Increment(NamedTuple):
    """What came between two rows."""

    name: str
    after: int
    row: int
    changed_at: datetime


class Line(NamedTuple):
    """A line, as far as the place shows it."""

    prefix: str
    head: Head
    bases: Sequence[Base]
    increments: Sequence[Increment]
    """In their order."""

    def after(self, base: Base, *, whole: bool = True) -> Sequence[Increment]:
        """The increments that follow a base, without a gap. Raises BackupDamaged when one is missing; `whole`: also at
        the end."""
        following: list[Increment] = []
        row = base.row
        for increment in self.increments:
            if increment.row <= row:
                continue
            if increment.after != row:
                raise BackupDamaged(
                    f"{self.prefix} lacks what came between rows {row:,} and {increment.after:,}; go back to a time "
                    "before, with --until"
                )
            following.append(increment)
            row = increment.row
        if whole and row < self.head.row:
            raise BackupDamaged(
                f"{self.prefix} ends at row {row:,} and should go to {self.head.row:,}; go back to a time before"
            )
        return following


def new_line(life: str) -> str:
    """The name of a new line: two lines of one life are told apart, when an older file was put back by hand."""
    return f"{life}-{secrets.token_hex(3)}"


def base_name(row: int, at: datetime) -> str:
    """The name of a base: names sort like rows, then like time (UTC)."""
    return f"base-{row:020d}-{at:%Y%m%dT%H%M%S}"


def increment_name(after: int, row: int) -> str:
    """The name of an increment: names sort like rows."""
    return f"{after:020d}-{row:020d}.json.gz"


async def read_lines(place: Place, what: str) -> list[Line]:
    """All lines there are of something, those that go furthest last. Raises PlaceUnavailable, BackupDamaged."""
    found: dict[str, tuple[list[Base], list[Increment], list[bool]]] = {}
    for stored in await place.names(f"{what}/"):
        parts = stored.name.split("/")
        if len(parts) < 3:
            continue
        bases, increments, heads = found.setdefault(parts[1], ([], [], []))
        if parts[2] == _HEAD:
            heads.append(True)
        elif (base := _BASE.fullmatch(parts[2])) and parts[3:] == [LAST]:
            bases.append(Base(parts[2], int(base[1]), base[2]))
        elif (increment := _INCREMENT.fullmatch(parts[2])) and len(parts) == 3:
            increments.append(Increment(parts[2], int(increment[1]), int(increment[2]), stored.changed_at))
    lines = []
    for name, (bases, increments, heads) in found.items():
        if not heads:
            continue  # its first base was never finished
        prefix = f"{what}/{name}"
        lines.append(Line(prefix, await _head(place, prefix), sorted(bases, key=_age), sorted(increments, key=_row)))
    return sorted(lines, key=lambda line: line.head.through)


async def write_head(place: Place, prefix: str, head: Head) -> None:
    """Says how far a line goes from now on."""
    await place.write(f"{prefix}/{_HEAD}", msgspec.json.encode(head) + b"\n")


def is_base_due(line: Line, now: datetime) -> bool:
    """Whether the newest base of a line is over a day old, or in the future, or there is none."""
    if not line.bases:
        return True
    newest = max(datetime.strptime(base.at, "%Y%m%dT%H%M%S").replace(tzinfo=UTC) for base in line.bases)
    return not -_LEEWAY <= now - newest < _BASE_EVERY


async def publish_base(place: Place, prefix: str, folder: Path, head: Head) -> int:
    """Publishes a base that is in a folder, as of the head; how many bytes. The folder may be gone then."""
    files = await asyncio.to_thread(lambda: [digest_of(path) for path in sorted(folder.iterdir())])
    manifest = _BaseManifest(head=head, files=tuple(files))
    await asyncio.to_thread((folder / LAST).write_bytes, msgspec.json.encode(manifest) + b"\n")
    await place.publish(folder, f"{prefix}/{base_name(head.row, head.through)}")
    return sum(file.bytes for file in files)


@asynccontextmanager
async def fetched_base(place: Place, prefix: str, base: Base) -> AsyncIterator[tuple[Path, Contents | None]]:
    """The files of a base, compared with their checksums, and what a journal in it holds. Raises BackupDamaged."""
    name = f"{prefix}/{base.name}"
    data = await place.read(f"{name}/{LAST}")
    try:
        manifest = msgspec.json.decode(data or b"", type=_BaseManifest)
    except msgspec.DecodeError as problem:
        raise BackupDamaged(
            f"the manifest of {name} can't be read; go back to a time before, with --until"
        ) from problem
    async with place.fetched(name, [file.name for file in manifest.files]) as folder:
        for file in manifest.files:
            if await asyncio.to_thread(digest_of, folder / file.name) != file:
                raise BackupDamaged(f"{name} was altered or cut short; go back to a time before, with --until")
        yield folder, manifest.head.contents


async def prune_lines(place: Place, what: str, cutoff: datetime, *, keep_last: bool) -> int:
    """Removes bases that are older, and increments that no base needs any more; how many things.

    `keep_last`: the newest base stays, whatever its age. Without it everything older goes.
    """
    lines = await read_lines(place, what)
    at = f"{cutoff:%Y%m%dT%H%M%S}"
    removed = 0
    for line in lines:
        kept = [base for base in line.bases if base.at >= at]
        if not kept and keep_last and line is lines[-1]:
            kept = list(line.bases[-1:])
        if not kept:
            await place.remove(line.prefix)
            removed += len(line.bases) + len(line.increments)
            continue
        for base in line.bases:
            if base not in kept:
                await place.remove(f"{line.prefix}/{base.name}")
                removed += 1
        for increment in line.increments:
            if increment.row <= kept[0].row or (not keep_last and increment.changed_at < cutoff):
                await place.remove(f"{line.prefix}/{increment.name}")
                removed += 1
    return removed


async def _head(place: Place, prefix: str) -> Head:
    data = await place.read(f"{prefix}/{_HEAD}")
    try:
        return msgspec.json.decode(data or b"", type=Head)
    except msgspec.DecodeError as problem:
        raise BackupDamaged(
            f"{prefix}/{_HEAD} in {place.label} can't be read; remove the line, a new one is begun"
        ) from problem


def _age(base: Base) -> tuple[int, str]:
    return base.row, base.at


def _row(increment: Increment) -> int:
    return increment.row
