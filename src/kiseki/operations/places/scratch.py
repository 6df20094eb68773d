"""`Scratch`: private folders of this machine, for what is there for a moment.

For the place on S3, whose files go through them, and for the drivers of embedded stores, whose copies are proved there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from kiseki.operations.places.disk import FULL, Disk
from kiseki.operations.places.threads import in_thread
from kiseki.operations.places.unfinished import Workshop

__all__ = ["Scratch"]


class Scratch:
    """Folders under the one for temporary files (TMPDIR), of this user alone. What killed runs left is removed."""

    def __init__(self) -> None:
        self._root = Path(tempfile.gettempdir()) / f"kiseki-{os.geteuid()}"
        self.disk = Disk(str(self._root), remedy="set TMPDIR to another folder")

    @contextlib.asynccontextmanager
    async def folder(self, name: str) -> AsyncIterator[Path]:
        """An empty one, gone at the end. Raises PlaceUnavailable, and NoRoom, also when the block fills the disk."""
        opened = contextlib.ExitStack()
        try:
            with self.disk.explained("make a folder in it"):
                path = await in_thread(lambda: self._begin(opened, name.replace("/", "%")[:100]))
            yield path
        except OSError as problem:  # of whoever fills it
            if problem.errno not in FULL:
                raise
            raise self.disk.explain(problem, f"make {name}") from problem
        finally:
            with self.disk.explained("clear it up"):
                await in_thread(opened.close)

    def _begin(self, opened: contextlib.ExitStack, name: str) -> Path:
        self._root.mkdir(mode=0o700, exist_ok=True)
        info = self._root.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
            # Others may write to where it is, and one of them was there first.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        workshop = Workshop(self._root)
        workshop.sweep(self._root)
        return opened.enter_context(workshop.folder(self._root / name))
