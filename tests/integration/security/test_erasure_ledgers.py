"""Every kind of ledger store keeps the same promises: lines in order, one for each number, durable, none changed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.errors import NotMigrated
from kiseki.clients.postgres import PostgresAddress, connect
from kiseki.security.digests import Digests
from kiseki.security.erasure.dynamodb_ledger import DynamoDbLedgerStore
from kiseki.security.erasure.file_ledger import FileLedgerStore
from kiseki.security.erasure.ledger import ErasureLedger, LedgerForeign
from kiseki.security.erasure.lines import Kind, LedgerBroken, new_line, new_mark
from kiseki.security.erasure.postgres_ledger import PostgresLedgerStore
from kiseki.security.erasure.store import LedgerStore, LedgerUnavailable, MemoryLedgerStore
from tests.integration.security.key_parts import NOW
from tests.servers.emulator import REGION
from tests.servers.processes import free_port
from tests.unit.security.fakes import ROOT, FakeClock

OpenLedger: TypeAlias = Callable[[], Awaitable[LedgerStore]]
KEY = Digests(ROOT).ledger_key


@pytest.fixture
def ledger_schema(postgres_url: str) -> PostgresAddress:
    return PostgresAddress.parse(postgres_url, schema="kiseki_erasures")


@pytest.fixture
def ledger_table(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> DynamoDbAddress:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return DynamoDbAddress(prefix=f"ledger-{secrets.token_hex(4)}", region=REGION, endpoint=aws_endpoint)


async def way_in(request: pytest.FixtureRequest, tmp_path: Path) -> OpenLedger:
    if request.param == "postgres":
        schema: PostgresAddress = request.getfixturevalue("ledger_schema")
        assert await PostgresLedgerStore.migrate(schema)
        assert await PostgresLedgerStore.migrate(schema) == []
        return lambda: PostgresLedgerStore.open(schema)
    if request.param == "dynamodb":
        table: DynamoDbAddress = request.getfixturevalue("ledger_table")
        assert await DynamoDbLedgerStore.migrate(table)
        assert await DynamoDbLedgerStore.migrate(table) == []
        return lambda: DynamoDbLedgerStore.open(table)
    if request.param == "file":
        return lambda: FileLedgerStore.open(tmp_path / "erasures")
    memory = MemoryLedgerStore()

    async def the_same() -> LedgerStore:
        return memory

    return the_same


@pytest.fixture(params=["memory", "file", "postgres", "dynamodb"])
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLedger]:
    """Opens a store as another process would. All are closed with the test."""
    opened: list[LedgerStore] = []
    open_one = await way_in(request, tmp_path)

    async def another() -> LedgerStore:
        opened.append(await open_one())
        return opened[-1]

    yield another
    for store in opened:
        await store.close()


async def test_lines_come_back_in_order_and_each_number_is_given_once(open_ledger: OpenLedger) -> None:
    store = await open_ledger()
    assert await store.last() is None
    assert await store.lines(0, 10) == []
    lines = [new_line(KEY, None, kind=Kind.OPENED, at=NOW, subject="k")]
    for number in range(12):
        lines.append(new_line(KEY, lines[-1], kind=Kind.ERASE, at=NOW, subject=f"A-{number}", stream="S", command="c"))
    for line in lines:
        assert await store.add(line)
    assert not await store.add(new_line(KEY, lines[2], kind=Kind.ERASE, at=NOW, subject="A-late"))
    assert not await store.add(new_line(KEY, lines[5], kind=Kind.ERASE, at=NOW, subject="A-other"))
    beyond = new_line(KEY, lines[-1], kind=Kind.ERASE, at=NOW, subject="A-99")
    assert not await store.add(new_line(KEY, beyond, kind=Kind.ERASE, at=NOW, subject="A-100"))  # leaves a gap
    other = await open_ledger()
    assert await other.lines(0, 100) == lines
    assert await other.lines(3, 4) == lines[3:7]
    assert await other.lines(13, 4) == []
    assert await other.last() == lines[-1]


async def test_the_mark_is_replaced(open_ledger: OpenLedger) -> None:
    store = await open_ledger()
    assert await store.mark() is None
    line = new_line(KEY, None, kind=Kind.OPENED, at=NOW, subject="k")
    assert await store.add(line)
    for count in (1, 2):
        await store.set_mark(new_mark(KEY, line, count))
    assert await (await open_ledger()).mark() == new_mark(KEY, line, 2)
    assert await store.lines(0, 100) == [line]


async def test_many_processes_at_once_make_one_chain(open_ledger: OpenLedger) -> None:
    ledgers = [
        await ErasureLedger.open(await open_ledger(), digests=Digests(ROOT), clock=FakeClock()) for _ in range(3)
    ]
    await asyncio.gather(
        *(ledger.adopt(f"A-{one}-{number}") for one, ledger in enumerate(ledgers) for number in range(6))
    )
    subjects = [entry.line.subject async for entry in ledgers[0].entries()]
    assert len(subjects) == len(set(subjects)) == 18
    with pytest.raises(LedgerForeign):
        await ErasureLedger.open(await open_ledger(), digests=Digests(bytes(32)), clock=FakeClock())


async def test_postgresql_refuses_to_change_or_remove_a_line(ledger_schema: PostgresAddress) -> None:
    await PostgresLedgerStore.migrate(ledger_schema)
    store = await PostgresLedgerStore.open(ledger_schema)
    ledger = await ErasureLedger.open(store, digests=Digests(ROOT), clock=FakeClock())
    await ledger.adopt("A-1")
    connection = await connect(ledger_schema, application="test")
    for statement in ("UPDATE lines SET line = ''", "DELETE FROM lines", "TRUNCATE lines"):
        with pytest.raises(asyncpg.RaiseError):
            await connection.execute(statement)
    # Who may change the table goes around that; the chain does not.
    await connection.execute("ALTER TABLE lines DISABLE TRIGGER ALL")
    await connection.execute("UPDATE lines SET line = replace(line, 'A-1', 'A-2') WHERE number = 2")
    await connection.close()
    with pytest.raises(LedgerBroken):
        [line async for line in ledger.lines()]
    await ledger.close()


async def test_tables_that_are_not_there_are_told(
    ledger_schema: PostgresAddress, ledger_table: DynamoDbAddress
) -> None:
    for store in (await PostgresLedgerStore.open(ledger_schema), await DynamoDbLedgerStore.open(ledger_table)):
        with pytest.raises(NotMigrated, match="kiseki migrate"):
            await store.last()
        await store.close()


async def test_what_is_down_is_unavailable_and_tells_no_password() -> None:
    address = PostgresAddress.parse(f"postgresql://u:hunter2@127.0.0.1:{free_port()}/d", schema="kiseki_erasures")
    store = await PostgresLedgerStore.open(address)
    with pytest.raises(LedgerUnavailable) as down:
        await store.last()
    assert "hunter2" not in str(down.value)
    await store.close()
