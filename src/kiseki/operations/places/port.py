"""The port `Place`: where backups are kept. Names are relative, parts separated by `/`; one thing appears whole or not.

Used by everything that makes, reads or removes backups.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol

__all__ = ["LAST", "Place", "Stored"]

LAST: Final = "manifest.json"
"""The file of a published folder that is written last: what has none was never finished."""


class Stored(NamedTuple):
    """One thing in a place."""

    name: str
    size: int
    """Bytes."""
    changed_at: datetime
    """UTC, by the clock of the place."""


class Place(Protocol):
    """A folder or a bucket. Every method raises PlaceUnavailable, one line that says what to do, and NoRoom."""

    label: str
    """What messages call it; holds no secret."""

    def workspace(self, name: str) -> AbstractAsyncContextManager[Path]:
        """An empty local folder in which a thing is made that will be published under this name; gone at the end.

        Private (mode 0700). What an earlier run that was killed left of the same kind is removed.
        """
        ...

    async def publish(self, folder: Path, name: str) -> None:
        """Puts all files of a folder (flat) under a name, `LAST` last; durable when this returns. The folder may be
        gone then. Raises OperationFailed when there is one of that name."""
        ...

    def fetched(self, name: str, files: Sequence[str]) -> AbstractAsyncContextManager[Path]:
        """A local folder that holds these files of a published folder, to be read only. Raises BackupDamaged when one
        is not there."""
        ...

    async def read(self, name: str) -> bytes | None:
        """A small file; None when there is none."""
        ...

    async def write(self, name: str, data: bytes) -> None:
        """Writes a small file, or replaces it; durable when this returns."""
        ...

    async def put(self, name: str, source: Path) -> None:
        """Puts one file under a name, or replaces it, durable when this returns; `source` stays."""
        ...

    async def names(self, prefix: str = "") -> Sequence[Stored]:
        """Everything whose name begins so, by name; unfinished things are left out."""
        ...

    async def remove(self, name: str) -> None:
        """Removes a file, or everything under a name, `LAST` first; again is fine."""
        ...

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """Keeps a second operator out for the time of the block, on any machine that uses the place.

        A holder that was killed does not keep others out for longer than five minutes. Raises OperatorBusy at once.
        """
        ...

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        ...
