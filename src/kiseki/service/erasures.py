"""Erasures in a running process: where the ledger is, and bringing it into force before anything is served.

Used by `stores`, the composition root and `kiseki erasure`. Libraries of a database are imported when one is named.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application
from kiseki.application.system import UlidSource
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.command.erasure import erasing_names
from kiseki.journal.lease.holder import WriterLease
from kiseki.kernel.erasure import ErasureLog, PlannedErasure
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, AuditUnavailable, Clock, Telemetry
from kiseki.projection.backoff import Backoff
from kiseki.projection.erasure import ErasedRows
from kiseki.security.digests import Digests
from kiseki.security.erasure.file_ledger import FileLedgerStore
from kiseki.security.erasure.ledger import ErasureLedger
from kiseki.security.erasure.replay import ErasureReplay
from kiseki.security.erasure.store import LedgerStore
from kiseki.security.key_store import KeyStore
from kiseki.security.protector import KeyProtector
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.source import SecretSource
from kiseki.service.logging import request_ids
from kiseki.service.store_family import ReadModels, StoreJournal

if TYPE_CHECKING:
    from kiseki.clients.postgres import PostgresAddress

__all__ = [
    "AuditedErasures",
    "erasure_replay",
    "ledger_address",
    "ledger_directory",
    "migrate_ledger",
    "open_ledger",
    "replay_forever",
    "until_in_force",
]

_PATIENCE: Final = 1.0
_FIRST_RETRY: Final = 0.2
_LONGEST_RETRY: Final = 5.0
_SCHEMA: Final = "kiseki_erasures"
_FORMS: Final = "a directory, postgresql://user@host/database or dynamodb://prefix?region=eu-west-1"


_log = logging.getLogger(__name__)


class _Open(Protocol):
    """What of `Stores` is needed here."""

    journal: StoreJournal
    protector: KeyProtector
    read_models: ReadModels
    key_store: KeyStore
    ledger: ErasureLedger
    lease: WriterLease | None


class AuditedErasures:
    """An ErasureLog that records erasures in the audit log too; what it can't record there does not happen."""

    def __init__(self, log: ErasureLog, auditor: Auditor) -> None:
        self._log = log
        self._auditor = auditor

    async def begin(self, erasure: PlannedErasure) -> None:
        """As ErasureLog. Raises AuditUnavailable."""
        # Without a stream it is somebody who destroys the keys of an erasure that was decided, and recorded, before.
        if erasure.stream:
            await self._auditor.record(
                AuditEvent(
                    kind="erasure.requested",
                    outcome="done",
                    actor=erasure.actor,
                    operation=erasure.command or None,
                    target=erasure.subject,
                    trace_id=_trace_id(),
                )
            )
        await self._log.begin(erasure)

    async def finish(self, subject: str) -> None:
        """As ErasureLog."""
        await self._log.finish(subject)
        done = AuditEvent(kind="erasure.done", outcome="done", target=subject, trace_id=_trace_id())
        try:
            await self._auditor.record(done)
        except AuditUnavailable as problem:
            # It was recorded that it was asked for, and it is done.
            _log.error("that %s was erased is not recorded: %s", subject, problem)

    async def withdraw(self, subject: str, stream: str) -> None:
        """As ErasureLog."""
        await self._log.withdraw(subject, stream)
        self._auditor.note(
            AuditEvent(kind="erasure.requested", outcome="refused", target=subject, trace_id=_trace_id())
        )


def _trace_id() -> str | None:
    ids = request_ids.get()
    return None if ids is None else ids.trace_id


def ledger_directory(where: str, data_dir: Path) -> Path | None:
    """The directory that the setting `erasure_ledger` names; None when it is a database. Raises StoreUrlInvalid."""
    scheme, separator, _ = where.partition("://")
    if not separator:
        return Path(where.removeprefix("file:")) if where else data_dir / "erasures"
    if scheme not in ("postgresql", "postgres", "dynamodb"):
        raise StoreUrlInvalid(f"erasure_ledger names no place that is known; set it to {_FORMS}")
    return None


async def open_ledger(
    where: str, data_dir: Path, *, digests: Digests, clock: Clock, secrets: SecretSource, begin: bool
) -> ErasureLedger:
    """The ledger that the setting names. Raises StoreUrlInvalid, LedgerRefused, LedgerForeign, LedgerBroken,
    NotMigrated, Unavailable."""
    store = await _store(where, data_dir, secrets, begin=begin)
    try:
        return await ErasureLedger.open(store, digests=digests, clock=clock, begin=begin)
    except BaseException:
        await store.close()
        raise


