"""`StdoutSink`: audit records on standard output, for CloudWatch and its like.

Each line is `{"audit":<record>}`, so that a filter (`{ $.audit.kind = * }`) finds records among whatever else is
printed there, and the record inside keeps every byte that its MAC covers. Logs go to standard error.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Sequence
from typing import Final

from kiseki.security.audit.record import SealedRecord
from kiseki.security.audit.sink import SinkFailed

__all__ = ["StdoutSink", "unwrapped"]

_BEFORE: Final = b'{"audit":'
_AFTER: Final = b"}"


def unwrapped(line: bytes) -> bytes:
    """The record in a line as it was printed; the line itself when it is one."""
    if line.startswith(_BEFORE) and line.endswith(_AFTER):
        return line[len(_BEFORE) : -len(_AFTER)]
    return line


class StdoutSink:
    """Prints (an AuditSink). Durable is what its reader makes of it: here it means handed over."""

    name = "stdout"

    def __init__(self, descriptor: int = 1, *, timeout: float = 5.0) -> None:
        """`timeout`: seconds to wait for a reader that does not read."""
        self._descriptor = descriptor
        self._timeout = timeout
        self._lock = threading.Lock()

    async def latest(self) -> bytes | None:
        """As AuditSink: what was printed can't be read."""
        return None

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        """As AuditSink."""
        if records:
            await asyncio.to_thread(self._write, records)

    async def close(self) -> None:
        """As AuditSink: nothing to release."""

    def _write(self, records: Sequence[SealedRecord]) -> None:
        with self._lock:
            for written, record in enumerate(records):
                try:
                    self._print(b"%b%b%b\n" % (_BEFORE, record.line, _AFTER))
                except OSError as problem:
                    raise SinkFailed(
                        "the audit log on standard output can't be written: "
                        f"{(problem.strerror or type(problem).__name__).lower()}",
                        written=written,
                    ) from problem

    def _print(self, line: bytes) -> None:
        """One write for each line: a pipe takes this much at once or not at all, so other processes never cut in."""
        while line:
            if not select.select([], [self._descriptor], [], self._timeout)[1]:
                raise TimeoutError(0, "its reader does not read")
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                continue
