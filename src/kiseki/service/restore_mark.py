"""The mark of a restore that is between its two switches: nothing may start on the stores of a data directory then.

Set by a restore, looked at by whoever opens the stores. A restore that was killed leaves it, and the next one goes on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kiseki.kernel.errors import KisekiError

__all__ = ["RestorePending", "mark_restore", "marked_restore", "refuse_pending_restore", "unmark_restore"]

_NAME: Final = "restore.pending"


class RestorePending(KisekiError):
    """A restore is under way, or was killed: keys and journal may be of different times."""

    code = "RESTORE_PENDING"


def mark_restore(data_dir: Path, plan: bytes) -> None:
    """Sets the mark, durable when this returns; `plan` is for the next run. Blocks; raises OSError."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / _NAME
    part = data_dir / f".{_NAME}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)
    _sync(data_dir)


def marked_restore(data_dir: Path) -> bytes | None:
    """The plan of a restore that is not done; None when there is none. Blocks; raises OSError."""
    try:
        return (data_dir / _NAME).read_bytes()
    except FileNotFoundError:
        return None


def unmark_restore(data_dir: Path) -> None:
    """Takes the mark away, durable when this returns; again is fine. Blocks; raises OSError."""
    try:
        (data_dir / _NAME).unlink()
    except FileNotFoundError:
        return
    _sync(data_dir)


def refuse_pending_restore(data_dir: Path) -> None:
    """Raises RestorePending when a restore is not done. Blocks."""
    if (data_dir / _NAME).exists():
        raise RestorePending(
            f"a restore of {data_dir} is under way, or was ended before it was done; wait for it, or run "
            "`kiseki backup restore` again, which goes on"
        )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
