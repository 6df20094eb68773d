"""Puts a command handler together from an application and the stores it runs on."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from kiseki.application.context import Application
from kiseki.command.cache import StateCache
from kiseki.command.handler import CommandHandler
from kiseki.command.idempotency import IdempotencyKeys
from kiseki.command.loader import Loader
from kiseki.journal.port import Journal, SnapshotStore
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.erasure import ErasureLog
from kiseki.kernel.ports import Clock, IdSource, Protector, Telemetry

__all__ = ["CommandSettings", "command_handler"]


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the write side behaves."""

    cache_capacity: int = 50_000
    """States kept in memory, at most."""
    cache_idle: float = 120.0
    """Seconds after which an unused state leaves memory."""
    snapshot_every: int = 1_000
    """Events of a stream between two snapshots."""
    snapshots_keep: int = 2
    idempotency_hours: float = 24.0


def command_handler(
    application: Application,
    *,
    journal: Journal,
    snapshots: SnapshotStore,
    protector: Protector,
    clock: Clock,
    ids: IdSource,
    telemetry: Telemetry,
    settings: CommandSettings,
    erasure_log: ErasureLog | None = None,
    may_write: Callable[[], None] | None = None,
) -> CommandHandler:
    """The handler of all of an application's commands. Close it before the journal. `may_write`: as CommandHandler."""
    codec = EventCodec(application.schema, protector, telemetry)
    loader = Loader(
        deciders={decider.aggregate_type: decider for decider in application.deciders},
        journal=journal,
        snapshots=snapshots,
        codec=codec,
        protector=protector,
        telemetry=telemetry,
        clock=clock,
        random_bytes=secrets.token_bytes,
        snapshots_keep=settings.snapshots_keep,
    )
    return CommandHandler(
        deciders=application.decider_of,
        journal=journal,
        loader=loader,
        codec=codec,
        protector=protector,
        clock=clock,
        ids=ids,
        telemetry=telemetry,
        cache=StateCache(capacity=settings.cache_capacity, idle=settings.cache_idle),
        idempotency=IdempotencyKeys(
            journal=journal, protector=protector, clock=clock, hours=settings.idempotency_hours
        ),
        snapshot_every=settings.snapshot_every,
        erasure_log=erasure_log,
        may_write=may_write,
    )
