"""A process that runs an updater until it is killed; its only argument is a directory.

Prints `following` once it owns the projection and has caught up.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.journal.sqlite import SqliteJournal
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.projection.settings import UpdaterSettings
from kiseki.projection.updater import Updater
from kiseki.query.sqlite import SqliteReadModels
from tests.support import ManualClock
from tests.unit.projection.parts import DECIDERS, Totals, a_protector, schema_of


async def main(directory: Path) -> None:
    clock = SystemClock()
    protector = await a_protector(ManualClock())
    journal = await SqliteJournal.open(directory / "journal.db", clock=clock, telemetry=NoTelemetry())
    models = await SqliteReadModels.open(directory / "read-models", clock=clock)
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
    asyncio.run(main(Path(sys.argv[1])))
