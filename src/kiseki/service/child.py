"""`Child`: one process under a supervisor: started, watched, started again when it dies, and ended.

Used by the supervisor of `--workers`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

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
        self._launch = launch
        self._stop_requested = stop_requested
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process and returns when it serves or waits for a store, or when shutdown was asked for.

        Raises ChildFailed.
        """
        await self._spawn()
        stopping = asyncio.ensure_future(self._stop_requested())
        try:
            while not stopping.done() and not await self._started():
                if not self.running:
                    raise ChildFailed(
                        f"{self.name} {self._how_it_ended()} while it was starting",
                        already_told=self._process is not None and self._process.returncode == 1,
                    )
                await asyncio.wait([stopping], timeout=_POLL)
        finally:
            stopping.cancel()

    def keep(self) -> None:
        """From here on the process is started again whenever it dies."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def stop(self) -> None:
        """Tells the process to shut down; again to have it hurry."""
        if self._process is not None and self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.write(STOP)

    async def ended(self, within: float) -> None:
        """Returns when the process has ended; it is killed after `within` seconds."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(within):
                await self._process.wait()
        except TimeoutError:
            _log.error("%s has not ended after %g s and is killed", self.name, within)
            await self.kill()
        if self._process.returncode:
            _log.error("%s %s", self.name, self._how_it_ended())

    async def kill(self) -> None:
        """Ends the process at once."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

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
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        try:
            self._process.stdin.write(self._launch.line())
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended already; whoever waits for it finds out

    async def _started(self) -> bool:
        try:
            reply = await ask(self.control, "/startup", within=1.0)
        except NoAnswer:
            return False
        return reply.status == 200 or b'"waiting"' in reply.body

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
                _log.error("%s %s; it is started again in %g s", self.name, self._how_it_ended(), pause)
                await asyncio.wait([stopping], timeout=pause)
                if stopping.done():
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)
                await self._spawn()
                if stopping.done():
                    self.stop()
        finally:
            stopping.cancel()

    def _how_it_ended(self) -> str:
        code = None if self._process is None else self._process.returncode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"
