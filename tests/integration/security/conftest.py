"""Data directories, key stores of every kind, and processes that use their keys."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.postgres import PostgresAddress
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.key_store import KeyStore, MemoryKeyStore
from kiseki.security.postgres_key_store import PostgresKeyStore
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.servers.emulator import REGION

OpenStore: TypeAlias = Callable[[], Awaitable[KeyStore]]

SCRIPT = Path(__file__).with_name("key_process.py")


class KeyProcess:
    """Another process with a Protector on the same files."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def answers(self, last: str = "done") -> list[str]:
        """The lines up to the one that says it is done."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            if line.rstrip() == last:
                return lines
            if line.strip():
                lines.append(line.rstrip())
        raise AssertionError(f"the process ended: {lines}")

    def ask(self, order: str) -> list[str]:
        self.send(order)
        return self.answers()

    def kill(self) -> None:
        """SIGKILL: nothing of the process runs any more."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start() -> Iterator[Callable[[Path], KeyProcess]]:
    """Starts processes; all are ended with the test."""
    processes: list[KeyProcess] = []

    def start_one(directory: Path) -> KeyProcess:
        processes.append(KeyProcess(directory))
        return processes[-1]

    yield start_one
    for each in processes:
        each.kill()
        each.process.communicate()


@pytest.fixture
def dynamodb_address(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> DynamoDbAddress:
    """Tables of this test's own, without any yet."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return DynamoDbAddress(prefix=f"keys-{secrets.token_hex(4)}", region=REGION, endpoint=aws_endpoint)


@pytest.fixture
def postgres_address(postgres_url: str) -> PostgresAddress:
    """A schema of this test's own, without tables."""
    return PostgresAddress.parse(postgres_url, schema="kiseki_keys")


@pytest.fixture(params=["memory", "sqlite", "postgres", "dynamodb"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens a store as another process would: the same keys each time. All are closed with the test."""
    stores: list[KeyStore] = []
    open_one = await _way_in(request, tmp_path)

    async def open_another() -> KeyStore:
        stores.append(await open_one())
        return stores[-1]

    yield open_another
    for store in stores:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> KeyStore:
    """A store of each kind in turn."""
    return await open_store()


async def _way_in(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    if request.param == "postgres":
        schema: PostgresAddress = request.getfixturevalue("postgres_address")
        await PostgresKeyStore.migrate(schema)
        return lambda: PostgresKeyStore.open(schema)
    if request.param == "dynamodb":
        tables: DynamoDbAddress = request.getfixturevalue("dynamodb_address")
        await DynamoDbKeyStore.migrate(tables)
        return lambda: DynamoDbKeyStore.open(tables)
    if request.param == "sqlite":
        return lambda: SqliteKeyStore.open(tmp_path / "keys.sqlite")
    memory = MemoryKeyStore()

    async def the_same() -> KeyStore:
        return memory

    return the_same
