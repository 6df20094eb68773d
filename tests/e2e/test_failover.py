"""Failover between two sites, as operators do it: two PostgreSQL clusters, one the streaming replica of the other, a
command API at each site, and a lease in a witness of its own. The site that lost the lease stays alive in these tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.lease.postgres import PostgresLeaseStore
from kiseki.journal.port import START
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.kernel.telemetry import NoTelemetry
from tests.e2e.client import Client, ConnectionLost
from tests.e2e.processes import Service
from tests.servers.cluster import Cut, Replica
from tests.servers.postgres import PostgresServer

CREATE = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
SECONDS = 3.0
"""Of the lease: 60 in life, and everything else is a part of it."""
PATIENCE = 60.0


@pytest.fixture
def primary(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    # The one of the session may be another machine's; a replica needs one of its own.
    with PostgresServer(settings={"wal_log_hints": "on", "wal_keep_size": "64MB"}) as server:
        yield server


class Acknowledged(NamedTuple):
    """One command that was answered with success."""

    account: str
    asked: float
    answered: float
    site: str


class Load:
    """Sends commands to one site, as many at once as there are callers, and notes what was acknowledged when."""

    def __init__(self, service: Service, site: str) -> None:
        self._service = service
        self._site = site
        self.acknowledged: list[Acknowledged] = []
        self.refused = 0
        self.retry_after = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, callers: int = 6) -> None:
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(callers)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def first(self) -> None:
        """Waits for an acknowledgement."""
        async with asyncio.timeout(PATIENCE):
            while not self.acknowledged:
                await asyncio.sleep(0.02)

    async def _call(self, number: int) -> None:
        async with Client(self._service.command_port) as client:
            while True:
                asked = time.monotonic()
                given = {"firstName": "太郎", "lastName": f"{number}", "emailAddress": "taro@example.com"}
                try:
                    reply = await client.graphql(CREATE, {"i": given})
                except ConnectionLost:
                    await asyncio.sleep(0.05)
                    continue
                answered = time.monotonic()
                body = reply.json()
                if reply.status == 200 and "errors" not in body:
                    account = body["data"]["createUserAccount"]["id"]
                    self.acknowledged.append(Acknowledged(account, asked, answered, self._site))
                else:
                    assert reply.status == 503, body
                    self.retry_after = int(reply.headers["retry-after"])
                    self.refused += 1
                    await asyncio.sleep(0.02)


class Sites:
    """Two sites and their witness."""

    def __init__(
        self, folder: Path, primary: PostgresServer, replica: Replica, urls: dict[str, str], lease: str
    ) -> None:
        self.folder = folder
        self.servers = {"tokyo": primary, "osaka": replica}
        self.urls = urls
        self.configs: dict[str, Path] = {}
        self.lease = lease
        self.services: dict[str, Service] = {}
        for site in urls:
            self.configure(site, lease)

    def configure(self, site: str, lease: str) -> None:
        """Writes a site's settings."""
        data = self.folder / site
        text = f"""
site = "{site}"
primary_region = "tokyo"
secondary_region = "osaka"
lease = "{lease}"
lease_seconds = {SECONDS}
journal = "{self.urls[site]}"
read_model = "sqlite:"
master_key = "{self.folder}/master.key"
erasure_ledger = "{self.folder}/erasures"
drain_delay = 0
data_dir = "{data}"
"""
        self.configs[site] = self.folder / f"{site}.toml"
        self.configs[site].write_text(text)

    def service(self, site: str, kind: str) -> Service:
        """Starts a site's process."""
        service = Service(self.folder / site, "--config", str(self.configs[site]), kind=kind)
        service.start()
        self.services[site] = service
        return service

    async def run(self, *arguments: str, site: str = "osaka", kill: str = "") -> tuple[int, str, str]:
        """A command of `kiseki dr` at a site: exit code, output, progress. `kill`: SIGKILL when it says that."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KISEKI_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kiseki", "dr", *arguments, "--config", str(self.configs[site])),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said = b""
        if kill:
            assert process.stderr is not None
            async with asyncio.timeout(PATIENCE):
                while kill.encode() not in said and not process.stderr.at_eof():
                    said += await process.stderr.readline()
            process.kill()
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), (said + err).decode()

    async def commits(self, site: str) -> set[str]:
        """Ids of the accounts in a site's journal, read from its database."""
        address = PostgresAddress.parse(self.urls[site], schema="kiseki_journal")
        journal = await PostgresJournal.open(address, clock=SystemClock(), telemetry=NoTelemetry(), read_only=True)
        found: set[str] = set()
        try:
            position = START
            while (page := await journal.feed(position)).commits:
                found |= {commit.stream.partition("-")[2] for commit in page.commits}
                position = page.position
        finally:
            await journal.close()
        return found

    @asynccontextmanager
    async def appends_held_up(self, site: str) -> AsyncIterator[None]:
        """Appends that reach the database wait, for the time of the block; the others pile up in the process."""
        connection = await asyncpg.connect(self.urls[site])
        try:
            await connection.execute("BEGIN; LOCK TABLE kiseki_journal.commits IN EXCLUSIVE MODE")
            yield
        finally:
            connection.terminate()

    def kill(self) -> None:
        for service in self.services.values():
            if service.process is not None and service.process.poll() is None:
                os.killpg(service.process.pid, signal.SIGCONT)
            service.kill()


