"""Whatever becomes of records: the read model equals the journal afterwards, or a stream is parked with a reason."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki import Unavailable
from kiseki.projection.port import Batch, BuildName, GuardMoved
from kiseki.projection.sweeper import Sweeper, SweeperSettings
from tests.unit.projection.parts import UNLUCKY, Counted
from tests.unit.projection.test_sweeper import Heads
from tests.unit.service.lambda_bench import FINE, Bench, a_bench, garbled

STREAMS = ("Counter-a", "Counter-b", "Counter-c")

histories = st.lists(
    st.tuples(
        st.sampled_from(STREAMS),
        st.one_of(
            st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3),
            st.sampled_from([[UNLUCKY], [5, UNLUCKY], "unknown"]),
        ),
    ),
    min_size=1,
    max_size=10,
)
how_records_come = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["whole", "whole", "whole", "garbled", "no keys", "scrambled"])),
    max_size=20,
)
faults = st.lists(st.sampled_from(["fine", "fine", "fine", "unavailable", "moved"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(history=histories, coming=how_records_come, page=st.integers(1, 6), failing=faults, noise=st.binary(max_size=40))
def test_any_delivery_ends_as_the_journal_says(
    history: Sequence[tuple[str, Any]],
    coming: Sequence[tuple[int, str]],
    page: int,
    failing: list[str],
    noise: bytes,
) -> None:
    asyncio.run(_deliver(history, coming, page, failing, noise))


async def _deliver(
    history: Sequence[tuple[str, Any]],
    coming: Sequence[tuple[int, str]],
    page: int,
    failing: list[str],
    noise: bytes,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with a_bench(Path(directory), page=page) as bench:
            for stream, what in history:
                if what == "unknown":
                    await bench.world.facts.unknown(stream)
                else:
                    await bench.world.facts.happen(stream, *(Counted(amount) for amount in what))
            records = await bench.records()
            batch = []
            for place, (number, how) in enumerate(coming):
                record = _as_it_comes(records[number % len(records)], how, noise)
                record["dynamodb"]["SequenceNumber"] = str(place + 1)
                batch.append(record)
            pending = list(failing)

            async def fails(name: BuildName, batch: Batch) -> None:
                fate = pending.pop() if pending else "fine"
                if fate == "unavailable":
                    raise Unavailable("the database is down")
                if fate == "moved":
                    raise GuardMoved("another process wrote")

            bench.models.before_write = fails  # type: ignore[method-assign]
            await _until_done(bench, batch)
            expected, parked = _as_the_journal_says(history)
            # What a record told of, and all before it, is there; nothing is there that should not be.
            rows = await bench.rows()
            assert set(rows) <= set(expected)
            for number, how in coming:
                body = records[number % len(records)]["dynamodb"]
                stream, first = body["Keys"]["persistence-id"]["S"], int(body["Keys"]["sequence-nr"]["N"])
                if how != "no keys" and await bench.parked(stream) is None:
                    assert await bench.guard(stream) >= first
            # The sweeper finds what the stream lost, and then the read model is what the journal says.
            await _sweep(bench)
            assert await bench.rows() == expected
            for stream in STREAMS:
                found = await bench.parked(stream)
                assert (found and (found.sequence_number, found.code)) == parked.get(stream)


def _as_it_comes(record: dict[str, Any], how: str, noise: bytes) -> dict[str, Any]:
    if how == "garbled":
        return garbled(record)
    if how == "no keys":
        return garbled(record, keys=False)
    copy: dict[str, Any] = json.loads(json.dumps(record))
    if how == "scrambled":
        image = copy["dynamodb"]["NewImage"]
        name = sorted(image)[len(noise) % len(image)]
        image[name] = {"S": noise.decode("latin-1")}
    return copy


async def _until_done(bench: Bench, batch: list[dict[str, Any]]) -> None:
    """Delivers again what comes back, as the event source mapping does."""
    for _ in range(20):
        answer = await bench.invoke(batch)
        if answer == FINE:
            return
        (failure,) = answer["batchItemFailures"]
        numbers = [record["dynamodb"]["SequenceNumber"] for record in batch]
        batch = batch[numbers.index(failure["itemIdentifier"]) :]
    raise AssertionError("it never gets done")


async def _sweep(bench: Bench) -> None:
    sweeper = Sweeper(
        projections=[bench.totals.projection],
        deciders=bench.world.deciders,
        journal=bench.feed,
        heads=Heads(bench.world),
        builds=bench.models.real.builds,
        codec=bench.world.codec,
        protector=bench.world.protector,
        telemetry=bench.world.telemetry,
        clock=bench.world.clock,
        settings=SweeperSettings(grace=0.0),
    )
    await sweeper.sweep()
    assert await sweeper.sweep() == []


def _as_the_journal_says(
    history: Sequence[tuple[str, Any]],
) -> tuple[list[tuple[str, int, int]], dict[str, tuple[int, str]]]:
    """Rows and parked places after one application in order, computed without any of the machinery."""
    steps: list[tuple[str, int, int]] = []
    last: dict[str, int] = {}
    parked: dict[str, tuple[int, str]] = {}
    for stream, what in history:
        amounts: list[int] = [0] if what == "unknown" else what
        for amount in amounts:
            last[stream] = last.get(stream, 0) + 1
            if stream in parked:
                continue
            if what == "unknown":
                parked[stream] = (last[stream], "UNKNOWN_EVENT")
            elif amount == UNLUCKY:
                parked[stream] = (last[stream], "APPLY_FAILED")
            else:
                steps.append((stream.partition("-")[2], last[stream], amount))
    return sorted(steps), parked
