"""Puts an embedded journal together from its bases and increments. Used by the protection of journals."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import urllib.parse
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final

from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Contents
from kiseki.operations.backup.port import Progress
from kiseki.operations.errors import BackupDamaged, BackupMissing
from kiseki.operations.places.port import Place
from kiseki.operations.sqlite.copying import unpacked
from kiseki.operations.sqlite.increments import IncrementHeader, apply_increment, read_header
from kiseki.operations.sqlite.journal import SqliteStagedJournal
from kiseki.operations.sqlite.lines import Base, Line, fetched_base, read_lines

__all__ = ["JOURNAL_FILE", "recovered_journal"]

JOURNAL_FILE: Final = "journal.db.gz"
_AT_ONCE: Final = 200
_CLAIMS: Final = "SELECT count(*) FROM claims"


async def recovered_journal(
    place: Place,
    what: str,
    live: Path,
    work: Path,
    *,
    clock: Clock,
    until: datetime | None,
    progress: Progress,
) -> SqliteStagedJournal:
    """The newest journal that a place has, or that of the last copy before a time (UTC), staged beside the live one.

    Raises BackupMissing, BackupDamaged, NoRoom, PlaceUnavailable.
    """
    line, base = _chosen(await read_lines(place, what), until, place.label)
    following = line.after(base, whole=until is None)
    plain = work / "journal.db"
    async with fetched_base(place, line.prefix, base) as (folder, contents):
        progress("unpacking")
        await asyncio.to_thread(unpacked, folder / JOURNAL_FILE, plain)
    previous: str | None = None
    applied: IncrementHeader | None = None
    for start in range(0, len(following), _AT_ONCE):
        names = [increment.name for increment in following[start : start + _AT_ONCE]]
        progress(f"applying, {start:,} of {len(following):,} increments")
        async with place.fetched(line.prefix, names) as folder:
            headers = await asyncio.to_thread(_headers, folder, names, previous, until)
            await asyncio.to_thread(_apply, plain, folder, names[: len(headers)])
            if headers:
                applied, previous = headers[-1]
            if len(headers) < len(names):
                break
    if until is None:
        if following and previous != line.head.last_sha256:
            raise BackupDamaged(f"{line.prefix} does not end as it should; go back to a time before, with --until")
        contents = line.head.contents
    elif applied is not None:
        contents = None
    await asyncio.to_thread(_refuse_other_claims, plain, contents)

    def put(path: Path) -> None:
        plain.chmod(0o600)
        plain.replace(path)

    return await SqliteStagedJournal.made(live, f"{clock.now():%Y%m%dT%H%M%S}", put, contents=contents, clock=clock)


def _chosen(lines: Sequence[Line], until: datetime | None, label: str) -> tuple[Line, Base]:
    """The line and base to begin with. Raises BackupMissing."""
    at = None if until is None else f"{until:%Y%m%dT%H%M%S}"
    for line in reversed(lines):
        fitting = [base for base in line.bases if at is None or base.at <= at]
        if fitting:
            return line, fitting[-1]
    when = "" if until is None else f" of before {until:%Y-%m-%d %H:%M:%S} UTC"
    raise BackupMissing(f"{label} has no copy of the journal{when}; `kiseki backup list` shows what there is")


def _headers(
    folder: Path, names: Sequence[str], previous: str | None, until: datetime | None
) -> list[tuple[IncrementHeader, str]]:
    """The headers, with checksums, of those that are to be applied: whole steps of before a time."""
    found: list[tuple[IncrementHeader, str]] = []
    whole = 0
    for name in names:
        header = read_header(folder / name)
        if until is not None and header.through > until:
            break
        if previous is not None and header.previous != previous:
            raise BackupDamaged(
                f"{name} does not follow what is before it: one was altered; go back to a time before, with --until"
            )
        with (folder / name).open("rb") as file:
            previous = hashlib.file_digest(file, "sha256").hexdigest()
        found.append((header, previous))
        if header.final:
            whole = len(found)
    return found if until is None else found[:whole]


def _apply(path: Path, folder: Path, names: Sequence[str]) -> None:
    address = f"file:{urllib.parse.quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as connection:
        # Nobody has it yet: it is synced once, when it gets its place.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")
        try:
            for name in names:
                connection.execute("BEGIN")
                apply_increment(connection, folder / name)
                connection.execute("COMMIT")
        except sqlite3.IntegrityError as problem:
            raise BackupDamaged(
                f"{name} does not fit to what is before it ({problem}); go back to a time before"
            ) from problem
        connection.execute("PRAGMA journal_mode=DELETE")


def _refuse_other_claims(path: Path, contents: Contents | None) -> None:
    if contents is None:
        return
    with closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True)) as connection:
        (claims,) = connection.execute(_CLAIMS).fetchone()
    if claims != contents.claims:
        raise BackupDamaged(
            f"what was put together has {claims:,} claims and should have {contents.claims:,}; restore a backup, or go "
            "back to a time before"
        )
