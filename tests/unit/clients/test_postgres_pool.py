"""The pool of PostgreSQL connections: bounded, lazy, and free of connections whose state is in doubt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, PostgresPool, connect, transaction
from kiseki.kernel.errors import KisekiError, Unavailable

SIZE = 3


@pytest.fixture
def address(postgres_url: str) -> PostgresAddress:
    return PostgresAddress.parse(postgres_url, schema="public")


@asynccontextmanager
async def pool_of(address: PostgresAddress, **options: Any) -> AsyncIterator[PostgresPool]:
    options = {"size": SIZE, "application": "pool", **options}
    pool = PostgresPool(address, unavailable=lambda why: Unavailable(f"no database: {why}"), **options)
    try:
        yield pool
    finally:
        await pool.close()


async def process_id(pool: PostgresPool) -> int:
    async with pool.connection() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def sleep_in_server(pool: PostgresPool, seconds: float = 60) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)


async def until_asleep(address: PostgresAddress, sessions: int) -> list[int]:
    connection = await connect(address, application="watching")
    try:
        while True:
            rows = await connection.fetch(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'pool' AND wait_event = 'PgSleep'"
                " AND datname = current_database()"
            )
            if len(rows) == sessions:
                return [row["pid"] for row in rows]
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def test_settings_of_a_connection(address: PostgresAddress) -> None:
    connection = await connect(address, application="it", statement_timeout=1.5, lock_timeout=0.25)
    try:
        wanted = {
            "search_path": '"public"',
            "TimeZone": "UTC",
            "jit": "off",
            "statement_timeout": "1500ms",
            "lock_timeout": "250ms",
            "idle_in_transaction_session_timeout": "250ms",
            "default_transaction_isolation": "read committed",
            "application_name": "it",
            "client_connection_check_interval": "5s",
        }
        for name, value in wanted.items():
            assert await connection.fetchval("SELECT current_setting($1)", name) == value
    finally:
        await connection.close()


async def test_nothing_is_connected_before_it_is_used() -> None:
    nowhere = PostgresAddress.parse("postgresql://u:p@127.0.0.1:1/x", schema="public")
    async with pool_of(nowhere) as pool:
        with pytest.raises(Unavailable, match=r"no database: nothing listens there \(connection refused\)") as caught:
            await process_id(pool)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_connections_are_used_again(address: PostgresAddress) -> None:
    prepared: list[int] = []

    async def prepare(connection: PostgresConnection) -> None:
        prepared.append(await connection.fetchval("SELECT pg_backend_pid()"))

    async with pool_of(address, prepare=prepare) as pool:
        first = await process_id(pool)
        assert [await process_id(pool) for _ in range(5)] == [first] * 5
        with pytest.raises(asyncpg.UndefinedTableError):
            async with pool.connection() as connection:
                await connection.execute("SELECT * FROM nowhere")
        with pytest.raises(KisekiError):
            async with pool.connection():
                raise KisekiError
        assert await process_id(pool) == first
        assert prepared == [first]


async def test_a_connection_that_is_refused_is_not_kept(address: PostgresAddress) -> None:
    async def prepare(connection: PostgresConnection) -> None:
        raise Unavailable("not this one")

    async with pool_of(address, prepare=prepare) as pool:
        for _ in range(SIZE + 1):
            with pytest.raises(Unavailable, match="not this one"):
                await process_id(pool)


async def test_it_is_bounded(address: PostgresAddress) -> None:
    async with pool_of(address, acquire_timeout=0.05) as pool:
        sleeping = [asyncio.ensure_future(sleep_in_server(pool)) for _ in range(SIZE)]
        await until_asleep(address, SIZE)
        with pytest.raises(Unavailable, match="all 3 connections are in use"):
            await process_id(pool)
        for task in sleeping:
            task.cancel()
        await asyncio.wait(sleeping)
        await process_id(pool)


async def test_a_cancelled_user_leaves_nothing_behind(address: PostgresAddress) -> None:
    async with pool_of(address, size=1) as pool:
        first = await process_id(pool)
        sleeping = asyncio.ensure_future(sleep_in_server(pool))
        assert await until_asleep(address, 1) == [first]
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        async with asyncio.timeout(5):
            assert await process_id(pool) != first


async def test_waiting_users_that_are_cancelled_take_no_place(address: PostgresAddress) -> None:
    async with pool_of(address, size=1) as pool:
        async with pool.connection():
            waiting = [asyncio.ensure_future(process_id(pool)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        assert len({await task for task in waiting[1:]}) == 1


@pytest.mark.parametrize(
    "leave",
    [
        lambda connection: connection.execute("BEGIN"),
        lambda connection: connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"),
    ],
)
async def test_connections_in_doubt_are_dropped(address: PostgresAddress, leave: Callable[[Any], Any]) -> None:
    async with pool_of(address, size=1) as pool:
        first = await process_id(pool)
        with suppress(Unavailable):
            async with pool.connection() as connection:
                await leave(connection)
        assert await process_id(pool) != first


async def test_when_one_was_lost_the_others_are_in_doubt(address: PostgresAddress) -> None:
    async with pool_of(address) as pool:
        async with pool.connection() as one, pool.connection() as other:
            before = {one.get_server_pid(), other.get_server_pid()}
        with pytest.raises(Unavailable):
            async with pool.connection():
                raise ConnectionResetError
        assert await process_id(pool) not in before


async def test_transactions(address: PostgresAddress) -> None:
    async with pool_of(address, size=1) as pool:
        first = await process_id(pool)
        async with pool.connection() as connection:
            async with transaction(connection):
                await connection.execute("CREATE TABLE kept (x integer)")

            async def fail_in_server() -> None:
                async with transaction(connection):
                    await connection.execute("CREATE TABLE gone (x integer)")
                    await connection.execute("SELECT 1 / 0")

            async def fail_here() -> None:
                async with transaction(connection):
                    await connection.execute("CREATE TABLE gone (x integer)")
                    raise KisekiError

            async def swallow() -> None:
                async with transaction(connection):
                    with suppress(asyncpg.DivisionByZeroError):
                        await connection.execute("SELECT 1 / 0")

            with pytest.raises(asyncpg.DivisionByZeroError):
                await fail_in_server()
            with pytest.raises(KisekiError):
                await fail_here()
            # PostgreSQL answers COMMIT with a rollback then, and not with an error.
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await swallow()
            assert await connection.fetchval("SELECT to_regclass('kept') IS NOT NULL AND to_regclass('gone') IS NULL")
        assert await process_id(pool) == first

        asked: list[str] = []

        async def wait_in_vain() -> None:
            async with pool.connection() as connection:
                connection.add_query_logger(lambda query: asked.append(query.query))
                async with transaction(connection):
                    await connection.execute("SELECT pg_sleep(60)", timeout=0.05)

        with pytest.raises(Unavailable, match="did not answer in time"):
            await wait_in_vain()
        assert asked[0] == "BEGIN"
        assert "ROLLBACK" not in asked  # nobody would answer
        assert await process_id(pool) != first


async def test_limits_of_the_server_leave_the_connection_as_it_was(address: PostgresAddress) -> None:
    async with pool_of(address, size=1, statement_timeout=0.05) as pool:
        first = await process_id(pool)
        with pytest.raises(Unavailable, match="the server did not finish in time") as caught:
            await sleep_in_server(pool)
        assert isinstance(caught.value.__cause__, asyncpg.QueryCanceledError)
        assert await process_id(pool) == first


async def test_closing_waits_for_those_in_use(address: PostgresAddress) -> None:
    async with pool_of(address) as pool:
        await process_id(pool)
        sleeping = asyncio.ensure_future(sleep_in_server(pool, 0.3))
        await until_asleep(address, 1)
        await pool.close()
        assert sleeping.done()
        await sleeping
        with pytest.raises(Unavailable, match="it is closed"):
            await process_id(pool)
        await pool.close()


async def test_closing_does_not_wait_for_ever(address: PostgresAddress) -> None:
    async with pool_of(address) as pool:
        sleeping = asyncio.ensure_future(sleep_in_server(pool))
        await until_asleep(address, 1)
        await pool.close(seconds=0.05)
        with pytest.raises(Unavailable, match="connection was lost"):
            await sleeping
