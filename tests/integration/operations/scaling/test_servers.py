"""Integration: what a real PostgreSQL says about its connections."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.sessions import server_in_force
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_connections": 23, "superuser_reserved_connections": 4}) as started:
        yield started


async def test_the_server_says_its_limit_what_is_reserved_and_what_is_open(server: PostgresServer) -> None:
    url = server.create_database()
    others = [await asyncpg.connect(url) for _ in range(3)]
    try:
        found = await server_in_force("here:1", PostgresAddress.parse(url, schema="public"))
    finally:
        for one in others:
            await one.close()
    assert (found.server, found.max_connections, found.reserved, found.open) == ("here:1", 23, 4, 3)


async def test_reserved_for_roles_counts_too_and_is_what_an_ordinary_account_really_lacks() -> None:
    """PostgreSQL 16 has `reserved_connections` besides: limit minus reserved is what can be opened, to the last one."""
    settings = {"max_connections": 12, "superuser_reserved_connections": 2, "reserved_connections": 3}
    with PostgresServer(settings=settings) as server:
        url = server.create_database()
        server.sql("CREATE ROLE plain LOGIN PASSWORD 'plain'")
        plain = url.replace(f"kiseki:{server.password}@", "plain:plain@")
        found = await server_in_force("s", PostgresAddress.parse(url, schema="public"))
        opened: list[asyncpg.Connection[asyncpg.Record]] = []

        async def until_refused() -> None:
            while True:
                opened.append(await asyncpg.connect(plain))

        try:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                await until_refused()
        finally:
            for one in opened:
                await one.close()
    assert found.reserved == 5
    assert len(opened) == found.max_connections - found.reserved


@pytest.mark.parametrize("what", ["port", "password"])
async def test_a_server_that_cannot_be_asked_is_one_line_without_the_password(
    what: str, server: PostgresServer
) -> None:
    url = server.url()
    url = url.replace(f":{server.port}/", ":1/") if what == "port" else url.replace(server.password, "wrong")
    with pytest.raises(OperationFailed, match="can't be asked") as told:
        await server_in_force("s", PostgresAddress.parse(url, schema="public"))
    assert "\n" not in str(told.value)
    assert server.password not in str(told.value)
    assert "wrong" not in str(told.value)
