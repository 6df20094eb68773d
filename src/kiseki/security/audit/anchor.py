"""Anchors: what a writer says in another place about its log, so that a log that was cut or lost is noticed there.

Each writer anchors its newest durable record, chained and with MACs of their own, and names the other writers that it
sees in that place. Used by the log; `FileAnchors` keeps them in another directory.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kiseki.security.audit.append_file import AppendFailed, AppendFile, make_directory
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.line_files import LineFiles, file_name
from kiseki.security.audit.record import FIRST_PREVIOUS, Head, KeyUnknown, RecordProblem, line_of, split_line, when
from kiseki.security.audit.sink import SinkFailed

__all__ = ["ANCHORS", "Anchor", "AnchorChain", "FileAnchors", "read_anchor"]

ANCHORS: Final = "anchors"
"""How the names of these files begin."""

FORMAT: Final = 1


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An anchor as it is stored."""

    v: int
    key: str
    writer: str
    index: int
    """1, 2, 3 … of this writer, without gaps."""
    at: datetime
    number: int
    """Of the newest record then."""
    head: str
    """Its MAC."""
    writers: tuple[str, ...] = ()
    """Other writers that anchored last, when that changed."""
    previous: str
    mac: str


class _Pending(NamedTuple):
    line: bytes
    mac: str
    number: int
    named: tuple[str, ...]


class AnchorChain:
    """Makes the anchors of one writer."""

    def __init__(self, key: AuditKey, writer: str) -> None:
        self._key = key
        self._writer = writer
        self.index = 0
        self.number = 0
        """The number of the newest record that is anchored."""
        self._pending: _Pending | None = None
        self._previous = FIRST_PREVIOUS
        self._named: tuple[str, ...] = ()

    def next(self, head: Head, *, at: datetime, writers: Sequence[str]) -> bytes:
        """The line of the next anchor. Until it is `stored` the same line again: its storing may have been in doubt."""
        if self._pending is None:
            named = tuple(sorted(writers))
            fields: dict[str, object] = {
                "v": FORMAT,
                "key": self._key.id,
                "writer": self._writer,
                "index": self.index + 1,
                "at": when(at),
                "number": head.number,
                "head": head.mac,
                **({"writers": named} if named != self._named else {}),
                "previous": self._previous,
            }
            body = msgspec.json.encode(fields)[:-1]
            mac = self._key.of_anchor(body)
            self._pending = _Pending(line_of(body, mac), mac, head.number, named)
        return self._pending.line

    @property
    def next_number(self) -> int:
        """The number that the line of `next` anchors."""
        return self._pending.number if self._pending else 0

    def stored(self) -> None:
        """The line of `next` is stored."""
        if self._pending is not None:
            self.index += 1
            self.number = self._pending.number
            self._previous = self._pending.mac
            self._named = self._pending.named
            self._pending = None


def read_anchor(line: bytes, keys: AuditKeys) -> Anchor:
    """The anchor of a line, which is authentic. Raises RecordProblem."""
    body, mac = split_line(line)
    key = keys.get(body[14:30].decode("ascii", "replace")) if body.startswith(b'{"v":1,"key":"') else None
    if key is None:
        raise KeyUnknown("it was written with a key that is not here, or altered")
    if not hmac.compare_digest(key.of_anchor(body).encode(), mac):
        raise RecordProblem("it was altered, or forged")
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError as problem:
        raise RecordProblem("it is of a release that this one can't read") from problem


class FileAnchors(LineFiles):
    """Anchors in a directory (an AnchorStore): best one that another account or another machine keeps."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, prefix=ANCHORS)
        self.name = f"the anchors in {directory}"
        self._thread: ThreadPoolExecutor | None = None
        self._file: AppendFile | None = None
        self._segment = 0

    async def add(self, line: bytes, *, writer: str, index: int, at: datetime) -> None:
        """As AnchorStore."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="kiseki-anchors")
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._add, line, writer)
        except AppendFailed as problem:
            raise SinkFailed(f"{self.name} can't be written: {problem.reason}") from problem
        except OSError as problem:
            raise SinkFailed(f"{self.name} can't be written: {problem.strerror or type(problem).__name__}") from problem

    async def close(self) -> None:
        """As AnchorStore."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _add(self, line: bytes, writer: str) -> None:
        make_directory(self.directory)
        while self._file is None:
            self._segment += 1
            try:
                self._file = AppendFile(self.directory / file_name(ANCHORS, writer, self._segment))
            except FileExistsError:
                continue
        try:
            self._file.append(line + b"\n", durable=True)
        except AppendFailed:
            if not self._file.usable:
                self._file.abandon()
                self._file = None
            raise


_decoder: Final = msgspec.json.Decoder(Anchor)
