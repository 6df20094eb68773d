"""One build: a batch is all or nothing, and a second writer changes nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from kiseki import Change
from kiseki.journal.port import Position
from kiseki.projection.port import (
    Batch,
    BuildMissing,
    GuardMove,
    GuardMoved,
    ProjectionStore,
    StatementFailed,
)
from tests.integration.projection.parts import TOTALS, Place, parked

A, B = "Counter-a", "Counter-b"
totals = TOTALS


async def test_a_batch_is_all_or_nothing(place: Place, store: ProjectionStore) -> None:
    step = {"id": "a", "number": 1, "amount": 5}
    whole = Batch(
        changes=[(insert(totals.steps), step)],
        guards=[GuardMove(A, 0, 1)],
        park=[parked(B)],
        position=Position("here"),
    )
    broken = Batch(
        changes=[(insert(totals.steps), {**step, "number": 2}), (insert(totals.steps), step)],
        guards=[GuardMove(A, 1, 2)],
        park=[parked("Counter-c")],
        unpark=[parked(B)],
        position=Position("there"),
    )
    await store.write(whole)
    with pytest.raises(StatementFailed) as failed:
        await store.write(broken)
    assert failed.value.detail in (
        "IntegrityError (SQLITE_CONSTRAINT_PRIMARYKEY) in insert steps",
        "UniqueViolationError (23505) in insert steps",
    )
    progress = await store.progress([A, B, "Counter-c"])
    assert [progress[one].sequence_number for one in (A, B, "Counter-c")] == [1, 0, 0]
    assert progress[B].parked == parked(B)
    assert progress["Counter-c"].parked is None
    assert await store.position() == "here"
    assert await place.rows(totals, totals.steps) == [("a", 1, 5)]


@pytest.mark.parametrize("expected", [0, 4, 6])
async def test_guards_that_have_moved_change_nothing(place: Place, store: ProjectionStore, expected: int) -> None:
    await store.write(Batch(guards=[GuardMove(A, 0, 5)]))
    step = {"id": "a", "number": 6, "amount": 5}
    with pytest.raises(GuardMoved):
        await store.write(
            Batch(
                changes=[(insert(totals.steps), step)],
                guards=[GuardMove(B, 0, 1), GuardMove(A, expected, 9)],
                position=Position("x"),
            )
        )
    progress = await store.progress([A, B])
    assert [progress[one].sequence_number for one in (A, B)] == [5, 0]
    assert await store.position() == ""
    assert await place.rows(totals, totals.steps) == []


async def test_statements_keep_their_order_whatever_can_go_together(place: Place, store: ProjectionStore) -> None:
    adding = insert(totals.totals)
    more = update(totals.totals).values(total=totals.totals.c.total * 2)
    changes: list[Change] = [
        (adding, {"id": "a", "total": 1}),
        (adding, {"id": "b", "total": 10}),
        more,
        more,
        (adding, {"id": "c", "total": 100}),
        (adding, {"id": "d", "total": 100, "name": "d"}),
        (adding, {"id": "e", "total": 100}),
    ]
    await store.write(Batch(changes=changes))
    assert await place.rows(totals, totals.totals) == [
        ("a", 4, None),
        ("b", 40, None),
        ("c", 100, None),
        ("d", 100, "d"),
        ("e", 100, None),
    ]


async def test_what_was_applied_already_is_not_a_statement_s_fault(store: ProjectionStore) -> None:
    """A writer that comes too late is to read the guards again, and not to park the stream."""
    step = (insert(totals.steps), {"id": "a", "number": 1, "amount": 5})
    await store.write(Batch(changes=[step], guards=[GuardMove(A, 0, 1)]))
    with pytest.raises(GuardMoved):
        await store.write(Batch(changes=[step], guards=[GuardMove(A, 0, 1)]))


@pytest.mark.parametrize("value", [2**70, {"a": 1}, object()])
async def test_a_value_that_the_database_can_not_hold_is_the_statement_s_fault(
    store: ProjectionStore, value: object
) -> None:
    with pytest.raises(StatementFailed) as failed:
        await store.write(Batch(changes=[(insert(totals.steps), {"id": "a", "number": 1, "amount": value})]))
    assert str(value) not in str(failed.value)


async def test_parking_again_replaces_and_unparking_removes(store: ProjectionStore) -> None:
    await store.write(Batch(park=[parked(A), parked(B)]))
    # A retry that gets further before it fails again; then one that fails where it was.
    await store.write(Batch(guards=[GuardMove(A, 0, 6, retry=True)], park=[parked(A, 7)]))
    await store.write(Batch(park=[parked(A, 7, "STATEMENT_FAILED")]))
    assert list(await store.parked()) == [parked(A, 7, "STATEMENT_FAILED"), parked(B)]
    assert list(await store.parked(after=A, limit=1)) == [parked(B)]
    await store.write(Batch(unpark=[parked(A, 7, "STATEMENT_FAILED"), parked("Counter-unheard-of")]))
    assert list(await store.parked()) == [parked(B)]


async def test_a_build_can_be_inspected_while_it_is_written(place: Place, store: ProjectionStore) -> None:
    await store.write(Batch(guards=[GuardMove(A, 0, 3)], park=[parked(B)], position=Position("p")))
    inspection = await place.models.builds.inspect(store.name)
    assert (inspection.position, inspection.parked_count, inspection.parked) == ("p", 1, (parked(B),))
    assert (await place.models.builds.progress(store.name, [A]))[A].sequence_number == 3


async def test_guards_are_listed_in_pages(place: Place, store: ProjectionStore) -> None:
    """In the order of code points, on every database; a stream of which nothing was applied is not among them."""
    builds = place.models.builds
    assert list(await builds.guards(store.name)) == []
    moves = [GuardMove(stream, 0, number) for number, stream in enumerate(("Counter-b", "Counter-B", "Counter-é"), 1)]
    await store.write(Batch(guards=moves, park=[parked("Counter-parked")]))
    first = await builds.guards(store.name, limit=2)
    assert list(first) == [("Counter-B", 2), ("Counter-b", 1)]
    assert list(await builds.guards(store.name, after="Counter-b", limit=2)) == [("Counter-é", 3)]
    assert list(await builds.guards(store.name, after="Counter-é")) == []
    await store.close()
    place.storage.lose(store.name)
    with pytest.raises(BuildMissing):
        await builds.guards(store.name)
