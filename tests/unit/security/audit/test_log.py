"""The audit log: what is recorded when, coalescing, bounds, failing sinks in both policies, and floods."""

from __future__ import annotations

import asyncio
import logging
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kiseki.kernel.ports import AuditEvent, AuditUnavailable
from kiseki.security.audit.anchor import FileAnchors
from kiseki.security.audit.log import AuditLog, new_writer
from kiseki.security.audit.record import SealedRecord
from kiseki.security.audit.sink import SinkFailed
from tests.unit.security.audit.parts import KEYS, MemorySink, memory_log, refused, until
from tests.unit.security.fakes import FakeClock


async def test_a_log_begins_and_ends_with_a_record_of_its_own() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    assert sink.kinds() == ["audit.started"]
    assert sink.synced == 1
    await log.close()
    assert sink.kinds() == ["audit.started", "audit.stopped"]
    assert sink.synced == 2
    assert sink.closed
    records = sink.records()
    assert [record.number for record in records] == [1, 2]
    assert records[0].previous == "0" * 64
    assert records[1].previous == records[0].mac
    assert {record.writer for record in records} == {log.writer}


async def test_what_is_recorded_is_durable_when_record_returns() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    await log.record(AuditEvent(kind="token.issued", outcome="done", subject="somebody", target="a token"))
    assert sink.synced == len(sink.lines) == 2
    assert (sink.records()[1].subject, sink.records()[1].target) == ("somebody", "a token")
    await log.close()


async def test_records_of_the_same_time_share_a_durable_write() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    await asyncio.gather(*(log.record(refused(target=str(number))) for number in range(300)))
    assert len(sink.lines) == 301
    assert sink.syncs <= 4
    await log.close()


async def test_record_is_never_coalesced() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    for _ in range(3):
        await log.record(refused(actor="a"))
    await log.close()
    assert sink.kinds().count("access.denied") == 3


async def test_repeats_are_counted_and_summed_at_the_end_of_their_window() -> None:
    sink, clock = MemorySink(), FakeClock()
    log = await memory_log(sink, clock=clock)
    began = clock.now()
    log.note(refused(actor="a", address="192.0.2.1", operation="x", trace_id="1"))
    for number in range(5):
        clock.advance(1)
        log.note(refused(actor="a", address="192.0.2.1", operation="xy"[number % 2], trace_id=str(number)))
    await log.flush()
    assert sink.kinds() == ["audit.started", "access.denied"]
    clock.advance(5)
    log.note(refused(actor="b"))  # whatever comes then ends windows
    await log.flush()
    first, total, other = sink.records()[1:]
    assert (first.count, first.operation, first.trace_id) == (1, "x", "1")
    assert (total.count, total.actor, total.address) == (5, "a", "192.0.2.1")
    assert (total.operation, sorted(total.operations), total.trace_id) == (None, ["x", "y"], None)
    assert total.first_at is not None
    assert total.last_at is not None
    assert (total.last_at - total.first_at).total_seconds() == 4
    assert (total.first_at - began).total_seconds() == 1
    assert other.actor == "b"
    await log.close()


async def test_a_window_ends_without_another_event() -> None:
    sink = MemorySink()
    log = await memory_log(sink, window=0.05)
    for _ in range(4):
        log.note(refused(actor="a"))
    await until(lambda: len(sink.lines) == 3)
    assert sink.records()[2].count == 3
    await log.close()


async def test_the_end_of_the_log_ends_every_window() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    for _ in range(4):
        log.note(refused(actor="a"))
    await log.close()
    assert [(record.kind, record.count) for record in sink.records()[1:]] == [
        ("access.denied", 1),
        ("access.denied", 3),
        ("audit.stopped", 1),
    ]


async def test_a_flood_from_one_address_costs_two_lines() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    for number in range(100_000):
        log.note(
            AuditEvent(
                kind="authentication.refused", outcome="refused", code="INVALID_TOKEN", address="192.0.2.7",
                trace_id=str(number),
            )
        )  # fmt: skip
        if number % 5_000 == 0:
            await asyncio.sleep(0)
    await log.close()
    counts = [record.count for record in sink.records() if record.kind == "authentication.refused"]
    assert sum(counts) == 100_000
    assert len(counts) <= 4


