"""Compares the guards of two builds of a projection version, before one of them takes over from the other.

Used by `builds`. Blocking.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from kiseki.projection.port import BuildName
from kiseki.query.sqlite.files import connect, error_name, is_environment, unavailable
from kiseki.query.tables import COMPARED_AT_MOST

__all__ = ["streams_behind"]

_log = logging.getLogger(__name__)
_PASSING: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM})
"""Codes of what says nothing of the files."""
_AHEAD: Final = """
    SELECT replaced.stream, replaced.sequence_number
    FROM replaced.kiseki_guards AS replaced LEFT JOIN main.kiseki_guards AS candidate USING (stream)
    WHERE replaced.sequence_number > coalesce(candidate.sequence_number, 0)
    ORDER BY replaced.stream LIMIT ?
"""


@contextmanager
def streams_behind(
    candidate: Path, replaced: Path, name: BuildName, *, busy_timeout: float
) -> Iterator[dict[str, int]]:
    """The first streams, by name, of which the build `replaced` has applied more, and how far it is.

    Nobody writes to either before the end of the block. Nothing when `replaced`, whose name is given, is damaged or
    gone: then it answers no query either. Raises Unavailable when it can't be compared now.
    """
    try:
        connection = connect(candidate, busy_timeout=busy_timeout, sync="NORMAL")
    except (sqlite3.Error, OSError) as problem:
        raise unavailable(f"the read model {name}", problem) from problem
    with closing(connection):
        try:
            connection.execute("ATTACH DATABASE ? AS replaced", (f"{replaced.as_uri()}?mode=rw",))
            connection.execute("BEGIN IMMEDIATE")
            behind = dict(connection.execute(_AHEAD, (COMPARED_AT_MOST,)).fetchall())
        except sqlite3.Error as problem:
            if is_environment(problem) and problem.sqlite_errorcode & 0xFF in _PASSING:
                raise unavailable(f"the read model {name}", problem) from problem
            _log.warning("%s can't be compared with: %s", name, error_name(problem) or type(problem).__name__)
            behind = {}
        yield behind
