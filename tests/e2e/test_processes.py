"""The processes of a service as users start them: they serve, end in order, and say in one line why they can't."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Client, ConnectionLost, Reply
from tests.e2e.commands import APPLICATION, complaint, eventually, free, kiseki, running
from tests.e2e.processes import Service

CREATE = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
DELETE = "mutation ($i: DeleteUserAccountInput!) { deleteUserAccount(input: $i) { id } }"
ONE = "query ($id: String!) { getUserAccount(userAccountId: $id) { id fullName } }"
OTHERS = """query ($ids: [String!]!) {
  getUserAccounts { id fullName }
  getUserAccountsByIds(userAccountIds: $ids) { id fullName }
  searchUserAccounts(searchTerm: "鈴木") { id fullName }
}"""
IN_FLIGHT = "kiseki_http_requests_in_flight"
HANAKO = {"firstName": "花子", "lastName": "山田", "emailAddress": "hanako.yamada@example.com"}


async def data(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    body = reply.json()
    assert "errors" not in body, body
    return body["data"]


async def round_trip(service: Service) -> None:
    """Creates, renames and deletes an account, and reads each with the token of what was written."""
    async with Client(service.command_port) as commands, Client(service.query_port) as queries:
        created = await commands.graphql(CREATE, {"i": HANAKO})
        identifier = (await data(created))["createUserAccount"]["id"]
        token = {"kiseki-consistency-token": created.headers["kiseki-consistency-token"]}
        account = {"id": identifier, "fullName": "花子 山田"}
        assert await data(await queries.graphql(ONE, {"id": identifier}, **token)) == {"getUserAccount": account}

        name = {"userAccountId": identifier, "firstName": "次郎", "lastName": "鈴木"}
        renamed = await commands.graphql(RENAME, {"i": name})
        token = {"kiseki-consistency-token": renamed.headers["kiseki-consistency-token"]}
        account["fullName"] = "次郎 鈴木"
        assert await data(await queries.graphql(OTHERS, {"ids": [identifier]}, **token)) == {
            "getUserAccounts": [account],
            "getUserAccountsByIds": [account],
            "searchUserAccounts": [account],
        }

        deleted = await commands.graphql(DELETE, {"i": {"userAccountId": identifier}})
        token = {"kiseki-consistency-token": deleted.headers["kiseki-consistency-token"]}
        assert await data(await queries.graphql(ONE, {"id": identifier}, **token)) == {"getUserAccount": None}


async def get(port: int, path: str) -> Reply:
    async with Client(port) as client:
        return await client.request("GET", path)


def count(metrics: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    total = 0.0
    for line in metrics.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items()):
            total += float(match[3])
    return total


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Serving


async def test_one_process_serves_everything(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data")) as service:
        await round_trip(service)
        assert (await get(service.command_port, "/api/health")).json() == {"status": "ok"}
        assert (await get(service.management_port, "/startup")).status == 200
        assert (await get(service.management_port, "/alive")).status == 200
        assert (await get(service.management_port, "/ready?scope=local")).json()["checks"] == {"disk": {"status": "ok"}}
        metrics = (await get(service.management_port, "/metrics")).body.decode()
        assert count(metrics, "kiseki_commands_total", outcome="accepted") == 3
        assert count(metrics, "kiseki_projected_events_total", projection="user_accounts") == 3
        assert count(metrics, "kiseki_ready") == 1
        assert 'kiseki_projection_lag_commits{projection="user_accounts",state="live",version="1"}' in metrics
        banner = service.log.read_text(encoding="utf-8")
        assert f"http://127.0.0.1:{service.command_port}/api/graphql" in banner
        assert "curl" in banner
        assert service.terminate() == 0
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


async def test_the_parts_run_apart_on_one_data_directory(tmp_path: Path) -> None:
    commands, queries, updater = (
        Service(tmp_path / "data", "--drain-delay", "0", kind=kind) for kind in ("command-api", "query-api", "updater")
    )
    async with running(commands), running(updater), running(queries):
        queries.command_port = commands.command_port
        await round_trip(queries)
        metrics = (await get(commands.management_port, "/metrics")).body.decode()
        assert count(metrics, "kiseki_commands_total") == 3
        assert "kiseki_projection_lag_commits{" not in metrics
        assert "kiseki_projection_lag_commits{" in (await get(updater.management_port, "/metrics")).body.decode()
        assert [service.terminate() for service in (commands, queries, updater)] == [0, 0, 0]


async def test_free_ports_are_told_to_programs(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--log-format", "json", "--drain-delay", "0")
    service.command_port = service.query_port = service.management_port = 0
    service.start()
    try:

        def listening() -> Any:
            lines = [json.loads(line) for line in service.log.read_text().splitlines()]
            return next((line for line in lines if line["message"] == "listening"), None)

        told = (await eventually(listening))["urls"]
        ports = [int(re.search(r":(\d+)/", told[name])[1]) for name in ("command", "query", "ready")]  # type: ignore[index]
        service.command_port, service.query_port, service.management_port = ports
        await service.ready()
        await round_trip(service)
        assert service.terminate() == 0
        for line in service.log.read_text().splitlines():
            assert json.loads(line)["role"] == "serve"
    finally:
        service.kill()


async def test_a_stuck_event_loop_makes_alive_fail(tmp_path: Path) -> None:
    """It is answered by the very thing that it speaks of."""
    blocking = "decide=lambda command, state: [time.sleep(2) or NoteWritten(title=command.title)]"
    source = "import time\n" + APPLICATION.replace("COLUMN", "title").replace(
        "decide=lambda command, state: [NoteWritten(title=command.title)]", blocking
    )
    assert blocking in source
    (tmp_path / "shop.py").write_text(source)
    service = Service(tmp_path / "data", "--app", "shop:app", "--drain-delay", "0", cwd=tmp_path)
    async with running(service), Client(service.command_port) as client:
        assert (await get(service.management_port, "/alive")).status == 200
        writing = asyncio.create_task(client.graphql('mutation { writeNote(input: {title: "軌跡"}) { id } }'))
        async with asyncio.timeout(30):
            while await answers_within(0.5, service.management_port):
                pass
        await data(await writing)
        assert (await get(service.management_port, "/alive")).status == 200
        assert service.terminate() == 0


async def answers_within(seconds: float, port: int) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await get(port, "/alive")
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_disk_without_room_shows_in_the_check_of_the_balancer(tmp_path: Path, workers: str) -> None:
    environment = {"KISEKI_DISK_FREE": str(2**60)}
    service = Service(tmp_path / "data", "--drain-delay", "0", "--workers", workers, environment=environment)
    service.start()
    try:
        async with asyncio.timeout(60):
            while (said := await startup(service)) is None or said["status"] != "started":
                await asyncio.sleep(0.05)
            while not (checks := (await get(service.management_port, "/ready?scope=local")).json()["checks"]):
                await asyncio.sleep(0.05)
        (failed,) = (check for check in checks.values() if check["status"] != "ok")
        assert "the data directory has less than" in failed["cause"]
        assert (await get(service.management_port, "/ready?scope=local")).status == 503
        assert (await get(service.management_port, "/alive")).status == 200
        assert service.terminate() == 0
    finally:
        service.kill()


# Ending


class Load:
    """Callers that write, or ask, without a break, some on kept connections and some on a new one for each request."""

    def __init__(self, service: Service, *, port: int | None = None, document: str = CREATE) -> None:
        self._port = port or service.command_port
        self._document = document
        self.answers: Counter[int] = Counter()
        self.lost: list[str] = []

    async def run(self, callers: int) -> None:
        await asyncio.gather(*(self._call(keep=bool(number % 2)) for number in range(callers)))

    async def _call(self, *, keep: bool) -> None:
        client = Client(self._port)
        while True:
            try:
                reply = await client.graphql(self._document, {"i": HANAKO} if self._document == CREATE else None)
            except ConnectionLost as problem:
                if not isinstance(problem.__cause__, ConnectionRefusedError):
                    self.lost.append(repr(problem.__cause__))
                return
            self.answers[reply.status] += 1
            if not keep:
                client.close()


async def stops_without_loss(service: Service) -> Counter[int]:
    load = Load(service)
    calling = asyncio.create_task(load.run(8))
    await eventually(lambda: load.answers[200] > 50)
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)

    # Readiness fails first, while everything is still served.
    async with Client(service.management_port) as probe:
        while (ready := await probe.request("GET", "/ready")).status == 200:
            await asyncio.sleep(0)
    served = load.answers[200]
    assert ready.json()["checks"]["draining"]["status"] == "failed"
    assert (await get(service.management_port, "/ready?scope=local")).status == 503
    assert (await get(service.management_port, "/alive")).status == 200
    await eventually(lambda: load.answers[200] > served)

    await asyncio.wait_for(calling, 60)
    assert await asyncio.to_thread(service.process.wait, 60) == 0
    assert load.lost == []
    assert set(load.answers) <= {200, 503}
    log = service.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert " is no longer waited for" not in log
    return load.answers


async def test_sigterm_under_load_loses_and_cuts_nothing(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--drain-delay", "1")) as service:
        answers = await stops_without_loss(service)
    verified = kiseki("journal", "verify", "--data-dir", str(service.data_dir))
    assert verified.returncode == 0
    assert f" {answers[200]:,} commits" in verified.stdout


async def test_a_second_signal_shortens_the_drain_delay(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--drain-delay", "300")) as service:
        assert service.process is not None
        service.process.send_signal(signal.SIGINT)
        async with Client(service.management_port) as probe:
            while (await probe.request("GET", "/ready")).status == 200:
                await asyncio.sleep(0.01)
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(service.process.wait, 30) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_signals_without_end_do_no_harm(tmp_path: Path, workers: str) -> None:
    """Also not in the last moments, when everything has ended and the process has only to return."""
    async with running(Service(tmp_path / "data", "--drain-delay", "300", "--workers", workers)) as service:
        assert service.process is not None
        signals = itertools.cycle((signal.SIGTERM, signal.SIGINT))
        async with asyncio.timeout(60):
            while service.process.poll() is None:
                service.process.send_signal(next(signals))
                await asyncio.sleep(0.001)
        assert service.process.returncode == 0
    log = service.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert len(re.findall(r"cut short .*role=serve", log)) == 1


async def test_the_kinds_end_under_load_each_by_itself(tmp_path: Path) -> None:
    commands, queries, updater = (
        Service(tmp_path / "data", "--drain-delay", "0.5", kind=kind)
        for kind in ("command-api", "query-api", "updater")
    )
    for service in (commands, queries, updater):
        service.log = tmp_path / f"{service.kind}.log"
    async with running(commands), running(updater), running(queries):
        writing, reading = Load(commands), Load(queries, port=queries.query_port, document="{ getUserAccounts { id } }")
        calling = [asyncio.create_task(load.run(8)) for load in (writing, reading)]
        await eventually(lambda: writing.answers[200] > 50 and reading.answers[200] > 50)
        for service in (commands, queries, updater):
            assert service.process is not None
            service.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*calling), 60)
        for service in (commands, queries, updater):
            assert service.process is not None
            assert await asyncio.to_thread(service.process.wait, 60) == 0
            log = service.log.read_text(encoding="utf-8")
            assert "Traceback" not in log
            assert " is no longer waited for" not in log
    for load in (writing, reading):
        assert load.lost == []
        assert set(load.answers) <= {200, 503}
    # Nobody sends anything to an updater, so there is nobody to wait for.
    assert re.search(r"shut down in 0\.[0-4] s", updater.log.read_text(encoding="utf-8"))
    verified = kiseki("journal", "verify", "--data-dir", str(commands.data_dir))
    assert f" {writing.answers[200]:,} commits" in verified.stdout


async def test_a_query_that_waits_for_a_write_is_answered(tmp_path: Path) -> None:
    commands, queries, updater = (
        Service(tmp_path / "data", "--drain-delay", "0", kind=kind) for kind in ("command-api", "query-api", "updater")
    )
    async with running(commands), running(updater), running(queries):
        assert updater.process is not None
        assert queries.process is not None
        os.kill(updater.process.pid, signal.SIGSTOP)
        async with Client(commands.command_port) as client:
            created = await client.graphql(CREATE, {"i": HANAKO})
        token = {"kiseki-consistency-token": created.headers["kiseki-consistency-token"]}
        identifier = (await data(created))["createUserAccount"]["id"]
        async with Client(queries.query_port) as client, Client(queries.management_port) as probe:
            asking = asyncio.create_task(client.graphql(ONE, {"id": identifier}, **token))
            async with asyncio.timeout(10):
                while count((await probe.request("GET", "/metrics")).body.decode(), IN_FLIGHT, api="query") < 1:
                    await asyncio.sleep(0.01)
            queries.process.send_signal(signal.SIGTERM)
            reply = await asyncio.wait_for(asking, 10)
        assert reply.json()["errors"][0]["extensions"]["code"] == "STALE"
        assert reply.headers["connection"] == "close"
        assert await asyncio.to_thread(queries.process.wait, 60) == 0


# Ending while it starts


KINDS = [("serve",), ("command-api",), ("query-api",), ("updater",), ("serve", "--workers", "2")]


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
async def test_a_start_that_hangs_in_a_store_ends_at_once(tmp_path: Path, kind: tuple[str, ...]) -> None:
    with socket.socket() as store:
        # It accepts connections and says nothing, for ever.
        store.bind(("127.0.0.1", 0))
        store.listen()
        store.setblocking(False)
        url = f"postgresql://kiseki:secret@127.0.0.1:{store.getsockname()[1]}/kiseki"
        service = Service(
            tmp_path / "data",
            *kind[1:],
            *("--drain-delay", "300"),
            kind=kind[0],
            environment={"KISEKI_JOURNAL": url, "KISEKI_READ_MODEL": url},
        )
        service.start()
        try:
            async with asyncio.timeout(30):
                connection, _ = await asyncio.get_running_loop().sock_accept(store)
            with connection:
                assert service.process is not None
                service.process.send_signal(signal.SIGTERM)
                # By itself the attempt would be given up after five seconds.
                assert await asyncio.to_thread(service.process.wait, 4) == 0
        finally:
            service.kill()
    log = service.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert " is no longer waited for" not in log


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_start_that_waits_says_for_what_and_ends_in_order(tmp_path: Path, workers: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://kiseki:secret@127.0.0.1:{unused.getsockname()[1]}/kiseki"
        service = Service(
            tmp_path / "data",
            *("--drain-delay", "300", "--workers", workers),
            environment={"KISEKI_JOURNAL": url, "KISEKI_READ_MODEL": url},
        )
        service.start()
        try:
            async with asyncio.timeout(30):
                while (said := await startup(service)) is None or said.get("status") != "waiting":
                    await asyncio.sleep(0.05)
                while (await trying(service.command_port, "/api/health")) is None:
                    await asyncio.sleep(0.05)
            assert "journal: " in said["cause"]
            refused = await get(service.command_port, "/api/health")
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
            ready = (await get(service.management_port, "/ready?scope=local")).json()
            assert "journal: " in ready["checks"]["starting"]["cause"]
            assert service.terminate() == 0
        finally:
            service.kill()


async def trying(port: int, path: str) -> Reply | None:
    try:
        return await get(port, path)
    except ConnectionLost:
        return None


async def startup(service: Service) -> Any:
    reply = await trying(service.management_port, "/startup")
    return None if reply is None else reply.json()


async def test_a_start_that_hangs_when_its_stores_are_open_ends_at_once(tmp_path: Path) -> None:
    """And without the drain delay: nobody was ever told that it is ready."""
    with socket.socket() as issuer:
        issuer.bind(("127.0.0.1", 0))
        issuer.listen()
        issuer.setblocking(False)
        url = f"http://127.0.0.1:{issuer.getsockname()[1]}"
        environment = {"KISEKI_TOKEN_ISSUER": url, "KISEKI_JWKS_URL": f"{url}/jwks"}
        service = Service(tmp_path / "data", "--drain-delay", "300", environment=environment)
        service.start()
        try:
            async with asyncio.timeout(30):
                connection, _ = await asyncio.get_running_loop().sock_accept(issuer)
            with connection:
                assert service.terminate() == 0
        finally:
            service.kill()
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


# Metrics for CloudWatch


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_embedded_metrics_are_lines_on_standard_output(tmp_path: Path, workers: str) -> None:
    service = Service(
        tmp_path / "data",
        *("--workers", workers, "--drain-delay", "0"),
        environment={"KISEKI_EMBEDDED_METRICS": "0.2", "KISEKI_METRICS_NAMESPACE": "kiseki-test"},
    )
    async with running(service):
        await round_trip(service)

        def told() -> list[dict[str, Any]]:
            lines = service.log.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.startswith("{") and '"_aws"' in line]

        def counted() -> bool:
            return bool(told()) and told()[-1].get("ready") == 1 and told()[-1].get("http_requests") == 0

        await eventually(counted)
        assert service.terminate() == 0
    lines = told()
    assert {line["process"] for line in lines} == {"serve"}
    assert {each["Namespace"] for line in lines for each in line["_aws"]["CloudWatchMetrics"]} == {"kiseki-test"}
    assert sum(line.get("http_requests", 0) for line in lines) >= 6
    assert sum(line.get("http_5xx", 0) for line in lines) == 0
    assert any(line.get("projection_lag_commits") == 0 and line["parked_streams"] == 0 for line in lines)
    assert all(0 < line["http_p99_seconds"] < 10 for line in lines if line.get("http_requests"))


# Workers


async def test_workers_share_the_ports_and_the_counts(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "0")) as service:
        await round_trip(service)
        ready = (await get(service.management_port, "/ready")).json()["checks"]
        assert set(ready) == {"workers", "worker-1", "worker-2", "updater"}
        metrics = (await get(service.management_port, "/metrics")).body.decode()
        assert count(metrics, "kiseki_commands_total", outcome="accepted") == 3
        assert count(metrics, "kiseki_projected_events_total") == 3
        for process in ("supervisor", "worker-1", "worker-2", "updater"):
            assert count(metrics, "process_resident_memory_bytes", process=process) > 0
        assert service.process is not None
        processes = children(service.process.pid)
        assert len(processes) == 3
        assert service.terminate() == 0
        assert not any(alive(process) for process in processes)


async def test_workers_drain_under_load_and_the_updater_ends_last(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "1")) as service:
        await stops_without_loss(service)
    log = service.log.read_text(encoding="utf-8")
    ends = [match[1] for match in re.finditer(r"shut down in .*role=(\S+)", log)]
    assert sorted(ends[:2]) == ["worker-1", "worker-2"]
    assert ends[2:] == ["updater", "serve"]
    status = json.loads(kiseki("projection", "status", "--json", "--data-dir", str(service.data_dir)).stdout)
    assert status[0]["commitsBehind"] == 0


async def test_a_signal_to_every_process_at_once_is_no_second_one(tmp_path: Path) -> None:
    """A Ctrl-C reaches the whole group of processes, and so does what systemd sends; they still end in order."""
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "1")) as service:
        assert service.process is not None
        os.killpg(service.process.pid, signal.SIGINT)
        assert await asyncio.to_thread(service.process.wait, 60) == 0
    log = service.log.read_text(encoding="utf-8")
    ends = [match[1] for match in re.finditer(r"shut down in .*role=(\S+)", log)]
    assert sorted(ends[:2]) == ["worker-1", "worker-2"]
    assert ends[2:] == ["updater", "serve"]
    assert re.search(r"shut down in 1\.\d s .*role=worker-1", log)
    assert "cut short" not in log


async def test_a_second_signal_shortens_the_drain_of_workers_too(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "300")) as service:
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
        await eventually(lambda: service.log.read_text().count("shutting down") == 3)
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.process.wait, 30) == 0


async def test_a_worker_that_dies_is_started_again_and_no_count_is_lost(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "0")) as service:
        await round_trip(service)
        before = (await get(service.management_port, "/metrics")).body.decode()
        assert service.process is not None
        processes = children(service.process.pid)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        supervisor = service.process.pid
        await eventually(lambda: len(set(children(supervisor)) - set(processes)) == 3)
        await service.ready()
        await round_trip_again(service)
        after = (await get(service.management_port, "/metrics")).body.decode()
        assert count(after, "kiseki_commands_total") >= count(before, "kiseki_commands_total") + 1
        assert service.terminate() == 0


async def round_trip_again(service: Service) -> None:
    async with Client(service.command_port) as commands:
        await data(await commands.graphql(CREATE, {"i": HANAKO}))


async def test_workers_end_in_order_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    async with running(Service(tmp_path / "data", "--workers", "2", "--drain-delay", "0.5")) as service:
        assert service.process is not None
        processes = children(service.process.pid)
        load = Load(service)
        calling = asyncio.create_task(load.run(8))
        await eventually(lambda: load.answers[200] > 50)
        os.kill(service.process.pid, signal.SIGKILL)
        await asyncio.wait_for(calling, 60)
        await eventually(lambda: not any(alive(process) for process in processes))
    assert load.lost == []
    assert f" {load.answers[200]:,} commits" in kiseki("journal", "verify", "--data-dir", str(service.data_dir)).stdout
    log = service.log.read_text(encoding="utf-8")
    assert log.count("shutting down: the supervisor is gone") == 3
    assert log.count("shut down in ") == 3


QUICK = {
    f"KISEKI_{name}": value
    for name, value in {
        "UNBIND_TIMEOUT": "0.4",
        "REQUEST_TIMEOUT": "0.4",
        "CONSISTENCY_WAIT": "0.1",
        "REQUESTS_DONE_TIMEOUT": "0.4",
        "STOP_TIMEOUT": "0.4",
        "PROJECTIONS_TIMEOUT": "0.4",
        "FLUSH_TIMEOUT": "0.4",
        "CLOSE_TIMEOUT": "0.4",
    }.items()
}


async def test_a_worker_that_hangs_at_the_end_is_killed_and_that_is_said(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--workers", "2", "--drain-delay", "0", environment=QUICK)
    async with running(service):
        assert service.process is not None
        os.kill(named(service, "worker-1"), signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.process.wait, 60) == 1
    log = service.log.read_text(encoding="utf-8")
    # Its own times, and five seconds.
    assert "worker-1 has not ended after 7 s and was killed" in log
    assert "shut down in " in log
    assert len(re.findall(r"shut down in .*role=(worker-2|updater|serve)", log)) == 3


async def test_a_worker_that_is_stuck_makes_alive_fail_and_is_started_again(tmp_path: Path) -> None:
    environment = {"KISEKI_STUCK_AFTER": "3", "KISEKI_HEALTH_INTERVAL": "0.2"}
    service = Service(tmp_path / "data", "--workers", "2", "--drain-delay", "0", environment=environment)
    async with running(service):
        stuck = named(service, "worker-2")
        os.kill(stuck, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while (answer := await get(service.management_port, "/alive")).status == 200:
                await asyncio.sleep(0.05)
            assert answer.status == 503
            assert re.fullmatch(r"worker-2 has not answered for \d+ s", answer.json()["cause"])
            while (await get(service.management_port, "/alive")).status != 200:
                await asyncio.sleep(0.05)
        assert not alive(stuck)
        await service.ready()
        assert service.terminate() == 0
    assert re.search(r"worker-2 has not answered for \d+ s and is killed", service.log.read_text(encoding="utf-8"))


def named(service: Service, name: str) -> int:
    """The process of a worker, by the private socket on which it listens."""
    assert service.process is not None
    inodes = {
        line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f"/{name}.sock")
    }
    for child in children(service.process.pid):
        for descriptor in Path(f"/proc/{child}/fd").iterdir():
            if os.readlink(descriptor).removeprefix("socket:[").rstrip("]") in inodes:
                return child
    raise AssertionError(f"no process listens on {name}.sock")


async def test_what_keeps_workers_from_starting_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal.db").write_bytes(b"not a database" * 1_000)
    done = kiseki("serve", "--workers", "2", "--data-dir", str(tmp_path / "data"), *free())
    assert "journal.db" in complaint(done)


# What keeps a process from starting


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


@pytest.mark.parametrize("which", ["command", "query", "management"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(tmp_path: Path, which: str, workers: str) -> None:
    with taken_port() as port:
        data_dir = tmp_path / "data"
        done = kiseki("serve", "--workers", workers, "--data-dir", str(data_dir), *free(), f"--{which}-port", port)
    assert f"port {port}: the port is in use" in complaint(done)
    assert not data_dir.exists()


def test_an_unknown_setting(tmp_path: Path) -> None:
    assert "KISEKI_WORKRES" in complaint(kiseki("serve", cwd=tmp_path, KISEKI_WORKRES="2"))
    (tmp_path / "kiseki.toml").write_text('datadir = "x"\n')
    assert "'datadir'" in complaint(kiseki("serve", cwd=tmp_path))
    assert "'datadir'" in complaint(kiseki("journal", "verify", cwd=tmp_path))


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data directory" in complaint(kiseki("serve", "--data-dir", str(tmp_path / "file"), *free()))


@pytest.mark.parametrize("broken", ["journal.db", "keys/keys.db", "keys/master.key"])
def test_a_store_that_is_broken(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "data" / broken
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not what it should be" * 1_000)
    path.chmod(0o600)
    assert path.name in complaint(kiseki("serve", "--data-dir", str(tmp_path / "data"), *free()))


def test_production_refuses_what_is_unsafe(tmp_path: Path) -> None:
    done = kiseki("serve", "--profile", "production", "--data-dir", str(tmp_path / "data"), *free())
    assert done.returncode == 1
    assert "  - authentication: " in done.stderr
    assert not (tmp_path / "data").exists()


async def test_a_users_own_application_in_the_current_folder(tmp_path: Path) -> None:
    """It has no query, so only the command API is there; changed without a new version, it does not start again."""
    (tmp_path / "shop.py").write_text(APPLICATION.replace("COLUMN", "title"))
    service = Service(tmp_path / "data", "--app", "shop:app", "--drain-delay", "0", cwd=tmp_path)
    async with running(service):
        async with Client(service.command_port) as client:
            reply = await client.graphql('mutation { writeNote(input: {title: "軌跡"}) { id } }')
            await data(reply)
        assert service.terminate() == 0
    (tmp_path / "shop.py").write_text(APPLICATION.replace("COLUMN", "heading"))
    done = kiseki("serve", "--app", "shop:app", "--data-dir", str(tmp_path / "data"), *free(), cwd=tmp_path)
    assert "notes" in complaint(done)
    assert "version" in done.stderr
