"""The system that a drill destroys: what is on the machine that is lost, and what is elsewhere and survives.

One class for each store; `run` does the same with all of them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kiseki.application.system import SystemClock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.port import Progress
from kiseki.operations.drill.fill import fill
from kiseki.operations.drill.processes import DrillProcess, Ports, run_kiseki
from kiseki.service.settings import Settings
from kiseki.service.settings_sources import load_settings
from kiseki.service.stores import Stores

__all__ = ["DrillSystem", "SqliteSystem", "settings_from"]


class DrillSystem(Protocol):
    """A copy of the system, apart from any live one, in a folder of its own."""

    store: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What its processes are told, as it is now: before the disaster, or recovered."""
        ...

    async def prepare(self, events: int, progress: Progress) -> int:
        """Makes its stores, with a history of so many events; how many there are."""
        ...

    async def lose_machine(self) -> None:
        """Deletes everything that was on the machine; its processes were killed."""
        ...

    async def recover(self) -> None:
        """Makes the stores again elsewhere, from what survived, by the commands that an operator runs."""
        ...

    async def close(self) -> None:
        """Ends what runs for it."""
        ...


class SqliteSystem:
    """Everything on one machine; keys of people wrapped by a master key that is elsewhere."""

    store = "sqlite"

    def __init__(self, folder: Path, ports: Ports, *, interval: float) -> None:
        self._folder = folder
        self._machine = folder / "machine"
        self._elsewhere = folder / "elsewhere"
        self._common = common_environment(self._elsewhere, ports, interval=interval)

    @property
    def environment(self) -> Mapping[str, str]:
        """As DrillSystem."""
        return {**self._common, "KISEKI_DATA_DIR": str(self._machine / "data")}

    async def prepare(self, events: int, progress: Progress) -> int:
        """As DrillSystem."""
        return await prepared(self.environment, self._machine, self._elsewhere, events, progress)

    async def lose_machine(self) -> None:
        """As DrillSystem."""
        await asyncio.to_thread(shutil.rmtree, self._machine)

    async def recover(self) -> None:
        """As DrillSystem: on another machine, so to say."""
        self._machine = self._folder / "spare"
        self._machine.mkdir()
        await run_kiseki(["backup", "restore"], self.environment, what="restore")

    async def close(self) -> None:
        """As DrillSystem: nothing runs."""


def common_environment(elsewhere: Path, ports: Ports, *, interval: float) -> dict[str, str]:
    """What every drill's processes are told: where they listen, and what is not on the machine."""
    return {
        "KISEKI_COMMAND_PORT": str(ports.command),
        "KISEKI_QUERY_PORT": str(ports.query),
        "KISEKI_MANAGEMENT_PORT": str(ports.management),
        "KISEKI_DRAIN_DELAY": "0",
        "KISEKI_MASTER_KEY": str(elsewhere / "master.key"),
        "KISEKI_AUDIT_KEY": f"file://{elsewhere / 'audit.key'}",
        "KISEKI_AUDIT_ANCHORS": str(elsewhere / "anchors"),
        "KISEKI_ERASURE_LEDGER": str(elsewhere / "erasures"),
        "KISEKI_BACKUP": str(elsewhere / "backups"),
        "KISEKI_BACKUP_KEYS": str(elsewhere / "backups-of-keys"),
        "KISEKI_PROTECTION_INTERVAL": f"{interval:g}",
    }


async def prepared(
    environment: Mapping[str, str], machine: Path, elsewhere: Path, events: int, progress: Progress
) -> int:
    """Makes folders and secrets, and fills the journal; how many events there are."""
    for folder in (machine, elsewhere):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    await asyncio.to_thread(_make_secrets, elsewhere)
    settings = settings_from(environment)
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry(), begin_ledger=True)
    try:
        return await fill(stores, events, progress)
    finally:
        await stores.close()


def settings_from(environment: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment has. Raises SettingsError."""
    return load_settings(options={}, environ=environment, directory=Path("/"), config=None)


def service_process(environment: Mapping[str, str], logs: Path) -> DrillProcess:
    """`kiseki serve`."""
    return DrillProcess("service", [sys.executable, "-m", "kiseki", "serve"], environment, logs / "service.log")


def protect_process(environment: Mapping[str, str], logs: Path) -> DrillProcess:
    """`kiseki backup protect`."""
    command = [sys.executable, "-m", "kiseki", "backup", "protect"]
    return DrillProcess("protection", command, environment, logs / "protection.log")


def _make_secrets(elsewhere: Path) -> None:

    for name, data in (("master.key", secrets.token_bytes(32)), ("audit.key", secrets.token_urlsafe(48).encode())):
        descriptor = os.open(elsewhere / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
