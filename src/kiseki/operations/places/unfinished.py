"""`Workshop`: files and folders that are being made, hidden beside their target, and gone if their maker was killed.

Each is locked (flock) by its maker for as long as it is being made; the lock ends with the process, so what is not
locked was left behind. Used by the place that is a folder, and for the local folders in which things are made for S3.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Workshop", "discard", "hidden_path"]

_HIDDEN: Final = re.compile(r"\..+\.part-[0-9a-f]{16}")
_LOCK: Final = "lock"
_FILES: Final = "files"
_SECTION: Final = ".making.lock"


class Workshop:
    """The unfinished things under one folder. Everything here blocks and raises OSError."""

    def __init__(self, root: Path) -> None:
        """`root` exists when something is made."""
        self._root = root

    @contextlib.contextmanager
    def section(self) -> Iterator[None]:
        """One process at a time begins, finishes or looks for leftovers; for moments, so that waiting is fine."""
        descriptor = os.open(self._root / _SECTION, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def folder(self, target: Path) -> Iterator[Path]:
        """An empty private folder, beside its target. What is in it at the end is removed."""
        outer = hidden_path(target)
        try:
            with self.section():
                outer.mkdir(mode=0o700)
                descriptor = _locked(outer / _LOCK)
            try:
                inner = outer / _FILES
                inner.mkdir(mode=0o700)
                yield inner
            finally:
                # Removed while it is still locked: nobody else meets the half of it.
                discard(outer)
                os.close(descriptor)
        except BaseException:
            discard(outer)
            raise

    @contextlib.contextmanager
    def file(self, target: Path) -> Iterator[tuple[Path, int]]:
        """A new private file beside its target, and its descriptor; removed at the end unless it was renamed."""
        path = hidden_path(target)
        with self.section():
            descriptor = _locked(path)
        try:
            yield path, descriptor
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def sweep(self, folder: Path) -> None:
        """Removes what killed makers left directly in a folder."""
        with contextlib.ExitStack() as held:
            with self.section():
                left = [path for path in _unfinished_in(folder) if _is_left(path, held)]
            for path in left:
                discard(path)


def hidden_path(target: Path) -> Path:
    """A path beside the target that is never used again, and that users of a place do not see."""
    return target.with_name(f".{target.name}.part-{secrets.token_hex(8)}")


def discard(path: Path) -> None:
    """Removes a file or a folder with all that is in it; again is fine, and so is another who does the same."""
    while True:
        try:
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            if os.path.lexists(path):  # another removed something inside at the same moment
                continue
        return


def _unfinished_in(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if _HIDDEN.fullmatch(name)]


def _is_left(path: Path, held: contextlib.ExitStack) -> bool:
    """Whether its maker is gone. Then it is locked here, until `held` ends."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            return True  # kiseki makes nothing else
        lock = path / _LOCK if stat.S_ISDIR(mode) else path
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # a folder and its lock are made in one section
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(path: Path) -> int:
    """The descriptor of a new file, locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor
