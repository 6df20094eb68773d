"""`PostgresSystem`: the drill's system on a PostgreSQL cluster of its own, with its server on the machine that is lost.

It is recovered from base backup and write-ahead log, by the same command that an operator runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import urllib.parse
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import asyncpg

from kiseki.operations.backup.port import Progress
from kiseki.operations.drill.processes import Ports, run_kiseki
from kiseki.operations.drill.system import common_environment, prepared
from kiseki.operations.errors import OperationFailed
from kiseki.operations.postgres.child import server_account
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.throwaway import new_cluster, running_server

__all__ = ["PostgresSystem"]

_OLDEST: Final = 15
_SETTINGS: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "autovacuum": "on"}
_USER: Final = "kiseki"
"""Whom `new_cluster` makes."""
_REPLICATION: Final = "local replication all trust\n"


class PostgresSystem:
    """A DrillSystem. Needs the server's programs on this machine."""

    store = "postgresql"

    def __init__(self, folder: Path, ports: Ports, *, interval: float, programs: Path | None) -> None:
        self._folder = folder
        self._machine = folder / "machine"
        self._elsewhere = folder / "elsewhere"
        self._data = self._machine / "cluster" / "data"
        self._programs = PostgresPrograms(programs)
        self._running = AsyncExitStack()
        self._common = common_environment(self._elsewhere, ports, interval=interval)
        self._common |= {"KISEKI_BACKUP_BASE": "true", "KISEKI_BACKUP_KEYS": ""}
        if programs is not None:
            self._common["KISEKI_POSTGRES_PROGRAMS"] = str(programs)
        self._url = ""

    @property
    def environment(self) -> Mapping[str, str]:
        """As DrillSystem."""
        return {**self._common, "KISEKI_DATA_DIR": str(self._machine / "data"), "KISEKI_JOURNAL": self._url}

    async def prepare(self, events: int, progress: Progress) -> int:
        """As DrillSystem. Raises ToolMissing."""
        account = server_account()
        # The account of the server has to get through to its data.
        for folder in (self._folder, self._machine, self._data.parent):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder.chmod(0o711)
        if account is not None:
            os.chown(self._data.parent, account.user, account.group)
        progress("making a cluster")
        await new_cluster(self._programs, self._data, account=account, major=_OLDEST)
        await self._start(progress)
        return await prepared(self.environment, self._machine, self._elsewhere, events, progress)

    async def lose_machine(self) -> None:
        """As DrillSystem: the server is killed, and its disk is gone."""
        pid = int((self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OperationFailed):
            await self._running.aclose()
        self._running = AsyncExitStack()
        await asyncio.to_thread(_removed, self._machine)

    async def recover(self) -> None:
        """As DrillSystem, and as the command says what is left to do: the recovered cluster is started."""
        self._machine = self._folder / "spare"
        self._machine.mkdir(mode=0o711)
        cluster = self._machine / "cluster"
        await run_kiseki(["backup", "restore", "--cluster", str(cluster)], self.environment, what="restore")
        self._data = cluster / "data"
        await self._start(lambda _: None)

    async def close(self) -> None:
        """As DrillSystem: the server ends."""
        await self._running.aclose()

    async def _start(self, progress: Progress) -> None:
        account = server_account()
        progress("starting PostgreSQL")
        postgres = await self._programs.find("postgres", at_least=_OLDEST, account=account)
        socket = await self._running.enter_async_context(
            running_server(self._programs, postgres, self._data, account=account, settings=_SETTINGS)
        )
        self._url = f"postgresql://{_USER}@/postgres?host={urllib.parse.quote(str(socket), safe='')}&port=5432"
        with (socket / "hba.conf").open("a", encoding="utf-8") as hba:
            hba.write(_REPLICATION)
        connection = await asyncpg.connect(self._url)
        try:
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()


def _removed(folder: Path) -> None:
    """What the server's last processes still write goes too."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
