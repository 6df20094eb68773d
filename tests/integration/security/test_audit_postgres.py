"""The audit log in PostgreSQL: append-only, verified like files, anchors in a table, and servers that go."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import asyncpg
import pytest

from kiseki.application.system import SystemClock
from kiseki.clients.postgres import PostgresAddress, PostgresConnection, connect
from kiseki.kernel.ports import AuditEvent, AuditUnavailable
from kiseki.security.audit.key import AuditKey, AuditKeys
from kiseki.security.audit.log import AuditLog, AuditLogSettings, new_writer
from kiseki.security.audit.postgres_lines import (
    PostgresAnchors,
    PostgresLines,
    PostgresSink,
    migrate_anchors,
    migrate_records,
)
from kiseki.security.audit.record import AuditRecord, Chain, Entry, read_line
from kiseki.security.audit.tail import Tail
from kiseki.security.audit.verify import AuditReport, verify_log
from tests.servers.postgres import NoPostgres, PostgresServer

KEYS = AuditKeys(AuditKey(b"0123456789abcdef-of-the-audit-log"))
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def address(postgres_url: str) -> PostgresAddress:
    """A schema with both tables."""
    found = PostgresAddress.parse(postgres_url, schema="kiseki_audit")
    assert await migrate_records(found) == [f"the audit log on {found.label}, schema kiseki_audit: migration 1 applied"]
    assert len(await migrate_anchors(found)) == 1
    assert await migrate_records(found) == await migrate_anchors(found) == []
    return found


def event(target: str) -> AuditEvent:
    return AuditEvent(kind="admin.test", outcome="done", target=target)


async def opened(address: PostgresAddress, **settings: object) -> AuditLog:
    writer = new_writer()
    return await AuditLog.open(
        keys=KEYS,
        writer=writer,
        sinks=[await PostgresSink.open(address, writer=writer, statement_timeout=2)],
        clock=SystemClock(),
        anchors=PostgresAnchors.open(address),
        settings=AuditLogSettings(**settings),  # type: ignore[arg-type]
    )


async def written(address: PostgresAddress, count: int) -> str:
    log = await opened(address)
    await asyncio.gather(*(log.record(event(f"record-{number}")) for number in range(count)))
    await log.close()
    return log.writer


async def verified(address: PostgresAddress) -> tuple[AuditReport, list[AuditRecord]]:
    lines, anchors = PostgresLines.records(address), PostgresAnchors.open(address)
    records: list[AuditRecord] = []
    try:
        report = await verify_log(
            lines, keys=KEYS, now=NOW, anchors=anchors, on_record=lambda record, _line: records.append(record)
        )
    finally:
        await lines.close()
        await anchors.close()
    return report, records


async def recovered(log: AuditLog) -> None:
    async with asyncio.timeout(30):
        while not log.healthy:
            await asyncio.sleep(0.02)


async def owner(address: PostgresAddress) -> PostgresConnection:
    return await connect(address, application="owner")


async def test_a_log_in_a_table_is_verified_like_one_in_files(address: PostgresAddress) -> None:
    first = await written(address, 1_200)
    second = await written(address, 3)
    report, records = await verified(address)
    assert (report.problems, report.notes) == ([], [])
    assert (report.writers, report.records, report.anchors) == (2, 1_207, 4)
    start = next(record for record in records if record.writer == second)
    assert start.after is not None
    assert (start.after.writer, start.after.number) == (first, 1_202)


@pytest.mark.parametrize("table", ["audit_records", "audit_anchors"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET line = 'x'",
        "UPDATE {} SET at = now() WHERE false",
        "DELETE FROM {}",
        "TRUNCATE {}",
        "INSERT INTO {} SELECT writer, number, at, 'x' FROM {} ON CONFLICT (writer, number) DO UPDATE SET line = 'x'",
        "MERGE INTO {} USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    ],
)
async def test_the_tables_refuse_every_change(address: PostgresAddress, table: str, statement: str) -> None:
    await written(address, 3)
    connection = await owner(address)
    try:
        for role in ("origin", "replica"):
            await connection.execute(f"SET session_replication_role = {role}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await connection.execute(statement.replace("{}", table))
    finally:
        await connection.close()
    assert (await verified(address))[0].problems == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "UPDATE audit_records SET line = replace(line, 'record-2', 'record-9') WHERE number = 4",
            "altered, or forged",
        ),
        ("DELETE FROM audit_records WHERE number = 3", "record 3 is missing"),
        ("DELETE FROM audit_records WHERE number >= 4", "names record"),
        ("DELETE FROM audit_records", "all its records are missing"),
        ("UPDATE audit_records SET number = 50 WHERE number = 3", "missing before it"),
        ("UPDATE audit_records SET writer = 'X' WHERE number = 7", "its writer is not the one in its row"),
        (
            "INSERT INTO audit_records SELECT writer, 99, at, line FROM audit_records WHERE number = 2",
            "again or out of",
        ),
        ("DELETE FROM audit_anchors WHERE number = 1", "anchors before it are missing"),
        ("DELETE FROM audit_anchors", "no anchor names it"),
        ("UPDATE audit_anchors SET line = replace(line, '1', '2')", "anchor writer"),
    ],
)
async def test_what_an_owner_without_the_triggers_does_is_found(
    address: PostgresAddress, change: str, told: str
) -> None:
    await written(address, 5)
    connection = await owner(address)
    try:
        for table in ("audit_records", "audit_anchors"):
            await connection.execute(f"DROP TRIGGER refuse_change ON {table}")
        await connection.execute(change)
    finally:
        await connection.close()
    report, _ = await verified(address)
    assert any(told in problem for problem in report.problems), report.problems


async def test_a_service_that_may_only_insert_and_select_can_write(address: PostgresAddress) -> None:
    connection = await owner(address)
    try:
        await connection.execute("DROP ROLE IF EXISTS audit_service")
        await connection.execute("CREATE ROLE audit_service LOGIN PASSWORD 'only-for-tests'")
        await connection.execute("GRANT USAGE ON SCHEMA kiseki_audit TO audit_service")
        await connection.execute("GRANT SELECT, INSERT ON audit_records, audit_anchors TO audit_service")
        await connection.execute("GRANT SELECT ON kiseki_migrations TO audit_service")
        user, _, rest = address.dsn.removeprefix("postgresql://").partition("@")
        assert user
        service = PostgresAddress.parse(f"postgresql://audit_service:only-for-tests@{rest}", schema=address.schema)
        await written(service, 5)
        assert (await verified(address))[0].problems == []
    finally:
        await connection.execute("DROP OWNED BY audit_service")
        await connection.execute("DROP ROLE audit_service")
        await connection.close()


async def test_a_record_put_in_the_way_is_noticed(address: PostgresAddress) -> None:
    log = await opened(address)
    connection = await owner(address)
    try:
        await connection.execute("INSERT INTO audit_records VALUES ($1, 2, now(), 'in the way')", log.writer)
    finally:
        await connection.close()
    with pytest.raises(AuditUnavailable, match="it did not write"):
        await log.record(event("x"))
    assert not log.healthy
    await log.close()


async def test_a_write_again_after_a_lost_answer_stands_once(address: PostgresAddress) -> None:
    chain = Chain(KEYS.current, new_writer())
    records = [chain.seal(Entry(event=event(str(number)), at=NOW)) for number in range(5)]
    sink = await PostgresSink.open(address, writer=chain.writer)
    await sink.write(records[:3], durable=True)
    await sink.write(records, durable=True)
    await sink.close()
    lines = PostgresLines.records(address)
    found = [line async for page in lines.lines(chain.writer) for line in page]
    await lines.close()
    assert [read_line(line.line, KEYS).number for line in found] == [1, 2, 3, 4, 5]


async def test_a_tail_reads_the_table(address: PostgresAddress) -> None:
    await written(address, 10)
    lines = PostgresLines.records(address)
    tail = Tail(lines, keys=KEYS, suspicious=lambda what: None)
    assert [record.kind for record in await tail.newest(3)] == ["admin.test", "admin.test", "audit.stopped"]
    await written(address, 450)
    async for records in tail.follow(poll=0.01):
        assert len(records) == 452
        break
    await lines.close()


async def test_without_tables_it_says_to_migrate(postgres_url: str) -> None:
    address = PostgresAddress.parse(postgres_url, schema="kiseki_audit")
    with pytest.raises(AuditUnavailable, match="run `kiseki migrate`"):
        await opened(address)


async def test_a_server_that_stops_and_comes_back() -> None:
    try:
        server = PostgresServer()
        server.__enter__()
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    try:
        address = PostgresAddress.parse(server.create_database(), schema="kiseki_audit")
        await migrate_records(address)
        await migrate_anchors(address)
        log = await opened(address, retry=0.05)
        await log.record(event("before"))
        server.crash()
        with pytest.raises(AuditUnavailable) as caught:
            await log.record(event("meanwhile"))
        assert server.password not in str(caught.value)
        assert log.problem is not None
        log.note(event("noted"))
        assert server.launch()
        await recovered(log)
        await log.record(event("after"))
        await log.close()
        report, records = await verified(address)
        assert report.problems == []
        targets = [record.target for record in records if record.kind == "admin.test"]
        assert {"before", "noted", "after"} <= set(targets)
        assert len(targets) == len(set(targets))
    finally:
        server.stop()
