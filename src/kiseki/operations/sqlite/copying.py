"""Copies of SQLite files: of one moment, compressed, put back beside the live one, and switched in without a gap.

Used by the drivers of journal, keys and read models. Functions block; they run in threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from kiseki.operations.errors import BackupDamaged, NoRoom, OperationFailed, RestoreRefused

__all__ = [
    "check_sound",
    "copy_pages",
    "explained_full",
    "moment_of",
    "move_file",
    "opened_copy",
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
_ODD_ROWS: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What reading rows ends in when a text is none any more, or a value is missing: SQLite does not look at that."""
_ODD: Final = "a row holds what was never written"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_SHARED_FIRST: Final = 0x40000002
_SHARED_BYTES: Final = 510
"""The bytes that SQLite locks (https://www.sqlite.org/src/file/src/os.h, SHARED_FIRST)."""


@contextmanager
def opened_moment(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees a file as it is at one moment, however it is written meanwhile. Text comes as bytes.

    Writers go on. SQLite can't shorten its log as long as this lasts, so the log grows by what is written.
    Raises OperationFailed, also when rows turn out in the block to hold what nobody wrote.
    """
    if not path.exists():
        raise OperationFailed(f"there is no {path} to copy; check data_dir, or restore it")
    try:
        with closing(_connect(path, "ro")) as connection:
            connection.text_factory = bytes
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it is that moment
            yield connection
    except sqlite3.Error as problem:
        raise OperationFailed(f"{path} can't be copied: {problem}; look at the file and at its disk") from problem
    except _ODD_ROWS as problem:
        raise _damaged(path, _ODD) from problem


def copy_pages(connection: sqlite3.Connection, target: Path) -> None:
    """Copies what a connection sees into a new file (mode 0600), page by page. Raises sqlite3.Error, NoRoom."""
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(_connect(target, "rw")) as copy, explained_full(target.parent):
        copy.execute("PRAGMA synchronous=OFF")  # what is made of it is synced, and a crash leaves it to nobody
        connection.backup(copy)


@contextmanager
def opened_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy that nobody else has, made to need no log; what is deleted is overwritten.

    Text comes as bytes. Raises OperationFailed when what was copied is damaged, NoRoom.
    """
    try:
        with closing(_connect(path, "rw")) as copy, explained_full(path.parent):
            copy.text_factory = bytes
            copy.execute("PRAGMA synchronous=OFF")
            copy.execute("PRAGMA journal_mode=DELETE").fetchone()
            copy.execute("PRAGMA secure_delete=ON").fetchone()
            yield copy
    except sqlite3.Error as problem:
        raise _damaged(path, str(problem)) from problem
    except _ODD_ROWS as problem:
        raise _damaged(path, _ODD) from problem


@contextmanager
def explained_full(folder: Path) -> Iterator[None]:
    """Turns what SQLite says about files of a folder into NoRoom when their disk is full, and OperationFailed when it
    does not write; other errors of SQLite pass."""
    try:
        yield
    except sqlite3.OperationalError as problem:
        code = problem.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise NoRoom(f"the disk of {folder} is full; make room there, and run the same again") from problem
        if code == sqlite3.SQLITE_IOERR:
            raise OperationFailed(
                f"the disk of {folder} does not read or write ({problem.sqlite_errorname}); look at it and its limits, "
                "and run the same again"
            ) from problem
        raise


def check_sound(path: Path) -> None:
    """Raises OperationFailed when SQLite finds something wrong with a file, such as an index that lacks a row."""
    with closing(_connect(path, "ro")) as connection:
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as problem:
            found = str(problem)
    if found != "ok":
        raise _damaged(path, found)


def _damaged(path: Path, what: str) -> OperationFailed:
    # What SQLite finds, it says in several lines.
    return OperationFailed(f"{path.name} is damaged ({' '.join(what.split())}); restore an older backup")


def packed(source: Path, target: Path) -> None:
    """Compresses a file into a new one (mode 0600), and removes the source. Raises OSError.

    The fast way: what is sealed hardly compresses, so that higher levels cost time and save little.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with (
        open(descriptor, "wb") as file,
        source.open("rb") as plain,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed,
    ):
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
        except FileNotFoundError as problem:
            raise BackupDamaged(f"the backup lacks {source.name}; use another one") from problem
        if plain.tell() == 0:  # which SQLite would take for a new database
            raise BackupDamaged(f"{source.name} is damaged or cut short; use another backup")
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

    SQLite takes a file out of write-ahead logging only for its one and only connection. A damaged file can't be asked,
    so its locks are.
    """
    if not path.exists():
        return
    with closing(_connect(path, "rw")) as connection:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        except sqlite3.DatabaseError as problem:
            mode = "damaged" if problem.sqlite_errorcode & 0xFF in _DAMAGED else "busy"
    if mode == "damaged":
        mode = "delete" if _is_unlocked(path) else "busy"
    if mode != "delete":
        raise RestoreRefused(
            f"a process uses {what} ({path}); stop kiseki, then run the same again. Nothing was changed"
        )


def _is_unlocked(path: Path) -> bool:
    """Whether no other process has a database open for write-ahead logging: each holds a shared lock then.

    Not for a file that this process has open: SQLite's locks of it would be lost.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def put_in_place(staged: Path, live: Path, *, now: datetime) -> str:
    """Puts a staged file in the place of the live one, in one step: at no moment is there none. Where the old one is.

    Nobody may use either of them (`refuse_in_use`). Raises OSError.
    """
    kept = _kept_path(live, now)
    was_there = live.exists()
    if was_there:
        _keep(live, kept)
    for suffix in _BESIDE:  # of a damaged or lost file: with another file of its name SQLite would mix it
        beside = Path(f"{live}{suffix}")
        if beside.exists():
            beside.replace(Path(f"{kept}{suffix}"))
    sync_directory(live.parent)
    os.replace(staged, live)
    sync_directory(live.parent)
    return str(kept) if was_there else ""


def _kept_path(live: Path, now: datetime) -> Path:
    """Where the old file goes: to a name that nothing has, so that nothing kept before is lost."""
    name = f"{live.name}.replaced-{now:%Y%m%dT%H%M%SZ}"
    number = 1
    while live.with_name(name if number == 1 else f"{name}-{number}").exists():
        number += 1
    return live.with_name(name if number == 1 else f"{name}-{number}")


def _keep(live: Path, kept: Path) -> None:
    for left in live.parent.glob(f"{live.name}.replaced-*"):
        if left.samefile(live):  # of a run that was killed between the two steps
            left.unlink()
    try:
        kept.hardlink_to(live)
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        _copy_durably(live, kept)


def move_file(source: Path, target: Path) -> None:
    """Moves a file to a new name, mode 0600, also to another disk; there it is durable. Raises OSError."""
    source.chmod(0o600)
    try:
        source.rename(target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        _copy_durably(source, target)
        source.unlink()


def _copy_durably(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy, _CHUNK)
        copy.flush()
        os.fsync(descriptor)


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
