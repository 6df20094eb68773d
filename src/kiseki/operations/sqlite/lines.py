"""A line of protection: bases, and increments between them, of one life of one store; as it lies in a place.

<what>/<number>-<life>-…/base-<row>-<time>-…                   a whole copy, as of a row
<what>/<number>-<life>-…/<row before>-<last row>-<time>.json.gz  what came after a row, up to another one
<what>/<number>-<life>-…/head.json                             how far the line goes, replaced at each step

A step is done when the head says so: what else lies there is the rest of one that was killed. Each increment names the
checksum of the one before, and the head that of the last: a missing or altered one is found. Lines are numbered,
because clocks go back. Used by the protection of journals and of key stores.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from kiseki.operations.backup.manifest import Contents, StoredFile, digest_of
from kiseki.operations.errors import BackupDamaged, BackupRefused
from kiseki.operations.places.port import LAST, Place, Stored
from kiseki.operations.places.threads import in_thread

__all__ = [
    "LEEWAY",
    "Base",
    "Head",
    "Increment",
    "Line",
    "base_name",
    "fetched_base",
    "increment_name",
    "is_base_due",
    "is_whole",
    "new_line",
    "publish_base",
    "read_lines",
    "remove_rest",
    "through_of",
    "whole_bases",
    "write_head",
]

_TIME: Final = "%Y%m%dT%H%M%S%f"
_LINE: Final = re.compile(r"([0-9]{6})-.+")
_BASE: Final = re.compile(r"base-([0-9]{20})-([0-9]{8}T[0-9]{12})-[0-9a-f]{6}")
_INCREMENT: Final = re.compile(r"([0-9]{20})-([0-9]{20})-([0-9]{8}T[0-9]{12})\.json\.gz")
_HEAD: Final = "head.json"
_BASE_EVERY: Final = timedelta(days=1)
LEEWAY: Final = timedelta(minutes=5)
"""By which clocks may differ."""

_T = TypeVar("_T")


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
    bases: tuple[str, ...] = ()
    """The bases that steps have finished, in their order."""
    last_sha256: str = ""
    """Of the newest increment."""
    contents: Contents | None = None
    """What a journal holds that is put together from all of it."""
    held_changes: int = 0
    """Of a journal: how often claims came without a commit."""
    last_id: int = 0
    """Of a key store: the last of its rows that is in it. `row` counts steps then."""
    erasures: int = 0
    """Of a key store: the last erasure that is in it."""
    revocations: str = ""
    """Of a key store: the checksum of the revocations beside it."""
    audit: Mapping[str, int] = {}
    """The newest record of each writer of the audit log, at the time."""


class _BaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    head: Head
    files: tuple[StoredFile, ...]


class Base(NamedTuple):
    """A whole copy."""

    name: str
    row: int
    at: datetime
    """As of when it is (UTC)."""


class Increment(NamedTuple):
    """What came between two rows."""

    name: str
    after: int
    row: int
    through: datetime


class Line(NamedTuple):
    """A line, as far as the place shows it."""

    number: int
    prefix: str
    head: Head | None
    """None when it is not there, or can't be read."""
    bases: Sequence[Base]
    """Finished ones, in their order."""
    increments: Sequence[Increment]
    """Finished ones, in their order."""
    rest: Sequence[str]
    """What a step that was killed has left."""
    sizes: Mapping[str, int]
    """Of the files of bases, by base and file."""


async def read_lines(place: Place, what: str) -> list[Line]:
    """All lines there are of something, in the order in which they were begun. Raises PlaceUnavailable."""
    found: dict[str, list[Stored]] = {}
    for stored in await place.names(f"{what}/"):
        name = stored.name.split("/")[1]
        if _LINE.fullmatch(name):
            found.setdefault(name, []).append(stored)
    return [await _line(place, what, name, found[name]) for name in sorted(found)]


async def _line(place: Place, what: str, name: str, there: Sequence[Stored]) -> Line:
    prefix = f"{what}/{name}"
    head = _opened(await place.read(f"{prefix}/{_HEAD}"), Head)
    bases: list[Base] = []
    increments: list[Increment] = []
    sizes: dict[str, int] = {}
    for stored in there:
        parts = stored.name.split("/")[2:]
        if (found := _BASE.fullmatch(parts[0])) and len(parts) == 2:
            sizes["/".join(parts)] = stored.size
            if parts[1] == LAST:
                bases.append(Base(parts[0], int(found[1]), _time(found[2])))
        elif (found := _INCREMENT.fullmatch(parts[0])) and len(parts) == 1:
            increments.append(Increment(parts[0], int(found[1]), int(found[2]), _time(found[3])))
    bases.sort(key=lambda base: (base.row, base.at))
    increments.sort(key=lambda increment: (increment.row, increment.after))
    rest: list[str] = []
    if head is not None:
        order = {base: number for number, base in enumerate(head.bases)}
        rest += [base.name for base in bases if base.name not in order]
        rest += [increment.name for increment in increments if increment.row > head.row]
        bases = sorted((base for base in bases if base.name in order), key=lambda base: order[base.name])
        increments = [increment for increment in increments if increment.row <= head.row]
    return Line(int(name[:6]), prefix, head, bases, increments, rest, sizes)


