"""Appends per second of every store, next to what its raw driver can do at best, all in one run.

Each caller appends one event after the other to new streams; N callers are N commands under way at once. The raw
driver writes the same rows as one statement for N of them, durable each time: the best a grouped writer could reach.
"""

import asyncio
import os
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiobotocore.config
import aiobotocore.session
import asyncpg
import msgspec
import uvloop
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchmarkError
from kiseki.application.system import SystemClock
from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.postgres import PostgresAddress
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.format import checksum, encode_commit
from kiseki.journal.port import CommitMetadata, Journal
from kiseki.journal.postgres.journal import PostgresJournal
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.telemetry import NoTelemetry
from tests.servers.emulator import REGION, AwsEmulator, NoEmulator
from tests.servers.postgres import NoPostgres, PostgresServer

CALLERS = (1, 16, 64, 256)
_DATA = msgspec.Raw(msgspec.json.encode({"name": "x" * 280, "emailAddress": "y" * 100}))


@dataclass(frozen=True, slots=True)
class Figure:
    """What one writer did at one number of callers in one round; milliseconds."""

    events_per_second: float
    p50: float
    p99: float


Write = Callable[[int], Awaitable[Sequence[float]]]
"""Appends with this many callers for the time of a round, and gives the seconds each event waited."""


def measure(seconds: float, rounds: int) -> dict[str, dict[int, list[Figure]]]:
    """Every store and its raw driver, in turn, at every number of callers. Raises BenchmarkError."""
    return uvloop.run(_measure(seconds, rounds))


async def _measure(seconds: float, rounds: int) -> dict[str, dict[int, list[Figure]]]:
    async with AsyncExitStack() as stack:
        writers = await _writers(stack, seconds)
        found: dict[str, dict[int, list[Figure]]] = {name: {} for name in writers}
        for callers in CALLERS:
            for _ in range(rounds):
                for name, write in writers.items():
                    started = time.perf_counter()
                    waits = sorted(await write(callers))
                    took = time.perf_counter() - started
                    figure = Figure(
                        len(waits) / took, 1e3 * waits[len(waits) // 2], 1e3 * waits[int(len(waits) * 0.99)]
                    )
                    found[name].setdefault(callers, []).append(figure)
        return found


async def _writers(stack: AsyncExitStack, seconds: float) -> dict[str, Write]:
    try:
        postgres = stack.enter_context(PostgresServer(on_disk=True, settings={"shared_buffers": "128MB"}))
        aws = stack.enter_context(AwsEmulator())
    except (NoPostgres, NoEmulator) as problem:
        raise BenchmarkError(str(problem)) from problem
    # Any do for an emulator. kiseki takes them from where AWS's own tools do.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kiseki-bench-")))
    clock, telemetry = SystemClock(), NoTelemetry()

    sqlite = await SqliteJournal.open(folder / "journal.db", clock=clock, telemetry=telemetry)
    stack.push_async_callback(sqlite.close)
    url = postgres.create_database()
    address = PostgresAddress.parse(url, schema="kiseki_journal")
    await PostgresJournal.migrate(address)
    on_postgres = await PostgresJournal.open(address, clock=clock, telemetry=telemetry)
    stack.push_async_callback(on_postgres.close)
    place = DynamoDbAddress.parse(f"dynamodb://bench?region={REGION}&endpoint={aws.endpoint}")
    await DynamoDbJournal.migrate(place)
    on_dynamodb = await DynamoDbJournal.open(place, clock=clock, telemetry=telemetry)
    stack.push_async_callback(on_dynamodb.close)

    return {
        "SQLite, kiseki": _journal_writer(sqlite, seconds),
        "SQLite, raw driver": _raw_sqlite(folder / "raw.db", seconds, stack),
        "PostgreSQL, kiseki": _journal_writer(on_postgres, seconds),
        "PostgreSQL, raw driver": await _raw_postgres(url, seconds, stack),
        "DynamoDB (emulator), kiseki": _journal_writer(on_dynamodb, seconds),
        "DynamoDB (emulator), raw driver": await _raw_dynamodb(aws.endpoint, seconds, stack),
    }


def _journal_writer(journal: Journal, seconds: float) -> Write:
    async def write(callers: int) -> Sequence[float]:
        end = time.perf_counter() + seconds
        waits: list[float] = []

        async def call() -> None:
            while (began := time.perf_counter()) < end:
                name = secrets.token_hex(13)
                await journal.append(f"Bench-{name}", 0, [_event(name)], metadata=_about(name))
                waits.append(time.perf_counter() - began)

        await asyncio.gather(*(call() for _ in range(callers)))
        return waits

    return write


def _event(name: str) -> EncodedEvent:
    return EncodedEvent(name, "BenchEvent", 1, _DATA, None)


def _about(name: str) -> CommitMetadata:
    return CommitMetadata(commit_id=name, committed_at=datetime.now(UTC), correlation_id=name, actor="bench")


def _row(name: str) -> tuple[str, int, int, str, datetime, str, str]:
    about = _about(name)
    document = encode_commit(about, (_event(name),))
    stream = f"Bench-{name}"
    return stream, 1, 1, name, about.committed_at, checksum(stream, 1, document), document.decode()


def _raw_sqlite(path: Path, seconds: float, stack: AsyncExitStack) -> Write:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stack.callback(connection.close)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE commits (position INTEGER PRIMARY KEY, stream TEXT NOT NULL, first INTEGER NOT NULL,"
        " count INTEGER, commit_id TEXT, committed_at TEXT, checksum TEXT, document TEXT, UNIQUE (stream, first))"
    )
    insert = (
        "INSERT INTO commits (stream, first, count, commit_id, committed_at, checksum, document)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
    )

    async def write(callers: int) -> Sequence[float]:
        end = time.perf_counter() + seconds
        waits: list[float] = []
        while (began := time.perf_counter()) < end:
            rows = [_row(secrets.token_hex(13)) for _ in range(callers)]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [(*row[:4], row[4].isoformat(), *row[5:]) for row in rows])
            connection.execute("COMMIT")
            waits += [time.perf_counter() - began] * callers
        return waits

    return write


