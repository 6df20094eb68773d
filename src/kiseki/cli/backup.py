"""`kiseki backup create | list | verify | prune | restore | protect`: copies of the stores, and the way back."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from kiseki.application.system import SystemClock
from kiseki.cli.applications import load_application
from kiseki.cli.audit import moment
from kiseki.cli.journal import settings_of
from kiseki.cli.opened import operator
from kiseki.cli.output import people_table, print_table
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AuditEvent, AuditUnavailable
from kiseki.operations.backup.catalog import Listed
from kiseki.operations.backup.manifest import Manifest, Part
from kiseki.operations.backups import Backups
from kiseki.operations.errors import BackupMissing, BackupRefused
from kiseki.operations.protect.forever import protect as protect_forever
from kiseki.operations.restore.cluster import restore_cluster
from kiseki.operations.restore.plan import RestorePlan, RestoreReport
from kiseki.operations.restore.run import restore as carry_out
from kiseki.security.audit.log import AuditLog
from kiseki.security.masking import Masker
from kiseki.service.audit import open_audit
from kiseki.service.logging import configure_logging
from kiseki.service.masks import masking_of
from kiseki.service.settings import Settings
from kiseki.service.sqlite_stores import DataDirectory
from kiseki.service.store_urls import StoreKind, store_urls
from kiseki.service.stores import uses_data_directory

__all__ = ["create", "list_", "protect", "prune", "restore", "verify"]

T = TypeVar("T")


def create(parts: Sequence[str], *, config: Path | None, data_dir: Path | None, json: bool) -> int:
    """Makes a backup of each part and proves it; 1 when one of them failed, after trying the others."""

    async def work(backups: Backups, audit: AuditLog | None, tell: Callable[[str], None]) -> int:
        failed = False
        for part in _parts(backups, parts):
            try:
                manifest, verification = await backups.create(part, tell)
            except KisekiError as problem:
                failed = True
                await _record(audit, _event("backup.created", "failed", str(part), _code(problem)))
                _complain(f"{part}: {problem}")
                continue
            await _record(audit, _event("backup.created", "done", f"{part}/{manifest.id}"))
            if json:
                print(_json({**_plain(manifest), "verified": verification.found}))
            else:
                print(f"{part}: made {manifest.id} ({_size(manifest)}) and verified it: {verification.found}")
        return 1 if failed else 0

    return _run(settings_of(config, data_dir), work)


def list_(*, config: Path | None, data_dir: Path | None, json: bool) -> int:
    """Prints what there is, oldest first."""

    async def work(backups: Backups, tell: Callable[[str], None]) -> int:
        listed = [one for part in backups.parts for one in await backups.catalog(part).list(part)]
        if json:
            print(_json([_listed(one) for one in listed]))
            return 0
        table = people_table("Backups", "part", "id", "as of (UTC)", "size", "holds", "state")
        for one in listed:
            made = one.manifest.made if one.manifest is not None else None
            table.add_row(
                str(one.part),
                one.id,
                "" if made is None else f"{made.as_of:%Y-%m-%d %H:%M:%S}",
                _bytes(one.bytes),
                "" if one.manifest is None else _holds(one.manifest),
                _state(one),
            )
        print_table(table)
        for protection in backups.protections():
            through = await protection.through()
            print(
                f"continuous protection of {protection.name}: "
                + ("none yet" if through is None else f"up to {through:%Y-%m-%d %H:%M:%S} UTC")
            )
        return 0

    return _run_unaudited(settings_of(config, data_dir), work)


def verify(
    identity: str | None,
    parts: Sequence[str],
    *,
    everything: bool,
    config: Path | None,
    data_dir: Path | None,
    json: bool,
) -> int:
    """Restores backups into a throw-away place and compares them; 1 when one is not sound, after trying the others."""

    async def work(backups: Backups, tell: Callable[[str], None]) -> int:
        failed = False
        for manifest in await _chosen(backups, identity, parts, everything=everything):
            try:
                verification = await backups.verify(manifest, tell)
            except KisekiError as problem:
                failed = True
                _complain(f"{manifest.part}: {problem}")
                if json:
                    print(_json({"part": manifest.part, "id": manifest.id, "sound": False, "found": str(problem)}))
                continue
            if json:
                print(_json({"part": manifest.part, "id": manifest.id, "sound": True, "found": verification.found}))
            else:
                print(f"{manifest.part}: {manifest.id} is sound: {verification.found}")
        return 1 if failed else 0

    return _run_unaudited(settings_of(config, data_dir), work)


def prune(parts: Sequence[str], *, config: Path | None, data_dir: Path | None, json: bool) -> int:
    """Removes old backups; 1 when something is left to do."""

    async def work(backups: Backups, audit: AuditLog | None, tell: Callable[[str], None]) -> int:
        warned = False
        for part in _parts(backups, parts):
            pruned = await backups.prune(part, tell)
            if pruned.removed:
                await _record(audit, _event("backup.removed", "done", str(part), detail=", ".join(pruned.removed)))
            if json:
                print(
                    _json({"part": part, "removed": pruned.removed, "kept": pruned.kept, "warnings": pruned.warnings})
                )
            else:
                print(f"{part}: {len(pruned.removed)} removed, {pruned.kept} kept ({backups.days(part):g} days)")
            for warning in pruned.warnings:
                warned = True
                _complain(warning)
        for protection in backups.protections():
            count = await protection.prune(SystemClock().now())
            if not json:
                print(f"continuous protection of {protection.name}: {count} removed")
        return 1 if warned else 0

    return _run(settings_of(config, data_dir), work)


def restore(
    identity: str | None,
    parts: Sequence[str],
    *,
    application: str | None,
    until: str | None,
    discard_newer: bool,
    writers_stopped: bool,
    catch_up: bool,
    cluster: Path | None,
    config: Path | None,
    data_dir: Path | None,
    json: bool,
) -> int:
    """Brings parts back. Raises RestoreRefused, BackupMissing, BackupDamaged and what keeps it from being done."""
    loaded = load_application(application)
    settings = settings_of(config, data_dir)

    async def work(backups: Backups, audit: AuditLog | None, tell: Callable[[str], None]) -> int:
        plan = RestorePlan(
            parts=frozenset(_parts(backups, parts)) if parts else frozenset(),
            identity=identity,
            until=moment(until),
            discard_newer=discard_newer,
            catch_up=catch_up,
        )
        await _record(audit, _event("restore.started", "done", ",".join(sorted(plan.parts)) or "what is lost"))
        try:
            if cluster is None:
                report = await carry_out(backups, loaded, plan, tell)
            else:
                report = await restore_cluster(backups, cluster, plan.until, tell)
        except BaseException as problem:
            await _record(audit, _event("restore.done", "failed", "", _code(problem)))
            raise
        await _record(
            audit, _event("restore.done", "done", report.journal_from or report.keys_from or report.read_models_from)
        )
        if json:
            print(_json(report))
        else:
            _tell_restored(report)
        for line in report.left:
            _complain(f"left to you: {line}")
        return 0

    return _run(settings, work, writers_stopped=writers_stopped)


def protect(*, once: bool, config: Path | None, data_dir: Path | None) -> int:
    """Copies what is new again and again until SIGTERM; with `once` one time. 1 when the last copy failed."""
    settings = settings_of(config, data_dir)
    configure_logging(
        level=settings.log_level, log_format=settings.log_format, role="protection", masker=masking_of(settings)
    )

    async def work(backups: Backups, _tell: Callable[[str], None]) -> int:
        protections = backups.protections()
        if not protections:
            raise BackupRefused(_why_nothing(settings))
        return await protect_forever(protections, interval=settings.protection_interval, once=once)

    return _run_unaudited(settings, work)


def _tell_restored(report: RestoreReport) -> None:
    if report.journal is not None:
        newest = report.journal.newest
        print(
            f"journal: restored from {report.journal_from}: {report.journal.commits:,} commits, "
            f"{report.journal.events:,} events"
            + ("" if newest is None else f", the newest of {newest:%Y-%m-%d %H:%M:%S} UTC")
        )
        if report.lost_commits:
            print(f"  {report.lost_commits:,} newer commits of the live journal are not in it")
        if report.journal_kept:
            print(f"  what was there before is kept: {report.journal_kept}")
    if report.keys_from:
        print(f"keys: restored from {report.keys_from}")
        if report.keys_kept:
            print(f"  what was there before is kept: {report.keys_kept}; remove it within 7 days")
    if report.read_models_from:
        print(f"read models: restored from {report.read_models_from}: {report.builds:,} builds")
        if report.read_models_kept:
            print(f"  what was there before is kept: {report.read_models_kept}; remove it within 7 days")
    if report.people_without_keys:
        print(f"  of {report.people_without_keys:,} people there is data in the journal and no key: it can't be read")
    if report.audit_records:
        print(f"audit: {report.audit_records:,} records are there")
    if report.erasures:
        print(f"erasures: {report.erasures}")
    print(f"done in {report.seconds:,.1f} s" + ("" if report.left else "; start kiseki"))


def _why_nothing(settings: Settings) -> str:
    """Why nothing can be copied all the time, and what to do."""
    if not settings.backup and not settings.backup_keys:
        return (
            "neither `backup` nor `backup_keys` is set, so there is no place to copy to; set them to folders or to "
            "s3://bucket/prefix?region=eu-west-1"
        )
    if store_urls(settings).journal.kind is StoreKind.DYNAMODB:
        return "DynamoDB is protected by its own point-in-time recovery, which `kiseki backup create` switches on"
    return (
        "a PostgreSQL cluster is protected by base backups and its write-ahead log; set `backup_base` to true, and let "
        "the role of the journal replicate"
    )


def _parts(backups: Backups, named: Sequence[str]) -> list[Part]:
    if named:
        return [Part(name) for name in dict.fromkeys(named)]
    if not backups.parts:
        raise BackupRefused(
            "no place for backups is named; set `backup` and `backup_keys` to folders or to "
            "s3://bucket/prefix?region=eu-west-1"
        )
    return list(backups.parts)


async def _chosen(
    backups: Backups, identity: str | None, parts: Sequence[str], *, everything: bool
) -> Sequence[Manifest]:
    """The backups to verify: the one of an id, all, or the newest of each part."""
    found: list[Manifest] = []
    for part in _parts(backups, parts):
        listed = await backups.catalog(part).list(part)
        whole = [one.manifest for one in listed if one.manifest is not None]
        if identity is not None:
            found += [manifest for manifest in whole if manifest.id == identity]
        else:
            found += whole if everything else whole[-1:]
    if not found:
        what = "there is no backup" if identity is None else f"there is no whole backup {identity}"
        raise BackupMissing(f"{what}; see `kiseki backup list`")
    return found


def _run(
    settings: Settings,
    work: Callable[[Backups, AuditLog | None, Callable[[str], None]], Awaitable[T]],
    *,
    writers_stopped: bool = False,
) -> T:
    """Runs a piece of work that is recorded in the audit log."""

    async def audited(backups: Backups, tell: Callable[[str], None]) -> T:
        audit = await _opened_audit(settings, backups)
        try:
            return await work(backups, audit, tell)
        finally:
            if audit is not None:
                await audit.close()

    return _run_unaudited(settings, audited, writers_stopped=writers_stopped)


def _run_unaudited(
    settings: Settings,
    work: Callable[[Backups, Callable[[str], None]], Awaitable[T]],
    *,
    writers_stopped: bool = False,
) -> T:
    console = Console(stderr=True)

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is one
        # So that what was begun is cleared away; `protect` has its own way to end.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with Backups.opened(settings, writers_stopped=writers_stopped) as backups:
            if not console.is_terminal:
                return await work(backups, lambda _: None)
            with console.status("") as status:
                return await work(backups, status.update)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _opened_audit(settings: Settings, backups: Backups) -> AuditLog | None:
    """In a disaster the audit log may be gone too: that must not keep anybody from recovering."""
    try:
        if uses_data_directory(settings):
            await asyncio.to_thread(DataDirectory(settings.data_dir).prepare)
        return await open_audit(settings, secrets=backups.secrets, clock=SystemClock(), masker=Masker())
    except KisekiError as problem:
        _complain(f"what is done is not recorded in the audit log: {problem}")
        return None


async def _record(audit: AuditLog | None, event: AuditEvent) -> None:
    if audit is None:
        return
    try:
        await audit.record(event)
    except AuditUnavailable as problem:
        _complain(f"{event.kind} is not recorded in the audit log: {problem}")


def _event(kind: str, outcome: str, target: str, code: str | None = None, *, detail: str | None = None) -> AuditEvent:
    return AuditEvent(kind=kind, outcome=outcome, actor=operator(), target=target, code=code, detail=detail)


def _code(problem: BaseException) -> str:
    return problem.code if isinstance(problem, KisekiError) else type(problem).__name__


def _complain(line: str) -> None:
    print(f"kiseki: {line}", file=sys.stderr)


def _state(one: Listed) -> str:
    if one.problem is not None:
        return one.problem
    if one.verification is None:
        return "not verified"
    when = f"{one.verification.at:%Y-%m-%d %H:%M}"
    return f"verified {when}" if one.verification.sound else f"NOT SOUND ({when}): {one.verification.found}"


def _holds(manifest: Manifest) -> str:
    contents = manifest.made.contents
    if contents is not None:
        return f"{contents.events:,} events"
    return ", ".join(f"{count:,} {what}" for what, count in manifest.made.counts.items())


def _size(manifest: Manifest) -> str:
    return _bytes(sum(file.bytes for file in manifest.files))


def _bytes(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1_000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1_000
    return f"{size:,.1f} GB"


def _plain(manifest: Manifest) -> dict[str, Any]:
    return {
        "part": manifest.part,
        "id": manifest.id,
        "asOf": manifest.made.as_of,
        "store": manifest.made.store,
        "method": manifest.made.method,
        "bytes": sum(file.bytes for file in manifest.files),
        "contents": manifest.made.contents,
        "counts": manifest.made.counts,
    }


def _listed(one: Listed) -> dict[str, Any]:
    known: dict[str, Any] = {"part": one.part, "id": one.id, "bytes": one.bytes, "problem": one.problem}
    if one.manifest is not None:
        known |= _plain(one.manifest)
    known["verified"] = one.verified
    known["verifiedAt"] = None if one.verification is None else one.verification.at
    return known


def _json(what: Any) -> str:
    return msgspec.json.encode(what).decode()
