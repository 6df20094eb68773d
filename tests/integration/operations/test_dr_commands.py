"""`kiseki dr` on embedded stores: beginning a lease, and what a SQLite journal is told instead of a failover."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.cli.main import run
from kiseki.journal.lease.port import NotTheWriter
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores
from kiseki.testing.journal_conformance import encoded, metadata


def settings_in(folder: Path, site: str = "tokyo") -> Settings:
    return Settings(
        data_dir=folder / site,
        lease=str(folder / "witness"),
        lease_seconds=1.0,
        site=site,
        primary_region="tokyo",
        secondary_region="osaka",
    )


def written(settings: Settings) -> Path:
    config = settings.data_dir.with_suffix(".toml")
    names = ("lease", "site", "primary_region", "secondary_region")
    lines = [f'{name} = "{getattr(settings, name)}"' for name in names]
    config.write_text("\n".join([*lines, "lease_seconds = 1.0", f'data_dir = "{settings.data_dir}"']))
    return config


async def append_one(settings: Settings, *, name: str) -> None:
    stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry())
    try:
        assert stores.lease is not None
        async with stores.lease.held(0.3):
            await stores.journal.append(f"Thing-{name}", 0, [encoded(name)], metadata=metadata(name))
    finally:
        await stores.close()


def test_the_lease_of_an_empty_journal_begins_by_itself_and_of_another_one_a_person_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_in(tmp_path)
    config = str(written(settings))
    asyncio.run(append_one(settings, name="a"))
    assert run(["dr", "begin", "--config", config]) == 1
    assert "there is a lease in" in capsys.readouterr().err
    (tmp_path / "witness" / "lease.json").unlink()  # lost, and the journal is not empty
    with pytest.raises(NotTheWriter, match="kiseki dr begin"):
        asyncio.run(append_one(settings, name="b"))
    assert run(["dr", "begin", "--config", config]) == 0
    assert "tokyo writes, term 1" in capsys.readouterr().out
    asyncio.run(append_one(settings, name="b"))
    assert run(["audit", "tail", "--json", "--config", config]) == 0
    assert "beginning the lease, term 1" in capsys.readouterr().out


def test_a_journal_that_is_a_file_has_no_failover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(written(settings_in(tmp_path, "osaka")))
    for options in (["--forced"], ["--unfenced"]):
        assert run(["dr", "failover", *options, "--config", config]) == 1
        assert "`kiseki backup restore`" in capsys.readouterr().err
    plain = tmp_path / "plain.toml"
    plain.write_text(f'data_dir = "{tmp_path / "plain"}"')
    assert run(["dr", "failover", "--forced", "--config", str(plain)]) == 1
    assert "would be unfenced; stop it, and say --unfenced" in capsys.readouterr().err
