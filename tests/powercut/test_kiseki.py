"""A power cut at any moment loses no acknowledged command of kiseki: neither its facts, nor the keys they need."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kiseki.kernel.codec import EventCodec, StateCodec
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.users import app
from kiseki.users.user_account import Active, PersonName, UserAccountCreated, UserAccountRenamed, user_account

from .harness import assert_complete, compile_shim, run_under_shim
from .kiseki_workload import open_journal, open_protector
from .records import Trace, choose_cuts, load_trace
from .replay import POWER_CUTS, Image, Mode, images

WORKLOAD = Path(__file__).with_name("kiseki_workload.py")
CUTS_PER_MODE = 80
"""Three modes: 240 power cuts."""


def record(tmp_path: Path, synchronous: str) -> Trace:
    data = tmp_path / "data"
    data.mkdir()
    run_under_shim(
        [sys.executable, WORKLOAD, data, synchronous, "8", "24"],
        data,
        tmp_path / "trace",
        {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        shim=compile_shim(tmp_path),
    )
    trace = load_trace(tmp_path / "trace")
    assert_complete(trace, data)
    return trace


def restored(image: Image, tmp_path: Path) -> Path:
    """The data directory after a cut. An image has no file modes; kiseki's files are its own user's only."""
    directory = tmp_path / f"cut-{image.cut}"
    image.write_to(directory)
    for path in directory.iterdir():
        path.chmod(0o600 if path.is_file() else 0o700)
    return directory


async def lost(directory: Path, acknowledged: list[str]) -> list[str]:
    """The acknowledged commands that a data directory does not give back, opened as after a restart."""
    missing: list[str] = []
    async with AsyncExitStack() as stack:
        try:
            protector = await open_protector(directory, stack)
            journal = await open_journal(directory, stack)
        except KisekiError as problem:
            return [f"{line}: {problem}" for line in acknowledged]
        codec = EventCodec(app.schema, protector, NoTelemetry())
        states = StateCodec(user_account, protector, os.urandom)
        names: dict[str, list[str]] = {}
        for line in acknowledged:
            stream, number, name = line.split(" ", 2)
            if stream not in names:
                names[stream] = []
                expected = 1
                async for page in journal.read(stream):
                    for recorded, event in zip(page, await codec.decode(page), strict=True):
                        assert recorded.sequence_number == expected, "a gap"
                        expected += 1
                        assert isinstance(event, UserAccountCreated | UserAccountRenamed)
                        assert isinstance(event.name, PersonName)
                        names[stream].append(event.name.last_name)
            if len(names[stream]) < int(number) or names[stream][int(number) - 1] != name:
                missing.append(line)
        for stream, facts in names.items():
            snapshot = await journal.load_snapshot(stream, states.schema)
            if snapshot is not None:
                decoded = await states.decode(stream, snapshot.sequence_number, snapshot.data)
                assert decoded is not None
                state = decoded[0]
                assert isinstance(state, Active)
                assert isinstance(state.name, PersonName)
                assert facts[snapshot.sequence_number - 1] == state.name.last_name, "a snapshot of another state"
        assert await journal.integrity() == ()
    return missing


@pytest.mark.parametrize("mode", POWER_CUTS, ids=lambda mode: mode.value)
def test_nothing_acknowledged_is_lost(tmp_path: Path, mode: Mode) -> None:
    trace = record(tmp_path, "FULL")
    cuts = choose_cuts(trace, CUTS_PER_MODE, seed=20)
    assert len(cuts) == CUTS_PER_MODE
    promised = 0
    for image in images(trace, cuts, mode, seed=20):
        directory = restored(image, tmp_path)
        promised += len(image.acknowledged)
        assert asyncio.run(lost(directory, image.acknowledged)) == [], f"cut {image.cut}"
    assert promised > 1_000


def test_with_synchronous_off_the_same_test_fails(tmp_path: Path) -> None:
    trace = record(tmp_path, "OFF")
    for image in images(trace, choose_cuts(trace, CUTS_PER_MODE, seed=20), Mode.DROP, seed=20):
        directory = restored(image, tmp_path)
        if asyncio.run(lost(directory, image.acknowledged)):
            return
    pytest.fail("no acknowledged command was lost although nothing was synced")
