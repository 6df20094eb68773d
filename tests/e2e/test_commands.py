"""Commands beside the processes: looking into a journal and mending read models, with a service and without."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.e2e.client import Client
from tests.e2e.commands import APPLICATION, complaint, kiseki, running
from tests.e2e.processes import Service

WRITE = "mutation ($t: String!) { writeNote(input: {title: $t}) { id } }"
BROKEN = APPLICATION.replace("COLUMN", "title").replace(
    "    return [insert", '    if event.title == "second":\n        raise RuntimeError(event.title)\n    return [insert'
)
MENDED = APPLICATION.replace("COLUMN", "title")


async def write_notes(service: Service, *titles: str) -> list[str]:
    identifiers = []
    async with Client(service.command_port) as client:
        for title in titles:
            reply = await client.graphql(WRITE, {"t": title})
            assert reply.status == 200
            identifiers.append(reply.json()["data"]["writeNote"]["id"])
    return identifiers


async def served(folder: Path, *titles: str) -> list[str]:
    """Runs a service for as long as it takes to write these, and has the read model catch up before it ends."""
    service = Service(folder / "data", "--app", "shop:app", "--drain-delay", "0", cwd=folder)
    async with running(service):
        identifiers = await write_notes(service, *titles)
        await caught_up(folder)
        assert service.terminate() == 0
    return identifiers


async def caught_up(folder: Path) -> None:
    for _ in range(100):
        if status(folder)["commitsBehind"] == 0:
            return
    raise AssertionError("the read model did not catch up")


def status(folder: Path) -> Any:
    (live,) = json.loads(kiseki("projection", "status", "--json", cwd=folder).stdout)
    return live


async def test_showing_a_stream(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--drain-delay", "0")
    async with running(service):
        async with Client(service.command_port) as client:
            reply = await client.graphql(
                "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }",
                {"i": {"firstName": "花子", "lastName": "山田", "emailAddress": "hanako.yamada@example.com"}},
                **{"x-correlation-id": "order-7"},
            )
        stream = f"UserAccount-{reply.json()['data']['createUserAccount']['id']}"
        # The service may run meanwhile.
        table = kiseki("journal", "show", stream, "--data-dir", str(service.data_dir))
    assert table.returncode == 0
    assert "UserAccountCreated v1" in table.stdout
    assert "<personal>" in table.stdout
    (event,) = map(json.loads, kiseki("journal", "show", stream, "--json", cwd=tmp_path).stdout.splitlines())
    assert (event["type"], event["sequenceNumber"], event["correlationId"]) == ("UserAccountCreated", 1, "order-7")
    assert event["data"] == {"name": "<personal>", "email_address": "<personal>"}
    for printed in (table.stdout, json.dumps(event, ensure_ascii=False)):
        assert "花子" not in printed
        assert "hanako" not in printed


async def test_verifying_a_journal(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MENDED)
    await served(tmp_path, "first", "second")
    sound = kiseki("journal", "verify", cwd=tmp_path)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "is sound: 2 commits, 2 events, 2 streams" in sound.stdout

    with sqlite3.connect(tmp_path / "data" / "journal.db") as journal:
        (table, column) = journal.execute(
            "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "
            "WHERE m.type = 'table' AND c.name = 'checksum'"
        ).fetchone()
        journal.execute(f"UPDATE {table} SET {column} = 'damaged' WHERE rowid = 2")
    journal.close()
    damaged = kiseki("journal", "verify", cwd=tmp_path)
    assert damaged.returncode == 1
    assert "problem: " in damaged.stderr
    assert "is damaged" in damaged.stdout
    assert "Traceback" not in damaged.stderr


def test_what_is_not_there(tmp_path: Path) -> None:
    for command in (("journal", "show", "Note-1"), ("journal", "verify"), ("projection", "status")):
        assert "no journal in" in complaint(kiseki(*command, cwd=tmp_path))
    assert not (tmp_path / "data").exists()


async def test_a_parked_stream_is_retried_without_a_service(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BROKEN)
    _, second = await served(tmp_path, "first", "second")
    parked = status(tmp_path)["parked"]
    assert [(one["stream"], one["code"]) for one in parked] == [(f"Note-{second}", "APPLY_FAILED")]
    assert f"Note-{second}" in kiseki("projection", "status", cwd=tmp_path).stdout

    again = kiseki("projection", "retry", "notes", "--app", "shop:app", cwd=tmp_path)
    assert again.returncode == 1
    assert "0 parked streams go on, 1 stay parked" in again.stdout
    (tmp_path / "shop.py").write_text(MENDED)
    mended = kiseki("projection", "retry", "--app", "shop:app", "--stream", f"Note-{second}", cwd=tmp_path)
    assert (mended.returncode, mended.stderr) == (0, "")
    assert "notes: 1 parked streams go on, 0 stay parked" in mended.stdout
    assert status(tmp_path)["parkedCount"] == 0


async def test_a_parked_stream_is_retried_by_a_running_service(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BROKEN)
    await served(tmp_path, "first", "second")
    (tmp_path / "shop.py").write_text(MENDED)
    service = Service(tmp_path / "data", "--app", "shop:app", "--drain-delay", "0", cwd=tmp_path)
    async with running(service):
        assert status(tmp_path)["parkedCount"] == 1
        mended = kiseki("projection", "retry", "--app", "shop:app", cwd=tmp_path)
        assert (mended.returncode, mended.stderr) == (0, "")
        assert status(tmp_path)["parkedCount"] == 0
        assert "notes was retried as asked: 1 parked streams go on, 0 stay parked" in service.log.read_text("utf-8")


async def test_a_rebuild_with_a_service_and_without(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MENDED)
    service = Service(tmp_path / "data", "--app", "shop:app", "--drain-delay", "0", cwd=tmp_path)
    async with running(service):
        await write_notes(service, "first", "second")
        beside = kiseki("projection", "rebuild", "notes", "--app", "shop:app", cwd=tmp_path)
        assert (beside.returncode, beside.stderr) == (0, "")
        assert status(tmp_path)["generation"] == 2
        assert service.terminate() == 0
    alone = kiseki("projection", "rebuild", "notes", "--app", "shop:app", cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")
    assert "notes: the new build is live" in alone.stdout
    assert (status(tmp_path)["generation"], status(tmp_path)["commitsBehind"]) == (3, 0)
    unknown = kiseki("projection", "rebuild", "other", "--app", "shop:app", cwd=tmp_path)
    assert "it has notes" in complaint(unknown)