@pytest.fixture
async def witness(postgres_url: str) -> AsyncIterator[Cut]:
    """The way of the first site to the lease's database."""
    await PostgresLeaseStore.migrate(PostgresAddress.parse(postgres_url, schema="kiseki_lease"))
    async with Cut(int(postgres_url.rpartition(":")[2].partition("/")[0])) as cut:
        yield cut


@pytest.fixture
async def sites(tmp_path: Path, primary: PostgresServer, postgres_url: str, witness: Cut) -> AsyncIterator[Sites]:
    """Both sites, tokyo writing, osaka waiting."""
    url = primary.create_database()
    (tmp_path / "erasures").mkdir(mode=0o700)
    key = tmp_path / "master.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    with Replica(primary) as replica:
        urls = {"tokyo": url, "osaka": replica.url(url.rpartition("/")[2])}
        made = Sites(tmp_path, primary, replica, urls, postgres_url)
        made.configure("tokyo", postgres_url.replace(f":{_port(postgres_url)}/", f":{witness.port}/"))
        try:
            tokyo = made.service("tokyo", "serve")
            await tokyo.ready()
            made.service("osaka", "command-api")
            yield made
        finally:
            made.kill()


def _port(url: str) -> str:
    return url.rpartition(":")[2].partition("/")[0]


async def test_planned_under_load_loses_nothing(sites: Sites) -> None:
    tokyo, osaka = Load(sites.services["tokyo"], "tokyo"), Load(sites.services["osaka"], "osaka")
    tokyo.start()
    osaka.start()
    try:
        await tokyo.first()
        await asyncio.sleep(1)
        assert not osaka.acknowledged
        code, out, err = await sites.run("failover", "--other", str(sites.configs["tokyo"]), "--json")
        assert code == 0, err
        report = json.loads(out)
        await osaka.first()
        await asyncio.sleep(0.5)
    finally:
        await tokyo.stop()
        await osaka.stop()
    assert report["mode"] == "planned"
    assert report["term"] == 2
    assert report["compared_commits"] > 0
    assert report["unknown"] == []
    assert max(one.answered for one in tokyo.acknowledged) < min(one.answered for one in osaka.acknowledged)
    everything = {one.account for one in (*tokyo.acknowledged, *osaka.acknowledged)}
    assert everything <= await sites.commits("osaka")
    assert tokyo.refused
    assert tokyo.retry_after >= 1
    code, out, err = await sites.run("failover", "--other", str(sites.configs["tokyo"]))
    assert code == 1
    assert "osaka is the site that writes already" in err or "no replica" in err
    code, out, err = await sites.run("status", "--other", str(sites.configs["tokyo"]))
    assert "osaka, term 2" in out


async def test_a_site_that_is_cut_off_from_the_witness_stops_before_the_other_begins(
    sites: Sites, witness: Cut
) -> None:
    """It stays alive, and its database too, which its clients and it reach all the time."""
    tokyo, osaka = Load(sites.services["tokyo"], "tokyo"), Load(sites.services["osaka"], "osaka")
    tokyo.start()
    osaka.start()
    try:
        await tokyo.first()
        await asyncio.sleep(1)
        witness.cut()
        cut_at = time.monotonic()
        code, _, err = await sites.run("failover", "--forced")
        assert code == 0, err
        await osaka.first()
        await asyncio.sleep(0.5)
        assert sites.services["tokyo"].process is not None
        assert sites.services["tokyo"].process.poll() is None
    finally:
        await tokyo.stop()
        await osaka.stop()
    last, first = max(one.answered for one in tokyo.acknowledged), min(one.asked for one in osaka.acknowledged)
    assert last > cut_at, "it wrote on while its lease lasted"
    assert last < min(one.answered for one in osaka.acknowledged)
    print(
        f"the cut-off site acknowledged its last {last - cut_at:.2f} s after the cut, the other its first "
        f"{first - last:.2f} s later; a lease of {SECONDS:g} s"
    )
    assert tokyo.refused
    # Its database was never told: what keeps it from writing is the lease alone.
    async with Client(sites.services["tokyo"].management_port) as client:
        ready = (await client.request("GET", "/ready")).json()
    async with Client(sites.services["tokyo"].query_port) as client:
        shown = await client.graphql("{ getUserAccounts(first: 1) { id } }")
    assert shown.status == 200
    assert len(shown.json()["data"]["getUserAccounts"]) == 1, "queries go on"
    assert ready["checks"]["writer"]["status"] == "failed"


