"""A power cut at any moment: keys that were promised are there, and keys that were destroyed are in no byte."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.kernel.personal import ERASED, Erased
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.security.powercut_workload import CONTEXT
from tests.powercut.harness import assert_complete, compile_shim, run_under_shim
from tests.powercut.records import ACK, Trace, choose_cuts, load_trace
from tests.powercut.replay import POWER_CUTS, Image, Mode, images

WORKLOAD = Path(__file__).with_name("powercut_workload.py")
SUBJECTS = 80
CUTS = 80


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    tmp_path = tmp_path_factory.mktemp("keys")
    data = tmp_path / "data"
    data.mkdir()
    run_under_shim(
        [sys.executable, WORKLOAD, data, str(SUBJECTS)],
        data,
        tmp_path / "trace",
        {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        shim=compile_shim(tmp_path),
    )
    recorded = load_trace(tmp_path / "trace")
    assert_complete(recorded, data)
    return recorded


def said(image: Image, word: str) -> dict[str, str]:
    """By subject what was promised of it."""
    lines = [line.split() for line in image.acknowledged]
    return {line[1]: line[-1] for line in lines if line[0] == word}


def restore(image: Image, directory: Path) -> None:
    """The data directory after the cut. An image has no file modes."""
    image.write_to(directory)
    for path in directory.iterdir():
        path.chmod(0o600)


async def broken_promises(image: Image, directory: Path) -> list[str]:
    """What of the promises the directory does not keep, opened as after a restart."""
    restore(image, directory)
    made, erasing, erased = said(image, "made"), said(image, "erasing"), said(image, "erased")
    broken = [
        f"{subject}: the destroyed key is still in {name}"
        for subject, wrapped in erased.items()
        for name, content in image.files.items()
        if wrapped[-48:].encode() in content
    ]
    if not made:
        return broken
    store = await SqliteKeyStore.open(directory / "keys.sqlite")
    master = LocalMasterKey.load(directory / "master.key")
    keys = await KeyProtector.open(store=store, wrapper=master, clock=SystemClock())
    ciphers = await keys.ciphers(made)
    for subject, sealed in made.items():
        cipher = ciphers.get(subject)
        if cipher is None or (isinstance(cipher, Erased) and subject not in erasing):
            broken.append(f"{subject}: the key is lost")
        elif subject in erased and cipher != ERASED:
            broken.append(f"{subject}: the key is back")
        elif not isinstance(cipher, Erased):
            assert cipher.open(sealed, CONTEXT) == subject.encode()
    await store.close()
    return broken


@pytest.mark.parametrize("mode", POWER_CUTS, ids=lambda mode: mode.value)
def test_a_master_key_that_was_given_out_survives_a_power_cut(trace: Trace, tmp_path: Path, mode: Mode) -> None:
    """Nothing may be wrapped by a key that can still be lost."""
    first = next(at for at, record in enumerate(trace.records) if record.path == ACK and record.data)
    for image in images(trace, [first + 1], mode, seed=7):
        restore(image, tmp_path / "cut")
        assert image.acknowledged == [f"master {LocalMasterKey.load(tmp_path / 'cut' / 'master.key').key_id}"]


@pytest.mark.parametrize("mode", POWER_CUTS, ids=lambda mode: mode.value)
async def test_what_was_promised_of_keys_survives_a_power_cut(trace: Trace, tmp_path: Path, mode: Mode) -> None:
    promises = 0
    for image in images(trace, choose_cuts(trace, CUTS, seed=7), mode, seed=7):
        promises += len(said(image, "made")) + len(said(image, "erased"))
        assert await broken_promises(image, tmp_path / f"cut-{image.cut}") == [], f"cut {image.cut}"
    assert promises > 1_000
