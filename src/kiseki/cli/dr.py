"""`kiseki dr begin | status | failover | failback`: two regions, of which one writes."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kiseki.application.system import SystemClock
from kiseki.cli.journal import settings_of
from kiseki.cli.opened import opened_audit, operator
from kiseki.cli.output import people_table, print_table
from kiseki.journal.lease.handing_over import HandingOver
from kiseki.journal.lease.holder import first_record
from kiseki.journal.lease.port import CLOCK_RATE, FencedJournal, LeaseStore, elapsed_clock
from kiseki.kernel.ports import AuditEvent
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.dr.ages import age_metrics, ages
from kiseki.operations.dr.failback import Diverged, diverged_commits, refuse_unless_kept, write_diverged
from kiseki.operations.dr.failover import (
    FailoverReport,
    Record,
    forced_failover,
    planned_failover,
    unfenced_failover,
)
from kiseki.operations.dr.replication import FailoverRefused
from kiseki.operations.dr.sites import other_settings, read_journal, replication_of
from kiseki.operations.dr.status import More, dr_status
from kiseki.security.audit.log import AuditLog
from kiseki.security.secrets.source import SecretSource
from kiseki.service.embedded_metrics import embedded_fields
from kiseki.service.lease import lease_problem, open_lease_store
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.store_urls import StoreKind, store_urls
from kiseki.service.stores import open_journal

__all__ = ["begin", "failback", "failover", "print_ages", "status"]


def begin(*, config: Path | None, data_dir: Path | None) -> None:
    """Begins the lease of a journal that never had one, or whose lease was lost: this site writes.

    Raises SettingsError, FailoverRefused, Unavailable.
    """
    settings = settings_of(config, data_dir)
    asyncio.run(_begin(settings))


def status(
    *, config: Path | None, data_dir: Path | None, other: Path | None, json: bool, more: Sequence[More] = ()
) -> int:
    """Prints how the sites stand; 1 when somebody has to look."""
    settings = settings_of(config, data_dir)

    async def work() -> int:
        there = other_settings(other, settings)
        async with opened_secrets(settings) as secrets, _lease(settings, secrets) as lease:
            replication = None
            if store_urls(settings).journal.kind is not StoreKind.SQLITE:
                replication = await replication_of(settings, there, secrets)
            try:
                found = await dr_status(
                    settings, lease=lease, replication=replication, now=datetime.now(UTC), more=more
                )
            finally:
                if replication is not None:
                    await replication.close()
        if json:
            print(msgspec.json.encode(found).decode())
        else:
            table = people_table("disaster recovery", "", "now", "")
            for line in found.lines:
                table.add_row(line.name, line.value, "" if line.good else "LOOK")
            print_table(table)
        return 0 if found.good else 1

    return asyncio.run(work())


def print_ages(*, config: Path | None, data_dir: Path | None) -> int:
    """Prints the ages of backups and of the last drill as a line of embedded metric format; 1 when one is missing or
    too great, which is said on standard error. Raises OperationFailed and what the places raise."""
    settings = settings_of(config, data_dir)
    now = SystemClock().now()
    lines = asyncio.run(ages(settings, now))
    values = age_metrics(lines)
    fields = embedded_fields(
        settings.metrics_namespace, {"process": "dr-status"}, values, dict.fromkeys(values, "Seconds"), now
    )
    print(msgspec.json.encode(fields).decode(), flush=True)
    for line in lines:
        if not line.good:
            _tell(f"kiseki: {line.name}: {line.value}")
    return 0 if all(line.good for line in lines) else 1


def failover(
    *, config: Path | None, data_dir: Path | None, other: Path | None, forced: bool, unfenced: bool, json: bool
) -> None:
    """Makes this site the one that writes. Progress goes to standard error.

    Raises SettingsError, FailoverRefused, HandingOverRefused, LeaseBusy, AuditUnavailable, Unavailable.
    """
    settings = settings_of(config, data_dir)
    report = asyncio.run(_failover(settings, other, forced=forced, unfenced=unfenced))
    if json:
        print(msgspec.json.encode(report).decode())
        return
    print(f"{report.site or 'this site'} writes now ({report.mode} failover, term {report.term})")
    for line in report.unknown:
        print(f"unknown: {line}")
    if report.mode != "planned":
        print("when the other site is back, run `kiseki dr failback` before anything is started there")


def failback(
    *, config: Path | None, data_dir: Path | None, other: Path, output: Path, accept: Path | None, json: bool
) -> int:
    """Says what the other site's journal has and this one lacks; 1 when there is something that is not kept yet.

    Raises SettingsError, Diverged, TransferFailed, Unavailable.
    """
    return asyncio.run(_failback(settings_of(config, data_dir), other, output, accept, json=json))


async def _begin(settings: Settings) -> None:
    problem = lease_problem(settings)
    if problem is not None or not settings.lease:
        raise SettingsError(problem or "lease is not set, so there is nothing to begin")
    clock = SystemClock()
    async with opened_audit(settings) as (secrets, audit), _lease(settings, secrets) as lease:
        assert lease is not None  # noqa: S101  # it is set
        if await lease.read() is not None:
            raise FailoverRefused(f"there is a lease in {lease.label} already; see `kiseki dr status`")
        async with open_journal(settings, clock=clock, telemetry=NoTelemetry(), make=True) as journal:
            term = 1 + (await journal.fenced_term() if isinstance(journal, FencedJournal) else 0)
            await _recorder(audit, settings)(f"beginning the lease, term {term}")
            # Whoever had a lease that was lost may write until it lapses.
            wait = settings.lease_seconds * (1 + 2 * CLOCK_RATE)
            _tell(f"waits for {wait:g} s, in case that the lease was lost and somebody still has it")
            await asyncio.sleep(wait)
            if not await lease.swap(None, first_record(settings.site, term=term, now=clock.now())):
                raise FailoverRefused(f"somebody else began the lease in {lease.label} at this moment")
    print(f"{settings.site} writes, term {term}")


async def _failover(settings: Settings, other: Path | None, *, forced: bool, unfenced: bool) -> FailoverReport:
    if unfenced:
        _tell("UNFENCED failover: no lease keeps the other site from writing on")
    elif not settings.lease:
        raise FailoverRefused(
            "no lease is kept (lease), so nothing proves that the other site has stopped: a failover would be "
            "unfenced; stop it, and say --unfenced"
        )
    elif (problem := lease_problem(settings)) is not None:
        raise SettingsError(problem)
    there = other_settings(other, settings)
    if there is None and not forced and not unfenced:
        raise FailoverRefused(
            "a planned failover compares the two journals: give the other site's settings with --other"
        )
    async with opened_audit(settings) as (secrets, audit), _lease(settings, secrets) as lease:
        replication = await replication_of(settings, there, secrets)
        record = _recorder(audit, settings)
        try:
            if unfenced:
                return await unfenced_failover(replication, site=settings.site, tell=_tell, record=record)
            assert lease is not None  # noqa: S101  # it is set
            handing = HandingOver(
                lease,
                operator=f"{operator()}@{socket.gethostname()[:60]}",
                seconds=settings.lease_seconds,
                clock=elapsed_clock,
                now=SystemClock().now,
            )
            run = forced_failover if forced else planned_failover
            return await run(handing, replication, site=settings.site, tell=_tell, record=record)
        finally:
            await replication.close()


async def _failback(settings: Settings, other: Path, output: Path, accept: Path | None, *, json: bool) -> int:
    there = other_settings(other, settings)
    assert there is not None  # noqa: S101  # a file was given
    async with opened_audit(settings) as (secrets, audit):
        async with _lease(settings, secrets) as lease:
            record = None if lease is None else await lease.read()
            if record is not None and not record.admits(settings.site):
                raise FailoverRefused(f"{record.holder} writes, not {settings.site}: run this at the site that writes")
        await _recorder(audit, settings, kind="dr.failback")("comparing with the other site's journal")
        async with read_journal(there, secrets) as old, read_journal(settings, secrets) as new:
            report, found = await diverged_commits(old, new, _tell)
        if found and accept is None:
            await write_diverged(found, output, datetime.now(UTC))
            report = msgspec.structs.replace(report, file=str(output))
        elif found and accept is not None:
            await refuse_unless_kept(found, accept)
            await _recorder(audit, settings, kind="dr.failback")(f"accepting {len(found)} diverged commits")
            report = msgspec.structs.replace(report, file=str(accept))
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        print(
            f"compared {report.compared:,} commits of the other site: {report.missing:,} are not here, "
            f"{report.otherwise:,} are here otherwise"
        )
        for stream in report.streams:
            print(f"diverged: {stream}")
    if found and accept is None:
        raise Diverged(
            f"{len(found):,} diverged commits are in {output}; decide what becomes of them, and run the same with "
            f"--accept-diverged {output}"
        )
    if not json:
        for line in _next_steps(settings):
            print(line)
    return 0


def _next_steps(settings: Settings) -> Sequence[str]:
    if store_urls(settings).journal.kind is StoreKind.POSTGRESQL:
        return (
            "nothing that is not kept is on the other side; make it a replica of this one:",
            "  pg_rewind --target-pgdata=DATA --source-server='URL of this cluster' --write-recovery-conf",
            "  (or, without wal_log_hints and checksums: pg_basebackup -R into an empty DATA), then start it",
            "then look at `kiseki dr status` there, and hand over with `kiseki dr failover` there",
        )
    return (
        "nothing that is not kept is on the other side; remove its tables and add that region as a replica again:",
        '  aws dynamodb update-table --table-name NAME --replica-updates \'[{"Create":{"RegionName":"REGION"}}]\'',
        "then look at `kiseki dr status` there, and hand over with `kiseki dr failover` there",
    )


def _recorder(audit: AuditLog, settings: Settings, *, kind: str = "dr.failover") -> Record:
    async def record(what: str) -> None:
        await audit.record(
            AuditEvent(kind=kind, outcome="begun", actor=operator(), target=settings.site or None, detail=what)
        )

    return record


@asynccontextmanager
async def _lease(settings: Settings, secrets: SecretSource) -> AsyncIterator[LeaseStore | None]:
    if not settings.lease:
        yield None
        return
    store = await open_lease_store(settings, secrets)
    try:
        yield store
    finally:
        await store.close()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
