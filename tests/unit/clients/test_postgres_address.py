"""URLs of PostgreSQL databases, what is shown of them, and the words for what goes wrong."""

from __future__ import annotations

import socket
import ssl

import asyncpg
import pytest

from kiseki.clients.postgres import PostgresAddress, quoted
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.urls import StoreUrlInvalid


@pytest.mark.parametrize(
    ("url", "dsn", "schema", "label"),
    [
        ("postgresql://u:p@db:5433/shop", "postgresql://u:p@db:5433/shop", "ours", "db:5433/shop"),
        ("postgres://u:p@db/shop", "postgresql://u:p@db/shop", "ours", "db:5432/shop"),
        ("postgresql://db/shop?schema=theirs", "postgresql://db/shop", "theirs", "db:5432/shop"),
        (
            "postgresql://u:p%40%2F@db/shop?sslmode=verify-full&schema=a_1&sslrootcert=/etc/ca.pem",
            "postgresql://u:p%40%2F@db/shop?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem",
            "a_1",
            "db:5432/shop",
        ),
        ("postgresql://u@/shop?host=/run/pg", "postgresql://u@/shop?host=%2Frun%2Fpg", "ours", "/run/pg/shop"),
        ("postgresql://u@a:1,b:2/shop", "postgresql://u@a:1,b:2/shop", "ours", "a:1,b:2/shop"),
        ("postgresql://u@[::1]:5433/shop", "postgresql://u@[::1]:5433/shop", "ours", "[::1]:5433/shop"),
    ],
)
def test_urls(url: str, dsn: str, schema: str, label: str) -> None:
    address = PostgresAddress.parse(url, schema="ours")
    assert (address.dsn, address.schema, address.label) == (dsn, schema, label)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:secret@db/shop", "begins with postgresql://"),
        ("postgresql://u:secret@db", "names a host and a database"),
        ("postgresql://u:secret@/shop", "names a host and a database"),
        ("postgresql://u:secret@db/shop?sslmode", "can't be read"),
        ("postgresql://u:secret@[db/shop", "can't be read"),
        ("postgresql://u:secret@db/shop?schema=a&schema=b", "twice"),
        ("postgresql://u:secret@db/shop?schema=A", "schema 'A'"),
        ("postgresql://u:secret@db/shop?schema=", "schema ''"),
        ("postgresql://u:secret@db/shop?schema=a%22", "schema 'a\"'"),
        ("postgresql://u:sec#ret@db/shop", "`#`"),
        ("postgresql://u:secr@et@db/shop", "`@`"),
    ],
)
def test_urls_that_can_not_be_used(url: str, said: str) -> None:
    with pytest.raises(StoreUrlInvalid) as caught:
        PostgresAddress.parse(url, schema="ours")
    assert said in str(caught.value)
    assert "sec" not in str(caught.value)
    assert caught.value.code == "STORE_URL"


def test_nothing_secret_is_shown() -> None:
    address = PostgresAddress.parse("postgresql://somebody:secret@db/shop", schema="ours")
    for text in (repr(address), str(address), f"{address}"):
        assert text == "PostgresAddress(db:5432/shop, schema ours)"


def test_names_are_quoted() -> None:
    assert quoted("kiseki_journal") == '"kiseki_journal"'
    for name in ('a"b', "", "a b", "1a", "a" * 64, "a\n"):
        with pytest.raises(ValueError, match="not a plain SQL name"):
            quoted(name)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (asyncpg.ConnectionDoesNotExistError("x"), "the connection was lost"),
        (asyncpg.InterfaceError("cannot perform operation: connection is closed"), "the connection was lost"),
        (asyncpg.InternalClientError("cannot switch to state 12"), "the connection was lost"),
        (ConnectionResetError(), "the connection was lost"),
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 5432)"), "nothing listens there"),
        (TimeoutError(), "did not answer in time"),
        (socket.gaierror(-2, "Name or service not known"), "host name is not known"),
        (ssl.SSLCertVerificationError(1, "x"), "certificate was not accepted"),
        (OSError(113, "No route to host"), "the network failed (no route to host)"),
        (asyncpg.TooManyConnectionsError("x"), "too many connections"),
        (asyncpg.CannotConnectNowError("x"), "starting up or shutting down"),
        (asyncpg.AdminShutdownError("x"), "shutting down"),
        (asyncpg.DiskFullError("x"), "disk is full"),
        (asyncpg.OutOfMemoryError("x"), "out of memory"),
        (asyncpg.ReadOnlySQLTransactionError("x"), "read-only"),
        (asyncpg.LockNotAvailableError("x"), "a lock was not available in time"),
        (asyncpg.QueryCanceledError("x"), "did not finish in time"),
        (asyncpg.InvalidPasswordError('password authentication failed for user "somebody"'), "user or password"),
        (asyncpg.InvalidCatalogNameError("x"), "no such database"),
        (asyncpg.InsufficientPrivilegeError("x"), "lacks a permission"),
        (asyncpg.DeadlockDetectedError("x"), "waited for each other"),
        (asyncpg.TargetServerAttributeNotMatched("x"), "target_session_attrs"),
        (asyncpg.ClientConfigurationError("x"), "parameters of its URL"),
    ],
)
def test_what_the_server_and_the_network_do(problem: BaseException, words: str) -> None:
    assert is_unavailable(problem)
    assert words in reason(problem)
    assert "somebody" not in reason(problem)
    assert "10.0.0.1" not in reason(problem)


@pytest.mark.parametrize(
    "problem",
    [
        asyncpg.UndefinedTableError("x"),
        asyncpg.UniqueViolationError("Key (a)=(secret) already exists."),
        asyncpg.PostgresSyntaxError("x"),
        asyncpg.DataError("secret"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        ValueError("secret"),
    ],
)
def test_defects_are_no_unavailability(problem: BaseException) -> None:
    assert not is_unavailable(problem)
    assert type(problem).__name__ in reason(problem)
    assert "secret" not in reason(problem)
