"""PostgreSQL's own programs: found, told where to connect without their arguments, and explained in one line."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.errors import Unavailable
from kiseki.operations.errors import NoRoom, OperationFailed, ToolMissing
from kiseki.operations.postgres.child import explained
from kiseki.operations.postgres.environment import environment_of
from kiseki.operations.postgres.programs import PostgresPrograms
from tests.integration.operations.postgres.postgres_backup_parts import programs_of
from tests.servers.postgres import PostgresServer

HIDDEN = "hidden-one"


class Rotated:
    """A password that was rotated a moment ago."""

    def __init__(self, right: str) -> None:
        self._right = right
        self.asked: list[str] = []

    async def password(self) -> str:
        self.asked.append("password")
        return HIDDEN

    async def renewed(self) -> str:
        self.asked.append("renewed")
        return self._right


def fake(folder: Path, name: str, version: int, script: str = "") -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{name} (PostgreSQL) {version}.1"; exit; fi\n{script}'
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


async def test_the_oldest_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (15, 18, 17):
        fake(tmp_path / str(version), "pg_dump", version)
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / each) for each in ("15", "18", "17")))
    programs = PostgresPrograms()
    assert await programs.find("pg_dump", at_least=17) == tmp_path / "17/pg_dump"
    assert await programs.find("pg_dump", exactly=18) == tmp_path / "18/pg_dump"
    with pytest.raises(ToolMissing, match=r"^pg_dump \d+ on PATH is too old for PostgreSQL 99; install post"):
        await programs.find("pg_dump", at_least=99)
    with pytest.raises(ToolMissing, match="the program pg_nothing is not on PATH"):
        await programs.find("pg_nothing")
    only = PostgresPrograms(tmp_path / "15")
    with pytest.raises(ToolMissing, match="has to be of the same version for PostgreSQL 17"):
        await only.find("pg_dump", exactly=17)


async def test_a_password_is_in_no_argument_and_asked_for_anew(postgres_server: PostgresServer) -> None:
    source = Rotated(postgres_server.password)
    url = postgres_server.url().replace(f":{postgres_server.password}@", "@") + "?password=vault://database"
    address = PostgresAddress.parse(url, schema="public", passwords=lambda _: source)
    programs = programs_of(postgres_server)
    psql = await programs.find("psql")
    assert (await programs.run(psql, ["-XAtqc", "SELECT 1"], address=address)).strip() == "1"
    assert source.asked == ["password", "renewed"]
    wrong = PostgresAddress.parse(url, schema="public", passwords=lambda _: Rotated("hidden-two"))
    with pytest.raises(Unavailable) as raised:
        await programs.run(psql, ["-XAtqc", "SELECT 1"], address=wrong)
    assert "did not accept the user or password" in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_what_a_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    monkeypatch.setenv("PGPASSWORD", "of another")
    url = (
        "postgresql://some%20one:s%40cret@[::1]:5433,other:5434/my%2Fbase?sslmode=verify-full&sslrootcert=/ca.pem"
        "&schema=mine&target_session_attrs=read-write&work_mem=4MB"
    )
    environment = await environment_of(PostgresAddress.parse(url, schema="x"))
    told = {name: value for name, value in environment.items() if name.startswith("PG")}
    assert told == {
        "PGHOST": "::1,other",
        "PGPORT": "5433,5434",
        "PGUSER": "some one",
        "PGPASSWORD": "s@cret",
        "PGDATABASE": "my/base",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGTARGETSESSIONATTRS": "read-write",
        "PGAPPNAME": "kiseki backup",
        "PGCONNECT_TIMEOUT": "10",
    }
    assert "PGPASSWORD" not in await environment_of(None)
    with pytest.raises(OperationFailed, match="sslpassword"):
        await environment_of(PostgresAddress.parse("postgresql://a@b/c?sslpassword=x", schema="x"))


async def test_a_program_that_ignores_its_end_is_ended(tmp_path: Path) -> None:
    fake(tmp_path, "pg_slow", 17, "trap '' TERM\nwhile :; do sleep 0.1; done")
    programs = PostgresPrograms(tmp_path)
    child = await programs.start(await programs.find("pg_slow"), [])
    await child.stop(seconds=0.2)
    assert child.ended
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await programs.run(await programs.find("pg_slow"), [])


@pytest.mark.parametrize(
    ("complaint", "kind", "line"),
    [
        (
            'pg_dump: error: connection to server at "h" (1.2.3.4), port 5432 failed: FATAL:  password authentication '
            'failed for user "x"\n',
            Unavailable,
            "check the URL",
        ),
        ("pg_restore: error: could not write: No space left on device\n", NoRoom, "make room there"),
        ("pg_dump: error: query failed: ERROR:  permission denied for table commits\n", OperationFailed, "grant"),
        ("pg_dump: error: aborting because of server version mismatch\n", ToolMissing, "own version"),
        (
            'pg_receivewal: error: FATAL:  no pg_hba.conf entry for replication connection from host "1.2.3.4"\n',
            Unavailable,
            "host replication",
        ),
        (
            'pg_restore: error: COPY failed for table "commits": ERROR:  duplicate key\nDETAIL:  Key (a)=(Hanako)\n',
            OperationFailed,
            "duplicate key",
        ),
        ("", OperationFailed, "it ended with code 3"),
    ],
)
def test_what_programs_say_is_one_line(complaint: str, kind: type[Exception], line: str) -> None:
    problem = explained("pg_x", complaint, 3, "host:5432/base")
    assert type(problem) is kind
    assert line in str(problem)
    assert "\n" not in str(problem)
    assert "Hanako" not in str(problem)
