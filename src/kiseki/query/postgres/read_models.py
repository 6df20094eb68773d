"""`PostgresReadModels`: read models on PostgreSQL, for any number of machines. Both halves of it in one place.

models = await PostgresReadModels.open(PostgresAddress.parse(url, schema=DEFAULT_SCHEMA), clock=clock)
models.builds       what the updater, the status and the command line use (BuildCatalog)
models.database     what queries use (ReadDatabase)
"""

from __future__ import annotations

from typing import Self

from kiseki.clients.postgres import PostgresAddress, connect
from kiseki.clients.postgres_errors import is_unavailable
from kiseki.clients.postgres_migrations import migrate
from kiseki.kernel.ports import Clock
from kiseki.query.postgres.builds import PostgresBuilds
from kiseki.query.postgres.connections import unavailable
from kiseki.query.postgres.database import PostgresReadDatabase
from kiseki.query.postgres.schema import COMPONENT, DEFAULT_SCHEMA, MIGRATIONS

__all__ = ["DEFAULT_SCHEMA", "PostgresReadModels"]


class PostgresReadModels:
    """The read models of a database. Any number of processes use them at the same time.

    Each build has a schema of its own, named after the catalog's, so the user needs CREATE on the database. Everything
    is derivable from the journal: with all processes stopped all these schemas may be dropped, and are made anew by
    `migrate`. After a journal was restored that has to be done.
    """

    def __init__(self, builds: PostgresBuilds, database: PostgresReadDatabase) -> None:
        self.builds = builds
        self.database = database

    @classmethod
    async def open(
        cls,
        address: PostgresAddress,
        *,
        clock: Clock,
        pool: int = 5,
        statement_timeout: float = 5.0,
        wait: float = 5.0,
        writers: int = 4,
        write_timeout: float = 20.0,
    ) -> Self:
        """Connects to nothing yet: a server that is down is found by those who use it, and forgotten when it is up.

        `pool` queries run at a time, others wait their turn for up to `wait` seconds; `statement_timeout`: seconds
        after which a query's statement is stopped. `writers` builds are written at a time, and each of their statements
        has `write_timeout` seconds. Besides, an updater has one connection for what it owns.
        """
        builds = PostgresBuilds(address, clock=clock, writers=writers, statement_timeout=write_timeout)
        database = PostgresReadDatabase(address, pool=pool, statement_timeout=statement_timeout, wait=wait)
        return cls(builds, database)

    @staticmethod
    async def migrate(address: PostgresAddress) -> list[str]:
        """Makes the tables of the catalog, or brings them up to date; a line for each change made.

        Raises MigrationRefused, Unavailable.
        """
        try:
            connection = await connect(address, application="kiseki migrate")
            try:
                numbers = await migrate(connection, schema=address.schema, component=COMPONENT, migrations=MIGRATIONS)
            finally:
                await connection.close(timeout=5.0)
        except Exception as problem:
            if is_unavailable(problem):
                raise unavailable(f"the database of the read models at {address.label}", problem) from problem
            raise
        where = f"the read models on {address.label}, schema {address.schema}"
        return [f"{where}: migration {number} applied" for number in numbers]

    async def close(self) -> None:
        """Lets running queries end and closes connections. The updater has to be stopped before."""
        await self.database.close()
        await self.builds.close()
