"""The projector on a store in memory: every event once, in order, whatever the feed and the stores do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki import Unavailable
from kiseki.journal.port import JournalUnavailable, Position, RecordedEvent
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.schema import UnknownEvent
from kiseki.projection.port import Batch, GuardMoved, StatementFailed, TransientFailure
from kiseki.projection.projector import Projector
from kiseki.projection.subscription import Subscription
from kiseki.security.key_store import KeyStoreUnavailable, MemoryKeyStore
from tests.support import ManualClock
from tests.unit.projection.parts import (
    DECIDERS,
    SPOILT,
    UNLUCKY,
    Counted,
    Elsewhere,
    Feed,
    Forgotten,
    MemoryStore,
    Named,
    Noted,
    Totals,
    World,
    a_protector,
    counter,
)

A, B, C = "Counter-a", "Counter-b", "Counter-c"


class Bench:
    """A projector with its store and world."""

    def __init__(self, world: World, totals: Totals | None = None, **options: Any) -> None:
        self.world = world
        self.totals = totals or Totals()
        self.store = MemoryStore(self.totals)
        self.feed = Feed(world.journal)
        self.pauses: list[int] = []
        self.projector = self.another(self.totals, **options)

    def another(self, totals: Totals, **options: Any) -> Projector:
        """Another projector on the same store, as after a new start with mended code."""

        async def pause(attempt: int) -> None:
            self.pauses.append(attempt)

        return Projector(
            subscription=Subscription(totals.projection, self.world.deciders),
            store=self.store,
            journal=self.feed,
            codec=self.world.codec,
            telemetry=self.world.telemetry,
            clock=self.world.clock,
            pause=pause,
            **options,
        )

    async def follow(self) -> None:
        """Applies everything the feed has after the stored position, as the updater would."""
        page = await self.world.journal.feed(self.store.stored_position)
        await self.projector.apply([e for commit in page.commits for e in commit.recorded()], page.position)

    def steps(self) -> list[tuple[Any, ...]]:
        return self.store.rows(self.totals.steps)

    def totals_of(self) -> dict[str, int]:
        return {row[0]: row[1] for row in self.store.rows(self.totals.totals)}


async def bench(totals: Totals | None = None, **options: Any) -> Bench:
    return Bench(await World.new(), totals, **options)


async def test_a_page_is_one_transaction_with_rows_guards_and_position() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(2))
    await b.world.facts.happen(B, Counted(5))
    await b.follow()
    (batch,) = b.store.batches
    assert b.totals_of() == {"a": 3, "b": 5}
    assert b.store.guards == {A: 2, B: 1}
    assert batch.position == await b.world.journal.head()


async def test_what_was_applied_is_skipped() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(2))
    events = await b.world.facts.all()
    assert await b.projector.apply(events) == 2
    assert await b.projector.apply([*events, *events]) == 0
    assert b.totals_of() == {"a": 3}


async def test_what_the_feed_left_out_is_read_from_the_journal_and_applied_first() -> None:
    b = await bench()
    for amount in (1, 2, 3, 4):
        await b.world.facts.happen(A, Counted(amount))
    await b.world.facts.happen(B, Counted(7))
    first, second, _, fourth, of_b = await b.world.facts.all()
    assert await b.projector.apply([of_b, first, fourth, second]) == 5
    assert b.steps() == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("a", 4, 4), ("b", 1, 7)]
    assert b.feed.reads == [(A, 1)]


async def test_a_gap_that_the_journal_can_not_fill_yet_waits_and_skips_nothing() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    (event,) = await b.world.facts.all()
    ahead = msgspec.structs.replace(event, sequence_number=5)
    with pytest.raises(JournalUnavailable):
        await b.projector.apply([ahead], Position("far"))
    assert b.store.guards == {A: 1}
    assert b.store.stored_position == ""


async def test_known_events_that_are_not_followed_move_the_guard() -> None:
    b = await bench()
    await b.world.facts.happen(A, Noted("x"), Counted(1), Noted("y"))
    await b.follow()
    assert b.store.guards == {A: 3}
    assert b.totals_of() == {"a": 1}


async def test_streams_of_aggregates_that_are_not_followed_need_no_guard() -> None:
    b = await bench()
    await b.world.facts.happen("Other-1", Elsewhere(1))
    await b.world.facts.unknown("Other-2")
    await b.follow()
    assert b.store.guards == {}
    assert b.store.parked_streams == {}
    assert b.store.stored_position == await b.world.journal.head()


@pytest.mark.parametrize(
    ("stream", "type_name", "version"), [(A, "Unheard", 1), (A, "Counted", 2), ("Stranger-1", "Unheard", 1)]
)
async def test_unknown_events_park_their_stream(stream: str, type_name: str, version: int) -> None:
    b = await bench()
    await b.world.facts.unknown(stream, type_name=type_name, version=version)
    await b.world.facts.happen(B, Counted(1))
    if stream == A:
        await b.world.facts.happen(A, Counted(2))
    await b.follow()
    parked = b.store.parked_streams[stream]
    assert (parked.sequence_number, parked.code) == (1, "UNKNOWN_EVENT")
    assert parked.detail == f"{type_name} version {version}"
    assert b.totals_of() == {"b": 1}
    assert b.store.guards == {B: 1}


async def test_a_build_beside_a_live_one_refuses_unknown_events() -> None:
    b = await bench(refuse_unknown=True)
    await b.world.facts.unknown(A)
    with pytest.raises(UnknownEvent, match="Unheard version 1"):
        await b.follow()
    assert b.store.parked_streams == {}
    assert b.store.stored_position == ""


async def test_a_function_that_fails_parks_its_stream_and_says_nothing_personal() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    await b.world.facts.happen(A, Counted(UNLUCKY), Counted(3))
    await b.world.facts.happen(B, Counted(4))
    await b.follow()
    await b.world.facts.happen(A, Counted(5))
    await b.follow()
    (parked,) = b.store.parked_streams.values()
    assert (parked.stream, parked.sequence_number, parked.event_type) == (A, 2, "Counted")
    assert parked.code == "APPLY_FAILED"
    assert parked.detail.startswith("ValueError at tests.unit.projection.parts:")
    assert "secret" not in parked.detail
    assert b.totals_of() == {"a": 1, "b": 4}
    assert b.store.guards == {A: 1, B: 1}
    assert b.world.telemetry.parked_codes == ["APPLY_FAILED"]


async def test_a_statement_that_fails_parks_only_its_stream() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    await b.world.facts.happen(B, Counted(2), Counted(SPOILT), Counted(3))
    await b.world.facts.happen(C, Counted(4))
    await b.follow()
    assert {one.stream: one.code for one in b.store.parked_streams.values()} == {B: "STATEMENT_FAILED"}
    assert b.totals_of() == {"a": 1, "b": 2, "c": 4}
    assert b.store.guards == {A: 1, B: 1, C: 1}
    assert b.store.stored_position == await b.world.journal.head()


async def test_something_else_than_statements_parks_the_stream() -> None:
    totals = Totals()
    totals.projection.apply = lambda event, metadata: ["DROP TABLE totals"]  # type: ignore[list-item]
    b = await bench(totals)
    await b.world.facts.happen(A, Counted(1))
    await b.follow()
    assert b.store.parked_streams[A].code == "APPLY_FAILED"


async def test_stored_data_that_can_not_be_read_parks_only_its_stream() -> None:
    b = await bench()
    wrong = EncodedEvent("id-1", "Counted", 1, msgspec.Raw(b'{"number": 1}'))
    await b.world.facts.store(A, [wrong])
    await b.world.facts.happen(B, Counted(2))
    await b.follow()
    assert b.store.parked_streams[A].code == "UNREADABLE"
    assert b.totals_of() == {"b": 2}


async def test_a_missing_key_parks_only_its_stream() -> None:
    b = await bench()
    elsewhere = await a_protector(ManualClock(), MemoryKeyStore())
    stranger = World(b.world.clock, elsewhere, DECIDERS)
    encoded = await stranger.codec.encode(A, [Named("太郎")], ["id-1"])
    await b.world.facts.store(A, encoded)
    await b.world.facts.happen(B, Counted(2))
    await b.follow()
    assert b.store.parked_streams[A].code == "SUBJECT_KEY_MISSING"
    assert b.totals_of() == {"b": 2}


async def test_transient_failures_are_tried_again_and_then_applied() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    deadlock = TransientFailure("deadlock")
    b.store.faults = [deadlock, deadlock, deadlock]
    await b.follow()
    assert b.totals_of() == {"a": 1}
    assert b.store.parked_streams == {}
    assert b.pauses == [1, 2]


async def test_transient_failures_without_end_park_the_stream() -> None:
    b = await bench(attempts=3)
    await b.world.facts.happen(A, Counted(1))
    await b.world.facts.happen(B, Counted(2))

    def deadlock(batch: Batch) -> TransientFailure | None:
        return TransientFailure("deadlock") if any(move.stream == A for move in batch.guards) else None

    b.store.refuse = deadlock
    await b.follow()
    assert (b.store.parked_streams[A].code, b.store.parked_streams[A].detail) == ("TRANSIENT_FAILURE", "deadlock")
    assert b.pauses == [1, 2]
    assert b.totals_of() == {"b": 2}


async def test_what_is_unavailable_is_not_parked_and_moves_nothing() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    b.store.faults = [Unavailable("the disk is full")]
    with pytest.raises(Unavailable):
        await b.follow()
    assert (b.store.guards, b.store.parked_streams, b.store.stored_position) == ({}, {}, "")
    await b.follow()
    assert b.totals_of() == {"a": 1}


async def test_an_unavailable_store_while_isolating_is_not_parked() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(SPOILT))
    # The page fails, the first event goes alone, and then the disk is full.
    b.store.faults = [TransientFailure("x"), None, Unavailable("the disk is full")]
    with pytest.raises(Unavailable):
        await b.follow()
    assert b.store.parked_streams == {}
    assert b.store.guards == {A: 1}
    await b.follow()
    assert b.store.parked_streams[A].sequence_number == 2


async def test_an_unavailable_key_store_is_not_parked() -> None:
    b = await bench()
    await b.world.facts.happen(A, Named("太郎"))
    reader = World(b.world.clock, b.world.protector, DECIDERS)

    class Down:
        async def ciphers(self, subjects: Any) -> Any:
            raise KeyStoreUnavailable("down")

    reader.codec._protector = Down()  # type: ignore[assignment]
    b.world.codec = reader.codec
    projector = b.another(b.totals)
    with pytest.raises(Unavailable):
        await projector.apply(await b.world.facts.all())
    assert b.store.parked_streams == {}


async def test_a_second_writer_changes_nothing_twice() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    events = await b.world.facts.all()
    progress = b.store.progress

    async def too_late(streams: Any) -> Any:
        found = await progress(streams)
        b.store.progress = progress  # type: ignore[method-assign]
        await b.another(b.totals).apply(events)
        return found

    b.store.progress = too_late  # type: ignore[method-assign]
    with pytest.raises(GuardMoved):
        await b.projector.apply(events)
    assert b.totals_of() == {"a": 1}


async def test_a_retry_after_mending_applies_all_that_waited_in_order() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1), Counted(UNLUCKY))
    for amount in (3, 4):
        await b.world.facts.happen(A, Counted(amount))
    await b.follow()
    assert b.store.guards == {A: 1}
    mended = b.another(Totals(unlucky=()))
    assert await mended.retry(A)
    assert b.store.parked_streams == {}
    assert b.steps() == [("a", 1, 1), ("a", 2, UNLUCKY), ("a", 3, 3), ("a", 4, 4)]


async def test_a_retry_of_a_stream_that_is_not_parked_applies_what_the_journal_has() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(1))
    assert await b.projector.retry(A)
    assert b.totals_of() == {"a": 1}
    assert [batch.unpark for batch in b.store.batches] == [()]


async def test_a_retry_that_fails_again_stays_parked_where_it_failed() -> None:
    b = await bench(Totals(unlucky=(2, 4)))
    await b.world.facts.happen(A, Counted(1), Counted(2), Counted(3), Counted(4), Counted(5))
    await b.follow()
    assert not await b.projector.retry(A)
    assert (b.store.parked_streams[A].sequence_number, b.store.parked_streams[A].attempts) == (2, 2)
    assert not await b.another(Totals(unlucky=(4,))).retry(A)
    assert (b.store.parked_streams[A].sequence_number, b.store.parked_streams[A].attempts) == (4, 3)
    assert b.totals_of() == {"a": 6}


async def test_a_stream_of_an_aggregate_that_became_known_and_is_not_followed_is_let_go() -> None:
    b = Bench(await World.new((counter,)))
    await b.world.facts.unknown("Other-1", type_name="Elsewhere")
    await b.follow()
    assert b.store.parked_streams["Other-1"].code == "UNKNOWN_EVENT"
    b.world.deciders = DECIDERS
    assert await b.another(b.totals).retry("Other-1")
    assert b.store.parked_streams == {}
    assert b.store.guards == {}


# What is left of personal data


async def test_a_read_page_that_removes_personal_data_scrubs_with_its_own_write() -> None:
    """Whoever comes after a run that ended in between begins behind it."""

    async def found(events: Sequence[RecordedEvent]) -> bool:
        return any(event.type == "Noted" for event in events)

    b = await bench(Totals(events=Counted | Named), found=found)
    b.feed.page = 1
    await b.world.facts.happen(A, Counted(1), Noted("erases"), Counted(3), Counted(4))
    b.store.faults = [None, None, GuardMoved("elsewhere")]
    with pytest.raises(GuardMoved):
        await b.projector.catch_up(A)
    assert [(batch.guards[0].to, batch.scrub) for batch in b.store.batches] == [(1, False), (2, True)]
    assert await b.projector.catch_up(A) == 2
    assert [batch.scrub for batch in b.store.batches[2:]] == [False, False]


async def test_what_was_left_out_scrubs_with_its_own_write() -> None:
    b = await bench()
    b.feed.page = 1
    await b.world.facts.happen(A, Named("x"), Forgotten(), Counted(3))
    *_, last = await b.world.facts.all()
    b.store.faults = [None, None, Unavailable("full")]
    with pytest.raises(Unavailable):
        await b.projector.apply([last], Position("here"))
    assert [(batch.guards[0].to, batch.scrub) for batch in b.store.batches] == [(1, False), (2, True)]


async def test_each_event_of_a_page_that_failed_scrubs() -> None:
    b = await bench()
    await b.world.facts.happen(A, Named("x"), Forgotten(), Counted(SPOILT))
    b.store.faults = [StatementFailed("x"), None, None, Unavailable("full")]
    with pytest.raises(Unavailable):
        await b.projector.catch_up(A)
    assert [(batch.guards[0].to, batch.scrub) for batch in b.store.batches] == [(1, True), (2, True)]


async def test_a_retry_that_removes_personal_data_scrubs() -> None:
    b = await bench()
    await b.world.facts.happen(A, Counted(UNLUCKY), Forgotten())
    await b.follow()
    assert await b.another(Totals(unlucky=())).retry(A)
    assert [batch.scrub for batch in b.store.batches if batch.guards] == [True]


async def test_a_call_that_is_told_to_scrub_does_so_when_it_is_made_again() -> None:
    b = await bench()
    await b.world.facts.happen(A, Forgotten(), Counted(2), Counted(3))
    first, _, third = await b.world.facts.all()
    b.store.faults = [None, Unavailable("full")]
    with pytest.raises(Unavailable):
        await b.projector.apply([first, third], scrub=True)
    await b.projector.apply([first, third], scrub=True)
    assert b.store.batches[-1].scrub


# Any order, any repetition, any crash


Delivery = list[tuple[list[int], str]]


@given(
    commits=st.lists(
        st.tuples(
            st.sampled_from([A, B, C]), st.lists(st.sampled_from([1, 2, 3, UNLUCKY, SPOILT]), min_size=1, max_size=3)
        ),
        max_size=8,
    ),
    delivery=st.lists(
        st.tuples(
            st.lists(st.integers(0, 23), max_size=8),
            st.sampled_from(["fine", "fails", "dies before", "dies after", "cancelled"]),
        ),
        max_size=6,
    ),
)
def test_any_delivery_gives_the_rows_of_one_in_order(
    commits: Sequence[tuple[str, list[int]]], delivery: Delivery
) -> None:
    asyncio.run(_any_delivery(commits, delivery))


async def _any_delivery(commits: Sequence[tuple[str, list[int]]], delivery: Delivery) -> None:
    b = await bench()
    for stream, amounts in commits:
        await b.world.facts.happen(stream, *(Counted(amount) for amount in amounts))
    events = await b.world.facts.all()
    for numbers, fate in delivery if events else ():
        page = [events[number % len(events)] for number in numbers]
        await _deliver(b, page, fate)
    # What was interrupted comes again, from the start.
    await b.projector.apply(events, Position("end"))
    expected_steps, expected_guards, expected_parked = _in_order(events, commits)
    assert b.steps() == expected_steps
    assert b.store.guards == expected_guards
    assert {one.stream: one.sequence_number for one in b.store.parked_streams.values()} == expected_parked
    assert b.totals_of() == {
        stream_id: sum(amount for one, _, amount in expected_steps if one == stream_id)
        for stream_id in {one for one, _, _ in expected_steps}
    }


async def _deliver(b: Bench, page: list[RecordedEvent], fate: str) -> None:
    if fate == "fails":
        b.store.faults = [Unavailable("full")]
    elif fate == "dies before":
        b.store.faults = [asyncio.CancelledError()]
    elif fate == "dies after":
        b.store.after_write = [asyncio.CancelledError()]
    elif fate == "cancelled":
        b.feed.before_read = _cancel
    try:
        await b.projector.apply(page)
    except (Unavailable, asyncio.CancelledError):
        pass
    finally:
        b.store.faults, b.store.after_write = [], []
        b.feed.before_read = lambda: None


def _cancel() -> None:
    raise asyncio.CancelledError


def _in_order(
    events: Sequence[RecordedEvent], commits: Sequence[tuple[str, list[int]]]
) -> tuple[list[tuple[str, int, int]], dict[str, int], dict[str, int]]:
    """What one application in order gives, computed without any of the machinery."""
    amounts: dict[str, list[int]] = {}
    for stream, some in commits:
        amounts.setdefault(stream, []).extend(some)
    steps, guards, parked = [], {}, {}
    for stream, all_of_it in amounts.items():
        for number, amount in enumerate(all_of_it, 1):
            if amount in (UNLUCKY, SPOILT):
                parked[stream] = number
                break
            steps.append((stream.partition("-")[2], number, amount))
            guards[stream] = number
    return sorted(steps), guards, parked