def refuse_another(lines: Sequence[Line], identity: str, *, what: str, label: str) -> None:
    """Raises BackupRefused when a place has copies of another store than that of `identity`, with which a life begins.

    An empty store that a start has begun, where a restore was meant, must not hide the copies of the real one.
    """
    for line in lines:
        if line.head is not None and not line.head.life.startswith(identity):
            raise BackupRefused(
                f"{label} has copies of another {what} than this one, which may have been begun anew by mistake; "
                "nothing was copied: restore the real one (`kiseki backup restore`), or for a new one set another place"
            )


def new_line(what: str, lines: Sequence[Line], life: str) -> str:
    """Where a new line is. Two lines of one life are told apart, when an older file was put back by hand."""
    number = lines[-1].number + 1 if lines else 1
    return f"{what}/{number:06d}-{life}-{secrets.token_hex(3)}"


def base_name(row: int, at: datetime) -> str:
    """The name of a base as of a time (UTC): two of one time are told apart."""
    return f"base-{row:020d}-{at.astimezone(UTC).strftime(_TIME)}-{secrets.token_hex(3)}"


def increment_name(after: int, row: int, through: datetime) -> str:
    """The name of an increment: names sort like rows."""
    return f"{after:020d}-{row:020d}-{through.astimezone(UTC).strftime(_TIME)}.json.gz"


async def write_head(place: Place, prefix: str, head: Head) -> None:
    """Says how far a line goes from now on: this ends a step."""
    await place.write(f"{prefix}/{_HEAD}", _closed(head))


async def remove_rest(place: Place, line: Line) -> None:
    """Removes what a step that was killed has left, so that it is never taken for a part of the line."""
    for name in line.rest:
        await place.remove(f"{line.prefix}/{name}")


def is_base_due(line: Line, now: datetime) -> bool:
    """Whether no base of a line is of the last day. One of the future, by a clock that was wrong, does not count."""
    return not any(-LEEWAY <= now - base.at < _BASE_EVERY for base in line.bases)


async def is_whole(place: Place, line: Line) -> bool:
    """Whether the newest base of a line, and all that follows it, is there, as far as names and sizes say."""
    if line.head is None or not line.bases:
        return False
    row = line.bases[-1].row
    for increment in line.increments:
        if increment.row > line.bases[-1].row and increment.after != row:
            return False
        row = max(row, increment.row)
    return row == line.head.row and line.bases[-1].name in await whole_bases(place, line, line.bases[-1:])


def through_of(lines: Sequence[Line]) -> datetime | None:
    """How far the newest line goes; None when there is nothing."""
    for line in reversed(lines):
        if line.bases:
            return line.bases[-1].at if line.head is None else line.head.through
    return None


async def publish_base(place: Place, prefix: str, name: str, folder: Path, head: Head) -> int:
    """Publishes a base that is in a folder, as of the head; how many bytes. The folder may be gone then."""
    files = await in_thread(lambda: [digest_of(path) for path in sorted(folder.iterdir())])
    manifest = _BaseManifest(head=head, files=tuple(files))
    await in_thread(lambda: (folder / LAST).write_bytes(_closed(manifest)))
    await place.publish(folder, f"{prefix}/{name}")
    return sum(file.bytes for file in files)


@asynccontextmanager
async def fetched_base(place: Place, line: Line, base: Base) -> AsyncIterator[tuple[Path, Head]]:
    """The files of a base, compared with their checksums, and the head as of it. Raises BackupDamaged."""
    name = f"{line.prefix}/{base.name}"
    manifest = _opened(await place.read(f"{name}/{LAST}"), _BaseManifest)
    if manifest is None:
        raise BackupDamaged(f"the manifest of {name} in {place.label} was altered or cut short")
    async with place.fetched(name, [file.name for file in manifest.files]) as folder:
        for file in manifest.files:
            if await in_thread(lambda name=file.name: digest_of(folder / name)) != file:  # type: ignore[misc]
                raise BackupDamaged(f"{name}/{file.name} in {place.label} was altered or cut short")
        yield folder, manifest.head


async def whole_bases(place: Place, line: Line, bases: Sequence[Base]) -> Collection[str]:
    """Those of the bases whose files are there in full size; what is in them is not read."""
    whole = set()
    for base in bases:
        manifest = _opened(await place.read(f"{line.prefix}/{base.name}/{LAST}"), _BaseManifest)
        if manifest and all(line.sizes.get(f"{base.name}/{file.name}") == file.bytes for file in manifest.files):
            whole.add(base.name)
    return whole


def _closed(value: Any) -> bytes:
    """JSON, and a line with its checksum: a single bit that changes is found."""
    data = msgspec.json.encode(value)
    return b"%s\n%s\n" % (data, hashlib.sha256(data).hexdigest().encode())


def _opened(data: bytes | None, kind: type[_T]) -> _T | None:
    text, _, checksum = (data or b"").partition(b"\n")
    if checksum != hashlib.sha256(text).hexdigest().encode() + b"\n":
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        return None


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
