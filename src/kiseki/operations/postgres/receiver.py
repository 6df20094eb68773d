"""`WalReceiver`: keeps pg_receivewal running, which writes the log of a server into a folder as it is made.

Used by the protection. The child dies with this process; when it dies alone it is started again, after a pause that
grows while it fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.operations.errors import OperatorBusy
from kiseki.operations.postgres.child import Child, explained, refused_password
from kiseki.operations.postgres.programs import PostgresPrograms

__all__ = ["LOST", "WalReceiver"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
LOST: Final = "has already been removed"
"""What a server says of log that it has no more."""


class WalReceiver:
    """One pg_receivewal at a time, into one folder."""

    def __init__(self, address: PostgresAddress, programs: PostgresPrograms, *, slot: str, folder: Path) -> None:
        self._address = address
        self._programs = programs
        self._slot = slot
        self._folder = folder
        self._task: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self.problem: KisekiError | None = None
        """Why it does not run; None while it does."""
        self.starts = 0
        self.failures = 0
        """Since somebody last found that it receives."""

    @property
    def process_id(self) -> int | None:
        """Of the child that runs now."""
        return None if self._child is None or self._child.ended else self._child.process_id

    async def begin(self, program: Path, *, segment: int) -> None:
        """Starts to receive files of so many bytes each; again is fine."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(program, segment), name=f"log of {self._address.label}")

    async def end(self) -> None:
        """Stops receiving; again is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.problem = None

    async def _run(self, program: Path, segment: int) -> None:
        pause, renewed = _FIRST_PAUSE, False
        loop = asyncio.get_running_loop()
        arguments = [
            f"--directory={self._folder}",
            f"--slot={self._slot}",
            "--synchronous",
            "--no-loop",
            "--no-password",
            "--status-interval=1",
        ]
        while True:
            began = loop.time()
            try:
                await asyncio.to_thread(self._remove_unfinished, segment)
                self._child = await self._programs.start(program, arguments, address=self._address, renewed=renewed)
                self.starts += 1
                self.problem = None
                code, _, complaint = await self._child.finished()
                renewed = refused_password(complaint) and not renewed
                self.problem = self._explained(complaint, code)
            except KisekiError as problem:
                self.problem = problem
            except OSError as problem:
                self.problem = Unavailable(f"pg_receivewal can't be started: {problem}")
            finally:
                if self._child is not None:
                    await self._child.stop()
            self.failures += 1
            if loop.time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            _log.warning("receiving the log of %s stopped, and is begun again: %s", self._address.label, self.problem)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _remove_unfinished(self, segment: int) -> None:
        """A file that the disk had no room for: nothing was written into it yet, and pg_receivewal would stop at it."""
        for path in self._folder.glob("*.partial"):
            if 0 < path.stat().st_size < segment:
                path.unlink()

    def _explained(self, complaint: str, code: int) -> KisekiError:
        if "is active for PID" in complaint:
            return OperatorBusy(
                f"another process receives the log of {self._address.label} through the slot {self._slot}; end it, or "
                "let it go on alone"
            )
        return explained("pg_receivewal", complaint, code, self._address.label)
