"""Compile the shim, run a program under it, and check that nothing escaped it.

A test with a program of its own does this::

    shim = compile_shim(tmp_path)
    run_under_shim([sys.executable, script, data], data, trace_path, os.environ, shim=shim)
    trace = load_trace(trace_path)
    assert_complete(trace, data)
    for image in images(trace, choose_cuts(trace, 200, seed=1), Mode.TORN, seed=1):
        image.write_to(fresh)  # then open the store there and look for image.acknowledged

where the script, after each durable reply, writes one line to ``<data>/ACK`` with one unbuffered
write.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from .records import ACK, Trace, TraceError, base_of
from .replay import Mode, images

SYNC_SECONDS: Final = 0.0005
"""How long a sync takes under the shim: the same on every disk, and time for commits to gather."""

_SOURCE: Final = Path(__file__).with_name("shim.c")


def find_compiler() -> str:
    """The C compiler; skips the calling test when there is none."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return found
    pytest.skip("no C compiler (cc, gcc or clang): the power-cut shim cannot be built")


def compile_shim(tmp_dir: Path) -> Path:
    """Build the shim into ``tmp_dir``; skip the calling test where that cannot be done."""
    if sys.platform != "linux" or sys.maxsize < 2**32 or sys.byteorder != "little":
        pytest.skip("the power-cut shim needs 64-bit little-endian Linux")
    library = tmp_dir / "powercut-shim.so"
    options = "-std=gnu11 -O2 -Wall -Wextra -U_FORTIFY_SOURCE -fPIC -shared -fvisibility=hidden"
    subprocess.run(
        [find_compiler(), *options.split(), "-o", library, _SOURCE, "-lpthread"],
        check=True,
        timeout=60,
    )
    return library


def run_under_shim(
    argv: Sequence[str | Path],
    directory: Path,
    trace: Path,
    env: Mapping[str, str],
    *,
    shim: Path,
    sync_seconds: float | None = SYNC_SECONDS,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and record what it does below ``directory``.

    Args:
        argv: the program; what it starts is recorded too, as long as it passes its environment on.
        directory: the directory to watch; it must exist. What it holds already counts as durable.
        trace: the file to append to, outside of ``directory``. Runs that share it form one history.
        env: the environment of the program.
        shim: what ``compile_shim`` returned.
        sync_seconds: how long each sync takes instead of reaching the disk; None for real syncs.
        timeout: seconds until the program is killed.

    Raises:
        subprocess.CalledProcessError: the program failed; its output is part of the error's notes.
        TraceError: the program does not load the shim (a static one, or an environment cleared).
    """
    prepared = _prepare(directory, trace, env, shim, sync_seconds)
    seen = trace.stat().st_size
    result = subprocess.run(
        argv,
        env=prepared,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode != 0:
        error = subprocess.CalledProcessError(result.returncode, argv, result.stdout, result.stderr)
        error.add_note(result.stdout + result.stderr)
        raise error
    if trace.stat().st_size == seen:
        raise TraceError(f"{argv[0]} left no record: it does not load the shim")
    return result


def start_under_shim(
    argv: Sequence[str | Path],
    directory: Path,
    trace: Path,
    env: Mapping[str, str],
    *,
    shim: Path,
    sync_seconds: float | None = SYNC_SECONDS,
) -> subprocess.Popen[bytes]:
    """The same for a program that keeps running (a server); the caller ends it.

    Its output goes where the caller's goes. A client that is not under the shim itself marks what
    it was promised with ``records.acknowledge(trace, text)``.
    """
    return subprocess.Popen(argv, env=_prepare(directory, trace, env, shim, sync_seconds))


def assert_complete(trace: Trace, directory: Path) -> None:
    """The trace, replayed with nothing lost, gives the directory byte for byte.

    Without this a change made by a call that the shim does not know would go unnoticed. Call it
    when every recorded program has ended.
    """
    (image,) = images(trace, [len(trace)], Mode.KEEP, seed=0)
    actual = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }
    actual.pop(ACK, None)
    assert sorted(image.files) == sorted(actual), "the trace and the directory hold different files"
    different = [name for name, content in actual.items() if image.files[name] != content]
    assert not different, f"contents changed by a call that the shim does not record: {different}"


def _not_persistent(directory: str, names: Sequence[str]) -> set[str]:
    """What a base leaves out: marks, the shared memory of a WAL, sockets and pipes."""
    left_out = {name for name in names if name == ACK or name.endswith("-shm")}
    for name in names:
        path = Path(directory, name)
        if not path.is_file() and not path.is_dir():
            left_out.add(name)
    return left_out


def _prepare(
    directory: Path,
    trace: Path,
    env: Mapping[str, str],
    shim: Path,
    sync_seconds: float | None,
) -> dict[str, str]:
    directory, trace = directory.resolve(), trace.resolve()
    if trace.is_relative_to(directory):
        raise ValueError(f"the trace {trace} must not be inside the watched directory {directory}")
    if not trace.exists():
        trace.touch()
        if any(directory.iterdir()):
            shutil.copytree(directory, base_of(trace), ignore=_not_persistent)
    prepared = dict(env)
    prepared["LD_PRELOAD"] = ":".join(filter(None, (str(shim.resolve()), env.get("LD_PRELOAD"))))
    prepared["POWERCUT_DIRECTORY"] = str(directory)
    prepared["POWERCUT_TRACE"] = str(trace)
    prepared.pop("POWERCUT_SYNC_MICROSECONDS", None)
    if sync_seconds is not None:
        prepared["POWERCUT_SYNC_MICROSECONDS"] = str(round(sync_seconds * 1_000_000))
    return prepared
