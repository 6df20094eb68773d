"""`restore`: brings parts of a system back, in the order that loses and mixes nothing. Used by `kiseki backup restore`.

1. Keys and journal are put together beside the live ones, from a backup or from continuous protection, whichever goes
   further; both are read whole, and compared with what is live and with each other.
2. A mark keeps everybody from starting on these stores, and read models are forgotten: what they have applied may be
   what the restored journal does not have.
3. The keys take their place, then the journal, each in one step; its feed begins a new epoch. The mark goes.
4. The ledger of erasures is replayed, and read models are built from the journal.

Read models alone, by name, come from a backup of theirs: see `read_models`. Step 4 follows.

What is refused before step 2 leaves everything as it was. A run that was killed is made good by the same one again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from kiseki.application.context import Application
from kiseki.kernel.errors import KisekiError
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import Progress
from kiseki.operations.backups import Backups
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import RestoreRefused
from kiseki.operations.places.port import Place
from kiseki.operations.restore.plan import RestorePlan, RestoreReport
from kiseki.operations.restore.stores import StoresRestore
from kiseki.operations.sqlite.key_protection import WHAT as KEY_INCREMENTS
from kiseki.operations.sqlite.protection import WHAT as JOURNAL_INCREMENTS
from kiseki.service.restore_mark import marked_restore, unmark_restore

__all__ = ["restore"]


_INCREMENTS: Final = {Part.JOURNAL: JOURNAL_INCREMENTS, Part.KEYS: KEY_INCREMENTS}


async def restore(backups: Backups, application: Application, plan: RestorePlan, progress: Progress) -> RestoreReport:
    """Carries a plan out.

    Raises RestoreRefused, BackupMissing, BackupDamaged, OperatorBusy, NoRoom, Unavailable. Before the first switch
    nothing was changed then; later, the same again goes on.
    """
    began = time.monotonic()
    report = RestoreReport()
    plan = await asyncio.to_thread(_resumed, backups.settings.data_dir, plan)
    _refuse_mixed(plan)
    async with AsyncExitStack() as locked:
        for place, name in _locks(backups):
            await locked.enter_async_context(place.lock(name))
        parts = plan.parts or await _lost(backups)
        plan = msgspec.structs.replace(plan, parts=parts, put_back_audit=not plan.parts or plan.put_back_audit)
        run = StoresRestore(backups, plan, report, progress)
        if parts & {Part.JOURNAL, Part.KEYS}:
            await run.journal_and_keys(parts)
        if Part.AUDIT in parts:
            report.audit_records = await backups.put_back_audit(progress)
        elif plan.put_back_audit:
            await run.put_back_audit()
        if Part.READ_MODELS in parts:
            await run.read_models(application)
        if parts & {Part.JOURNAL, Part.KEYS, Part.READ_MODELS}:
            await run.bring_into_force(application)
        # Of read models it stays until here: somebody who was erased may be in what was put back.
        await asyncio.to_thread(unmark_restore, backups.settings.data_dir)
    report.seconds = time.monotonic() - began
    return report


def _resumed(data_dir: Path, plan: RestorePlan) -> RestorePlan:
    """The plan, or that of a run that was ended between its switches, when nothing else is asked for."""
    with explained_room(data_dir, "see that this account may read it"):
        data = marked_restore(data_dir)
    if data is None or plan.parts or plan.identity is not None or plan.until is not None:
        return plan
    return msgspec.json.decode(data, type=RestorePlan)


def _locks(backups: Backups) -> Iterator[tuple[Place, str]]:
    """What keeps others away: another restore, and whoever copies what is just being replaced."""
    known = [part for part in (Part.JOURNAL, Part.KEYS, Part.READ_MODELS) if part in backups.parts]
    yield backups.place(known[0] if known else Part.KEYS), "restore.lock"
    for part in known:
        if part is not Part.READ_MODELS:
            yield backups.place(part), f"{part}.lock"
            if backups.is_embedded:
                yield backups.place(part), f"{_INCREMENTS[part]}.lock"


def _refuse_mixed(plan: RestorePlan) -> None:
    if plan.identity is not None and plan.until is not None:
        raise RestoreRefused("a backup is of one time: name its id, or a time with --until, and not both")
    if Part.READ_MODELS not in plan.parts:
        return
    if plan.parts & {Part.JOURNAL, Part.KEYS}:
        raise RestoreRefused(
            "read models are built anew from a journal that is restored, and can't be restored with it or its keys; "
            "leave --part read-models out"
        )
    if not plan.catch_up:
        raise RestoreRefused(
            "restored read models may hold people who were erased since, so they are brought up to the journal before "
            "anything is served; leave --no-catch-up out"
        )


async def _lost(backups: Backups) -> frozenset[Part]:
    """Which of journal and key store are not there, or can't be read."""
    lost = set()
    for part, opened in ((Part.JOURNAL, backups.live.journal), (Part.KEYS, backups.live.keys)):
        try:
            async with opened() as store:
                if store is None:
                    lost.add(part)
        except KisekiError:
            lost.add(part)
    if not lost:
        raise RestoreRefused(
            "journal and key store are there and can be read, so nothing was changed; to go back to a backup all the "
            "same, name what to restore: --part journal, --part keys; or --part audit, --part read-models"
        )
    return frozenset(lost)
