"""Unit: the ages that alarms look at; what is missing has none."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from kiseki.cli.main import run
from kiseki.operations.backup.manifest import Part
from kiseki.operations.backups import Backups
from kiseki.operations.dr.ages import AGES, age_metrics
from kiseki.operations.dr.status import StatusLine
from kiseki.operations.drill.report import DRILLS, DrillReport
from kiseki.service.settings import Settings


def test_the_worst_of_several_counts() -> None:
    lines = [
        StatusLine("backup of journal", "", age=60.0),
        StatusLine("backup of keys", "", age=90.0),
        StatusLine("protection of journal", "", age=5.0),
        StatusLine("drill", "", age=1_000.0),
    ]
    assert age_metrics(lines) == {
        "backup_age_seconds": 90.0,
        "protection_age_seconds": 5.0,
        "drill_age_seconds": 1_000.0,
    }


def test_one_part_without_a_backup_leaves_no_age_at_all() -> None:
    lines = [StatusLine("backup of journal", "", age=60.0), StatusLine("backup of keys", "none", good=False)]
    assert age_metrics(lines) == {}


def test_every_metric_is_documented() -> None:
    assert set(AGES) == {"backup_age_seconds", "protection_age_seconds", "drill_age_seconds"}


def report(at: datetime, *, sound: bool = True) -> DrillReport:
    return DrillReport(
        at=at,
        kiseki="0.1.0",
        store="sqlite",
        events=1,
        clients=1,
        protection_interval=60.0,
        waited=1.0,
        detection=1.0,
        rpo=1.0,
        rto=1.0,
        phases={},
        acknowledged=1,
        lost=0,
        recovered_events=1,
        sound=sound,
        projections_behind=0,
        proved="",
    )


async def keep(place: Path, data: Path, kept: DrillReport) -> None:
    settings = Settings(backup=str(place), data_dir=data)
    async with Backups.opened(settings) as backups:
        name = f"{DRILLS}/{kept.at:%Y%m%dT%H%M%SZ}.json"
        await backups.place(Part.JOURNAL).write(name, msgspec.json.encode(kept))


@pytest.mark.parametrize("sound", [True, False])
async def test_a_drill_has_an_age_if_it_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sound: bool
) -> None:
    place, data = tmp_path / "backups", tmp_path / "data"
    await keep(place, data, report(datetime.now(UTC) - timedelta(days=3), sound=sound))
    monkeypatch.setenv("KISEKI_BACKUP", str(place))
    monkeypatch.setenv("KISEKI_METRICS_NAMESPACE", "kiseki-test")
    code = await asyncio.to_thread(run, ["dr", "status", "--embedded-metrics", "--data-dir", str(data)])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert code == 1  # no backup was made
    assert "backup of journal: none was ever verified" in told.err
    (directive,) = found["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], found["process"]) == ("kiseki-test", "dr-status")
    assert directive["Metrics"] == ([{"Name": "drill_age_seconds", "Unit": "Seconds"}] if sound else [])
    if sound:
        assert found["drill_age_seconds"] == pytest.approx(3 * 86_400, abs=120)


@pytest.mark.parametrize("more", [["--json"], ["--other", "there.toml"]])
def test_what_would_be_left_out_is_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dr", "status", "--embedded-metrics", *more]) == 2
    assert "the ages of this site alone" in capsys.readouterr().err
