"""`LineFiles`: the files of audit records or anchors in a directory, as a LineSource. Used by whoever reads them.

A writer's files are `<prefix>-<writer>.jsonl`, then `<prefix>-<writer>.0002.jsonl` and so on. Also what tells a
log that starts which record was the last one here.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from kiseki.kernel.errors import KisekiError
from kiseki.security.audit.record import LONGEST_LINE
from kiseki.security.audit.sink import SourceLine

__all__ = ["LineFiles", "LinesUnreadable", "file_name"]

_PAGE: Final = 500
_LONGEST: Final = 4 * LONGEST_LINE
_WRITER: Final = "[0-9A-HJKMNP-TV-Z]{26}"


class LinesUnreadable(KisekiError):
    """Audit files can't be read."""

    code = "AUDIT_UNREADABLE"


def file_name(prefix: str, writer: str, segment: int) -> str:
    """The name of a writer's file; segments count from 1."""
    return f"{prefix}-{writer}.jsonl" if segment == 1 else f"{prefix}-{writer}.{segment:04d}.jsonl"


class LineFiles:
    """Reads a directory. Blocking, for tools; every line is read in bounded memory."""

    def __init__(self, directory: Path, *, prefix: str) -> None:
        self.directory = directory
        self._name = re.compile(rf"{prefix}-({_WRITER})(?:\.([0-9]{{4,9}}))?\.jsonl")

    async def writers(self) -> Sequence[str]:
        """As LineSource. Raises LinesUnreadable."""
        return sorted({writer for writer, _, _ in self._files()})

    def recent_writers(self, most: int) -> Sequence[str]:
        """Those whose files changed last, of those that wrote anything. Raises LinesUnreadable."""
        changed: dict[str, int] = {}
        for writer, _, entry in self._files():
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # it went meanwhile
            if about.st_size:
                changed[writer] = max(changed.get(writer, 0), about.st_mtime_ns)
        return sorted(changed, key=lambda writer: changed[writer], reverse=True)[:most]

    async def recent(self, most: int) -> Sequence[str]:
        """As LineSource. Raises LinesUnreadable."""
        return await asyncio.to_thread(self.recent_writers, most)

    async def lines(self, writer: str, after: int = 0) -> AsyncIterator[Sequence[SourceLine]]:
        """As LineSource: reads from the start. Raises LinesUnreadable."""
        for path in self.paths(writer):
            for page in _pages(path):
                yield page

    async def first(self, writer: str) -> SourceLine | None:
        """As LineSource. Raises LinesUnreadable."""
        for path in self.paths(writer):
            for page in _pages(path, page=1):
                return page[0]
        return None

    async def newest(self, writer: str, most: int) -> Sequence[SourceLine]:
        """As LineSource. Raises LinesUnreadable."""
        found: list[SourceLine] = []
        for path in reversed(self.paths(writer)):
            found = [*_last_lines(path, most - len(found)), *found]
            if len(found) >= most:
                break
        return found

    async def close(self) -> None:
        """As LineSource: nothing is held."""

    def newest_in(self, path: Path, most: int) -> list[SourceLine]:
        """The last lines of one file. Raises LinesUnreadable."""
        return _last_lines(path, most)

    def paths(self, writer: str) -> list[Path]:
        """The writer's files, oldest first. Raises LinesUnreadable."""
        mine = sorted((segment, entry.path) for found, segment, entry in self._files() if found == writer)
        return [Path(path) for _, path in mine]

    def next_segment(self, writer: str) -> int:
        """The number of the writer's next file. Older ones may have been moved away. Raises LinesUnreadable."""
        return max((segment for found, segment, _ in self._files() if found == writer), default=0) + 1

    def _files(self) -> Iterator[tuple[str, int, os.DirEntry[str]]]:
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    match = self._name.fullmatch(entry.name)
                    if match:
                        yield match[1], int(match[2] or 1), entry
        except FileNotFoundError:
            return
        except OSError as problem:
            raise LinesUnreadable(f"{self.directory} can't be read: {problem.strerror}") from problem


def _open(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except OSError as problem:
        raise LinesUnreadable(f"{path} can't be read: {problem.strerror}") from problem


def _pages(path: Path, page: int = _PAGE) -> Iterator[list[SourceLine]]:
    lines: list[SourceLine] = []
    with _open(path) as file:
        number = 0
        try:
            while line := file.readline(_LONGEST):
                number += 1
                lines.append(_line(line, f"{path.name} line {number}"))
                while len(line) == _LONGEST and not line.endswith(b"\n"):
                    line = file.readline(_LONGEST)  # the rest of something that is no record
                if len(lines) == page:
                    yield lines
                    lines = []
        except OSError as problem:
            raise LinesUnreadable(f"{path} can't be read: {problem.strerror}") from problem
    if lines:
        yield lines


def _last_lines(path: Path, most: int) -> list[SourceLine]:
    with _open(path) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - (most + 1) * (LONGEST_LINE + 1))
            file.seek(start)
            *lines, torn = file.read(size - start).split(b"\n")
        except OSError as problem:
            raise LinesUnreadable(f"{path} can't be read: {problem.strerror}") from problem
    if start and lines:
        del lines[0]
    found = [SourceLine(line, path.name) for line in lines[-most:]] if most > 0 else []
    return [*found, _line(torn, path.name)] if torn else found


def _line(line: bytes, where: str) -> SourceLine:
    # What is longer than any record was never the beginning of one.
    torn = not line.endswith(b"\n") and len(line) <= LONGEST_LINE
    return SourceLine(line.removesuffix(b"\n"), where, torn=torn)
