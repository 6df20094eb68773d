"""What tests of places share."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from kiseki.operations.places.port import LAST, Place

__all__ = ["child", "kill", "line_from", "published"]


async def published(place: Place, name: str, **files: bytes) -> None:
    """Publishes a folder with these files, and a manifest."""
    async with place.workspace(name) as folder:
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / LAST).write_bytes(b"manifest of " + name.encode())
        await place.publish(folder, name)


def child(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Another process, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_from(process: subprocess.Popen[str]) -> str:
    """The next line that it prints; fails when it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()}"
    return line.strip()


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9, and waits until it is gone."""
    with process:
        process.send_signal(signal.SIGKILL)
