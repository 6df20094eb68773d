"""Two sites, several processes and operators, answers that are late or lost, clocks of different speeds that jump:
at no moment may two sites write. The code is the real one; time and the way to the store are the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kiseki.journal.lease.handing_over import HandingOver
from kiseki.journal.lease.holder import WriterLease, first_record
from kiseki.journal.lease.port import LeaseRecord, LeaseUnavailable, NotTheWriter
from kiseki.kernel.errors import KisekiError

SITES = ("tokyo", "osaka")
SECONDS = 60.0
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """One machine's: its speed is off by up to a hundredth, and its wall clock shows anything."""

    def __init__(self, machine: LeaseMachine, speed: float) -> None:
        self._machine = machine
        self._speed = speed
        self.offset = timedelta(0)

    def monotonic(self) -> float:
        return 1_000 + self._machine.time * self._speed

    def now(self) -> datetime:
        return START + self.offset


class Witness:
    """Holds the record. Each call waits until the test lets it happen, and again until its answer arrives."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = first_record(SITES[0], term=1, now=START)
        self.calls: list[tuple[Any, asyncio.Future[Any]]] = []
        self.answers: list[tuple[asyncio.Future[Any], Any]] = []
        self.label = "the witness"

    async def read(self) -> LeaseRecord | None:
        return await self._call(lambda: self.record)  # type: ignore[no-any-return]

    async def swap(self, before: LeaseRecord | None, after: LeaseRecord) -> bool:
        def change() -> bool:
            if (self.record and self.record.version) != (before and before.version):
                return False
            self.record = after
            return True

        return await self._call(change)  # type: ignore[no-any-return]

    async def close(self) -> None: ...

    async def _call(self, work: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.append((work, future))
        return await future


class LeaseMachine(RuleBasedStateMachine):
    """Everything happens when a rule says so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.time = 0.0
        self.witness = Witness()
        self.sleeping: list[tuple[float, asyncio.Future[None]]] = []
        self.writers: dict[str, WriterLease] = {}
        self.clocks: list[Clock] = []
        self.renewing: dict[str, asyncio.Task[None]] = {}
        self.failovers: list[asyncio.Task[None]] = []
        self.finished = 0
        self.late: list[tuple[asyncio.Future[Any], Any]] = []

    @initialize(speeds=st.lists(st.floats(0.995, 1.005), min_size=6, max_size=6))
    def machines(self, speeds: list[float]) -> None:
        self.clocks = [Clock(self, speed) for speed in speeds]
        for number, name in enumerate(("tokyo-1", "tokyo-2", "osaka-1", "osaka-2")):
            clock = self.clocks[number]
            self.writers[name] = WriterLease(
                self.witness,
                site=name.partition("-")[0],
                writer=name,
                seconds=SECONDS,
                clock=clock.monotonic,
                now=clock.now,
                sleep=self.sleep,
            )

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self.settle()
        return task

    def settle(self) -> None:
        for _ in range(10):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        # By the slowest clock there is: a machine may also be late.
        self.sleeping.append((self.time + seconds, future))
        await future

    @rule(name=st.sampled_from(["tokyo-1", "tokyo-2", "osaka-1", "osaka-2"]))
    def renew(self, name: str) -> None:
        if name in self.renewing and not self.renewing[name].done():
            return

        async def once() -> None:
            try:
                await self.writers[name].renew()
            except (LeaseUnavailable, NotTheWriter):
                pass

        self.renewing[name] = self.start(once())

    @rule(site=st.sampled_from(SITES), clock=st.sampled_from([4, 5]), waits=st.booleans())
    def fail_over(self, site: str, clock: int, waits: bool) -> None:
        if sum(not task.done() for task in self.failovers) >= 2:
            return
        machine = self.clocks[clock]

        async def run() -> None:
            handing = HandingOver(
                self.witness,
                operator=f"operator {clock}",
                seconds=SECONDS,
                clock=machine.monotonic,
                now=machine.now,
                sleep=self.sleep,
            )
            try:
                await handing.begin(site)
                await handing.wait()
                await (handing.finish() if waits else handing.back())
                self.finished += 1
            except KisekiError:
                pass

        self.failovers.append(self.start(run()))

    @precondition(lambda self: self.failovers)
    @rule(number=st.integers(0, 5))
    def kill_a_failover(self, number: int) -> None:
        self.failovers[number % len(self.failovers)].cancel()
        self.settle()

    @rule(seconds=st.one_of(st.floats(0, 5), st.floats(0, 80)))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds
        due = [future for at, future in self.sleeping if at <= self.time]
        self.sleeping = [(at, future) for at, future in self.sleeping if at > self.time]
        for future in due:
            if not future.done():
                future.set_result(None)
        self.settle()

    @rule(clock=st.integers(0, 5), hours=st.integers(-100, 100))
    def a_wall_clock_jumps(self, clock: int, hours: int) -> None:
        self.clocks[clock].offset += timedelta(hours=hours)

    @precondition(lambda self: self.witness.calls)
    @rule(number=st.integers(0, 9))
    def a_call_arrives(self, number: int) -> None:
        work, future = self.witness.calls.pop(number % len(self.witness.calls))
        self.witness.answers.append((future, work()))

    @precondition(lambda self: self.witness.calls)
    @rule(number=st.integers(0, 9), arrives=st.booleans())
    def a_call_is_lost(self, number: int, arrives: bool) -> None:
        """Or only its answer; whoever called is told that nobody knows."""
        work, future = self.witness.calls.pop(number % len(self.witness.calls))
        if arrives:
            work()
        if not future.done():
            future.set_exception(LeaseUnavailable("lost"))
        self.settle()

    @precondition(lambda self: self.witness.answers)
    @rule(number=st.integers(0, 9))
    def an_answer_arrives(self, number: int) -> None:
        future, answer = self.witness.answers.pop(number % len(self.witness.answers))
        if not future.done():
            future.set_result(answer)
        self.settle()

    @rule(name=st.sampled_from(["tokyo-1", "tokyo-2", "osaka-1", "osaka-2"]))
    def a_renewal_whose_answer_is_late(self, name: str) -> None:
        self.all_is_quick(5)
        self.renew(name)
        self.all_is_quick(1)  # the record is read
        while self.witness.calls:
            self.a_call_arrives(0)
        self.late += self.witness.answers
        self.witness.answers = []

    @precondition(lambda self: self.late)
    @rule(number=st.integers(0, 9))
    def a_late_answer_arrives(self, number: int) -> None:
        self.witness.answers.append(self.late.pop(number % len(self.late)))
        self.all_is_quick(1)

    @rule(site=st.sampled_from(SITES), seconds=st.floats(0, 20), renewing=st.sampled_from(["none", "tokyo", "osaka"]))
    def a_whole_failover(self, site: str, seconds: float, renewing: str) -> None:
        self.fail_over(site, 4, waits=True)
        for _ in range(60):
            self.all_is_quick(2)
            if renewing != "none":
                self.renew(f"{renewing}-1")
                self.one_site_writes()
            self.time_passes(2)
            if self.failovers and all(task.done() for task in self.failovers):
                break
        self.renew(f"{site}-1")
        self.all_is_quick(4)
        self.time_passes(seconds)

    @rule(rounds=st.integers(1, 12))
    def all_is_quick(self, rounds: int) -> None:
        """Else hardly anything would ever be granted."""
        for _ in range(rounds):
            while self.witness.calls:
                self.a_call_arrives(0)
            while self.witness.answers:
                self.an_answer_arrives(0)

    @invariant()
    def one_site_writes(self) -> None:
        sites = {lease.site for lease in self.writers.values() if lease.permitted}
        assert len(sites) <= 1, f"{sites} may write at the same moment"

    @invariant()
    def who_may_write_is_known(self) -> None:
        """A failover that finds no writers waits for nobody, so everybody who may write has to be among them."""
        record = self.witness.record
        assert record is not None
        if record.state == "active":
            for name, lease in self.writers.items():
                assert not lease.permitted or name in record.writers, f"{name} may write and nobody would wait for it"

    def teardown(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        self.loop.close()


TestLease = LeaseMachine.TestCase
TestLease.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
