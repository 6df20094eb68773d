"""Copies of SQLite files: of one moment, compressed, put back beside the live one, and switched in without a gap.

Used by the drivers of journal, keys and read models. Functions block; they run in threads.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sqlite3
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, OperationFailed, RestoreRefused

__all__ = [
    "check_sound",
    "copy_whole",
    "moment_of",
    "opened_moment",
    "packed",
    "put_in_place",
    "refuse_in_use",
    "remove_database",
    "staged_path",
    "sync_directory",
    "unpacked",
]

_CHUNK: Final = 1 << 20
_BUSY_SECONDS: Final = 5.0
_BESIDE: Final = ("-wal", "-shm", "-journal")
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@contextmanager
def opened_moment(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees a file as it is at one moment, however it is written meanwhile. Text comes as bytes.

    Writers go on. SQLite can't shorten its log as long as this lasts, so the log grows by what is written.
    Raises OperationFailed.
    """
    try:
        with closing(_connect(path, "ro")) as connection:
            connection.text_factory = bytes
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it is that moment
            yield connection
    except sqlite3.Error as problem:
        raise OperationFailed(f"{path} can't be copied: {problem}; run `kiseki journal verify`") from problem


def copy_whole(connection: sqlite3.Connection, target: Path, *, without: str = "") -> None:
    """Copies what the connection sees into a new file (mode 0600), which needs no log. `without`: DELETE statements.

    Raises sqlite3.Error, OSError.
    """
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(_connect(target, "rw")) as copy:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()
        copy.execute("PRAGMA secure_delete=ON").fetchone()
        if without:
            copy.executescript(without)
    check_sound(target)


def check_sound(path: Path) -> None:
    """Raises OperationFailed when SQLite finds something wrong with a file, such as an index that lacks a row."""
    with closing(_connect(path, "ro")) as connection:
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as problem:
            found = str(problem)
    if found != "ok":
        raise OperationFailed(f"{path.name} is damaged ({found}); restore an older backup")


def packed(source: Path, target: Path) -> None:
    """Compresses a file, the fast way: the pages of a journal shrink to a fifth. Removes the source. Raises OSError."""
    with source.open("rb") as plain, gzip.GzipFile(target, "wb", compresslevel=1, mtime=0) as compressed:
        shutil.copyfileobj(plain, compressed, _CHUNK)
    source.unlink()


def unpacked(source: Path, target: Path) -> None:
    """Decompresses into a new file (mode 0600), durable when this returns. Raises BackupDamaged, NoRoom."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as plain, explained_room(target.parent, "make room there"):
        try:
            with gzip.open(source, "rb") as compressed:
                shutil.copyfileobj(compressed, plain, _CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise BackupDamaged(f"{source.name} is damaged or cut short; use another backup") from problem
        plain.flush()
        os.fsync(descriptor)


def staged_path(live: Path, identity: str) -> Path:
    """Where something is put together beside a live file; what an earlier run that was killed left is removed."""
    prefix = f"{live.name}.restored-"
    if live.parent.is_dir():
        for path in live.parent.iterdir():
            if path.name.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
    live.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return live.with_name(prefix + identity)


def refuse_in_use(path: Path, *, what: str) -> None:
    """Raises RestoreRefused when any process has a file open, and leaves the file without a log.

    SQLite takes a file out of write-ahead logging only for its one and only connection. A damaged file can't be asked;
    nobody can use it either.
    """
    if not path.exists():
        return
    with closing(_connect(path, "rw")) as connection:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        except sqlite3.DatabaseError as problem:
            if problem.sqlite_errorcode & 0xFF in _DAMAGED:
                return
            mode = "busy"
    if mode != "delete":
        raise RestoreRefused(
            f"a process uses {what} ({path}); stop kiseki, then run the same again. Nothing was changed"
        )


def put_in_place(staged: Path, live: Path, *, now: datetime) -> str:
    """Puts a staged file in the place of the live one, in one step: at no moment is there none. Where the old one is.

    Nobody may use either of them (`refuse_in_use`). Raises OSError.
    """
    kept = live.with_name(f"{live.name}.replaced-{now:%Y%m%dT%H%M%SZ}")
    was_there = live.exists()
    if was_there:
        kept.unlink(missing_ok=True)
        kept.hardlink_to(live)
        for suffix in _BESIDE:  # of a damaged file, or empty
            beside = Path(f"{live}{suffix}")
            if beside.exists():
                beside.replace(Path(f"{kept}{suffix}"))
        sync_directory(live.parent)
    else:
        for suffix in _BESIDE:
            Path(f"{live}{suffix}").unlink(missing_ok=True)
    os.replace(staged, live)
    sync_directory(live.parent)
    return str(kept) if was_there else ""


def remove_database(path: Path) -> None:
    """Removes a file with everything that SQLite, or a lock of ours, has beside it; again is fine."""
    for suffix in ("", *_BESIDE, ".lock"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def moment_of(text: bytes) -> datetime:
    """A time as a journal stores it."""
    return datetime.fromisoformat(text.decode())


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(os.fspath(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False)
