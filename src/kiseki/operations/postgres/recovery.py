"""Putting a cluster together again from a base backup and the log in a place. Used by the protection.

The data directory is made in a folder of its own and proved by running it on a private socket, where nobody but us gets
in. Running it on the network is left to the operator, who knows which machine is to be it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import shutil
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Contents, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, BackupMissing, OperationFailed
from kiseki.operations.places.port import Place
from kiseki.operations.postgres.base import BASES, Bases, first_segment, last_segment, packed_files, unpack_base
from kiseki.operations.postgres.child import Account, server_account
from kiseki.operations.postgres.environment import user_of
from kiseki.operations.postgres.journal import opened_journal
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import database_name
from kiseki.operations.postgres.stored_log import StoredLog, newest_head
from kiseki.operations.postgres.throwaway import running_server, socket_address
from kiseki.operations.postgres.wal import Shipped, unpack

__all__ = ["RecoveredCluster", "recovered"]

_AT_ONCE: Final = 64
"""Files of the log that are fetched together."""
_TOO_SHORT: Final = "recovery ended before configured recovery target was reached"
_SETTINGS: Final = {
    "hot_standby": "off",
    "recovery_target_timeline": "current",
    "recovery_target_action": "promote",
    "recovery_target_inclusive": "on",
    "recovery_target": "",
    "recovery_target_name": "",
    "recovery_target_xid": "",
    "recovery_target_lsn": "",
    "primary_conninfo": "",
    "max_prepared_transactions": "1000",
}
"""Whatever its own configuration says."""


class RecoveredCluster:
    """A cluster that was put together and runs on a private socket. A StagedJournal."""

    contents: Contents | None = None
    """Nobody counted what was in the cluster at that moment."""

    def __init__(
        self, work: Path, running: AsyncExitStack, address: PostgresAddress, live: PostgresAddress, *, clock: Clock
    ) -> None:
        self._work = work
        self._running = running
        self._address = address
        self._live = live
        self._clock = clock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresJournal]:
        """As StagedJournal. The journal sees that it lives on another timeline, and begins a new epoch by itself."""
        async with opened_journal(self._address, self._clock) as journal:
            yield journal

    async def switch(self) -> Switched:
        """Stops it cleanly: its data directory stays, to be run by the operator. The live one is not touched."""
        # The epoch begins before anybody writes, whoever opens it first.
        async with self.opened() as journal:
            await journal.check()
        await self._running.aclose()
        await asyncio.to_thread(shutil.rmtree, self._work / "wal", ignore_errors=True)
        data = self._work / "data"
        return Switched(
            "",
            (
                f"see that the server of {self._live.label} is stopped for good: two of one past must not both go on",
                f"move {data} to where a server keeps its data, owned by the account postgres and with mode 0700",
                "compare postgresql.conf, postgresql.auto.conf and pg_hba.conf with those of the old server; Debian "
                "keeps them in /etc/postgresql",
                f"start it: pg_ctl -D {shlex.quote(str(data))} start, or by the system's service",
                "point the settings `journal`, `keys` and `read_model` at it, or its name or address at this machine",
                "run `kiseki backup protect` again: it begins with a new base",
            ),
        )

    async def discard(self) -> None:
        """As Staged: stops it and removes its files."""
        await self._running.aclose()
        for name in ("data", "wal"):
            await asyncio.to_thread(shutil.rmtree, self._work / name, ignore_errors=True)


async def recovered(
    place: Place,
    programs: PostgresPrograms,
    live: PostgresAddress,
    work: Path,
    progress: Progress,
    *,
    clock: Clock,
    until: datetime | None,
) -> RecoveredCluster:
    """The newest cluster that a place has, or as it was at a time, in `work/data`, running on a private socket.

    Raises BackupMissing, BackupDamaged, ToolMissing, NoRoom, OperationFailed.
    """
    base = await _base(place, until)
    given = base.made.references
    major = int(base.made.versions["postgresql"].partition(".")[0])
    account = server_account()
    postgres = await programs.find("postgres", exactly=major, account=account)
    verify = await programs.find("pg_verifybackup", exactly=major)
    log = StoredLog(place, given["system"], int(given["timeline"]), int(given["segment"]))
    chain = await log.chain(first_segment(base))
    if chain[-1].segment.number < last_segment(base).number:
        raise BackupDamaged(f"the log of the base backup {base.id} is not whole; use an older base, or a dump")
    running = AsyncExitStack()
    try:
        with explained_room(work, "choose a larger disk"):
            progress(f"fetching the base backup {base.id}")
            async with place.fetched(f"{BASES}/{base.id}", packed_files(base)) as folder:
                data = await asyncio.to_thread(unpack_base, folder, work, base)
            progress("verifying the base backup")
            try:
                await programs.run(verify, ["--quiet", str(data)])
            except OperationFailed as problem:
                raise BackupDamaged(f"the base backup {base.id} is damaged ({problem}); use an older one") from problem
            await _fetch_log(place, log, chain, work / "wal", progress)
            await asyncio.to_thread(_hand_over, work, account)
        progress("replaying the log")
        socket = await _run(programs, postgres, running, work, account=account, until=until)
    except BaseException:
        await running.aclose()
        for name in ("data", "wal"):
            await asyncio.to_thread(shutil.rmtree, work / name, ignore_errors=True)
        raise
    user = user_of(live) or "postgres"
    address = socket_address(
        socket, urllib.parse.quote(database_name(live), safe=""), urllib.parse.quote(user, safe="")
    )
    return RecoveredCluster(work, running, dataclasses.replace(address, schema=live.schema), live, clock=clock)


async def _base(place: Place, until: datetime | None) -> Manifest:
    bases = await Bases(place).list()
    if not bases:
        raise BackupMissing(f"there is no base backup in {place.label}; check the setting `backup`")
    head = await newest_head(place)
    if until is None:
        return bases[-1]
    if head is None or until > head.through:
        covered = "nothing" if head is None else f"{head.through:%Y-%m-%d %H:%M:%S} UTC"
        raise BackupMissing(f"{place.label} covers the cluster up to {covered} only; leave the time out for the newest")
    fitting = [base for base in bases if base.made.as_of <= until]
    if not fitting:
        raise BackupMissing(
            f"the oldest base backup in {place.label} is of {bases[0].made.as_of:%Y-%m-%d %H:%M:%S} UTC; choose a "
            "later time"
        )
    return fitting[-1]


async def _fetch_log(place: Place, log: StoredLog, chain: Sequence[Shipped], target: Path, progress: Progress) -> None:
    await asyncio.to_thread(target.mkdir)
    for begin in range(0, len(chain), _AT_ONCE):
        progress(f"fetching the log, file {begin + 1:,} of {len(chain):,}")
        some = chain[begin : begin + _AT_ONCE]
        async with place.fetched(log.folder, [one.file for one in some]) as folder:
            for one in some:
                # A partial one too gets its whole name: replay ends where what was written ends.
                await asyncio.to_thread(unpack, folder / one.file, target / one.segment.name, one)


def _hand_over(work: Path, account: Account | None) -> None:
    data = work / "data"
    (data / "standby.signal").unlink(missing_ok=True)
    (data / "recovery.signal").touch(mode=0o600)
    if account is not None:
        for top in (data, work / "wal"):
            for path in (top, *top.rglob("*")):
                os.chown(path, account.user, account.group)


async def _run(
    programs: PostgresPrograms,
    postgres: Path,
    running: AsyncExitStack,
    work: Path,
    *,
    account: Account | None,
    until: datetime | None,
) -> Path:
    wal = shlex.quote(str(work / "wal")).replace("%", "%%")
    settings = {**_SETTINGS, "restore_command": f'cp {wal}/%f "%p"', "recovery_target_time": ""}
    if until is not None:
        settings["recovery_target_time"] = until.isoformat()
    try:
        return await running.enter_async_context(
            running_server(programs, postgres, work / "data", account=account, settings=settings)
        )
    except OperationFailed as problem:
        if until is None or _TOO_SHORT not in str(problem):
            raise
    # No transaction of the log is later than that time, so all of it is what was asked for.
    settings["recovery_target_time"] = ""
    return await running.enter_async_context(
        running_server(programs, postgres, work / "data", account=account, settings=settings)
    )
