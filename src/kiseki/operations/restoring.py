"""`restore`: brings parts of a system back, in the order that loses and mixes nothing. Used by `kiseki backup restore`.

1. Keys and journal are put together beside the live ones, from a backup or from continuous protection, whichever goes
   further; both are read whole, and compared with what is live and with each other.
2. A mark keeps everybody from starting on these stores, and read models are forgotten: what they have applied may be
   what the restored journal does not have.
3. The keys take their place, then the journal, each in one step; its feed begins a new epoch. The mark goes.
4. The ledger of erasures is replayed, and read models are built from the journal.

Read models alone, by name, come from a backup of theirs: see `restoring_read_models`. Step 4 follows.

What is refused before step 2 leaves everything as it was. A run that was killed is made good by the same one again.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.application.context import Application
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.compare import surveyed
from kiseki.operations.backup.manifest import Contents, Part
from kiseki.operations.backup.port import Progress, StagedJournal, StagedKeys
from kiseki.operations.backup.restore import check_journal, check_keys, discarded_on_failure, subjects_without_keys
from kiseki.operations.backups import Backups
from kiseki.operations.catching_up import BuildsInUse, catch_up, forget_builds, replay_erasures
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupMissing, RestoreHalfDone, RestoreRefused
from kiseki.operations.places.port import Place
from kiseki.operations.restoring_read_models import restore_read_models
from kiseki.operations.sources import journal_source, key_source
from kiseki.operations.sqlite.copying import refuse_in_use
from kiseki.operations.sqlite.key_protection import WHAT as KEY_INCREMENTS
from kiseki.operations.sqlite.protection import WHAT as JOURNAL_INCREMENTS
from kiseki.security.key_store import KeyStore
from kiseki.security.master_keys import open_master_keys
from kiseki.security.protector import KeyProtector
from kiseki.service.erasures import open_ledger
from kiseki.service.restore_mark import mark_restore, marked_restore, unmark_restore
from kiseki.service.secrets import vault_of
from kiseki.service.sqlite_stores import DataDirectory
from kiseki.service.store_urls import store_urls
from kiseki.service.stores import Stores, open_read_models

__all__ = ["RestorePlan", "RestoreReport", "restore", "restore_cluster"]


_WORK: Final = ".restore-"
_INCREMENTS: Final = {Part.JOURNAL: JOURNAL_INCREMENTS, Part.KEYS: KEY_INCREMENTS}
_BUILD_FILE: Final = re.compile(r"(catalog|[a-z][a-z0-9_]*\.v\d+(\.\d+)?)\.(sqlite|lock)(-wal|-shm|-journal)?")


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for."""

    parts: frozenset[Part] = frozenset()
    """What to restore; journal and key store, as far as they are lost, when empty. Read models by themselves."""
    identity: str | None = None
    """A backup of the journal, or of the read models; the newest there is, when None."""
    until: datetime | None = None
    """The journal, or the read models, as of a time (UTC)."""
    discard_newer: bool = False
    """What is live and newer may be lost. It is kept aside."""
    put_back_audit: bool = False
    """The audit log too, where there is a backup of it: nobody named what to restore."""
    catch_up: bool = True
    """Builds read models before it is done; otherwise an updater does when it starts."""


class RestoreReport(msgspec.Struct, kw_only=True):
    """What was done."""

    journal_from: str = ""
    journal: Contents | None = None
    journal_kept: str = ""
    lost_commits: int | None = 0
    """Commits that were live and are not restored; None when nobody knows."""
    keys_from: str = ""
    keys_kept: str = ""
    lost_keys: int | None = 0
    people_without_keys: int = 0
    """Whose data in the journal can't be read any more, because their keys are younger than the copy of the keys."""
    read_models_from: str = ""
    builds: int = 0
    """Restored builds of read models."""
    read_models_kept: str = ""
    audit_records: int = 0
    erasures: str = ""
    left: list[str] = []
    """What the operator still has to do, one line each."""
    seconds: float = 0.0


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
        run = _Restore(backups, plan, report, progress)
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
    report.seconds = time.monotonic() - began
    return report


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
            "same, name what to restore: --part journal, --part keys"
        )
    return frozenset(lost)


