"""Copies of SQLite files: of one moment, compressed, and decompressed again.

Used by the drivers of journal, keys and read models. Functions block; they run in threads.
"""

from __future__ import annotations

import errno
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
from kiseki.operations.errors import BackupDamaged, NoRoom, OperationFailed

__all__ = [
    "check_sound",
    "connect",
    "copy_durably",
    "copy_pages",
    "explained_full",
    "moment_of",
    "move_file",
    "opened_copy",
    "opened_moment",
    "packed",
    "sync_directory",
    "unpacked",
]

_CHUNK: Final = 1 << 20
_BUSY_SECONDS: Final = 5.0
_ODD_ROWS: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What reading rows ends in when a text is none any more, or a value is missing: SQLite does not look at that."""
_ODD: Final = "a row holds what was never written"


@contextmanager
def opened_moment(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees a file as it is at one moment, however it is written meanwhile. Text comes as bytes.

    Writers go on. SQLite can't shorten its log as long as this lasts, so the log grows by what is written.
    Raises OperationFailed, also when rows turn out in the block to hold what nobody wrote.
    """
    if not path.exists():
        raise OperationFailed(f"there is no {path} to copy; check data_dir, or restore it")
    try:
        with closing(connect(path, "ro")) as connection:
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
    with closing(connect(target, "rw")) as copy, explained_full(target.parent):
        copy.execute("PRAGMA synchronous=OFF")  # what is made of it is synced, and a crash leaves it to nobody
        connection.backup(copy)


@contextmanager
def opened_copy(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy that nobody else has, made to need no log; what is deleted is overwritten.

    Text comes as bytes. Raises OperationFailed when what was copied is damaged, NoRoom.
    """
    try:
        with closing(connect(path, "rw")) as copy, explained_full(path.parent):
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
    with closing(connect(path, "ro")) as connection:
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


def move_file(source: Path, target: Path) -> None:
    """Moves a file to a new name, mode 0600, also to another disk; there it is durable. Raises OSError."""
    source.chmod(0o600)
    try:
        source.rename(target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        copy_durably(source, target)
        source.unlink()


def copy_durably(source: Path, target: Path) -> None:
    """Copies a file to a new one, mode 0600. Raises OSError."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy, _CHUNK)
        copy.flush()
        os.fsync(descriptor)


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


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to a file that is there, `ro` or `rw`. Raises sqlite3.Error."""
    address = f"file:{urllib.parse.quote(os.fspath(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False)
