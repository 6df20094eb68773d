"""kill -9 at any moment under load: every acknowledged command is in the journal exactly once, and in the read model.

Users show that no fact and no key is lost; stock levels are sums, so an event applied twice, or skipped, shows too.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from examples.inventory.domain import StockReceived
from kiseki.application.system import SystemClock
from kiseki.journal.port import START
from kiseki.journal.verify import verify
from kiseki.kernel.codec import EventCodec
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.users.user_account import PersonName, UserAccountCreated, UserAccountRenamed
from tests.e2e.both_contexts import app
from tests.e2e.client import Client, ConnectionLost
from tests.e2e.pairs import Pair, make_pair
from tests.e2e.processes import Service

KILLS = 50
CALLERS = 12
SKUS = 5
CREATE = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
RECEIVE = "mutation ($i: ReceiveStockInput!) { receiveStock(input: $i) { id } }"
ACCOUNTS = "query ($after: String) { getUserAccounts(first: 500, after: $after) { id lastName } }"
STOCK = "query ($sku: String!) { getStock(sku: $sku) { onHand } }"


@pytest.fixture(params=["sqlite+sqlite", "postgresql+postgresql", "dynamodb+postgresql"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param, request)


class Ledger:
    """What was acknowledged, and how many requests have an unknown fate."""

    def __init__(self) -> None:
        self.accounts: dict[str, list[str]] = {}
        self.received: Counter[str] = Counter()
        self.unknown_names: set[str] = set()
        self.unknown_receipts: Counter[str] = Counter()
        self.acknowledged = 0


class Facts:
    """What the journal holds: names of each account in order, pieces of each article."""

    def __init__(self) -> None:
        self.accounts: dict[str, list[str]] = {}
        self.pieces: Counter[str] = Counter()

    @property
    def read_model(self) -> tuple[dict[str, str], dict[str, int]]:
        """What a read model shows that has applied every fact once."""
        return {account: names[-1] for account, names in self.accounts.items()}, dict(self.pieces)


class Caller:
    """Sends one command after another until told to stop; a lost connection is part of the plan."""

    def __init__(self, number: int, service: Service, ledger: Ledger, stop: asyncio.Event) -> None:
        self._number = number
        self._service = service
        self._ledger = ledger
        self._stop = stop
        self._chooser = random.Random(number)
        self._mine: list[str] = []
        self._sent = 0

    async def run(self) -> None:
        async with Client(self._service.command_port) as client:
            while not self._stop.is_set():
                kind = self._chooser.random()
                if kind < 0.4:
                    await self._receive(client)
                else:
                    await self._name(client, create=kind < 0.6 or not self._mine)

    async def _receive(self, client: Client) -> None:
        sku = f"SKU-{self._chooser.randrange(SKUS)}"
        data = await self._send(client, RECEIVE, {"sku": sku, "article": "緑茶", "quantity": 1})
        if data is None:
            self._ledger.unknown_receipts[sku] += 1
        else:
            self._ledger.received[sku] += 1

    async def _name(self, client: Client, *, create: bool) -> None:
        self._sent += 1
        name = f"{self._number}-{self._sent}"
        given = {"firstName": "太郎", "lastName": name}
        if create:
            data = await self._send(client, CREATE, {**given, "emailAddress": "taro@example.com"})
        else:
            data = await self._send(client, RENAME, {**given, "userAccountId": self._chooser.choice(self._mine)})
        if data is None:
            self._ledger.unknown_names.add(name)
            return
        account = next(iter(data.values()))["id"]
        if create:
            self._mine.append(account)
        self._ledger.accounts.setdefault(account, []).append(name)

    async def _send(self, client: Client, query: str, given: dict[str, Any]) -> dict[str, Any] | None:
        try:
            reply = await client.graphql(query, {"i": given})
        except ConnectionLost:
            await asyncio.sleep(0.01)  # the process is being started again; do not burn the processor meanwhile
            return None
        body = reply.json()
        assert reply.status == 200, body
        assert "errors" not in body, body
        self._ledger.acknowledged += 1
        return body["data"]  # type: ignore[no-any-return]


async def facts_in(settings: Settings) -> Facts:
    """Everything in the journal, read without the service."""
    facts = Facts()
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
                stream_id = commit.stream.partition("-")[2]
                for event in await codec.decode(commit.recorded()):
                    if isinstance(event, UserAccountCreated | UserAccountRenamed):
                        assert isinstance(event.name, PersonName)
                        facts.accounts.setdefault(stream_id, []).append(event.name.last_name)
                    elif isinstance(event, StockReceived):
                        facts.pieces[stream_id] += event.quantity
    return facts


async def read_model(service: Service) -> tuple[dict[str, str], dict[str, int]]:
    """Every account with its name and every article with its pieces, through the query API."""
    accounts: dict[str, str] = {}
    pieces: dict[str, int] = {}
    after = None
    async with Client(service.query_port) as client:
        while True:
            rows = (await client.graphql(ACCOUNTS, {"after": after})).json()["data"]["getUserAccounts"]
            accounts.update((row["id"], row["lastName"]) for row in rows)
            if len(rows) < 500:
                break
            after = rows[-1]["id"]
        for number in range(SKUS):
            stock = (await client.graphql(STOCK, {"sku": f"SKU-{number}"})).json()["data"]["getStock"]
            if stock is not None:
                pieces[f"SKU-{number}"] = stock["onHand"]
    return accounts, pieces


def compare(ledger: Ledger, facts: Facts) -> None:
    """Acknowledged is stored, once, in order; stored is acknowledged or of unknown fate."""
    for account, names in ledger.accounts.items():
        stored = facts.accounts.get(account, [])
        assert len(stored) == len(set(stored)), f"{account}: something is stored twice"
        assert [name for name in stored if name in set(names)] == names, f"{account}: acknowledged and not stored"
    known = {name for names in ledger.accounts.values() for name in names}
    for account, names in facts.accounts.items():
        assert set(names) <= known | ledger.unknown_names, f"{account}: stored and never asked for"
    for sku in facts.pieces.keys() | ledger.received.keys():
        sure = ledger.received[sku]
        assert sure <= facts.pieces[sku] <= sure + ledger.unknown_receipts[sku], sku


@pytest.mark.timeout(600)
async def test_kills_lose_nothing_and_apply_nothing_twice(tmp_path: Path, pair: Pair) -> None:
    settings, environment = pair.settings(tmp_path / "data"), pair.environment
    service = Service(settings.data_dir, "--app", "tests.e2e.both_contexts:app", environment=environment)
    ledger = Ledger()
    stop = asyncio.Event()
    chooser = random.Random(20)
    callers = [asyncio.create_task(Caller(number, service, ledger, stop).run()) for number in range(CALLERS)]
    try:
        for _ in range(KILLS):
            service.start()
            await service.ready()
            await asyncio.sleep(chooser.uniform(0, 0.4))
            service.kill()
        stop.set()
        await asyncio.gather(*callers)
        facts = await facts_in(settings)
        compare(ledger, facts)
        assert ledger.acknowledged > 1_000
        service.start()
        await service.ready()
        async with asyncio.timeout(60):
            while await read_model(service) != facts.read_model:
                await asyncio.sleep(0.05)
        assert service.terminate() == 0
        print(f"{pair.name}: {KILLS} kills, {ledger.acknowledged} acknowledged, 0 lost")
    finally:
        stop.set()
        service.kill()
        for caller in callers:
            caller.cancel()
