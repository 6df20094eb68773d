"""The load generator: a closed loop of keep-alive connections, run in a process of its own.

The parent gives a Plan as JSON on standard input and gets a LoadResult as JSON on standard output.
"""

import asyncio
import gc
import json
import math
import random
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import uvloop

from benchmarks.figures import percentile
from benchmarks.http_response import Response, ResponseError, parse_response
from benchmarks.processes import cpu_seconds
from benchmarks.workload import (
    CREATE_FIELD,
    QUERY_FIELD,
    RENAME_FIELD,
    Endpoint,
    Name,
    Requests,
    acknowledged_id,
    names,
)

ANSWER_TIMEOUT_SECONDS = 30.0
MESSAGES_KEPT = 5


@dataclass(frozen=True)
class Plan:
    """How much load; operations count when they are answered within the measured seconds.

    `tokens` go round among the connections, in place of the endpoint's own. With `accounts` these are asked for, else
    there are commands. `first_name` is the number of the first name that is given.
    """

    endpoint: Endpoint
    server_pid: int
    connections: int
    warm_up_seconds: float
    seconds: float
    tokens: Sequence[str] = ()
    accounts: Sequence[str] = ()
    first_name: int = 0

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "endpoint": Endpoint(**values["endpoint"])})


@dataclass(frozen=True)
class LoadResult:
    """What was measured, and what the server has acknowledged over the whole run."""

    operations: int
    creates: int
    renames: int
    p50_ms: float
    p99_ms: float
    load_cpu: float
    server_cpu: float | None
    failures: int
    messages: list[str]
    acknowledged_creates: int
    accounts: dict[str, Name]

    @classmethod
    def from_json(cls, text: str) -> "LoadResult":
        values: dict[str, Any] = json.loads(text)
        accounts = {key: Name(**name) for key, name in values["accounts"].items()}
        return cls(**{**values, "accounts": accounts})


@dataclass
class Tally:
    """What all connections of a run have seen."""

    measure_from: float = math.inf
    measure_until: float = math.inf
    create_latencies: list[float] = field(default_factory=list)
    rename_latencies: list[float] = field(default_factory=list)
    query_latencies: list[float] = field(default_factory=list)
    acknowledged_creates: int = 0
    accounts: dict[str, Name] = field(default_factory=dict)
    failures: int = 0
    messages: list[str] = field(default_factory=list)

    def measured(self, answered_at: float) -> bool:
        return self.measure_from <= answered_at < self.measure_until

    def failed(self, message: str) -> None:
        self.failures += 1
        if len(self.messages) < MESSAGES_KEPT:
            self.messages.append(message)


class Connection(asyncio.Protocol):
    """One connection with one request in flight: creates an account, renames one of its own."""

    def __init__(self, requests: Requests, tally: Tally, seed: int) -> None:
        self.finished = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._random = random.Random(seed)
        self._transport: asyncio.Transport | None = None
        self._tally = tally
        self._buffer = b""
        self._own_accounts: list[str] = []
        self._creating = False
        self._name = Name("", "")
        self._renamed = ""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own does not inherit from it

    def start(self) -> None:
        if not self.finished.done():
            self._send()

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        answered_at = time.perf_counter()
        self._buffer = self._buffer + data if self._buffer else data
        try:
            response = parse_response(self._buffer)
            if response is None:
                return
            if len(self._buffer) > response.size or not self._sent_at:
                raise ResponseError("the server sent more than it was asked for")
        except ResponseError as error:
            self._give_up(str(error))
            return
        self._buffer = b""
        self._record(response, answered_at)
        if answered_at < self._tally.measure_until:
            self._send()
        else:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self._give_up(f"the connection was closed: {exc or 'by the server'}")

    def _send(self) -> None:
        assert self._transport is not None
        self._creating = not (self._creating and self._own_accounts)
        if self._creating:
            request, self._name = self._requests.create()
        else:
            self._renamed = self._random.choice(self._own_accounts)
            request, self._name = self._requests.rename(self._renamed)
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def _record(self, response: Response, answered_at: float) -> None:
        tally = self._tally
        field_name = CREATE_FIELD if self._creating else RENAME_FIELD
        try:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            account_id = acknowledged_id(response.body, field_name)
        except ValueError as error:
            self._failed(field_name, error, response)
            return
        if self._creating:
            tally.acknowledged_creates += 1
            self._own_accounts.append(account_id)
            latencies = tally.create_latencies
        else:
            account_id = self._renamed
            latencies = tally.rename_latencies
        tally.accounts[account_id] = self._name
        if tally.measured(answered_at):
            latencies.append(answered_at - self._sent_at)

    def _failed(self, what: str, error: ValueError, response: Response) -> None:
        self._tally.failed(f"{what}: {error}: {response.body[:300]!r}")

    def _give_up(self, message: str) -> None:
        self._tally.failed(message)
        self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
        self.stop()