async def test_a_flood_from_everywhere_stays_within_bounds_of_memory_and_lines() -> None:
    sink, clock = MemorySink(), FakeClock()
    log = await memory_log(sink, clock=clock)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100_000):
            log.note(
                refused(address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", operation=f"/{number}" * 900)
            )
            if number % 1_000 == 0:
                await asyncio.sleep(0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 8_000_000
    await log.close()
    counts = [record.count for record in sink.records() if record.kind == "access.denied"]
    assert sum(counts) == 100_000
    assert len(counts) <= 201
    assert log.statistics().dropped == 0


async def test_every_new_actor_is_named_whatever_else_happens() -> None:
    sink = MemorySink()
    log = await memory_log(sink, windows=5)
    for number in range(1_000):
        log.note(
            AuditEvent(
                kind="actor.seen", outcome="done", actor=f"p{number}", issuer="https://issuer.example",
                subject=f"user{number}", address="192.0.2.1",
            )
        )  # fmt: skip
        log.note(refused(kind="authentication.refused", address=f"10.0.{number >> 8}.{number & 255}"))
        if number % 100 == 0:
            await log.flush()
    log.note(refused(actor="p7", address="192.0.2.7"))
    await log.close()
    seen = [record for record in sink.records() if record.kind == "actor.seen"]
    assert [(record.actor, record.subject, record.count) for record in seen] == [
        (f"p{number}", f"user{number}", 1) for number in range(1_000)
    ]
    (denied,) = (record for record in sink.records() if record.kind == "access.denied")
    assert (denied.actor, denied.address, denied.count) == ("p7", "192.0.2.7", 1)
    assert log.statistics().dropped == 0


async def test_actors_that_the_queue_has_no_room_for_are_counted() -> None:
    sink = MemorySink()
    log = await memory_log(sink, queue=10)
    sink.gate = asyncio.Event()
    for number in range(50):
        log.note(AuditEvent(kind="actor.seen", outcome="done", actor=f"p{number}", subject=f"user{number}"))
        assert log.statistics().waiting <= 11
    sink.gate.set()
    await until(lambda: "audit.overflow" in sink.kinds())
    overflow = next(record for record in sink.records() if record.kind == "audit.overflow")
    assert (overflow.count, overflow.detail) == (40, "dropped: actor.seen 40")
    assert sink.kinds().count("actor.seen") == 10
    await log.close()


async def test_a_full_queue_drops_counts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink()
    log = await memory_log(sink, queue=10, windows=1_000)
    sink.gate = asyncio.Event()
    for number in range(50):
        log.note(refused(actor=str(number)))
    assert log.problem == "events were dropped from the audit log"
    assert "dropped" in caplog.text
    with pytest.raises(AuditUnavailable):
        await log.record(refused(actor="x"))
    sink.gate.set()
    await until(lambda: "audit.overflow" in sink.kinds())
    await log.flush()
    assert log.healthy
    overflow = next(record for record in sink.records() if record.kind == "audit.overflow")
    assert overflow.outcome == "failed"
    assert overflow.count == 41
    assert overflow.detail == "dropped: access.denied 41"
    assert overflow.first_at is not None
    assert sink.kinds().count("access.denied") == 10
    assert log.statistics().dropped == 41
    await log.close()


async def test_refuse_raises_while_a_sink_fails_and_keeps_what_was_noted(caplog: pytest.LogCaptureFixture) -> None:
    sink, clock = MemorySink(), FakeClock()
    log = await memory_log(sink, clock=clock, retry=0.01)
    sink.is_broken = True
    log.note(refused(actor="noted"))
    await until(lambda: not log.healthy)
    assert log.problem == "the sink memory is broken"
    assert "can't be recorded" in caplog.text
    with pytest.raises(AuditUnavailable, match="a security event can't be recorded"):
        await log.record(AuditEvent(kind="token.issued", outcome="done"))
    sink.is_broken = False
    clock.advance(1)
    await until(lambda: log.healthy)
    await log.record(AuditEvent(kind="token.revoked", outcome="done"))
    # What was refused while the failure was known never got into the log: it did not happen.
    assert sink.kinds() == ["audit.started", "access.denied", "audit.resumed", "token.revoked"]
    assert log.statistics().refused == 1
    await log.close()
    assert [record.number for record in sink.records()] == [1, 2, 3, 4, 5]


async def test_continue_goes_on_and_writes_what_waited(caplog: pytest.LogCaptureFixture) -> None:
    sink, clock = MemorySink(), FakeClock()
    log = await memory_log(sink, clock=clock, retry=0.01, failure="continue")
    sink.is_broken = True
    await log.record(AuditEvent(kind="token.issued", outcome="done"))
    assert "goes on unrecorded" in caplog.text
    assert log.healthy
    assert log.problem == "the sink memory is broken"
    sink.is_broken = False
    clock.advance(1)
    await until(lambda: log.problem is None)
    await log.flush()
    assert sink.kinds() == ["audit.started", "token.issued", "audit.resumed"]
    await log.close()


@pytest.mark.parametrize("failure", ["refuse", "continue"])
async def test_one_sink_that_fails_does_not_stop_the_others_and_catches_up(failure: str) -> None:
    good, bad, clock = MemorySink("good"), MemorySink("bad"), FakeClock()
    log = await memory_log(good, bad, clock=clock, retry=0.01, failure=failure)
    bad.is_broken = True
    for number in range(20):
        log.note(refused(actor=str(number)))
    await until(lambda: len(good.lines) == 21)
    assert len(bad.lines) == 1
    bad.is_broken = False
    clock.advance(1)
    await log.flush()
    await until(lambda: log.problem is None and len(bad.lines) == 22)
    assert bad.lines == good.lines
    await log.close()


async def test_a_sink_that_fails_for_long_holds_a_bounded_number_and_leaves_no_gap() -> None:
    sink, clock = MemorySink(), FakeClock()
    log = await memory_log(sink, clock=clock, retry=0.001, backlog=10, queue=20, failure="continue", windows=1_000)
    sink.is_broken = True
    for number in range(500):
        log.note(refused(actor=str(number)))
        if number % 7 == 0:
            await asyncio.sleep(0.001)
        assert log.statistics().waiting <= 31
    sink.is_broken = False
    clock.advance(1)
    await until(lambda: log.problem is None and log.statistics().waiting == 0)
    records = sink.records()
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    dropped = sum(record.count for record in records if record.kind == "audit.overflow")
    assert dropped + sum(record.kind == "access.denied" for record in records) == 500
    await log.close()


async def test_a_sink_that_hangs_is_not_waited_for() -> None:
    sink = MemorySink()
    log = await memory_log(sink, record_timeout=0.05)
    sink.gate = asyncio.Event()
    with pytest.raises(AuditUnavailable, match="does not answer in time"):
        await log.record(refused(actor="a"))
    assert not log.healthy
    sink.gate.set()
    await until(lambda: log.healthy)
    await log.close()


async def test_a_log_that_cannot_say_that_it_started_is_not_opened() -> None:
    sink = MemorySink()
    sink.is_broken = True
    with pytest.raises(AuditUnavailable):
        await memory_log(sink)
    assert sink.closed
    other = MemorySink()
    other.is_broken = True
    log = await memory_log(other, failure="continue")
    assert log.healthy
    await log.close()


async def test_a_closed_log_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    await log.close()
    await log.close()
    log.note(refused())
    assert "after the audit log was closed" in caplog.text
    with pytest.raises(AuditUnavailable, match="it is closed"):
        await log.record(refused())
    assert not log.healthy
    assert sink.kinds() == ["audit.started", "audit.stopped"]


async def test_a_caller_that_goes_away_leaves_its_record() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    sink.gate = asyncio.Event()
    task = asyncio.create_task(log.record(refused(actor="a")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sink.gate.set()
    await log.record(refused(actor="b"))
    assert [record.actor for record in sink.records()[1:]] == ["a", "b"]
    await log.close()


async def test_note_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    log = await memory_log(MemorySink())
    strange: Any = AuditEvent(kind="access.denied", outcome="refused", detail=["not", "text"])  # type: ignore[arg-type]
    log.note(strange)
    log.note(refused(actor="\ud800" * 10))
    log.note(refused(address="fe80::1%eth0"))
    log.note(None)  # type: ignore[arg-type]
    await log.close()


async def test_events_of_other_threads_arrive() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    thread = threading.Thread(target=lambda: log.note(refused(actor="thread")))
    thread.start()
    thread.join()
    await until(lambda: len(sink.lines) == 2)
    await log.close()


async def test_a_clock_that_goes_backwards_breaks_nothing() -> None:
    sink, clock = MemorySink(), _Backwards()
    log = await memory_log(sink, clock=clock)
    for number in range(5):
        clock.back(3_600)
        log.note(refused(actor="a"))
        await log.record(refused(actor=str(number)))
    await log.close()
    assert [record.number for record in sink.records()] == list(range(1, 10))
    assert sum(record.count for record in sink.records() if record.actor == "a") == 5


class _Backwards(FakeClock):
    """A wall clock that somebody sets back; monotonic time stays."""

    def __init__(self) -> None:
        super().__init__()
        self._ticks = 0.0

    def monotonic(self) -> float:
        self._ticks += 0.001
        return self._ticks

    def back(self, seconds: float) -> None:
        self.advance(-seconds)


async def test_a_fault_of_the_log_itself_lets_nothing_pass_for_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MemorySink()
    log = await memory_log(sink, retry=0.01)

    async def broken(_self: AuditLog) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(AuditLog, "_turn", broken)
        with pytest.raises(AuditUnavailable):
            await log.record(refused())
    await log.record(refused(actor="after"))
    await log.close()


async def test_secrets_are_masked_in_every_text() -> None:
    sink = MemorySink()
    log = await memory_log(sink)
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
    await log.record(
        refused(
            detail=f"Authorization: Bearer {token}", operation=f"/x?access_token={token}", target=token, subject=token,
            address="postgresql://user:hunter22@host/x", code=token,
        )
    )  # fmt: skip
    line = sink.lines[1].decode()
    assert "c2lnbmF0dXJl" not in line
    assert "hunter22" not in line
    await log.close()


class Partial(MemorySink):
    """Takes some of what it is given, and fails."""

    async def write(self, records: Sequence[SealedRecord], *, durable: bool) -> None:
        if self.is_broken and len(records) > 3:
            self.lines += [record.line for record in records[:3]]
            raise SinkFailed("half way", written=3)
        await super().write(records, durable=durable)


async def test_what_a_failing_sink_took_is_not_written_again() -> None:
    sink, clock = Partial(), FakeClock()
    log = await memory_log(sink, clock=clock, retry=0.01)
    sink.is_broken = True
    for number in range(8):
        log.note(refused(actor=str(number)))
    await until(lambda: log.problem is not None)
    sink.is_broken = False
    clock.advance(1)
    await until(lambda: log.problem is None and "audit.resumed" in sink.kinds())
    assert [record.number for record in sink.records()] == list(range(1, len(sink.lines) + 1))
    assert sink.synced >= 9  # and it is believed again only when it has made that durable
    await log.close()


async def test_anchors_name_only_what_every_sink_has(tmp_path: Path) -> None:
    good, bad = MemorySink("good"), MemorySink("bad")
    log = await AuditLog.open(
        keys=KEYS, writer=new_writer(), sinks=[good, bad], clock=FakeClock(), anchors=FileAnchors(tmp_path)
    )
    await log.record(refused())
    bad.is_broken = True
    with pytest.raises(AuditUnavailable):
        await log.record(refused())
    await log._anchor()
    assert (len(good.lines), len(bad.lines)) == (3, 2)
    assert log._anchor_chain.number == 2
    await log.close()