class _Restore:
    """One run, step by step."""

    def __init__(self, backups: Backups, plan: RestorePlan, report: RestoreReport, progress: Progress) -> None:
        self._backups = backups
        self._settings = backups.settings
        self._plan = plan
        self._report = report
        self._progress = progress

    async def journal_and_keys(self, parts: frozenset[Part]) -> None:
        """Stages, checks, and switches both, or the one that is asked for."""
        async with AsyncExitStack() as opened:
            work = await opened.enter_async_context(_work_folder(self._settings.data_dir))
            keys = journal = None
            if Part.KEYS in parts:
                keys = await self._staged_keys(opened, work / "keys")
            if Part.JOURNAL in parts:
                journal = await self._staged_journal(opened, work / "journal")
            self._progress("comparing journal and keys")
            await self._together(keys, journal)
            await asyncio.to_thread(self._refuse_in_use)
            await self._switch(keys, journal)

    async def _switch(self, keys: StagedKeys | None, journal: StagedJournal | None) -> None:
        """Both take their place. From the mark on nobody starts on these stores before it is done."""
        data_dir = self._settings.data_dir
        with explained_room(data_dir, "make room there"):
            await asyncio.to_thread(mark_restore, data_dir, msgspec.json.encode(self._plan))
        done: list[str] = []
        try:
            self._progress("forgetting read models")
            await self._forget_read_models()
            self._progress("switching")
            if keys is not None:
                switched = await keys.switch()
                done.append(
                    "the keys" + (f" (what was there before is kept: {switched.kept})" if switched.kept else "")
                )
                self._report.keys_kept = switched.kept
                self._report.left += switched.left
            if journal is not None:
                switched = await journal.switch()
                self._report.journal_kept = switched.kept
                self._report.left += switched.left
        except BaseException as problem:
            if not done:
                await asyncio.to_thread(unmark_restore, data_dir)
                raise
            if not isinstance(problem, KisekiError):
                raise
            raise RestoreHalfDone(
                f"{' and '.join(done)} took their place, and the journal did not: {_cause(problem)}. Run the same "
                "again before anything is started"
            ) from problem
        await asyncio.to_thread(unmark_restore, data_dir)

    def _refuse_in_use(self) -> None:
        """Before anything is changed: nobody uses any of the embedded files. Other stores look for themselves."""
        live, urls = self._backups.live, store_urls(self._settings)
        files = [(urls.journal, live.journal_file, "the journal"), (urls.keys, live.key_file, "the key store")]
        files += [(urls.read_model, path, "a read model") for path in sorted(live.read_models_folder.glob("*.sqlite"))]
        for url, path, what in files:
            if url.embedded:
                refuse_in_use(path, what=what)

    async def read_models(self, application: Application) -> None:
        """Puts read models back where the journal has all that they have applied."""
        done = await restore_read_models(
            self._backups, application, self._plan.identity, self._plan.until, self._progress
        )
        self._report.read_models_from, self._report.builds = done.source, done.builds
        self._report.read_models_kept = done.kept
        self._report.left += done.left

    async def put_back_audit(self) -> None:
        """Puts back what the audit log lacks, where there is a backup of it. Nobody asked: it is no failure if not."""
        if Part.AUDIT not in self._backups.parts:
            return
        try:
            self._report.audit_records = await self._backups.put_back_audit(self._progress)
        except BackupMissing:
            pass  # there was never one
        except KisekiError as problem:
            self._report.left.append(f"the audit log is not put back: {problem}")

    async def bring_into_force(self, application: Application) -> None:
        """Erasures, then read models, on the restored stores."""
        self._progress("replaying erasures")
        stores = await Stores.open(
            self._settings, clock=self._backups.clock, telemetry=NoTelemetry(), make=self._settings.development
        )
        try:
            if self._plan.catch_up:
                replayed = await replay_erasures(application, self._settings, stores, everything=True)
                self._report.erasures = str(replayed)
                self._progress("building read models")
                if not await catch_up(application, application.projections, self._settings, stores):
                    self._report.left.append("a process runs a projection already; see `kiseki projection status`")
            else:
                self._report.erasures = "replayed by the first process that starts, before it serves"
        finally:
            await stores.close()

    async def _staged_keys(self, opened: AsyncExitStack, work: Path) -> StagedKeys:
        only_keys = Part.JOURNAL not in self._plan.parts
        source = await key_source(self._backups, self._plan.identity if only_keys else None)
        self._report.keys_from = source.name
        keys = await opened.enter_async_context(source.staged(work, self._progress))
        opened.push_async_exit(discarded_on_failure(keys))
        self._report.lost_keys = await check_keys(
            keys, live=self._backups.live.keys, discard_newer=self._plan.discard_newer
        )
        return keys

    async def _staged_journal(self, opened: AsyncExitStack, work: Path) -> StagedJournal:
        source = await journal_source(self._backups, self._plan.identity, self._plan.until)
        self._report.journal_from = source.name
        journal = await opened.enter_async_context(source.staged(work, self._progress))
        opened.push_async_exit(discarded_on_failure(journal))
        checked = await check_journal(
            journal,
            name=source.name,
            wanted=journal.contents,
            live=self._backups.live.journal,
            discard_newer=self._plan.discard_newer,
            progress=self._progress,
        )
        self._report.journal, self._report.lost_commits = checked.contents, checked.lost_commits
        return journal

    async def _together(self, keys: StagedKeys | None, journal: StagedJournal | None) -> None:
        """Raises RestoreRefused when keys, journal, master key and ledger do not fit: nothing could be served then."""
        async with AsyncExitStack() as opened:
            key_store: KeyStore | None = await opened.enter_async_context(
                self._backups.live.keys() if keys is None else keys.opened()
            )
            if key_store is None:
                raise RestoreRefused(
                    "there is no key store, and no journal can be read without one; restore it too: --part keys"
                )
            master_keys = await open_master_keys(
                self._settings.master_key,
                previous=self._settings.master_keys_previous,
                default=DataDirectory(self._settings.data_dir).master_key,
                vault=vault_of(self._settings),
                make=False,
            )
            opened.push_async_callback(master_keys.close)
            protector = await KeyProtector.open(store=key_store, wrapper=master_keys, clock=self._backups.clock, ttl=0)
            ledger = await open_ledger(
                self._settings.erasure_ledger,
                self._settings.data_dir,
                digests=protector.digests,
                clock=self._backups.clock,
                secrets=self._backups.secrets,
                begin=self._settings.development,
            )
            await ledger.close()
            there = await opened.enter_async_context(
                self._backups.live.journal() if journal is None else journal.opened()
            )
            if there is None:
                return
            people, without = await subjects_without_keys(there, key_store)
            if people and without == people:
                raise RestoreRefused(
                    "the key store knows nobody of whom this journal has data: they do not belong together; check "
                    "where `keys` and `backup_keys` lead"
                )
            self._report.people_without_keys = without
            if without:
                self._report.left.append(
                    f"of {without:,} people there is data in the journal and no key, so that it can't be read: the "
                    "keys are of an older copy than the journal; look for a newer one before you start kiseki"
                )

    async def _forget_read_models(self) -> None:
        """They are built anew: what they applied may be what the restored journal lacks."""
        url = store_urls(self._settings).read_model
        try:
            read_models = await open_read_models(self._settings, self._backups.secrets)
            try:
                await forget_builds(read_models.builds)
            finally:
                await read_models.close()
        except BuildsInUse:
            raise
        except KisekiError:
            if not url.embedded:
                raise
            # Damaged files can't be asked to forget. Nobody uses them: that was looked at before.
            await asyncio.to_thread(_remove_builds, self._backups.live.read_models_folder)


def _remove_builds(folder: Path) -> None:
    """Removes the files of read models from a folder, and nothing else that somebody keeps there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _BUILD_FILE.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def _cause(problem: KisekiError) -> str:
    return str(problem).removesuffix(". Nothing was changed")


@asynccontextmanager
async def _work_folder(data_dir: Path) -> AsyncIterator[Path]:
    """An empty folder on the disk of the data directory, gone at the end."""

    def make() -> Path:
        with explained_room(data_dir, "make room there, and see that this account may write it"):
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of runs that were killed: whoever restores now is the only one. They may hold keys of people.
            for left in data_dir.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix=_WORK, dir=data_dir))
            for name in ("keys", "journal"):
                (folder / name).mkdir()
            return folder

    folder = await asyncio.to_thread(make)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