class QueryConnection(Connection):
    """One connection with one request in flight: asks for one account after the other, at random."""

    def __init__(self, requests: Requests, tally: Tally, seed: int, accounts: Sequence[str]) -> None:
        super().__init__(requests, tally, seed)
        self._accounts = accounts
        self._asked = ""

    def _send(self) -> None:
        assert self._transport is not None
        self._asked = self._random.choice(self._accounts)
        request = self._requests.query(self._asked)
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def _record(self, response: Response, answered_at: float) -> None:
        try:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            if acknowledged_id(response.body, QUERY_FIELD) != self._asked:
                raise ValueError("another account than the one that was asked for")
        except ValueError as error:
            self._failed(QUERY_FIELD, error, response)
            return
        if self._tally.measured(answered_at):
            self._tally.query_latencies.append(answered_at - self._sent_at)


async def run(plan: Plan) -> LoadResult:
    """Connects, loads the server for the planned time and waits for every answer."""
    loop = asyncio.get_running_loop()
    tally, given = Tally(), names(plan.first_name)
    endpoints = [replace(plan.endpoint, token=token) for token in plan.tokens] or [plan.endpoint]
    encoders = [Requests(endpoint, given) for endpoint in endpoints]
    tls = None if plan.endpoint.authority is None else ssl.create_default_context(cafile=plan.endpoint.authority)

    def make(seed: int) -> Connection:
        requests = encoders[seed % len(encoders)]
        if plan.accounts:
            return QueryConnection(requests, tally, seed, plan.accounts)
        return Connection(requests, tally, seed)

    async def connect(seed: int) -> Connection:
        _, connection = await loop.create_connection(
            lambda: make(seed), plan.endpoint.host, plan.endpoint.port, ssl=tls
        )
        return connection

    connections = [await connect(seed) for seed in range(plan.connections)]
    server_before, load_before, start = cpu_seconds(plan.server_pid), time.process_time(), time.perf_counter()
    tally.measure_from = start + plan.warm_up_seconds
    tally.measure_until = tally.measure_from + plan.seconds
    for connection in connections:
        connection.start()
    limit = plan.warm_up_seconds + plan.seconds + ANSWER_TIMEOUT_SECONDS
    _, unanswered = await asyncio.wait([c.finished for c in connections], timeout=limit)
    elapsed = time.perf_counter() - start
    load_cpu = (time.process_time() - load_before) / elapsed
    server_after = cpu_seconds(plan.server_pid)
    server_cpu: float | None = None
    if server_before is not None and server_after is not None:
        server_cpu = (server_after - server_before) / elapsed
    for _ in unanswered:
        tally.failed(f"no answer within {ANSWER_TIMEOUT_SECONDS:.0f} s")
    for connection in connections:
        connection.stop()
    return _result(tally, load_cpu=load_cpu, server_cpu=server_cpu)


def _result(tally: Tally, *, load_cpu: float, server_cpu: float | None) -> LoadResult:
    latencies = sorted(tally.create_latencies + tally.rename_latencies + tally.query_latencies)
    if not latencies:
        tally.failed("nothing was answered within the measured time")
    return LoadResult(
        operations=len(latencies),
        creates=len(tally.create_latencies),
        renames=len(tally.rename_latencies),
        p50_ms=percentile(latencies, 0.50) * 1000 if latencies else 0.0,
        p99_ms=percentile(latencies, 0.99) * 1000 if latencies else 0.0,
        load_cpu=load_cpu,
        server_cpu=server_cpu,
        failures=tally.failures,
        messages=tally.messages,
        acknowledged_creates=tally.acknowledged_creates,
        accounts=tally.accounts,
    )


def main() -> None:
    plan = Plan.from_json(sys.stdin.read())
    gc.disable()  # the process is short, and its pauses must not look like the server's
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run(plan))
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
