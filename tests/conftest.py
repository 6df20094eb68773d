"""For the whole test suite: real servers, and the rule that a skip needs a reason that `tests/skips.txt` lists."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.servers.emulator import AwsEmulator, NoEmulator
from tests.servers.postgres import NoPostgres, PostgresServer

_ALLOWED = Path(__file__).with_name("skips.txt")


def _allowed() -> list[str]:
    lines = _ALLOWED.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class _Skips:
    def __init__(self) -> None:
        self.unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
            self._check(report.nodeid, report.longrepr[2])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._check(report.nodeid, report.longrepr[2])

    def _check(self, where: str, why: str) -> None:
        reason = why.removeprefix("Skipped: ")
        if not any(reason.startswith(allowed) for allowed in _allowed()):
            self.unlisted.append(f"{where}: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unlisted:
            terminalreporter.write_line(f"skipped for a reason that tests/skips.txt does not list: {line}", red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and os.environ.get("CI") == "true" and session.exitstatus == 0:
            session.exitstatus = 1


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Skips(), "kiseki-skips")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test process's own."""
    try:
        server = PostgresServer()
        server.__enter__()
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of this test's own, on the server of KISEKI_TEST_POSTGRES_URL if there is one."""
    named = os.environ.get("KISEKI_TEST_POSTGRES_URL")
    if named:
        return asyncio.run(_database_on(named))
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database()


async def _database_on(url: str) -> str:
    name = f"kiseki_test_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    finally:
        await connection.close()
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def aws_endpoint() -> Iterator[str]:
    """The endpoint of an AWS emulator, shared by all tests of this process: take names of your own."""
    named = os.environ.get("KISEKI_TEST_DYNAMODB_ENDPOINT")
    if named:
        yield named
        return
    try:
        emulator = AwsEmulator()
        emulator.__enter__()
    except NoEmulator as problem:
        pytest.skip(f"AWS tests need the emulator: {problem}")
    try:
        yield emulator.endpoint
    finally:
        emulator.stop()
