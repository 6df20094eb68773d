"""Restored SQLite files take the place of the live ones: put together beside them, and switched in without a gap.

Used by the drivers of journal, keys and read models. Functions block; they run in threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from kiseki.journal.sqlite.connection import Busy, WriteLock
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import OperationFailed, RestoreRefused
from kiseki.operations.sqlite.copying import connect, copy_durably, sync_directory

__all__ = ["held_for_switch", "put_in_place", "refuse_in_use", "remove_database", "staged_path"]

_LOCK_SECONDS: Final = 10.0
_BESIDE: Final = ("-wal", "-shm", "-journal")
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_SHARED_FIRST: Final = 0x40000002
_SHARED_BYTES: Final = 510
"""The bytes that SQLite locks (https://www.sqlite.org/src/file/src/os.h, SHARED_FIRST)."""


def staged_path(live: Path, identity: str) -> Path:
    """Where something is put together beside a live file; what an earlier run that was killed left is removed.

    Raises RestoreRefused for a live path that is a link to a folder that is not there, OSError.
    """
    live = _followed(live)
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
    with closing(connect(path, "rw")) as connection:
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


@contextmanager
def held_for_switch(live: Path, *, what: str) -> Iterator[None]:
    """Whoever opens a live file in the block waits for its end, and then meets the restored one.

    Raises RestoreRefused when a process holds its lock for long, OperationFailed.
    """
    try:
        lock = WriteLock(live.with_name(live.name + ".lock"))
    except OSError as problem:
        raise OperationFailed(f"{live} can't be locked: {problem.strerror}") from problem
    try:
        with lock.held(time.monotonic() + _LOCK_SECONDS), explained_room(live.parent, "make room there"):
            yield
    except Busy:
        raise RestoreRefused(
            f"a process writes to {what} ({live}); stop kiseki, then run the same again. Nothing was changed"
        ) from None
    finally:
        lock.close()


def put_in_place(staged: Path, live: Path, *, now: datetime) -> str:
    """Puts a staged file in the place of the live one, in one step: at no moment is there none. Where the old one is,
    with what belongs to it.

    Nobody may use either of them (`refuse_in_use`), or open the live one meanwhile (`held_for_switch`). Raises OSError.
    """
    live = _followed(live)
    kept = _kept_path(live, now)
    files = []
    if live.exists():
        _keep(live, kept)
        files.append(str(kept))
    for suffix in _BESIDE:  # of a damaged or lost file: with another file of its name SQLite would mix it
        beside = Path(f"{live}{suffix}")
        if beside.exists():
            beside.replace(Path(f"{kept}{suffix}"))
            files.append(f"{kept}{suffix}")
    sync_directory(live.parent)
    os.replace(staged, live)
    sync_directory(live.parent)
    Path(f"{staged}.lock").unlink(missing_ok=True)
    return ", ".join(files)


def _followed(live: Path) -> Path:
    """The file that a live path leads to: behind a link it is replaced where it is, on its disk, and the link stays."""
    if not live.is_symlink():
        return live
    target = Path(os.path.realpath(live))
    if not target.parent.is_dir():
        raise RestoreRefused(
            f"{live} leads to {target}, whose folder is not there; mount its disk, or remove {live}, then run the same "
            "again. Nothing was changed"
        )
    return target


def _kept_path(live: Path, now: datetime) -> Path:
    """Where the old file goes: to a name that nothing has, so that nothing kept before is lost."""
    name = f"{live.name}.replaced-{now:%Y%m%dT%H%M%SZ}"
    number = 1
    while os.path.lexists(live.with_name(name if number == 1 else f"{name}-{number}")):
        number += 1
    return live.with_name(name if number == 1 else f"{name}-{number}")


def _keep(live: Path, kept: Path) -> None:
    for left in live.parent.glob(f"{live.name}.replaced-*"):
        if left.exists() and left.samefile(live):  # of a run that was killed between the two steps
            left.unlink()
    try:
        kept.hardlink_to(live)
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        copy_durably(live, kept)


def remove_database(path: Path) -> None:
    """Removes a file with everything that SQLite, or a lock of ours, has beside it; again is fine."""
    for suffix in ("", *_BESIDE, ".lock"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
