"""A process with an audit log of its own in a directory.

    audit_process.py DIRECTORY RECORDERS

Prints `ready WRITER`, then the target of each record once it is durable, one for each of RECORDERS at a time, until it
is killed or its input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.file_sink import FileSink
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer


async def main(root: Path, recorders: int) -> None:
    writer = new_writer()
    log = await AuditLog.open(
        keys=AuditKeys(AuditKey.load_or_create(root / "audit.key")),
        writer=writer,
        sinks=[await FileSink.open(root / "audit", writer=writer, rotate_bytes=50_000)],
        clock=SystemClock(),
        anchors=FileAnchors(root / "anchors"),
        settings=AuditLogSettings(anchor_interval=0.05),
    )
    print("ready", writer, flush=True)
    numbers = iter(range(1_000_000_000))
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

    async def record() -> None:
        while not over.done():
            target = f"record-{next(numbers)}"
            log.note(AuditEvent(kind="access.denied", outcome="refused", actor=target))
            await log.record(AuditEvent(kind="admin.test", outcome="done", target=target))
            print(target, flush=True)

    await asyncio.gather(*(record() for _ in range(recorders)))
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
