"""`kiseki migrate`: makes and upgrades the tables of all stores, before a release is started. Only ever adds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.cli.journal import settings_of
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.service.stores import migrate as migrate_stores

__all__ = ["migrate"]


def migrate(*, config: Path | None, data_dir: Path | None) -> None:
    """Prints a line for each thing that was done. Raises SettingsError, Unavailable, and what a store refuses."""
    for line in asyncio.run(_migrate(settings_of(config, data_dir))) or ("everything is up to date",):
        print(line)


async def _migrate(settings: Settings) -> Sequence[str]:
    done = await migrate_stores(settings)
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry())
    await stores.close()
    return done
