"""One restore of journal and keys, step by step. Used by `restore`, which says in which order and why."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from kiseki.application.context import Application
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backup.port import Progress, StagedJournal, StagedKeys
from kiseki.operations.backup.staged import check_journal, check_keys, discarded_on_failure, subjects_without_keys
from kiseki.operations.backups import Backups
from kiseki.operations.catching_up import BuildsInUse, catch_up, forget_builds, replay_erasures
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupMissing, RestoreHalfDone, RestoreRefused
from kiseki.operations.restore.plan import RestorePlan, RestoreReport
from kiseki.operations.restore.read_models import restore_read_models
from kiseki.operations.restore.sources import journal_source, key_source
from kiseki.operations.sqlite.switching import refuse_in_use
from kiseki.security.key_store import KeyStore
from kiseki.security.master_keys import open_master_keys
from kiseki.security.protector import KeyProtector
from kiseki.service.erasures import open_ledger
from kiseki.service.restore_mark import mark_restore, unmark_restore
from kiseki.service.secrets import vault_of
from kiseki.service.sqlite_stores import DataDirectory
from kiseki.service.store_urls import store_urls
from kiseki.service.stores import Stores, open_read_models

__all__ = ["StoresRestore"]

_WORK: Final = ".restore-"
_BUILD_FILE: Final = re.compile(r"(catalog|[a-z][a-z0-9_]*\.v\d+(\.\d+)?)\.(sqlite|lock)(-wal|-shm|-journal)?")


class StoresRestore:
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
        """Puts read models back where the journal has all they have applied; marked until erasures are in force."""
        data_dir = self._settings.data_dir
        with explained_room(data_dir, "make room there"):
            await asyncio.to_thread(mark_restore, data_dir, msgspec.json.encode(self._plan))
        try:
            done = await restore_read_models(
                self._backups, application, self._plan.identity, self._plan.until, self._progress
            )
        except BaseException:
            # Nothing was changed: the switch is the last that it does.
            await asyncio.to_thread(unmark_restore, data_dir)
            raise
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
            self._settings,
            clock=self._backups.clock,
            telemetry=NoTelemetry(),
            make=self._settings.development,
            restoring=True,
        )
        try:
            if self._plan.catch_up:
                replayed = await replay_erasures(application, self._settings, stores, everything=True)
                self._report.erasures = str(replayed)
                if replayed.parked:
                    self._report.left.append(
                        f"{len(replayed.parked):,} erased streams are parked, so that their rows may be in a read "
                        "model; see `kiseki projection status`"
                    )
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