async def _raw_postgres(url: str, seconds: float, stack: AsyncExitStack) -> Write:
    connection = await asyncpg.connect(url)
    stack.push_async_callback(connection.close)
    await connection.execute(
        "CREATE TABLE raw (position bigint GENERATED ALWAYS AS IDENTITY, stream text, first bigint, count int,"
        " commit_id text, committed_at timestamptz, checksum text, document text, PRIMARY KEY (stream, first))"
    )
    insert = await connection.prepare(
        "INSERT INTO raw (stream, first, count, commit_id, committed_at, checksum, document) SELECT * FROM"
        " unnest($1::text[], $2::bigint[], $3::int[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])"
    )

    async def write(callers: int) -> Sequence[float]:
        end = time.perf_counter() + seconds
        waits: list[float] = []
        while (began := time.perf_counter()) < end:
            rows = [_row(secrets.token_hex(13)) for _ in range(callers)]
            await insert.fetch(*(list(column) for column in zip(*rows, strict=True)))
            waits += [time.perf_counter() - began] * callers
        return waits

    return write


async def _raw_dynamodb(endpoint: str, seconds: float, stack: AsyncExitStack) -> Write:
    config = aiobotocore.config.AioConfig(max_pool_connections=max(CALLERS), retries={"total_max_attempts": 1})
    client = await stack.enter_async_context(
        aiobotocore.session.get_session().create_client(
            "dynamodb",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=config,
        )
    )
    await client.create_table(
        TableName="raw",
        KeySchema=[{"AttributeName": "stream", "KeyType": "HASH"}, {"AttributeName": "first", "KeyType": "RANGE"}],
        AttributeDefinitions=[
            {"AttributeName": "stream", "AttributeType": "S"},
            {"AttributeName": "first", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )

    async def write(callers: int) -> Sequence[float]:
        end = time.perf_counter() + seconds
        waits: list[float] = []

        async def call() -> None:
            while (began := time.perf_counter()) < end:
                stream, first, number, commit_id, at, check, document = _row(secrets.token_hex(13))
                await client.put_item(
                    TableName="raw",
                    Item={
                        "stream": {"S": stream},
                        "first": {"N": str(first)},
                        "count": {"N": str(number)},
                        "commit": {"S": commit_id},
                        "at": {"S": at.isoformat()},
                        "checksum": {"S": check},
                        "document": {"S": document},
                    },
                    ConditionExpression="attribute_not_exists(#s)",
                    ExpressionAttributeNames={"#s": "stream"},
                )
                waits.append(time.perf_counter() - began)

        await asyncio.gather(*(call() for _ in range(callers)))
        return waits

    return write


def print_journals(found: dict[str, dict[int, list[Figure]]], console: Console) -> None:
    """Medians over the rounds: events/s, p50/p99 in ms, and the share of the raw driver's rate in the same round."""
    table = Table(title="Appends of one event, durable", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("store", no_wrap=True)
    for heading in ("callers", "events/s", "p50 ms", "p99 ms", "of the raw driver"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, by_callers in found.items():
        for callers, figures in by_callers.items():
            rate = statistics.median(figure.events_per_second for figure in figures)
            p50 = statistics.median(figure.p50 for figure in figures)
            p99 = statistics.median(figure.p99 for figure in figures)
            share = _share(found, name, callers)
            table.add_row(name, str(callers), f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", share)
        table.add_section()
    console.print(table)


def _share(found: dict[str, dict[int, list[Figure]]], name: str, callers: int) -> str:
    raw = found.get(name.replace("kiseki", "raw driver"), {}).get(callers)
    if raw is None or "raw" in name:
        return ""
    pairs = zip(found[name][callers], raw, strict=True)
    return f"{statistics.median(ours.events_per_second / best.events_per_second for ours, best in pairs):.2f}"
