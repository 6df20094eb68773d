"""`Spool`: the local folder that log is received into, on its way to a place. Used by the protection; blocks."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kiseki.operations.disk import explained_room
from kiseki.operations.errors import OperatorBusy
from kiseki.operations.postgres.wal import Segment

__all__ = ["Spool"]

_REMEDY: Final = "make room there"


class Spool:
    """One folder, held by one process."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.folder = self.root / "wal"
        """What pg_receivewal writes to."""
        self._of = self.root / "cluster"
        self._lock: int | None = None

    def hold(self) -> None:
        """Makes it and keeps other processes out; again is fine. Raises OperatorBusy, NoRoom, OperationFailed."""
        if self._lock is not None:
            return
        with explained_room(self.root, _REMEDY):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                os.close(lock)
                raise OperatorBusy(
                    f"another process protects a cluster through {self.root}; end it, or let it go on alone"
                ) from problem
        self._lock = lock

    def let_go(self) -> None:
        """Again is fine."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def is_of(self, system: str, timeline: int) -> bool:
        """Whether what is in it is of this life of a cluster."""
        try:
            return self._of.read_text(encoding="utf-8") == _life(system, timeline)
        except FileNotFoundError:
            return False

    def clear(self, system: str, timeline: int) -> None:
        """Empties it, for this life of a cluster. Raises NoRoom, OperationFailed."""
        with explained_room(self.root, _REMEDY):
            self._of.unlink(missing_ok=True)
            shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700)
            self._of.write_text(_life(system, timeline), encoding="utf-8")

    def files(self, size: int) -> Sequence[tuple[Segment, Path, bool]]:
        """The files of the log in order, and whether each is partial."""
        found = []
        for path in self.folder.iterdir():
            segment = Segment.parse(path.name, size)
            if segment is not None:
                found.append((segment, path, path.suffix == ".partial"))
        return sorted(found)

    def remove(self, path: Path) -> None:
        """A file that the place has."""
        path.unlink(missing_ok=True)


def _life(system: str, timeline: int) -> str:
    return f"{system} {timeline}\n"
