"""`Child`: one process under a supervisor: started, watched, started again when it dies, and ended.

Used by the supervisor of `--workers`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from kiseki.kernel.errors import KisekiError
from kiseki.service.control import NoAnswer, ask
from kiseki.service.launch import STOP, Launch

__all__ = ["Child", "ChildFailed"]

_log = logging.getLogger(__name__)

_POLL: Final = 0.05
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_SETTLED: Final = 60.0
"""After this many seconds of life a process that dies is started again without the long pause."""


class ChildFailed(KisekiError):
    """A process of the service ended while it was starting. `already_told`: it has said why itself."""

    code = "CHILD_FAILED"

    def __init__(self, message: str, *, already_told: bool) -> None:
        super().__init__(message)
        self.already_told = already_told


class Child:
    """A process, through all its incarnations. `stop_requested` returns once it is not to be started again."""

    def __init__(self, launch: Launch, *, stop_requested: Callable[[], Awaitable[None]]) -> None:
        self.name = launch.name
        self.control = Path(launch.control)
        self.incarnation = 0
        self.waits_for: str | None = None
        """What it waits for before it serves; None when it serves."""
        self._launch = launch
        self._stop_requested = stop_requested
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._heard = 0.0

    @property
    def running(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None and self._process.returncode is None

    @property
    def silent(self) -> float:
        """For how many seconds it has not answered `look`, or has not been there long enough to answer."""
        return asyncio.get_running_loop().time() - self._heard if self.running else 0.0

    async def start(self) -> None:
        """Starts the process and returns when it serves or waits for a store, or when shutdown was asked for.

        Raises ChildFailed.
        """
        await self._spawn()
        stopping = asyncio.ensure_future(self._stop_requested())
        try:
            while not stopping.done() and not await self.has_begun():
                await asyncio.wait([stopping], timeout=_POLL)
        finally:
            stopping.cancel()

    async def has_begun(self) -> bool:
        """Whether the process that was started serves, or waits (`waits_for` says for what). Raises ChildFailed when it
        has ended instead."""
        try:
            reply = await ask(self.control, "/startup", within=1.0)
        except NoAnswer:
            if not self.running:
                told = self._process is not None and self._process.returncode == 1
                failed = ChildFailed(f"{self.name} {self._how_it_ended()} while it was starting", already_told=told)
                self._process = None
                raise failed from None
            return False
        self.waits_for = None if reply.status == 200 else _cause(reply.body)
        return reply.status == 200 or self.waits_for is not None

    async def look(self, within: float) -> None:
        """Asks the process, in `within` seconds, for a sign of life."""
        if not self.running:
            return
        process = self._process
        try:
            await ask(self.control, "/alive", within=within)
        except NoAnswer:
            return
        if process is self._process:
            self._heard = asyncio.get_running_loop().time()

    def keep(self) -> None:
        """From here on the process is started again whenever it dies."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def stop(self) -> None:
        """Tells the process to shut down; again to have it hurry."""
        if self._process is not None and self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.write(STOP)

    async def ended(self, within: float) -> str | None:
        """Returns when the process has ended; it is killed after `within` seconds. Says what was wrong with its end."""
        try:
            async with asyncio.timeout(within):
                if self._keeper is not None:
                    # It may be starting the process again at this moment; that one ends too.
                    await asyncio.wait([self._keeper])
                elif self._process is not None:
                    await self._process.wait()
        except TimeoutError:
            await self.kill()
            return f"{self.name} has not ended after {within:g} s and was killed"
        if self._process is not None and self._process.returncode:
            return f"{self.name} {self._how_it_ended()}"
        return None

    async def kill(self) -> None:
        """Ends the process at once, for ever."""
        if self._keeper is not None:
            self._keeper.cancel()
        self.end_now()
        if self._process is not None:
            await self._process.wait()

    def end_now(self) -> None:
        """Ends the process that is there at once; one that is kept is started again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _spawn(self) -> None:
        self.incarnation += 1
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kiseki",
            "worker",
            stdin=asyncio.subprocess.PIPE,
            pass_fds=tuple(self._launch.sockets.values()),
        )
        self._heard = asyncio.get_running_loop().time()
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        try:
            self._process.stdin.write(self._launch.line())
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended already; whoever waits for it finds out

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        stopping = asyncio.ensure_future(self._stop_requested())
        try:
            while self._process is not None:
                begun = loop.time()
                await self._process.wait()
                if stopping.done():
                    return
                if loop.time() - begun > _SETTLED:
                    pause = _FIRST_PAUSE
                how = self._how_it_ended()
                spawned = False
                while not spawned:
                    _log.error("%s %s; it is started again in %g s", self.name, how, pause)
                    await asyncio.wait([stopping], timeout=pause)
                    if stopping.done():
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    try:
                        await self._spawn()
                        spawned = True
                    except OSError as problem:
                        how = f"can't be started ({os.strerror(problem.errno or 0)})"
                if stopping.done():
                    self.stop()
        finally:
            stopping.cancel()

    def _how_it_ended(self) -> str:
        code = None if self._process is None else self._process.returncode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def _cause(body: bytes) -> str | None:
    """What a process that answered that it is starting waits for."""
    try:
        cause = msgspec.json.decode(body)["cause"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return str(cause)
