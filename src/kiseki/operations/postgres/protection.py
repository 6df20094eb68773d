"""`PostgresProtection`: base backups of a cluster and its write-ahead log, in a place, again and again.

pg_receivewal writes the log into a spool folder as the server makes it. A step waits until it has all that is durable
in the server at this moment, and copies from the spool what the place lacks: whole files, and the one that is being
written. So nothing is done to the live server for a step, and the place covers it up to the moment of the last one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress, PostgresConnection
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Manifest
from kiseki.operations.backup.port import Progress, StagedJournal
from kiseki.operations.errors import BackupDamaged, ClockWrong, OperationFailed, OperatorBusy
from kiseki.operations.places.port import Place
from kiseki.operations.postgres.base import Bases, first_segment, is_of
from kiseki.operations.postgres.cluster import (
    Cluster,
    Mark,
    cluster_of,
    make_slot,
    mark_of,
    private_parts,
    remove_slot,
    slot_of,
)
from kiseki.operations.postgres.counting import commits_between, feed_head
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.receiver import LOST, WalReceiver
from kiseki.operations.postgres.recovery import recovered
from kiseki.operations.postgres.session import explained_server, session
from kiseki.operations.postgres.spool import Spool
from kiseki.operations.postgres.stored_log import StoredLog, newest_head
from kiseki.operations.postgres.wal import Segment
from kiseki.operations.protect.port import Protected

__all__ = ["PRIVATE_DAYS", "PostgresProtection"]

_log = logging.getLogger(__name__)

PRIVATE_DAYS: Final = 7.0
"""How long a copy of keys or read models may be kept at most."""
_BASE_EVERY: Final = timedelta(days=1)
"""Then a new base is made beside the steps; after twice as long by a step itself, for those who run single steps."""
_LEEWAY: Final = timedelta(minutes=5)
_RECEIVE_SECONDS: Final = 60.0
_FREE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02
_FAILURES: Final = 3
"""In a row, of the receiver: then a step fails with the cause."""
_BEHIND: Final = 1 << 30
"""Bytes of log that a slot may hold back before somebody is told."""


class PostgresProtection:
    """The JournalProtection of a journal in PostgreSQL, by way of its whole cluster."""

    def __init__(
        self,
        address: PostgresAddress,
        programs: PostgresPrograms,
        place: Place,
        *,
        clock: Clock,
        days: float,
        spool: Path,
        ledger: PostgresAddress | None = None,
        private: Sequence[tuple[str, PostgresAddress]] = (),
    ) -> None:
        """`days` that bases and log are kept. `spool`: a local folder of our own, for log that is under way. `ledger`:
        of erasures, refused on the same cluster; `private`: key store and read models, by name, which cut `days` to
        seven when they are."""
        self.name = f"the PostgreSQL cluster of {address.label}"
        self._address = address
        self._programs = programs
        self._place = place
        self._clock = clock
        self._days = days
        self._spool = Spool(spool)
        self._ledger = ledger
        self._private = tuple(private)
        self._bases = Bases(place)
        self.slot = f"kiseki_{hashlib.sha256(place.label.encode()).hexdigest()[:12]}"
        """The replication slot's name: another place has another one."""
        self.receiver = WalReceiver(address, programs, slot=self.slot, folder=self._spool.folder)
        self._told = False
        self._begins: Segment | None = None
        self._basing: asyncio.Task[Manifest] | None = None

    async def step(self, progress: Progress) -> Protected:
        """As Protection. Raises BackupRefused, ToolMissing and OperatorBusy as well."""
        await asyncio.to_thread(self._spool.hold)
        try:
            return await self._step(progress)
        except Unavailable:
            # The server may be gone for good: what was received of it until then is all there is.
            if await self._rescue():
                _log.error("%s can't be reached; its log was copied as far as it was received", self.name)
            raise

    async def _step(self, progress: Progress) -> Protected:
        with explained_server(self._address, "protecting the cluster"):
            async with session(self._address) as connection:
                cluster = await cluster_of(connection, self._address)
                program = await self._programs.find("pg_receivewal", at_least=cluster.major)
                stored = StoredLog(self._place, cluster.system, cluster.timeline, cluster.segment)
                base = await self._usable_base(connection, cluster, stored)
                if base is None:
                    await self._private_parts(cluster)
                    progress("beginning anew")
                    await self._tell_of_gap()
                    await self._begin_anew(connection, cluster)
                await self.receiver.begin(program, segment=cluster.segment)
                made = base is None or self._age(base) >= _BASE_EVERY * 2
                if base is None or made:
                    anew, base = base is None, await self._make_base(cluster, progress)
                    # A slot begins at the last checkpoint, and nobody needs what is before the first base.
                    self._begins = first_segment(base) if anew else self._begins
                elif self._age(base) >= _BASE_EVERY and self._basing is None:
                    # It may take hours, and what is new goes on being copied meanwhile.
                    self._basing = asyncio.create_task(self._make_base(cluster, lambda _: None))
                before = await stored.head()
                _, drained = await stored.ship(self._spool, whole=True, begins=self._begins)
                mark = await mark_of(connection)
                feed = await feed_head(connection)
                await self._received(connection, cluster, mark)
                progress("copying the log")
                file, copied = await stored.ship(self._spool, begins=self._begins)
                await stored.chain(first_segment(base))
                await stored.set_head(mark, file, feed)
                commits = await commits_between(connection, before, feed)
        if self._basing is not None and self._basing.done():
            basing, self._basing = self._basing, None
            made = bool(await basing)
        return Protected(through=mark.at, commits=commits, bytes=drained + copied, base=made)

    def _age(self, base: Manifest) -> timedelta:
        return self._clock.now() - base.finished_at

    async def _private_parts(self, cluster: Cluster) -> tuple[str, ...]:
        # When a base is made, and not at each step: their servers may be away while this one is to be protected.
        return await private_parts(cluster.system, self._ledger, self._private)

    async def _make_base(self, cluster: Cluster, progress: Progress) -> Manifest:
        holds = await self._private_parts(cluster)
        return await self._bases.make(
            self._address,
            self._programs,
            cluster,
            clock=self._clock,
            holds=holds,
            days=min(self._days, PRIVATE_DAYS) if holds else self._days,
            progress=progress,
        )

    async def _usable_base(
        self, connection: PostgresConnection, cluster: Cluster, stored: StoredLog
    ) -> Manifest | None:
        """The newest base of this life of the cluster, if all log since it is there, or still to come."""
        bases = [base for base in await self._bases.list() if is_of(base, cluster)]
        slot = await slot_of(connection, self.slot)
        if (
            not bases
            or slot is None
            or slot.lost
            or not await asyncio.to_thread(self._spool.is_of, cluster.system, cluster.timeline)
        ):
            return None
        if self.receiver.problem is not None and LOST in str(self.receiver.problem):
            return None
        try:
            await stored.chain(first_segment(bases[-1]))
        except BackupDamaged as problem:
            _log.error("%s; a new base is made", problem)
            return None
        return bases[-1]

    async def _tell_of_gap(self) -> None:
        covered = await newest_head(self._place)
        if covered is not None:
            _log.warning(
                "the log after %s UTC is not to be had any more: no time between that and the new base, made now, "
                "can be gone back to",
                f"{covered.through:%Y-%m-%d %H:%M:%S}",
            )

    async def _begin_anew(self, connection: PostgresConnection, cluster: Cluster) -> None:
        await self.receiver.end()
        await asyncio.to_thread(self._spool.clear, cluster.system, cluster.timeline)
        await self._free_slot(connection)
        await make_slot(connection, self.slot, self._address)

    async def _free_slot(self, connection: PostgresConnection) -> None:
        try:
            async with asyncio.timeout(_FREE_SECONDS):
                # Of a receiver that was just ended; another one's is refused below.
                while (slot := await slot_of(connection, self.slot)) and slot.active:  # noqa: ASYNC110  # the server's
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise OperatorBusy(
                f"another process receives the log of {self._address.label} through the slot {self.slot}; end it, or "
                "let it go on alone"
            ) from None
        await remove_slot(connection, self.slot)

    async def _received(self, connection: PostgresConnection, cluster: Cluster, mark: Mark) -> None:
        """Until the spool has everything up to a mark. Raises what hinders the receiver."""
        try:
            async with asyncio.timeout(_RECEIVE_SECONDS):
                while True:
                    slot = await slot_of(connection, self.slot, mark.lsn)
                    if slot is not None and slot.reached:
                        self.receiver.failures = 0
                        break
                    problem = self.receiver.problem
                    if problem is not None and (self.receiver.failures >= _FAILURES or LOST in str(problem)):
                        raise problem
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise OperationFailed(
                f"the log of {self._address.label} was not received in {_RECEIVE_SECONDS:.0f} seconds: the network or "
                "the disk of the spool folder is too slow for it"
            ) from None
        if slot.behind > _BEHIND:
            _log.warning(
                "the replication slot %s holds back %d MB of log on %s",
                self.slot,
                slot.behind >> 20,
                self._address.label,
            )
        if not cluster.bounded and not self._told:
            self._told = True
            _log.warning(
                "max_slot_wal_keep_size is -1 on %s: should this protection end for good, the slot fills the server's "
                "disk; set it to what the disk can bear, and after the end SELECT pg_drop_replication_slot('%s')",
                self._address.label,
                self.slot,
            )

    async def _rescue(self) -> bool:
        """Copies what was received after the last step, of a server that does not answer; whether there was something.

        Raises PlaceUnavailable, NoRoom.
        """
        head = await newest_head(self._place)
        if head is None or not await asyncio.to_thread(self._spool.is_of, head.system, head.timeline):
            return False
        stored = StoredLog(self._place, head.system, head.timeline, head.segment)
        file, copied = await stored.ship(self._spool)
        if copied:
            await stored.add_to_head(head, file)
        return bool(copied)

    async def prune(self, now: datetime) -> int:
        """As Protection. Raises ClockWrong."""
        bases = await self._bases.list()
        if bases and bases[-1].finished_at > now + _LEEWAY:
            raise ClockWrong(
                f"the newest base backup in {self._place.label} is from {bases[-1].finished_at:%Y-%m-%d %H:%M} UTC, "
                f"and this machine says it is {now:%Y-%m-%d %H:%M} UTC; set the clock, then run the same again"
            )
        kept = [base for base in bases[:-1] if base.finished_at >= now - timedelta(days=self._days_of(base))]
        kept += bases[-1:]
        removed = 0
        for base in bases:
            if base not in kept:
                await self._bases.remove(base)
                removed += 1
        return removed + await StoredLog.prune(self._place, kept)

    def _days_of(self, base: Manifest) -> float:
        return min(self._days, float(base.made.references.get("days", self._days)))

    async def through(self) -> datetime | None:
        """As Protection."""
        head = await newest_head(self._place)
        return None if head is None else head.through

    async def reaches(self, until: datetime | None) -> datetime | None:
        """As JournalProtection. The log goes to any time that it covers."""
        through = await self.through()
        return through if until is None or through is None else min(through, until)

    async def recover(self, work: Path, progress: Progress, *, until: datetime | None = None) -> StagedJournal:
        """As JournalProtection: the whole cluster, in `work/data`, with the journal in it.

        Needs the server's programs here, of the same major version. Raises BackupMissing, BackupDamaged, ToolMissing.
        """
        if await asyncio.to_thread(self._spool.folder.is_dir):
            try:
                await asyncio.to_thread(self._spool.hold)
            except OperatorBusy:
                pass  # that process copies what it has received by itself
            else:
                await self._rescue()
        return await recovered(
            self._place, self._programs, self._address, work, progress, clock=self._clock, until=until
        )

    async def close(self) -> None:
        """As Protection. The slot stays, so that nothing is lost until the next step."""
        basing, self._basing = self._basing, None
        if basing is not None:
            basing.cancel()
            await asyncio.gather(basing, return_exceptions=True)
        await self.receiver.end()
        await asyncio.to_thread(self._spool.let_go)
