"""A process that runs an updater until it is killed; its arguments are a directory and, for PostgreSQL, a URL.

The directory holds the journal, and the read models unless they are in the database of the URL.

Prints `following` once it owns the projection and has caught up.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.updater import Updater
from kiseki.query.postgres.read_models import DEFAULT_SCHEMA, PostgresReadModels
from kiseki.query.sqlite.read_models import SqliteReadModels
from tests.integration.projection.parts import ReadModels
from tests.support import ManualClock
from tests.unit.projection.parts import DECIDERS, Totals, a_protector, schema_of


async def main(directory: Path, url: str | None) -> None:
    clock = SystemClock()
    protector = await a_protector(ManualClock())
    journal = await SqliteJournal.open(directory / "journal.db", clock=clock, telemetry=NoTelemetry())
    models: ReadModels
    if url is None:
        models = await SqliteReadModels.open(directory / "read-models", clock=clock)
    else:
        models = await PostgresReadModels.open(PostgresAddress.parse(url, schema=DEFAULT_SCHEMA), clock=clock)
    updater = Updater(
        projections=[Totals().projection],
        deciders=DECIDERS,
        journal=journal,
        builds=models.builds,
        codec=EventCodec(schema_of(DECIDERS), protector, NoTelemetry()),
        protector=protector,
        telemetry=NoTelemetry(),
        clock=clock,
        settings=UpdaterSettings(page_commits=3, poll_interval=0.2, takeover_interval=0.01),
    )
    running = asyncio.create_task(updater.run())
    await updater.caught_up()
    print("following", flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
