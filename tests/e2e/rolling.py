"""Replaces the processes of a command API one after the other, behind a balancer and under load, and counts.

Used by the test of it and by `benchmarks.rolling`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.application.system import SystemClock
from kiseki.journal.port import START
from kiseki.journal.verify import verify
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.users import app
from kiseki.users.user_account import PersonName, UserAccountCreated
from tests.e2e.client import Client, ConnectionLost
from tests.e2e.processes import Service
from tests.servers.balancer import Balancer, Target

__all__ = ["Figures", "roll", "stored_names"]

_CREATE: Final = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
_PROCESSES: Final = 2


class Figures(NamedTuple):
    """What a run came to. Times in seconds."""

    seconds: float
    requests: int
    replacements: int
    failures: list[str]
    """Every request that was not answered 200 with an id, and why."""
    acknowledged: list[str]
    """The name in each command that was acknowledged."""
    longest_pause: float
    """Between two answers, over all connections."""
    slowest_request: float
    served: Mapping[str, int]
    """Requests that each process answered."""
    exit_codes: list[int]
    complaints: list[str]
    """Lines of the processes' logs that warn."""


class _Load:
    """Callers that write without a break, each on a kept connection to the balancer."""

    def __init__(self, port: int, pause: float) -> None:
        self._port = port
        self._pause = pause
        self._numbers = itertools.count()
        self._last = math.inf
        self.requests = 0
        self.failures: list[str] = []
        self.acknowledged: list[str] = []
        self.longest_pause = 0.0
        self.slowest_request = 0.0
        self.stop = asyncio.Event()

    async def run(self, connections: int) -> None:
        await asyncio.gather(*(self._call() for _ in range(connections)))

    async def _call(self) -> None:
        async with Client(self._port) as client:
            while not self.stop.is_set():
                name = f"N-{next(self._numbers)}"
                given = {"firstName": "花子", "lastName": name, "emailAddress": "hanako@example.com"}
                self.requests += 1
                begun = time.monotonic()
                try:
                    reply = await client.graphql(_CREATE, {"i": given})
                except ConnectionLost as problem:
                    self.failures.append(f"{name}: {problem!r}")
                    continue
                if reply.status == 200 and "errors" not in reply.json():
                    self.acknowledged.append(name)
                    self._answered(begun)
                else:
                    self.failures.append(f"{name}: {reply.status} {reply.body[:200]!r}")
                await asyncio.sleep(self._pause)

    def _answered(self, begun: float) -> None:
        now = time.monotonic()
        self.slowest_request = max(self.slowest_request, now - begun)
        self.longest_pause = max(self.longest_pause, now - self._last)
        self._last = now


class _Fleet:
    """The processes behind the balancer."""

    def __init__(
        self, folder: Path, balancer: Balancer, *, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._balancer = balancer
        self._arguments = arguments
        self._environment = environment
        self._numbers = itertools.count(1)
        self._running: list[tuple[Service, Target]] = []
        self.services: list[Service] = []
        self.exit_codes: list[int] = []

    async def start_one(self) -> None:
        """Starts a process, and returns when the balancer sends it requests."""
        name = f"command-api-{next(self._numbers)}"
        service = Service(self._folder / "data", *self._arguments, kind="command-api", environment=self._environment)
        service.log = self._folder / f"{name}.log"
        self.services.append(service)
        service.start()
        await service.ready()
        target = await self._balancer.add(name, service.command_port, service.management_port)
        self._running.append((service, target))

    async def end_oldest(self) -> None:
        """SIGTERM, as a platform does it, and nothing else: what the balancer knows it knows from health checks."""
        service, target = self._running.pop(0)
        self.exit_codes.append(await asyncio.to_thread(service.terminate))
        self._balancer.remove(target)

    def kill(self) -> None:
        for service in self.services:
            service.kill()

    def complaints(self) -> list[str]:
        lines = (line for service in self.services for line in service.log.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if "[warning" in line or "[error" in line or "Traceback" in line]


async def roll(
    folder: Path,
    *,
    rounds: int,
    connections: int,
    pause: float = 0.0,
    health_interval: float = 0.1,
    drain_delay: float = 1.0,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Figures:
    """Two processes on one journal, each replaced `rounds` times: start a new one, wait until it gets requests, SIGTERM
    to the oldest, wait for its end. `pause` is what a caller waits between two requests, in seconds."""
    arguments = ("--drain-delay", str(drain_delay), "--workers", str(workers))
    async with Balancer(interval=health_interval) as balancer:
        fleet = _Fleet(folder, balancer, arguments=arguments, environment=environment or {})
        load = _Load(balancer.port, pause)
        try:
            for _ in range(_PROCESSES):
                await fleet.start_one()
            begun = time.monotonic()
            calling = asyncio.create_task(load.run(connections))
            for _ in range(rounds * _PROCESSES):
                await fleet.start_one()
                await fleet.end_oldest()
            load.stop.set()
            await calling
            seconds = time.monotonic() - begun
            for _ in range(_PROCESSES):
                await fleet.end_oldest()
        finally:
            load.stop.set()
            fleet.kill()
        return Figures(
            seconds=seconds,
            requests=load.requests,
            replacements=rounds * _PROCESSES,
            failures=load.failures + balancer.broken,
            acknowledged=load.acknowledged,
            longest_pause=load.longest_pause,
            slowest_request=load.slowest_request,
            served=balancer.answered,
            exit_codes=fleet.exit_codes,
            complaints=fleet.complaints(),
        )


async def stored_names(settings: Settings) -> Counter[str]:
    """How often each name is in the journal, read without the service. Raises AssertionError when it is unsound."""
    names: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry())
        stack.push_async_callback(stores.close)
        report = await verify(stores.journal, lambda _: None)
        assert report.sound, report
        codec = EventCodec(app.schema, stores.protector, NoTelemetry())
        position = START
        while (page := await stores.journal.feed(position)).commits:
            position = page.position
            for commit in page.commits:
                for event in await codec.decode(commit.recorded()):
                    assert isinstance(event, UserAccountCreated)
                    assert isinstance(event.name, PersonName)
                    names[event.name.last_name] += 1
    return names
