"""Killed processes: every event once, nothing parked, no one waits for a person."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from kiseki.projection.status import audit_projection
from kiseki.projection.subscription import Subscription
from tests.integration.projection.parts import Place, expected_steps, running, until
from tests.integration.projection.processes import Process, on_disk
from tests.unit.projection.parts import DECIDERS, Counted, Totals

A = "Counter-a"


async def test_a_standby_takes_over_from_a_killed_process(place: Place, tmp_path: Path) -> None:
    totals = Totals()
    async with on_disk(place, tmp_path), asyncio.timeout(60):
        process = await Process.start(place, tmp_path)
        try:
            await process.following()
            await place.world.facts.happen(A, Counted(1))
            await until(lambda: _count_is(place, totals, 1))
            standby = place.updater(totals, takeover_interval=0.01)
            async with running(standby):
                await until(lambda: standby.status()[0].role == "standby")
                await place.world.facts.happen(A, Counted(2))
                await until(lambda: _count_is(place, totals, 2))
                assert standby.status()[0].role == "standby"
                await process.kill()
                await standby.caught_up()
                await place.world.facts.happen(A, Counted(3))
                await standby.caught_up()
            assert await place.rows(totals, totals.steps) == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3)]
        finally:
            await process.kill()


async def _count_is(place: Place, totals: Totals, count: int) -> bool:
    return await place.count(totals) == count


async def test_killed_at_any_moment_it_applies_each_event_once(place: Place, tmp_path: Path) -> None:
    totals = Totals()
    chooser = random.Random(11)
    commits: list[tuple[str, list[int]]] = []

    async def write() -> None:
        while True:
            stream, amounts = f"Counter-{chooser.randrange(6)}", [chooser.randrange(100, 999)] * chooser.randrange(1, 4)
            commits.append((stream, amounts))
            await place.world.facts.happen(stream, *map(Counted, amounts))
            await asyncio.sleep(0)

    async with on_disk(place, tmp_path), asyncio.timeout(150):
        writing = asyncio.create_task(write())
        processes = [await Process.start(place, tmp_path), await Process.start(place, tmp_path)]
        try:
            for kills in range(8):
                await until(lambda wanted=kills * 40: len(commits) > wanted)  # type: ignore[misc]
                await asyncio.sleep(chooser.uniform(0.2, 0.7))
                await processes.pop(0).kill()
                processes.append(await Process.start(place, tmp_path))
        finally:
            writing.cancel()
            for process in processes:
                await process.kill()
        await asyncio.gather(writing, return_exceptions=True)
        await place.updater(totals).run_until_caught_up()
        # A write that was cancelled half-way is in the journal or not; the journal is what counts.
        stored: list[tuple[str, list[int]]] = [
            (event.stream, [(await place.world.codec.decode([event]))[0].amount])  # type: ignore[attr-defined]
            for event in await place.world.facts.all()
        ]
        assert await place.rows(totals, totals.steps) == expected_steps(stored)
        assert len(stored) > 300
        name = await place.live()
        assert name is not None
        audit = await audit_projection(
            journal=place.journal,
            builds=place.models.builds,
            name=name,
            subscription=Subscription(totals.projection, DECIDERS),
        )
        assert (audit.behind, audit.ahead) == ((), ())
