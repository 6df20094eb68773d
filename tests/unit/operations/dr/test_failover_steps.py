"""The steps of a failover, with stores that fail on purpose: killed before any step it is gone on with, and what can't
be proved leaves writing where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from kiseki.journal.lease.handing_over import HandingOver
from kiseki.journal.lease.holder import WriterLease, first_record
from kiseki.journal.lease.port import LeaseRecord, LeaseUnavailable
from kiseki.journal.port import START, JournalUnavailable, Position
from kiseki.kernel.ports import AuditUnavailable
from kiseki.operations.dr.failover import forced_failover, planned_failover, unfenced_failover
from kiseki.operations.dr.replication import FailoverRefused, Lag, Verified


class Killed(BaseException):
    """As by SIGKILL: nothing that handles errors sees it."""


class Witness:
    label = "the witness"

    def __init__(self) -> None:
        self.record: LeaseRecord | None = first_record("tokyo", term=1, now=datetime.now(UTC))
        self.away = False

    async def read(self) -> LeaseRecord | None:
        if self.away:
            raise LeaseUnavailable("the witness is away")
        return self.record

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        if self.away:
            raise LeaseUnavailable("the witness is away")
        if (self.record and self.record.version) != (before and before.version):
            return False
        self.record = after
        return True

    async def close(self) -> None: ...


class Stores:
    """A Replication that notes what was done, and does what the test says before it."""

    def __init__(self, *, before: Callable[[str], None] = lambda step: None) -> None:
        self.before = before
        self.done: list[str] = []
        self.is_promoted = False

    def _step(self, step: str) -> None:
        self.before(step)
        self.done.append(step)

    async def lag(self) -> Lag:
        return Lag()

    async def promoted(self) -> bool:
        return self.is_promoted

    async def mark(self) -> Position:
        return START

    async def check(self) -> None:
        self._step("check")

    async def fence(self, term: int) -> str:
        self._step(f"fence {term}")
        return "fenced"

    async def verify(self, since: Position) -> Verified:
        self._step("verify")
        return Verified(commits=7)

    async def newest(self) -> str:
        return "the newest is of yesterday"

    async def promote(self, *, clean: bool) -> str:
        self._step("promote, clean" if clean else "promote")
        self.is_promoted = True
        return "promoted"

    async def admit(self, term: int) -> None:
        self._step(f"admit {term}")

    async def close(self) -> None: ...


class World:
    def __init__(self, stores: Stores) -> None:
        self.witness = Witness()
        self.stores = stores
        self.time = 0.0
        self.recorded: list[str] = []
        self.told: list[str] = []
        self.may_record = True

    def handing(self) -> HandingOver:
        return HandingOver(
            self.witness,
            operator="operator",
            seconds=60,
            clock=lambda: self.time,
            now=lambda: datetime.now(UTC),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.time += seconds

    async def record(self, what: str) -> None:
        if not self.may_record:
            raise AuditUnavailable("the audit log is full")
        self.recorded.append(what)

    async def writer(self) -> WriterLease:
        lease = WriterLease(
            self.witness,
            site="tokyo",
            writer="tokyo-1",
            seconds=60,
            clock=lambda: self.time,
            now=lambda: datetime.now(UTC),
        )
        await lease.renew()
        return lease

    async def planned(self) -> str:
        tell = self.told.append
        report = await planned_failover(self.handing(), self.stores, site="osaka", tell=tell, record=self.record)
        return report.mode


async def test_planned_goes_step_by_step_and_records_before_it_does() -> None:
    world = World(Stores())
    assert await world.planned() == "planned"
    assert world.stores.done == ["check", "fence 2", "verify", "promote, clean", "admit 2"]
    record = world.witness.record
    assert record is not None
    assert (record.holder, record.term, record.state) == ("osaka", 2, "active")
    assert world.recorded == ["planned, to osaka", "promoting the store of osaka, term 2"]


@pytest.mark.parametrize("step", ["fence 2", "verify"])
async def test_what_cant_be_proved_leaves_writing_where_it_was(step: str) -> None:
    def fails(at: str) -> None:
        if at == step:
            raise FailoverRefused("they differ")

    world = World(Stores(before=fails))
    lease = await world.writer()
    with pytest.raises(FailoverRefused, match=r"they differ; tokyo writes on \(term 2\), nothing was lost"):
        await world.planned()
    assert not world.stores.is_promoted
    assert not lease.permitted, "it was waited out"
    await lease.renew()
    lease.check()
    assert lease.term == 2


async def test_a_copy_that_does_not_follow_changes_nothing() -> None:
    def fails(at: str) -> None:
        raise FailoverRefused("no replica")

    world = World(Stores(before=fails))
    before = world.witness.record
    with pytest.raises(FailoverRefused, match="no replica"):
        await world.planned()
    assert world.witness.record == before
    assert world.recorded == []


async def test_what_cant_be_recorded_is_not_done() -> None:
    world = World(Stores())
    world.may_record = False
    before = world.witness.record
    with pytest.raises(AuditUnavailable):
        await world.planned()
    assert world.witness.record == before


@pytest.mark.parametrize("step", ["fence 2", "verify", "promote", "admit 2"])
async def test_killed_before_any_step_it_is_gone_on_with(step: str) -> None:
    def kills(at: str) -> None:
        if at.startswith(step):
            raise Killed

    world = World(Stores(before=kills))
    lease = await world.writer()
    with pytest.raises(Killed):
        await world.planned()
    assert not lease.permitted
    await lease.renew()
    assert not lease.permitted, "the site that wrote must not begin again"
    world.stores.before = lambda at: None
    await world.planned()
    assert any("goes on with a failover that had begun" in line for line in world.told)
    assert world.stores.done[-4:] == ["fence 2", "verify", "promote", "admit 2"]
    record = world.witness.record
    assert record is not None
    assert (record.holder, record.term) == ("osaka", 2)


async def test_forced_waits_the_lease_out_and_says_what_nobody_knows() -> None:
    def unreachable(at: str) -> None:
        if at.startswith("fence"):
            raise JournalUnavailable("tokyo does not answer")

    world = World(Stores(before=unreachable))
    await world.writer()
    report = await forced_failover(
        world.handing(), world.stores, site="osaka", tell=world.told.append, record=world.record
    )
    assert report.waited_seconds >= 60
    assert report.unknown == (
        "what was not replicated is not known: tokyo does not answer",
        "the newest is of yesterday",
    )
    assert report.compared_commits is None
    assert world.stores.done == ["promote", "admit 2"]


async def test_without_the_witness_nothing_is_forced() -> None:
    world = World(Stores())
    world.witness.away = True
    with pytest.raises(LeaseUnavailable):
        await forced_failover(world.handing(), world.stores, site="osaka", tell=world.told.append, record=world.record)
    assert world.stores.done == []


async def test_unfenced_says_so_first_and_in_the_audit_log() -> None:
    world = World(Stores())
    report = await unfenced_failover(world.stores, site="osaka", tell=world.told.append, record=world.record)
    assert world.told[0].startswith("UNFENCED")
    assert world.recorded[0].startswith("UNFENCED")
    assert report.unknown[0].startswith("UNFENCED")
    assert world.stores.done == ["promote", "admit 0"]
