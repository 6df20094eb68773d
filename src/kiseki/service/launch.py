"""`Launch`: what a supervisor tells a process it starts, as one line of JSON on its standard input.

The line goes through a pipe and not through arguments or the environment, which others could read. The pipe stays open:
when it ends, the supervisor is gone, and the process shuts down instead of living on alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.service.kinds import Parts
from kiseki.service.settings import Settings

__all__ = ["BadLaunch", "Launch", "read_launch", "watch_supervisor"]


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


def watch_supervisor(descriptor: int, gone: Callable[[], None]) -> None:
    """Calls `gone` on the event loop when the supervisor's end of the pipe is closed."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)

    def readable() -> None:
        try:
            ended = not os.read(descriptor, 1024)
        except BlockingIOError:
            return
        if ended:
            loop.remove_reader(descriptor)
            gone()

    loop.add_reader(descriptor, readable)
