"""The drill, small: a real system is destroyed under load on each store, and comes back; losses are told truly."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.operations.drill.postgres_system import PostgresSystem
from kiseki.operations.drill.processes import Ports, free_ports
from kiseki.operations.drill.report import DrillReport, in_words
from kiseki.operations.drill.run import DrillPlan, run_drill
from kiseki.operations.drill.system import DrillSystem, SqliteSystem
from kiseki.operations.errors import OperationFailed
from tests.servers.postgres import NoPostgres, PostgresServer


def system(store: str, folder: Path, ports: Ports) -> DrillSystem:
    if store == "sqlite":
        return SqliteSystem(folder, ports, interval=1.0)
    try:
        with PostgresServer() as server:
            programs = server.bin
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    return PostgresSystem(folder, ports, interval=1.0, programs=programs)


async def drilled(store: str, folder: Path) -> DrillReport:
    ports = free_ports()
    plan = DrillPlan(folder, events=200, clients=4, interval=1.0, shortest=1.0, longest=3.0, probe_every=0.3)
    folder.chmod(0o711)
    return await run_drill(system(store, folder, ports), ports, plan, lambda _: None)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_a_destroyed_system_comes_back(store: str, tmp_path: Path) -> None:
    for parent in tmp_path.parents:
        if parent.owner() == Path.home().owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)  # the server's account has to get through
    report = await drilled(store, tmp_path)
    assert report.sound
    assert report.projections_behind == 0
    assert 0 < report.detection <= report.rto
    assert report.acknowledged > 0
    # What is lost was acknowledged after the last copy, and nothing else is.
    assert report.lost < report.acknowledged
    assert report.rpo <= report.targets.rpo
    assert report.recovered_events >= report.events - report.lost
    assert report.passed
    words = in_words(report)
    assert "result             passed" in words
    assert f"{report.lost:,} of {report.acknowledged:,} commands" in words


async def test_a_drill_whose_protection_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is destroyed then."""
    ports = free_ports()
    made = SqliteSystem(tmp_path, ports, interval=1.0)
    monkeypatch.setitem(made._common, "KISEKI_BACKUP", str(tmp_path / "machine" / "data" / "backups"))
    plan = DrillPlan(tmp_path, events=20, clients=1, interval=1.0, shortest=0.0, longest=0.0, probe_every=0.3)
    with pytest.raises(OperationFailed, match="data directory") as raised:
        await run_drill(made, ports, plan, lambda _: None)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "machine" / "data" / "journal.db").exists()
