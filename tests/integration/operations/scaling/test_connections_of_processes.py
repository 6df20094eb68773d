"""Integration: the connections that real processes open, by `pg_stat_activity`, are those that a plan counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from kiseki.application.context import Application
from kiseki.operations.scaling.connections import Kind, connections_of
from kiseki.service.settings_sources import load_settings
from kiseki.users import app
from tests.e2e.client import Client
from tests.e2e.commands import running
from tests.e2e.processes import Service
from tests.e2e.test_processes import CREATE, HANAKO
from tests.servers.postgres import PostgresServer

CLIENTS = 24
SECONDS = 3.0
SESSIONS = """
    SELECT application_name, count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> 'psql' GROUP BY 1
"""


class Watched:
    """The most sessions of each name that were there at a time."""

    def __init__(self, server: PostgresServer) -> None:
        self.most: Counter[str] = Counter()
        self._server = server

    async def watch(self) -> None:
        while True:
            rows = await asyncio.to_thread(self._server.sql, SESSIONS)
            for row in rows.splitlines():
                name, _, count = row.rpartition("|")
                self.most[name] = max(self.most[name], int(count))
            await asyncio.sleep(0.05)


async def create(service: Service, client_number: int) -> None:
    async with Client(service.command_port) as client:
        for number in range(100_000):
            address = {"emailAddress": f"{client_number}-{number}@example.com"}
            await client.graphql(CREATE, {"i": {**HANAKO, **address}})


async def ask(service: Service) -> None:
    async with Client(service.query_port) as client:
        while True:
            await client.graphql("{ getUserAccounts { id firstName } }")


async def under_load(service: Service, kind: Kind, server: PostgresServer) -> Counter[str]:
    watched = Watched(server)
    async with running(service):
        work = [asyncio.create_task(watched.watch())]
        if kind in ("serve", "command-api"):
            work += [asyncio.create_task(create(service, number)) for number in range(CLIENTS)]
        if kind in ("serve", "query-api"):
            work += [asyncio.create_task(ask(service)) for _ in range(CLIENTS)]
        done, _ = await asyncio.wait(work, timeout=SECONDS)
        for task in work:
            task.cancel()
        assert not done, [task.exception() for task in done]
        await asyncio.wait(work)
        assert service.terminate() == 0
    return watched.most


@pytest.mark.parametrize(("kind", "workers"), [("command-api", 1), ("query-api", 1), ("updater", 1), ("serve", 2)])
async def test_processes_under_load_open_what_a_plan_counts_and_nothing_it_does_not_know(
    kind: Kind, workers: int, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    url = postgres_server.create_database()
    key = tmp_path / "master.key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    environment = {
        "KISEKI_JOURNAL": url,
        "KISEKI_MASTER_KEY": str(key),
        "KISEKI_ERASURE_LEDGER": url,
        "KISEKI_AUDIT_SINKS": "file,database",
        "KISEKI_AUDIT_DATABASE": url,
        "KISEKI_AUDIT_ANCHORS": url,
        "KISEKI_WORKERS": str(workers),
        "KISEKI_DRAIN_DELAY": "0",
    }
    first = Service(tmp_path / "first", environment={**environment, "KISEKI_WORKERS": "1"})
    async with running(first):  # the read model has to be there before a query API is alone
        assert first.terminate() == 0
    most = await under_load(Service(tmp_path / "data", kind=kind, environment=environment), kind, postgres_server)

    settings = load_settings(options={}, environ=environment, directory=tmp_path, config=None)
    assert isinstance(app, Application)
    planned: Counter[str] = Counter()
    for opened in connections_of(settings, kind, projections=len(app.projections)):
        planned[opened.application] += opened.at_most
    assert most.keys() <= planned.keys(), "a plan has to know every pool"
    assert most <= planned
    # A pool that is driven hard is as large as planned, so the numbers are no mere guess that is always enough.
    if kind == "query-api":
        assert most["kiseki queries"] == planned["kiseki queries"]
    if kind == "command-api":
        assert most["kiseki journal writer"] == planned["kiseki journal writer"]