async def migrate_ledger(where: str, data_dir: Path, *, secrets: SecretSource) -> Sequence[str]:
    """Makes its tables, when it is in a database; what was done, line by line."""
    if ledger_directory(where, data_dir) is not None:
        return ()
    if where.startswith("dynamodb"):
        from kiseki.clients.dynamodb import DynamoDbAddress  # noqa: PLC0415
        from kiseki.security.erasure.dynamodb_ledger import DynamoDbLedgerStore  # noqa: PLC0415

        return await DynamoDbLedgerStore.migrate(DynamoDbAddress.parse(where))
    from kiseki.security.erasure.postgres_ledger import PostgresLedgerStore  # noqa: PLC0415

    return await PostgresLedgerStore.migrate(ledger_address(where, secrets))


def ledger_address(where: str, secrets: SecretSource) -> PostgresAddress:
    """Where a ledger in PostgreSQL is. Raises StoreUrlInvalid."""
    from kiseki.clients.postgres import PostgresAddress  # noqa: PLC0415

    return PostgresAddress.parse(where, schema=_SCHEMA, passwords=partial(SecretPassword, secrets))


def erasure_replay(
    application: Application,
    stores: _Open,
    *,
    clock: Clock,
    telemetry: Telemetry,
    auditor: Auditor | None = None,
) -> ErasureReplay:
    """What brings the ledger into force on open stores. It makes facts with a command handler of its own."""
    handler = command_handler(
        application,
        journal=stores.journal,
        snapshots=stores.journal,
        protector=stores.protector,
        clock=clock,
        ids=UlidSource(),
        telemetry=telemetry,
        settings=CommandSettings(cache_capacity=1, snapshot_every=1_000_000_000),
        may_write=None if stores.lease is None else stores.lease.check,
    )
    stores.protector.on_erase(handler.forget_subject)
    return ErasureReplay(
        ledger=stores.ledger,
        key_store=stores.key_store,
        protector=stores.protector,
        journal=stores.journal,
        erasing=frozenset().union(*(erasing_names(decider) for decider in application.deciders)),
        erase_again=handler.erase_again,
        rows=ErasedRows(
            projections=application.projections, deciders=application.deciders, builds=stores.read_models.builds
        ),
        auditor=auditor,
    )


async def until_in_force(
    replay: ErasureReplay,
    *,
    running: Sequence[asyncio.Task[None]],
    asked_to_end: Callable[[], Awaitable[None]],
    waits: Callable[[str], Awaitable[None]],
) -> bool:
    """Returns when every erasure is in force, before which nothing may be served; False when the process is told to end
    first, or one of its tasks ends. Tries again while something is unavailable, and tells `waits` what it waits for.

    Raises what replaying raises otherwise.
    """
    backoff = Backoff(initial=_FIRST_RETRY, maximum=_LONGEST_RETRY, jitter=random.random)
    asked = asyncio.ensure_future(asked_to_end())
    try:
        while True:
            task = asyncio.create_task(replay.run(), name="erasure replay")
            await asyncio.wait([task, asked, *running], timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not asked.done() and not any(one.done() for one in running):
                await waits("erasures are brought into force; read models may have to catch up first")
                await asyncio.wait([task, asked, *running], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
                return False
            try:
                report = task.result()
            except Unavailable as problem:
                await waits(f"erasures can't be brought into force now: {problem}")
            else:
                if report.changed or report.finished:
                    _log.warning("erasures: %s", report)
                return True
            if (await asyncio.wait([asked, *running], timeout=backoff.failed()))[0]:
                return False
    finally:
        asked.cancel()


async def replay_forever(replay: ErasureReplay, every: float, lease: WriterLease | None = None) -> None:
    """Looks again every so many seconds: what another process began and did not live to finish is finished.

    With a lease only while this process may write.
    """
    while True:
        await asyncio.sleep(every)
        if lease is not None and not lease.permitted:
            continue
        try:
            report = await replay.run()
        except KisekiError as problem:
            _log.error("erasures can't be looked at: %s", problem)
        else:
            if report.changed or report.finished:
                _log.warning("erasures: %s", report)


async def _store(where: str, data_dir: Path, secrets: SecretSource, *, begin: bool) -> LedgerStore:
    directory = ledger_directory(where, data_dir)
    if directory is not None:
        return await FileLedgerStore.open(directory, make=begin)
    if where.startswith("dynamodb"):
        from kiseki.clients.dynamodb import DynamoDbAddress  # noqa: PLC0415
        from kiseki.security.erasure.dynamodb_ledger import DynamoDbLedgerStore  # noqa: PLC0415

        return await DynamoDbLedgerStore.open(DynamoDbAddress.parse(where))
    from kiseki.security.erasure.postgres_ledger import PostgresLedgerStore  # noqa: PLC0415

    return await PostgresLedgerStore.open(ledger_address(where, secrets))
