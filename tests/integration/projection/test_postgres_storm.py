"""A read model on PostgreSQL follows a journal on SQLite while everything around it fails: every event exactly once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from sqlalchemy import func, select

from kiseki import Unavailable
from kiseki.application.system import SystemClock
from kiseki.projection.status import audit_projection, request_rebuild
from kiseki.projection.subscription import Subscription
from kiseki.query.postgres.read_models import PostgresReadModels
from tests.integration.projection.parts import Place, PostgresStorage, expected_steps, until
from tests.integration.projection.processes import Process, on_disk
from tests.servers.postgres import PostgresServer
from tests.unit.projection.parts import DECIDERS, Counted, Totals, World


async def test_in_a_storm_each_event_is_applied_once(tmp_path: Path) -> None:
    """Processes are killed, the server crashes or freezes, sessions are ended, rebuilds are asked for, at random."""
    totals = Totals()
    chooser = random.Random(17)
    written = 0
    seen = 0
    asked = 0

    async def write(place: Place) -> None:
        nonlocal written
        while True:
            stream, amounts = f"Counter-{chooser.randrange(6)}", [chooser.randrange(100, 999)] * chooser.randrange(1, 4)
            await place.world.facts.happen(stream, *map(Counted, amounts))
            written += len(amounts)
            await asyncio.sleep(0.003)

    async def ask(place: Place) -> None:
        nonlocal seen, asked
        while True:
            try:
                async with place.models.database.open([totals.projection]) as read:
                    row = await read.first(select(func.count()).select_from(totals.steps))
            except Unavailable:
                await asyncio.sleep(0.01)
                continue
            assert row is not None
            assert row[0] >= seen, f"went back from {seen} to {row[0]}"
            seen = row[0]
            asked += 1

    async def applied(upto: int, asking: asyncio.Task[None]) -> None:
        await until(lambda: seen >= upto or asking.done(), seconds=40)
        if asking.done():
            await asking

    with PostgresServer() as server:
        storage = PostgresStorage(server, server.create_database())
        await PostgresReadModels.migrate(storage.address)
        models = await PostgresReadModels.open(storage.address, clock=SystemClock(), statement_timeout=1.0)
        place = Place(await World.new(), storage, models)
        async with on_disk(place, tmp_path), asyncio.timeout(170):
            processes = [await Process.start(place, tmp_path), await Process.start(place, tmp_path)]
            writing = asyncio.create_task(write(place))
            asking = asyncio.create_task(ask(place))
            try:
                await applied(1, asking)
                faults = ["kill", "crash", "end sessions", "rebuild", "freeze", "kill", "rebuild", "crash"]
                for fault in chooser.sample(faults, len(faults)):
                    await asyncio.sleep(chooser.uniform(0.0, 0.3))
                    if fault == "kill":
                        await processes.pop(0).kill()
                        processes.append(await Process.start(place, tmp_path))
                    elif fault == "crash":
                        server.crash()
                        assert server.launch()
                    elif fault == "end sessions":
                        storage.sql(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                        )
                    elif fault == "freeze":
                        server.freeze()
                        await asyncio.sleep(0.5)
                        server.thaw()
                    else:
                        await request_rebuild(place.models.builds, totals.projection)
                    # Whatever happened, it goes on by itself.
                    await applied(written, asking)
            finally:
                for task in (writing, asking):
                    task.cancel()
                await asyncio.gather(writing, asking, return_exceptions=True)
                for process in processes:
                    await process.kill()
            await place.updater(totals).run_until_caught_up()
            stored: list[tuple[str, list[int]]] = [
                (event.stream, [(await place.world.codec.decode([event]))[0].amount])  # type: ignore[attr-defined]
                for event in await place.world.facts.all()
            ]
            assert await place.rows(totals, totals.steps) == expected_steps(stored)
            assert asked > 20
            name = await place.live()
            assert name is not None
            audit = await audit_projection(
                journal=place.journal,
                builds=place.models.builds,
                name=name,
                subscription=Subscription(totals.projection, DECIDERS),
            )
            assert (audit.behind, audit.ahead) == ((), ())
            assert all(status.parked_count == 0 for status in await place.status())
        await models.close()
