"""Parts that tests of the audit log share: sinks in memory, and logs in files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kiseki.application.system import SystemClock
from kiseki.kernel.ports import AuditEvent, Clock
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.line_files import LineFiles
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.record import AuditRecord, SealedRecord, read_line
from kiseki.security.audit.sink import SinkFailed
from kiseki.security.audit.verify import AuditReport, verify_log

SECRET = b"0123456789abcdef-of-the-audit-log"
KEYS = AuditKeys(AuditKey(SECRET))
NOW = datetime(2030, 1, 1, tzinfo=UTC)
"""Later than any record of a test."""


def refused(**fields: Any) -> AuditEvent:
    """An event."""
    return AuditEvent(**{"kind": "access.denied", "outcome": "refused", "code": "FORBIDDEN", **fields})


class MemorySink:
    """A sink that remembers, and that a test can break or hold."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.lines: list[bytes] = []
        self.synced = 0
        self.syncs = 0
        self.is_broken = False
        self.gate: asyncio.Event | None = None
        self.closed = False

    async def latest(self) -> bytes | None:
        return None

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.is_broken:
            raise SinkFailed(f"the sink {self.name} is broken")
        self.lines += [record.line for record in records]
        if durable:
            self.syncs += 1
            self.synced = len(self.lines)

    async def close(self) -> None:
        self.closed = True

    def records(self) -> list[AuditRecord]:
        return [read_line(line, KEYS) for line in self.lines]

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records()]


async def memory_log(*sinks: MemorySink, clock: Clock | None = None, **settings: Any) -> AuditLog:
    return await AuditLog.open(
        keys=KEYS,
        writer=new_writer(),
        sinks=sinks,
        clock=clock or SystemClock(),
        settings=AuditLogSettings(**settings),
    )


async def file_log(
    root: Path,
    *,
    keys: AuditKeys = KEYS,
    anchored: bool = True,
    rotate_bytes: int = 1 << 20,
    clock: Clock | None = None,
    **settings: Any,
) -> AuditLog:
    """A log in `root/audit` with anchors in `root/anchors`."""
    writer = new_writer()
    return await AuditLog.open(
        keys=keys,
        writer=writer,
        sinks=[await FileSink.open(root / "audit", writer=writer, rotate_bytes=rotate_bytes)],
        clock=clock or SystemClock(),
        anchors=FileAnchors(root / "anchors") if anchored else None,
        settings=AuditLogSettings(**settings),
    )


async def write_log(root: Path, count: int, **options: Any) -> AuditLog:
    """A log of `count` records between its start and its end, closed."""
    log = await file_log(root, **options)
    await asyncio.gather(*(log.record(refused(target=f"UserAccount-{number}")) for number in range(count)))
    await log.close()
    return log


async def verified(root: Path, *, keys: AuditKeys = KEYS, anchored: bool = True, **options: Any) -> AuditReport:
    return await verify_log(
        LineFiles(root / "audit", prefix="audit"),
        keys=keys,
        now=NOW,
        anchors=FileAnchors(root / "anchors") if anchored else None,
        **options,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
