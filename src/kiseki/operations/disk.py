"""Full disks and other troubles with local files, as one line for an operator. Used where this room writes files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kiseki.operations.errors import NoRoom, OperationFailed

__all__ = ["explained_room", "file_problem"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def explained_room(folder: Path, remedy: str) -> Iterator[None]:
    """Turns what the system says about files of a folder into NoRoom or OperationFailed, with what to do."""
    try:
        yield
    except OSError as problem:
        raise file_problem(problem, folder, remedy) from problem


def file_problem(problem: OSError, folder: Path, remedy: str) -> OperationFailed:
    """The error of one that the system raised."""
    if problem.errno in _FULL:
        return NoRoom(f"the disk of {folder} is full; {remedy}, and run the same again")
    return OperationFailed(f"{folder} can't be used: {(problem.strerror or type(problem).__name__).lower()}; {remedy}")