@pytest.mark.parametrize("database", ["reached", "cut off"])
async def test_a_writer_that_was_frozen_acknowledges_and_writes_nothing_more(sites: Sites, database: str) -> None:
    """The zombie: stopped in the middle of its work for longer than the lease, and then let go on.

    Its database is there all the time. Some of its appends are in the database when it is stopped, and land, but it
    hears of that too late to acknowledge them. Others are about to be sent, and are when it goes on: the database
    refuses them, by their term, or by its own clock where the failover did not reach it.
    """
    service = sites.services["tokyo"]
    tokyo, osaka = Load(service, "tokyo"), Load(sites.services["osaka"], "osaka")
    assert service.process is not None
    tokyo.start(callers=24)
    osaka.start()
    try:
        await tokyo.first()
        await asyncio.sleep(1)
        async with sites.appends_held_up("tokyo"):
            await asyncio.sleep(0.5)
            os.killpg(service.process.pid, signal.SIGSTOP)
            frozen_at = time.monotonic()
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.3)
        held = await sites.commits("tokyo")
        other = ("--other", str(sites.configs["tokyo"])) if database == "reached" else ()
        code, _, err = await sites.run("failover", "--forced", *other)
        assert code == 0, err
        assert ("refuses writers of terms before 2" in err) == (database == "reached")
        await osaka.first()
        os.killpg(service.process.pid, signal.SIGCONT)
        thawed_at = time.monotonic()
        await asyncio.sleep(2)
    finally:
        await tokyo.stop()
        await osaka.stop()
    late = [one for one in tokyo.acknowledged if one.answered > thawed_at]
    assert not late
    assert held - {one.account for one in tokyo.acknowledged}, "nothing landed that was not acknowledged: no proof"
    assert await sites.commits("tokyo") == held, "something landed after the lease had lapsed"
    assert {one.account for one in tokyo.acknowledged} <= await sites.commits("osaka")
    assert tokyo.refused
    print(f"frozen for {thawed_at - frozen_at:.1f} s; nothing landed after that, nothing was acknowledged")


async def test_of_two_operators_one_gets_through(sites: Sites) -> None:
    outcomes = await asyncio.gather(*(sites.run("failover", "--forced") for _ in range(2)))
    codes = sorted(code for code, _, _ in outcomes)
    assert codes == [0, 1], outcomes
    told = next(err for code, _, err in outcomes if code)
    assert "at this moment" in told or "writes already" in told, told
    assert told.strip().count("\nkiseki: ") <= 1


async def test_a_failover_that_was_killed_is_gone_on_with(sites: Sites) -> None:
    tokyo, osaka = Load(sites.services["tokyo"], "tokyo"), Load(sites.services["osaka"], "osaka")
    tokyo.start()
    try:
        await tokyo.first()
        code, _, err = await sites.run("failover", "--other", str(sites.configs["tokyo"]), kill="no more; waits until")
        assert code != 0, err
        code, out, _ = await sites.run("status")
        assert code == 1
        assert "tokyo hands over to osaka" in out, out
        refused = tokyo.refused
        code, _, err = await sites.run("failover", "--other", str(sites.configs["tokyo"]))
        assert code == 0, err
        assert "goes on with a failover that had begun" in err
        assert tokyo.refused > refused
        osaka.start()
        await osaka.first()
    finally:
        await tokyo.stop()
        await osaka.stop()
    assert {one.account for one in tokyo.acknowledged} <= await sites.commits("osaka")


async def test_failback_reports_what_diverged(sites: Sites) -> None:
    """The replica is cut off from its primary first, so that commits are acknowledged and not replicated."""
    tokyo, osaka = Load(sites.services["tokyo"], "tokyo"), Load(sites.services["osaka"], "osaka")
    tokyo.start()
    try:
        await tokyo.first()
        await asyncio.sleep(0.5)
        sites.servers["osaka"].sql("ALTER SYSTEM SET primary_conninfo = ''; ")
        sites.servers["osaka"].sql("SELECT pg_reload_conf()")
        async with asyncio.timeout(PATIENCE):
            while sites.servers["osaka"].sql("SELECT count(*) FROM pg_stat_wal_receiver") != "0":
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        code, _, err = await sites.run("failover", "--other", str(sites.configs["tokyo"]))
        assert code == 1, "a replica that does not follow is not handed over to"
        assert "not connected to its primary" in err
        code, _, err = await sites.run("failover", "--forced")
        assert code == 0, err
        osaka.start()
        await osaka.first()
    finally:
        await tokyo.stop()
        await osaka.stop()
    diverged = await sites.commits("tokyo") - await sites.commits("osaka")
    assert diverged, "nothing was lost, so nothing can be found"
    file = sites.folder / "diverged.jsonl"
    arguments = ("failback", "--other", str(sites.configs["tokyo"]), "--output", str(file))
    code, out, err = await sites.run(*arguments)
    assert code == 1
    assert f"{len(diverged):,} are not here, 0 are here otherwise" in out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["stream"].partition("-")[2] for line in lines if line["kind"] == "commit"} == diverged
    code, out, err = await sites.run(*arguments, "--accept-diverged", str(file))
    assert code == 0, err
    assert "pg_rewind" in out
    file.write_text("\n".join(file.read_text().splitlines()[:-2]))
    code, out, err = await sites.run(*arguments, "--accept-diverged", str(file))
    assert code == 1
    assert "cut off" in err
