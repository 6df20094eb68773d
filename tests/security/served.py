"""`kiseki serve` in the development profile for the black-box tests of this folder, and what looks behind it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.e2e.client import Client, Reply
from tests.e2e.processes import Service

# Requests of tests are many, and all of one subject at one address.
_MANY = {"KISEKI_RATE_LIMIT": "1000000", "KISEKI_RATE_LIMIT_ADDRESS": "1000000", "KISEKI_READ_TIMEOUT": "1.5"}


class Served:
    """A running service with an empty journal; `log` is everything that it has printed."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def port(self, api: str) -> int:
        return self._service.command_port if api == "command" else self._service.query_port

    def log(self) -> str:
        return self._service.log.read_text(encoding="utf-8", errors="replace")

    def commits(self) -> int:
        """How many commits the journal holds."""
        path = self._service.data_dir / "journal.db"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM commits").fetchone()[0])

    async def graphql(self, api: str, query: str, variables: object = None, **headers: str) -> Reply:
        async with Client(self.port(api)) as client:
            return await client.graphql(query, variables, **headers)


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """Starts it on a data directory inside this one, and kills it afterwards."""
    service = Service(directory / "data", environment=_MANY)
    service.start()
    try:
        asyncio.run(service.ready())
        running = Served(service)
        asyncio.run(_has_said_so(running))
        yield running
    finally:
        service.kill()


async def _has_said_so(service: Served) -> None:
    """What it prints at its start comes a moment after it is ready, and must not pass for what a test provoked."""
    async with asyncio.timeout(20):
        while "Ctrl-C ends it." not in service.log():
            await asyncio.sleep(0.01)
