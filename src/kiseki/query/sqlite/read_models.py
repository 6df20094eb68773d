"""`SqliteReadModels`: the read-model database of one machine, in a directory. Both halves of it in one place.

models = await SqliteReadModels.open(directory, clock=clock)
models.builds       what the updater, the status and the command line use (BuildCatalog)
models.database     what queries use (ReadDatabase)
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from kiseki.kernel.ports import Clock
from kiseki.query.sqlite.builds import SqliteBuilds
from kiseki.query.sqlite.database import SqliteReadDatabase
from kiseki.query.sqlite.files import BuildFiles

__all__ = ["SqliteReadModels"]


class SqliteReadModels:
    """A directory of read models, open. Any number of processes may have it open at the same time.

    Everything in it is derivable from the journal: with all processes stopped it may be deleted, and it is built again.
    After a journal was restored it has to be deleted.
    """

    def __init__(self, builds: SqliteBuilds, database: SqliteReadDatabase) -> None:
        self.builds = builds
        self.database = database

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        clock: Clock,
        readers: int = 4,
        busy_timeout: float = 1.0,
        statement_timeout: float = 5.0,
        notice: float = 0.1,
    ) -> Self:
        """Opens, and makes where there is none, the read models of a directory.

        `readers` queries run at a time. `busy_timeout`: seconds to wait for another process that writes.
        `statement_timeout`: seconds after which a query's statement is stopped. `notice`: seconds after which a request
        that another process made is noticed. Raises Unavailable.
        """
        files = BuildFiles(directory)
        builds = SqliteBuilds(files, clock=clock, busy_timeout=busy_timeout, notice=notice)
        try:
            await builds.prepare()
        except BaseException:
            await builds.close()
            raise
        database = SqliteReadDatabase(
            files, readers=readers, busy_timeout=busy_timeout, statement_timeout=statement_timeout
        )
        return cls(builds, database)

    async def close(self) -> None:
        """Lets running queries end and closes the files. The updater has to be stopped before."""
        # Queries first: who closes the catalog last copies its log, and only `builds` does so under its lock.
        await self.database.close()
        await self.builds.close()
