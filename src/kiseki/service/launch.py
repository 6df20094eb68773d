"""`Launch`: what a supervisor tells a process it starts, as one line of JSON on its standard input.

The line goes through a pipe and not through arguments or the environment, which others could read. The pipe stays open:
on it the supervisor says when to stop, and when it ends the supervisor is gone, and the process does not live on alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.service.kinds import Parts
from kiseki.service.settings import Settings

__all__ = ["STOP", "SUPERVISOR_GONE", "SUPERVISOR_SAYS_SO", "BadLaunch", "Launch", "read_launch", "watch_supervisor"]

STOP: Final = b"stop\n"
"""What the supervisor writes to have a process shut down; again to have it hurry."""

SUPERVISOR_SAYS_SO: Final = "the supervisor says so"
SUPERVISOR_GONE: Final = "the supervisor is gone"
"""Why a process under a supervisor shuts down, when all the others do too."""


class BadLaunch(KisekiError):
    """A worker was started by something other than a supervisor."""

    code = "BAD_LAUNCH"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to run one process."""

    name: str
    parts: Parts
    application: str | None
    """`package.module:attribute`, None for the shipped application."""
    settings: Mapping[str, Any]
    sockets: Mapping[str, int]
    """Inherited listening sockets (file descriptors), by API."""
    control: str
    """The Unix socket on which it answers its supervisor."""

    def line(self) -> bytes:
        """As sent."""
        return msgspec.json.encode(self) + b"\n"

    def read_settings(self) -> Settings:
        """The settings, as the supervisor validated them."""
        return Settings(**self.settings)


def read_launch(descriptor: int) -> Launch:
    """Reads the line. Raises BadLaunch."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 1)
        if not part:
            break
        line += part
    try:
        return msgspec.json.decode(line, type=Launch)
    except msgspec.DecodeError as problem:
        raise BadLaunch("`kiseki worker` is started by `kiseki serve --workers`, not by hand") from problem


def watch_supervisor(descriptor: int, told: Callable[[str], None]) -> None:
    """Calls `told` with the cause, on the event loop, for each time the supervisor says stop, and when it is gone."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)

    def readable() -> None:
        try:
            said = os.read(descriptor, 1024)
        except BlockingIOError:
            return
        for _ in range(said.count(STOP)):
            told(SUPERVISOR_SAYS_SO)
        if not said:
            loop.remove_reader(descriptor)
            told(SUPERVISOR_GONE)

    loop.add_reader(descriptor, readable)
