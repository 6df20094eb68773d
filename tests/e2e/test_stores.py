"""The same service on every pair of stores: alone, twice on the same stores, and while a store fails."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.client import Client, ConnectionLost
from tests.e2e.commands import eventually, kiseki, kiseki_in, running
from tests.e2e.pairs import PAIRS, Pair, make_pair
from tests.e2e.processes import Service
from tests.e2e.test_processes import CREATE, HANAKO, ONE, RENAME, data, get, round_trip
from tests.servers.postgres import PostgresServer

RECEIVE = "mutation ($i: ReceiveStockInput!) { receiveStock(input: $i) { id } }"
STOCK = "query ($sku: String!) { getStock(sku: $sku) { onHand } }"


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param, request)


@pytest.fixture(params=["postgresql+postgresql", "dynamodb+postgresql"])
def shared_pair(request: pytest.FixtureRequest) -> Pair:
    """Stores that several machines can share."""
    return make_pair(request.param, request)


async def test_a_service_on_every_pair(tmp_path: Path, pair: Pair) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    service = Service(tmp_path / "data", "--drain-delay", "0", environment=pair.environment)
    async with running(service):
        await round_trip(service)
        rebuilt = await asyncio.to_thread(
            lambda: kiseki_in(pair.environment, "projection", "rebuild", "user_accounts", *place)
        )
        assert rebuilt.returncode == 0, rebuilt.stderr
        await round_trip(service)
        assert service.terminate() == 0
    assert "Traceback" not in service.log.read_text(encoding="utf-8")
    verified = kiseki_in(pair.environment, "journal", "verify", *place)
    assert verified.returncode == 0, verified.stderr
    assert "6 commits, 6 events, 2 streams" in verified.stdout
    status = kiseki_in(pair.environment, "projection", "status", "--json", *place)
    (live,) = [build for build in json.loads(status.stdout) if build["state"] == "live"]
    assert (live["generation"], live["commitsBehind"], live["parkedCount"]) == (2, 0, 0)
    async with running(service):  # everything is still there
        async with Client(service.query_port) as queries:
            found = await data(await queries.graphql("{ getUserAccounts { id } }"))
        assert found == {"getUserAccounts": []}
        assert service.terminate() == 0


@asynccontextmanager
async def twins(tmp_path: Path, pair: Pair) -> AsyncIterator[tuple[Service, Service]]:
    """Two whole services on the same stores, as on two machines that share a master key."""
    key = tmp_path / "master.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    both = [
        Service(
            tmp_path / name,
            *("--drain-delay", "0", "--app", "tests.e2e.both_contexts:app"),
            environment={**pair.environment, "KISEKI_MASTER_KEY": str(key)},
        )
        for name in ("one", "two")
    ]
    async with AsyncExitStack() as stack:
        for service in both:
            await stack.enter_async_context(running(service))
        yield both[0], both[1]


async def test_two_services_share_streams_and_one_takes_over_when_the_other_is_killed(
    tmp_path: Path, shared_pair: Pair
) -> None:
    """The same streams from both: nothing is lost or applied twice, also when the owner of the projections dies."""
    received: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    names: dict[str, str] = {}

    async def receive(service: Service, number: int) -> None:
        async with Client(service.command_port) as client:
            for turn in range(40):
                sku = f"SKU-{(number + turn) % 3}"
                try:
                    reply = await client.graphql(RECEIVE, {"i": {"sku": sku, "article": "緑茶", "quantity": 1}})
                except ConnectionLost:
                    unknown[sku] += 1
                    return
                if reply.status == 200 and "errors" not in reply.json():
                    received[sku] += 1
                else:
                    assert reply.json()["errors"][0]["extensions"]["code"] == "CONFLICT", reply.body

    async def rename(service: Service, identifier: str, label: str) -> None:
        async with Client(service.command_port) as client:
            for turn in range(15):
                name = {"userAccountId": identifier, "firstName": "花子", "lastName": f"{label}{turn}"}
                try:
                    await client.graphql(RENAME, {"i": name})
                except ConnectionLost:
                    return

    async with twins(tmp_path, shared_pair) as (one, two):
        async with Client(one.command_port) as client:
            created = await data(await client.graphql(CREATE, {"i": HANAKO}))
        identifier = created["createUserAccount"]["id"]
        work = [receive(service, number) for number in range(4) for service in (one, two)]
        work += [rename(one, identifier, "一"), rename(two, identifier, "二")]
        running_work = asyncio.gather(*work)
        await eventually(lambda: sum(received.values()) > 60)
        one.kill()  # it started first, so it owns the projections
        await running_work
        async with asyncio.timeout(30), Client(two.query_port) as queries, Client(two.command_port) as commands:
            # A new command through the one that is left is visible through it: it has taken over.
            reply = await commands.graphql(
                RENAME, {"i": {"userAccountId": identifier, "firstName": "花子", "lastName": "最後"}}
            )
            token = {"kiseki-consistency-token": reply.headers["kiseki-consistency-token"]}
            while True:
                seen = await queries.graphql(ONE, {"id": identifier}, **token)
                if seen.status == 200 and "errors" not in seen.json():
                    break
            assert seen.json()["data"]["getUserAccount"]["fullName"] == "花子 最後"
            for sku, sure in received.items():
                stock: dict[str, int] | None = None
                while stock is None or stock["onHand"] < sure:
                    stock = (await data(await queries.graphql(STOCK, {"sku": sku})))["getStock"]
                assert sure <= stock["onHand"] <= sure + unknown[sku]
                names[sku] = str(stock["onHand"])
        # Every event of every stream exactly once, whoever wrote it.
        verified = await asyncio.to_thread(
            lambda: kiseki_in(two.environment, "journal", "verify", "--data-dir", str(two.data_dir))
        )
        assert verified.returncode == 0, verified.stderr
        assert two.terminate() == 0


# A store that fails


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    with PostgresServer() as server:
        yield server


async def refused(service: Service) -> int:
    """Sends a command that has to be refused for now; the seconds after which to try again."""
    async with Client(service.command_port) as client:
        reply = await client.graphql(CREATE, {"i": HANAKO})
    assert reply.status == 503, reply.body
    assert b"UNAVAILABLE" in reply.body
    return int(reply.headers["retry-after"])


async def test_a_store_that_is_down_at_the_start_is_waited_for(tmp_path: Path, own_server: PostgresServer) -> None:
    url = own_server.create_database()
    own_server.halt()
    service = Service(tmp_path / "data", "--drain-delay", "0", environment={"KISEKI_JOURNAL": url})
    service.start()
    try:

        async def cause() -> str:
            async with asyncio.timeout(30):
                while True:
                    try:
                        reply = await get(service.management_port, "/ready")
                    except ConnectionLost:
                        continue
                    if "journal" in reply.json()["checks"]["starting"].get("cause", ""):
                        assert reply.status == 503
                        return str(reply.json()["checks"]["starting"]["cause"])

        assert own_server.password not in await cause()
        assert (await get(service.management_port, "/startup")).json()["status"] == "waiting"
        assert (await get(service.management_port, "/alive")).status == 200
        assert await refused(service) >= 1
        assert own_server.launch()
        await service.ready()
        await round_trip(service)
        assert service.terminate() == 0
    finally:
        service.kill()
    log = service.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert own_server.password not in log


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_process_that_waits_ends_when_it_is_told_to(
    tmp_path: Path, own_server: PostgresServer, workers: str
) -> None:
    url = own_server.create_database()
    own_server.halt()
    arguments = ("--drain-delay", "0", "--workers", workers)
    service = Service(tmp_path / "data", *arguments, environment={"KISEKI_JOURNAL": url})
    service.start()
    try:
        await eventually(lambda: "waits for a store" in service.log.read_text(encoding="utf-8"))
        assert await asyncio.to_thread(service.terminate) == 0
    finally:
        service.kill()
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["crash", "freeze"])
async def test_a_store_that_dies_under_load(tmp_path: Path, own_server: PostgresServer, how: str) -> None:
    service = Service(
        tmp_path / "data", "--drain-delay", "0", environment={"KISEKI_JOURNAL": own_server.create_database()}
    )
    acknowledged: list[str] = []
    other: Counter[int] = Counter()
    stop = asyncio.Event()

    async def load() -> None:
        async with Client(service.command_port) as client:
            while not stop.is_set():
                reply = await client.graphql(CREATE, {"i": HANAKO})
                body = reply.json()
                if reply.status == 200 and "errors" not in body:
                    acknowledged.append(body["data"]["createUserAccount"]["id"])
                else:
                    assert b"UNAVAILABLE" in reply.body or b"TIMEOUT" in reply.body, reply.body
                    assert reply.status == 503, reply.body
                    assert int(reply.headers["retry-after"]) >= 1
                    other[reply.status] += 1
                    await asyncio.sleep(0.01)

    async with running(service):
        callers = [asyncio.create_task(load()) for _ in range(8)]
        await eventually(lambda: len(acknowledged) > 100)
        own_server.crash() if how == "crash" else own_server.freeze()
        await eventually(lambda: other[503] > 10)

        async def cause() -> dict[str, dict[str, str]]:
            async with asyncio.timeout(30):
                while (reply := await get(service.management_port, "/ready")).status == 200:
                    await asyncio.sleep(0.02)
                return dict(reply.json()["checks"])

        assert (await cause())["journal"]["status"] == "failed"
        assert (await get(service.management_port, "/ready?scope=local")).status == 200
        before = len(acknowledged)
        if how == "crash":
            assert own_server.launch()
        else:
            own_server.thaw()
        await eventually(lambda: len(acknowledged) > before + 100)
        stop.set()
        await asyncio.gather(*callers)
        await service.ready()
        async with Client(service.query_port) as queries:
            query = "query ($ids: [String!]!) { getUserAccountsByIds(userAccountIds: $ids) { id } }"
            for start in range(0, len(acknowledged), 50):
                wanted = acknowledged[start : start + 50]
                async with asyncio.timeout(30):
                    while True:
                        found = (await data(await queries.graphql(query, {"ids": wanted})))["getUserAccountsByIds"]
                        if len(found) == len(wanted):
                            break
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.process.wait, 60) == 0
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "asyncpg.py").write_text("raise ModuleNotFoundError('no', name='asyncpg')")
    done = kiseki("migrate", cwd=tmp_path, KISEKI_JOURNAL="postgresql://x@127.0.0.1/y", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert (
        done.stderr
        == "kiseki: journal is on postgresql, but asyncpg is not installed; pip install 'kiseki[postgres]'\n"
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://secret@host/db", "journal names no store that is known"),
        ("dynamodb://p?region=eu-west-1", "read_model has to be set"),
        ("dynamodb://p", "read_model"),
        ("postgresql://user:secret@host:port/db", "journal"),
    ],
)
def test_a_url_that_can_not_be_used_is_named_without_its_secret(tmp_path: Path, url: str, said: str) -> None:
    done = kiseki("migrate", cwd=tmp_path, KISEKI_JOURNAL=url)
    assert done.returncode == 1
    assert done.stderr.startswith("kiseki: ")
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_migrate_is_safe_to_repeat(tmp_path: Path, postgres_url: str) -> None:
    first = kiseki("migrate", "--data-dir", str(tmp_path / "data"), KISEKI_JOURNAL=postgres_url)
    assert first.returncode == 0, first.stderr
    assert "kiseki_journal" in first.stdout
    assert first.stdout.count("\n") >= 3
    again = kiseki("migrate", "--data-dir", str(tmp_path / "data"), KISEKI_JOURNAL=postgres_url)
    assert (again.returncode, again.stdout) == (0, "everything is up to date\n")


async def test_a_journal_moves_to_another_store_with_its_accounts(tmp_path: Path, postgres_url: str) -> None:
    """Export, import, and the service goes on there. The accounts are readable, for the keys stayed where they were."""
    place = ("--data-dir", str(tmp_path / "data"))
    file = str(tmp_path / "facts.jsonl.gz")
    async with running(Service(tmp_path / "data", "--drain-delay", "0")) as old:
        async with Client(old.command_port) as client:
            created = await data(await client.graphql(CREATE, {"i": HANAKO}))
        assert old.terminate() == 0
    identifier = created["createUserAccount"]["id"]
    there = {"KISEKI_JOURNAL": postgres_url, "KISEKI_KEYS": "sqlite:"}
    exported = kiseki("journal", "export", file, *place)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("exported 1 commits, 1 events, 1 streams")
    assert "is there already" in kiseki("journal", "export", file, *place).stderr
    refused_import = kiseki_in(there, "journal", "import", file, *place)
    assert "kiseki migrate" in refused_import.stderr
    assert kiseki_in(there, "migrate", *place).returncode == 0
    for written in (1, 0):
        imported = kiseki_in(there, "journal", "import", file, *place)
        assert imported.returncode == 0, imported.stderr
        assert f"; {written} commits were written by this run" in imported.stdout
    async with running(Service(tmp_path / "data", "--drain-delay", "0", environment=there)) as new:
        async with Client(new.query_port) as queries:
            found = await data(await queries.graphql(ONE, {"id": identifier}))
        assert found == {"getUserAccount": {"id": identifier, "fullName": "花子 山田"}}
        async with Client(new.command_port) as client:
            name = {"userAccountId": identifier, "firstName": "花子", "lastName": "鈴木"}
            assert await data(await client.graphql(RENAME, {"i": name})) == {"renameUserAccount": {"id": identifier}}
        assert new.terminate() == 0
