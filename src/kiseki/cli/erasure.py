"""`kiseki erasure status | replay | verify`: the ledger of erasures, seen from outside, and brought into force."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from kiseki.application.system import SystemClock
from kiseki.cli.applications import load_application
from kiseki.cli.journal import settings_of
from kiseki.kernel.personal import Erased
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.catching_up import replay_erasures
from kiseki.security.erasure.lines import Kind
from kiseki.security.erasure.replay import ReplayReport
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores

__all__ = ["begin", "replay", "status", "verify"]

T = TypeVar("T")

_AT_ONCE = 500


class _Counts(NamedTuple):
    lines: int
    erasures: int
    open: int
    withdrawn: int
    proved: int | None
    newest: str | None


def status(*, config: Path | None, data_dir: Path | None, json: bool) -> None:
    """Prints what the ledger holds and how far it was proved to be in force. Raises SettingsError, LedgerBroken,
    DataDirectoryUnusable, Unavailable."""
    found = asyncio.run(_with_stores(settings_of(config, data_dir), _counts))
    if json:
        print(msgspec.json.encode(found._asdict()).decode())
        return
    plural = "" if found.erasures == 1 else "s"
    print(
        f"the ledger holds {found.erasures:,} erasure{plural} in {found.lines:,} lines; {found.open:,} open, "
        f"{found.withdrawn:,} withdrawn; newest: {found.newest or 'none'}"
    )
    proved = (
        "nothing was proved to be in force yet" if found.proved is None else f"in force up to line {found.proved:,}"
    )
    print(f"{proved}; `kiseki erasure verify` looks at all of them")


def begin(*, config: Path | None, data_dir: Path | None) -> None:
    """Begins a ledger where there is none. Raises as Stores.open."""

    async def work() -> None:
        settings = settings_of(config, data_dir)
        stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry(), begin_ledger=True)
        await stores.close()

    asyncio.run(work())
    print("the ledger of erasures is there")


def replay(*, application: str | None, config: Path | None, data_dir: Path | None, everything: bool, json: bool) -> int:
    """Brings every erasure into force, now and without a service; 1 when rows of parked streams may be left."""
    settings = settings_of(config, data_dir)
    loaded = load_application(application)

    async def work(stores: Stores) -> ReplayReport:
        if stores.lease is None:
            return await replay_erasures(loaded, settings, stores, everything=everything)
        async with stores.lease.held(settings.lease_seconds):
            return await replay_erasures(loaded, settings, stores, everything=everything)

    report = asyncio.run(_with_stores(settings, work))
    print(msgspec.json.encode(report).decode() if json else str(report))
    return 1 if report.parked else 0


def verify(*, config: Path | None, data_dir: Path | None) -> int:
    """Reads the whole ledger, checks its chain, and looks in the key store whether each erasure is in force; 1 when
    something is wrong. Changes nothing."""
    problems = asyncio.run(_with_stores(settings_of(config, data_dir), _problems))
    for problem in problems[:100]:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        print(f"the ledger of erasures: {len(problems):,} problems; see `kiseki erasure replay`", file=sys.stderr)
        return 1
    counts = asyncio.run(_with_stores(settings_of(config, data_dir), _counts))
    print(f"the ledger of erasures is whole: {counts.lines:,} lines, {counts.erasures:,} erasures, all in force")
    return 0


async def _with_stores(settings: Settings, work: Callable[[Stores], Awaitable[T]]) -> T:
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry(), make=False)
    try:
        return await work(stores)
    finally:
        await stores.close()


async def _counts(stores: Stores) -> _Counts:
    kinds = dict.fromkeys(Kind, 0)
    newest = None
    done: set[int] = set()
    async for line in stores.ledger.lines():
        kinds[line.kind] += 1
        if line.kind is Kind.ERASE:
            newest = line.at
        elif line.refers:
            done.add(line.refers)
    mark = await stores.ledger.mark()
    return _Counts(
        lines=sum(kinds.values()),
        erasures=kinds[Kind.ERASE],
        open=kinds[Kind.ERASE] - len(done),
        withdrawn=kinds[Kind.WITHDRAWN],
        proved=None if mark is None else mark.number,
        newest=None if newest is None else f"{newest:%Y-%m-%d %H:%M:%S} UTC",
    )


async def _problems(stores: Stores) -> list[str]:
    problems: list[str] = []
    told: set[str] = set()
    await stores.ledger.mark()
    page: list[str] = []
    async for entry in stores.ledger.entries():
        told.add(entry.line.subject)
        page.append(entry.line.subject)
        if len(page) == _AT_ONCE:
            problems += await _alive(stores, page)
            page = []
    problems += await _alive(stores, page)
    tombstones = (await stores.key_store.erasures(0)).subjects
    problems += [
        f"{subject} is erased in the key store, and the ledger does not know"
        for subject in tombstones
        if subject not in told
    ]
    return problems


async def _alive(stores: Stores, subjects: list[str]) -> list[str]:
    known = await stores.protector.ciphers(subjects)
    return [
        f"{subject} was erased, and the key store has its keys"
        for subject in subjects
        if subject in known and not isinstance(known[subject], Erased)
    ]
