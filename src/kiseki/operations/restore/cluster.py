"""A whole PostgreSQL cluster from base backup and write-ahead log. Used by `kiseki backup restore --cluster`."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import Progress
from kiseki.operations.backup.staged import discarded_on_failure
from kiseki.operations.backups import Backups
from kiseki.operations.errors import RestoreRefused
from kiseki.operations.restore.plan import RestoreReport

__all__ = ["restore_cluster"]


async def restore_cluster(backups: Backups, folder: Path, until: datetime | None, progress: Progress) -> RestoreReport:
    """Puts a whole PostgreSQL cluster together from continuous protection, in an empty folder, and reads its journal.

    The live one is not touched; what is left to do is in the report.
    Raises RestoreRefused, BackupMissing, BackupDamaged, ToolMissing, NoRoom.
    """
    began = time.monotonic()
    protection = backups.journal_protection()
    if protection is None or backups.is_embedded:
        raise RestoreRefused(
            "a cluster is recovered from the continuous protection of PostgreSQL; set journal to postgresql://…, "
            "backup to its place and backup_base to true"
        )
    await asyncio.to_thread(folder.mkdir, mode=0o711, parents=True, exist_ok=True)
    if await asyncio.to_thread(lambda: any(folder.iterdir())):
        raise RestoreRefused(f"{folder} is not empty; a cluster is put together in an empty folder")
    report = RestoreReport(journal_from="continuous protection")
    async with backups.place(Part.JOURNAL).lock("restore.lock"), AsyncExitStack() as opened:
        journal = await protection.recover(folder, progress, until=until)
        opened.push_async_exit(discarded_on_failure(journal))
        async with journal.opened() as there, surveyed(there, "the recovered cluster", progress) as survey:
            report.journal = survey.contents
        switched = await journal.switch()
    report.journal_kept, report.left = switched.kept, list(switched.left)
    report.seconds = time.monotonic() - began
    return report
