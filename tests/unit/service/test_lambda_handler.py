"""The Lambda handler on real read-model files: every event once, poison parked, and exact answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer

from kiseki import Erased, Unavailable
from kiseki.journal.port import CorruptJournal, JournalUnavailable
from kiseki.kernel.errors import DefinitionError
from kiseki.projection.port import Batch, BuildMissing, BuildName, GuardMoved
from tests.unit.projection.parts import SPOILT, UNLUCKY, Counted, Elsewhere, Forgotten, Named, Totals
from tests.unit.service.lambda_bench import (
    ARN,
    FINE,
    Bench,
    Context,
    a_bench,
    counts_in,
    garbled,
    given_back,
    record_of,
)

A, B, C = "Counter-a", "Counter-b", "Counter-c"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The handler sends all logs of its process to where the test's output goes, which is gone afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def three_streams(bench: Bench) -> list[dict[str, Any]]:
    """Records of A, B, A, C, B."""
    for stream, amount in ((A, 1), (B, 2), (A, 3), (C, 4), (B, 5)):
        await bench.world.facts.happen(stream, Counted(amount))
    return await bench.records()


ALL_STEPS = [("a", 1, 1), ("a", 2, 3), ("b", 1, 2), ("b", 2, 5), ("c", 1, 4)]


async def test_a_batch_is_applied_in_one_transaction_and_answered_exactly(bench: Bench) -> None:
    assert await bench.invoke(await three_streams(bench)) == FINE
    assert await bench.rows() == ALL_STEPS
    assert len(bench.models.written) == 1


async def test_what_comes_twice_is_applied_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    records = await three_streams(bench)
    assert await bench.invoke([*records, *records]) == FINE
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS
    assert counts_in(capsys.readouterr().out)["skipped"] == 5


async def test_order_does_not_matter(bench: Bench) -> None:
    records = await three_streams(bench)
    assert await bench.invoke(records[::-1]) == FINE
    assert await bench.rows() == ALL_STEPS


async def test_what_the_stream_lost_before_is_read_from_the_journal(bench: Bench) -> None:
    records = await three_streams(bench)
    assert await bench.invoke([records[4], records[2]]) == FINE
    assert await bench.rows() == [step for step in ALL_STEPS if step[0] != "c"]


async def test_other_tables_are_not_applied(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    commit = await bench.world.facts.happen(A, Counted(1))
    foreign = [
        record_of(commit, 1, arn=ARN.replace("shop-journal", "shop-claims")),
        record_of(commit, 2, arn=ARN.replace("eu-west-1", "us-east-1")),
        record_of(commit, 3, arn="arn:aws:kinesis:eu-west-1:1:stream/shop-journal"),
        record_of(commit, 4, arn=ARN.replace("shop-journal", "not-shop-journal")),
    ]
    assert await bench.invoke(foreign) == FINE
    assert await bench.rows() == []
    assert counts_in(capsys.readouterr().out)["foreign"] == 4


@pytest.mark.parametrize("event_name", ["MODIFY", "REMOVE", None, "insert"])
async def test_changes_of_the_journal_are_loud_and_hold_nothing_up(
    bench: Bench, event_name: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await bench.world.facts.happen(A, Counted(1))
    other = await bench.world.facts.happen(B, Counted(2))
    assert await bench.invoke([record_of(first, 1, event_name=event_name), record_of(other, 2)]) == FINE
    assert await bench.rows() == [("b", 1, 2)]
    output = capsys.readouterr().out
    assert counts_in(output)["tampered"] == 1
    assert "was changed or removed" in output


@pytest.mark.parametrize(("type_name", "version"), [("Unheard", 1), ("Counted", 9)])
async def test_unknown_events_park_their_stream_alone(
    bench: Bench, type_name: str, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    await bench.world.facts.unknown(A, type_name=type_name, version=version)
    await bench.world.facts.happen(A, Counted(1))
    await bench.world.facts.happen(B, Counted(2))
    assert await bench.invoke(await bench.records()) == FINE
    parked = await bench.parked(A)
    assert parked is not None
    assert (parked.code, parked.sequence_number) == ("UNKNOWN_EVENT", 1)
    assert await bench.rows() == [("b", 1, 2)]
    assert counts_in(capsys.readouterr().out)["parked"] == 1


async def test_poison_parks_its_stream_alone(bench: Bench) -> None:
    await bench.world.facts.happen(A, Counted(1), Counted(UNLUCKY), Counted(2))
    await bench.world.facts.happen(B, Counted(3))
    assert await bench.invoke(await bench.records()) == FINE
    parked = await bench.parked(A)
    assert parked is not None
    assert (parked.code, parked.sequence_number) == ("APPLY_FAILED", 2)
    assert await bench.rows() == [("a", 1, 1), ("b", 1, 3)]


async def test_a_record_that_can_not_be_read_has_its_stream_read_from_the_journal(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    records = await three_streams(bench)
    records[2] = garbled(records[2])
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS
    assert counts_in(capsys.readouterr().out)["reread"] == 1


async def test_a_record_without_keys_is_dropped_and_holds_nothing_up(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    records = await three_streams(bench)
    assert await bench.invoke([garbled(records[3], keys=False), *records[:3], None, 7, {"dynamodb": []}]) == FINE
    assert await bench.rows() == ALL_STEPS[:3]
    counts = counts_in(capsys.readouterr().out)
    assert (counts["dropped"], counts["foreign"], counts["records"]) == (1, 3, 7)


async def test_a_stream_whose_truth_is_damaged_is_parked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    records = await three_streams(bench)

    def damaged() -> None:
        if bench.feed.reads == [] or bench.feed.reads[-1][0] != B:
            raise CorruptJournal("bytes are not what was written")

    bench.feed.before_read = damaged
    assert await bench.invoke([garbled(records[0]), *records[1:2], *records[3:]]) == FINE
    parked = await bench.parked(A)
    assert parked is not None
    assert (parked.code, parked.sequence_number) == ("UNREADABLE", 1)
    assert parked.detail.startswith("CorruptJournal at ")
    assert await bench.rows() == [step for step in ALL_STEPS if step[0] != "a"]


async def test_damage_before_a_whole_record_parks_the_stream_too(bench: Bench) -> None:
    records = await three_streams(bench)

    def damaged() -> None:
        raise CorruptJournal("bytes are not what was written")

    bench.feed.before_read = damaged
    assert await bench.invoke([records[1], records[2], records[3]]) == FINE
    parked = await bench.parked(A)
    assert parked is not None
    assert (parked.code, parked.sequence_number) == ("UNREADABLE", 1)
    assert await bench.rows() == [("b", 1, 2), ("c", 1, 4)]


async def test_a_parked_stream_whose_truth_was_restored_goes_on_by_a_retry(bench: Bench) -> None:
    records = await three_streams(bench)
    bench.feed.before_read = lambda: (_ for _ in ()).throw(CorruptJournal("damaged"))
    assert await bench.invoke([records[2]]) == FINE
    updater = bench.handler._warm
    assert updater is not None
    (target,) = updater.updater._targets
    assert not await target.projector.retry(A)
    parked = await bench.parked(A)
    assert parked is not None
    assert (parked.code, parked.attempts) == ("UNREADABLE", 2)
    bench.feed.before_read = lambda: None
    assert await bench.invoke([records[2]]) == FINE
    assert await bench.rows() == []  # it is parked, and waits
    assert await target.projector.retry(A)
    assert await bench.rows() == ALL_STEPS[:2]


async def test_a_database_that_fails_mid_batch_gives_back_from_the_first_page_that_is_not_done(tmp_path: Path) -> None:
    async with a_bench(tmp_path, page=2) as bench:
        records = await three_streams(bench)

        async def down(name: BuildName, batch: Batch) -> None:
            if any(move.stream == C for move in batch.guards):
                raise Unavailable("the database is down")

        bench.models.before_write = down  # type: ignore[method-assign]
        # The second page holds A and C: A can be applied, and C is the first that can't. B holds nobody up and is done.
        assert await bench.invoke(records) == given_back(records[3])
        assert await bench.rows() == [step for step in ALL_STEPS if step[0] != "c"]
        assert len(bench.pauses) == 3


async def test_a_database_that_is_down_gives_back_everything_after_bounded_tries(bench: Bench) -> None:
    records = await three_streams(bench)
    bench.models.down = Unavailable("nobody answers")
    assert await bench.invoke(records) == given_back(records[0])
    assert bench.pauses == [0.1, 0.2, 0.4]
    bench.models.down = None
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS


async def test_one_stream_that_can_not_be_read_now_holds_up_no_other(bench: Bench) -> None:
    records = await three_streams(bench)

    def unavailable() -> None:
        raise JournalUnavailable("throttled")

    bench.feed.before_read = unavailable
    # B's first record was lost, so the journal is needed.
    batch = [records[0], records[4], records[2], records[3]]
    assert await bench.invoke(batch) == given_back(records[4])
    assert await bench.rows() == [("a", 1, 1), ("a", 2, 3), ("c", 1, 4)]


async def test_what_fails_once_is_opened_anew_and_tried_again(bench: Bench) -> None:
    records = await three_streams(bench)
    assert await bench.invoke(records[:2]) == FINE
    failures = [Unavailable("the connection was closed")] * 4

    async def stale(name: BuildName, batch: Batch) -> None:
        if failures:
            raise failures.pop()

    bench.models.before_write = stale  # type: ignore[method-assign]
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS
    assert bench.opens == 2


async def test_a_warm_environment_opens_nothing_again(bench: Bench) -> None:
    records = await three_streams(bench)
    for record in records:
        assert await bench.invoke([record]) == FINE
    assert bench.opens == 1
    assert len(bench.models.opened) == 1
    assert await bench.rows() == ALL_STEPS


async def test_a_guard_that_another_one_moved_is_read_again(bench: Bench) -> None:
    records = await three_streams(bench)
    moved = [GuardMoved("another process wrote")] * 4

    async def race(name: BuildName, batch: Batch) -> None:
        if moved:
            raise moved.pop()

    bench.models.before_write = race  # type: ignore[method-assign]
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS
    assert bench.pauses == []
    assert bench.opens == 1


async def test_guards_that_never_stand_still_give_the_batch_back(bench: Bench) -> None:
    records = await three_streams(bench)

    async def race(name: BuildName, batch: Batch) -> None:
        raise GuardMoved("another process wrote")

    bench.models.before_write = race  # type: ignore[method-assign]
    assert await bench.invoke(records) == given_back(records[0])


async def test_two_environments_at_once_apply_everything_once(bench: Bench) -> None:
    for amount in range(1, 31):
        await bench.world.facts.happen((A, B, C)[amount % 3], Counted(amount if amount != UNLUCKY else 0))
    records = await bench.records()
    other = bench.another()
    try:
        answers = await asyncio.gather(
            *(
                one.answer({"Records": records[start : start + 10]}, Context())
                for start in (0, 10, 20)
                for one in (bench.handler, other)
                if start != 20 or one is other
            )
        )
    finally:
        await other.close()
    assert answers == [FINE] * 5
    assert len(await bench.rows()) == 30


async def test_without_a_build_everything_comes_again_and_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_bench(tmp_path, built=False) as bench:
        records = await three_streams(bench)
        assert await bench.invoke(records) == given_back(records[0])
        output = capsys.readouterr().out
        assert "kiseki migrate" in output
        assert bench.pauses == []
        await bench.build()
        assert await bench.invoke(records) == FINE
        assert await bench.rows() == ALL_STEPS


async def test_a_function_whose_time_is_up_gives_back_what_is_not_done(tmp_path: Path) -> None:
    async with a_bench(tmp_path, page=2) as bench:
        records = await three_streams(bench)

        async def expires(name: BuildName, batch: Batch) -> None:
            if any(move.stream == C for move in batch.guards):
                raise TimeoutError  # as asyncio.timeout does, when the time comes

        bench.models.before_write = expires  # type: ignore[method-assign]
        assert await bench.invoke(records) == given_back(records[2])

        async def fine(name: BuildName, batch: Batch) -> None: ...

        bench.models.before_write = fine  # type: ignore[method-assign]
        foreign = {**records[0], "eventSourceARN": "arn:of:nothing"}
        assert await bench.invoke([foreign], remaining=0.0) == FINE
        assert await bench.invoke(records[2:]) == FINE
        assert await bench.rows() == ALL_STEPS
        assert bench.opens == 2


@pytest.mark.parametrize("remaining", [0.0, -1.0])
async def test_a_function_without_any_time_gives_everything_back(bench: Bench, remaining: float) -> None:
    records = await three_streams(bench)
    assert await bench.invoke(records, remaining=remaining) == given_back(records[0])
    foreign = {**records[0], "eventSourceARN": "arn:of:nothing"}
    assert await bench.invoke([foreign], remaining=remaining) == FINE
    assert await bench.invoke(records) == FINE
    assert await bench.rows() == ALL_STEPS


async def test_a_candidate_beside_the_live_build_is_kept_up_to_date_and_goes_first(bench: Bench) -> None:
    records = await three_streams(bench)
    assert await bench.invoke(records[:1]) == FINE
    live = await bench.live()
    candidate = await bench.build(promote=False)
    bench.models.written.clear()
    assert await bench.invoke(records[1:]) == FINE
    assert [name for name, _ in bench.models.written][-1] == live
    assert bench.models.written[0][0] == candidate
    for name in (candidate, live):
        assert [await bench.guard(stream, name) for stream in (A, B, C)] == [2, 2, 1]
    await bench.models.real.builds.promote(candidate)
    await bench.world.facts.happen(A, Counted(9))
    assert await bench.invoke((await bench.records())[5:]) == FINE
    assert await bench.guard(A, candidate) == 3
    assert await bench.guard(A, live) == 2
    assert await bench.rows() == sorted([*ALL_STEPS, ("a", 3, 9)])


async def test_a_build_that_went_away_is_looked_for_at_once(bench: Bench) -> None:
    records = await three_streams(bench)
    candidate = await bench.build(promote=False)
    assert await bench.invoke(records[:1]) == FINE
    await bench.models.real.builds.remove(candidate)

    async def gone(name: BuildName, batch: Batch) -> None:
        if name == candidate:
            raise BuildMissing(f"{name} is not there any more")

    bench.models.before_write = gone  # type: ignore[method-assign]
    assert await bench.invoke(records[1:]) == FINE
    assert await bench.rows() == ALL_STEPS
    another = await bench.build(promote=False)
    assert await bench.invoke(records[:1]) == FINE
    assert await bench.guard(A, another) == 1


async def test_a_build_that_takes_over_during_a_batch_gets_it_too(bench: Bench) -> None:
    records = await three_streams(bench)
    replaced = await bench.live()
    made: list[BuildName] = []

    async def another_takes_over(name: BuildName, batch: Batch) -> None:
        if not made:
            made.append(await bench.build())

    bench.models.before_write = another_takes_over  # type: ignore[method-assign]
    assert await bench.invoke(records) == FINE
    for name in (replaced, *made):
        assert [await bench.guard(stream, name) for stream in (A, B, C)] == [2, 2, 1]
    assert await bench.rows() == ALL_STEPS


async def test_a_build_that_answers_its_version_gets_events_while_another_version_is_live(bench: Bench) -> None:
    records = await three_streams(bench)
    own = await bench.live()
    await bench.build(totals=Totals(version=2))
    assert await bench.invoke(records) == FINE
    assert [await bench.guard(stream, own) for stream in (A, B, C)] == [2, 2, 1]
    assert await bench.rows() == ALL_STEPS


async def test_a_candidate_that_does_not_know_an_event_is_left_to_its_owner(bench: Bench) -> None:
    candidate = await bench.build(promote=False)
    await bench.world.facts.unknown(A)
    await bench.world.facts.happen(B, Counted(1))
    assert await bench.invoke(await bench.records()) == FINE
    assert await bench.rows() == [("b", 1, 1)]
    progress = await bench.models.real.builds.progress(candidate, [A])
    assert progress[A].parked is None
    parked = await bench.parked(A)
    assert parked is not None


async def test_an_erasure_is_done_before_it_is_applied(bench: Bench) -> None:
    await bench.world.facts.happen(A, Named("太郎"))
    assert await bench.invoke(await bench.records()) == FINE
    await bench.world.facts.happen(A, Forgotten())
    assert await bench.invoke((await bench.records())[1:]) == FINE
    assert await bench.rows(bench.totals.totals) == []
    assert isinstance((await bench.world.protector.ciphers([A]))[A], Erased)
    assert bench.models.written[-1][1].scrub


async def test_an_erasure_beside_poison_is_scrubbed_too(bench: Bench) -> None:
    await bench.world.facts.happen(A, Forgotten())
    await bench.world.facts.happen(B, Counted(SPOILT))
    assert await bench.invoke(await bench.records()) == FINE
    parked = await bench.parked(B)
    assert parked is not None
    assert parked.code == "STATEMENT_FAILED"
    assert bench.models.written[-1][1].scrub


@pytest.mark.parametrize("how", ["lost", "garbled"])
async def test_an_erasure_whose_record_was_lost_or_damaged_is_done_all_the_same(bench: Bench, how: str) -> None:
    await bench.world.facts.happen(A, Named("太郎"))
    await bench.world.facts.happen(A, Forgotten())
    await bench.world.facts.happen(A, Counted(1))
    records = await bench.records()
    batch = [records[2]] if how == "lost" else [records[0], garbled(records[1])]
    assert await bench.invoke(batch) == FINE
    assert isinstance((await bench.world.protector.ciphers([A]))[A], Erased)
    assert any(batch.scrub for _, batch in bench.models.written)
    assert await bench.guard(A) == 3


async def test_streams_that_no_projection_follows_are_passed_by(bench: Bench) -> None:
    await bench.world.facts.happen("Other-1", Elsewhere(1))
    records = await bench.records()
    assert await bench.invoke([*records, garbled(records[0])]) == FINE
    assert await bench.guard("Other-1") == 0


@pytest.mark.parametrize("event", [{}, {"Records": []}, {"Records": "x"}, [], None, "x"])
async def test_an_event_without_records_is_answered(bench: Bench, event: Any) -> None:
    assert await bench.handler.answer(event, Context()) == FINE


async def test_a_record_without_a_number_has_the_one_before_it_come_again(bench: Bench) -> None:
    records = await three_streams(bench)
    del records[1]["dynamodb"]["SequenceNumber"]

    async def down(name: BuildName, batch: Batch) -> None:
        if any(move.stream == B for move in batch.guards):
            raise Unavailable("the database is down")

    bench.models.before_write = down  # type: ignore[method-assign]
    assert await bench.invoke(records) == given_back(records[0])
    del records[0]["dynamodb"]["SequenceNumber"]
    assert await bench.invoke(records) == {"batchItemFailures": [{"itemIdentifier": ""}]}


async def test_a_function_that_is_set_up_wrongly_raises(bench: Bench) -> None:
    records = await three_streams(bench)
    changed = Totals(extra=[Column("more", Integer)])
    bench.totals = changed
    with pytest.raises(DefinitionError, match="raise its version"):
        await bench.invoke(records)


async def test_every_line_is_json_with_the_request_and_the_last_one_has_the_counts(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await bench.invoke(await three_streams(bench)) == FINE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["request_id"] for line in lines} == {"request-1"}
    counts = lines[-1]
    assert (counts["records"], counts["applied"], counts["redelivered"]) == (5, 5, 0)
    (directive,) = counts["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("shop", [["function"]])
    assert {metric["Name"] for metric in directive["Metrics"]} == {
        "records",
        "applied",
        "skipped",
        "parked",
        "reread",
        "dropped",
        "foreign",
        "tampered",
        "redelivered",
    }
    assert all(metric["Name"] in counts for metric in directive["Metrics"])
