"""The trace: one ordered list of everything that was done to the watched directory.

The format is written by ``shim.c``, which also argues why its order can be trusted. Python writes
it in two places only: ``acknowledge`` for a test that is itself the client, and hand-made traces.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

ACK: Final = "ACK"
"""Lines written to this file of the watched directory are marks, not data: no image contains it."""

_HEADER: Final = struct.Struct("<4sHHHHIIIQqQ")
_MAGIC: Final = b"PCT1"


class TraceError(Exception):
    """The trace cannot be replayed faithfully, so no conclusion may be drawn from it."""


class Operation(IntEnum):
    """What happened; the numbers are those of ``shim.c``."""

    START = 1
    CREATE = 2
    WRITE = 3
    TRUNCATE = 4
    ALLOCATE = 5
    SYNC_BEGIN = 6
    SYNC_END = 7
    UNLINK = 8
    RENAME = 9
    LINK = 10
    MKDIR = 11
    RMDIR = 12
    OPAQUE = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One completed call. ``path`` and ``other`` are relative to the watched directory."""

    operation: Operation
    path: str = ""
    other: str = ""
    argument: int = 0
    process: int = 0
    thread: int = 0
    inode: int = 0
    offset: int = 0
    length: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Trace:
    """All records of one or more runs, and what the directory held before the first."""

    records: Sequence[Record]
    base: Path | None = None

    def __len__(self) -> int:
        """The number of records; a cut at ``len(trace)`` comes after the last one."""
        return len(self.records)


def base_of(trace: Path) -> Path:
    """Where the contents of the directory before the first run are kept, if it had any."""
    return trace.with_name(trace.name + ".base")


def load_trace(path: Path) -> Trace:
    """Read a trace. A last record cut short by a killed process is left out.

    Raises:
        TraceError: a record in the middle is damaged, or the file is not a trace.
    """
    content = path.read_bytes()
    records: list[Record] = []
    position = 0
    while position + _HEADER.size <= len(content):
        (
            magic,
            operation,
            path_length,
            other_length,
            _,
            argument,
            process,
            thread,
            inode,
            offset,
            length,
        ) = _HEADER.unpack_from(content, position)
        if magic != _MAGIC:
            raise TraceError(
                f"no record at byte {position} of {path}: expected {_MAGIC!r}, found {magic!r}",
            )
        position += _HEADER.size
        carried = length if operation == Operation.WRITE else 0
        end = position + path_length + other_length + carried
        if end > len(content):
            break
        other_at = position + path_length
        data_at = other_at + other_length
        records.append(
            Record(
                operation=Operation(operation),
                path=os.fsdecode(content[position:other_at]),
                other=os.fsdecode(content[other_at:data_at]),
                argument=argument,
                process=process,
                thread=thread,
                inode=inode,
                offset=offset,
                length=length,
                data=content[data_at:end],
            )
        )
        position = end
    base = base_of(path)
    return Trace(records, base if base.is_dir() else None)


def encode(record: Record) -> bytes:
    """The bytes of one record, as ``shim.c`` would append them."""
    path, other = os.fsencode(record.path), os.fsencode(record.other)
    length = len(record.data) if record.operation is Operation.WRITE else record.length
    header = _HEADER.pack(
        _MAGIC,
        record.operation,
        len(path),
        len(other),
        0,
        record.argument,
        record.process,
        record.thread,
        record.inode,
        record.offset,
        length,
    )
    return header + path + other + record.data


def acknowledge(trace: Path, text: str) -> None:
    """Put a mark into the trace from a process that is not under the shim (the client of a server).

    Call it after the reply has arrived: the sync behind the reply is then in the trace already.
    """
    line = encode(
        Record(operation=Operation.WRITE, path=ACK, process=os.getpid(), data=f"{text}\n".encode()),
    )
    descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.write(descriptor, line) != len(line):
            raise TraceError(f"the mark {text!r} was cut short in {trace}")
    finally:
        os.close(descriptor)


def choose_cuts(trace: Trace, count: int, *, seed: int) -> list[int]:
    """``count`` sorted cut points: half of them right after a mark, the others anywhere.

    Right after a mark is where a promise is youngest, so a missing sync shows there first.
    """
    chooser = random.Random(f"cuts:{seed}")
    after_marks = [
        index + 1
        for index, record in enumerate(trace.records)
        if record.operation is Operation.WRITE and record.path == ACK
    ]
    marks = chooser.sample(after_marks, min(count // 2, len(after_marks)))
    anywhere = [index for index in range(len(trace) + 1) if index not in set(marks)]
    return sorted(marks + chooser.sample(anywhere, min(count - len(marks), len(anywhere))))
