"""Waking those who follow the DynamoDB journal. Used by the DynamoDB journal only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from kiseki.journal.dynamodb.changes import ChangeStream
from kiseki.journal.watchers import Watchers
from kiseki.kernel.errors import KisekiError

__all__ = ["StreamWatchers"]

_log = logging.getLogger(__name__)

_LONGEST_PAUSE: Final = 10.0


class StreamWatchers:
    """Those who want to be woken. While there are some, one task looks at the ends of the stream of changes."""

    def __init__(self, *, poll: float) -> None:
        """Looks every `poll` seconds; less often while DynamoDB can't be used."""
        self._poll = poll
        self._watchers = Watchers("the journal to grow")
        self._looking: asyncio.Task[None] | None = None
        self._is_waking = False

    def add(self, wake: Callable[[], None], changes: ChangeStream) -> Callable[[], None]:
        """Calls `wake` when there is something new, until the returned function is called."""
        end = self._watchers.add(wake, nobody_left=self._stop)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(
                self._look(changes), name="look at DynamoDB's stream"
            )
        return end

    def wake(self) -> None:
        """Wakes all of them, soon; once for several calls."""
        if self._watchers and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self._watchers.wake()

    async def _look(self, changes: ChangeStream) -> None:
        pause = self._poll
        while True:
            try:
                await changes.look()
                pause = self._poll
            except KisekiError as problem:
                pause = min(2 * pause, _LONGEST_PAUSE)
                _log.warning("looking for new commits failed: %s", problem)
            except Exception:  # noqa: BLE001  # a defect, but those who follow are still to be woken later
                pause = _LONGEST_PAUSE
                _log.exception("looking for new commits failed")
            await asyncio.sleep(pause)

    def _stop(self) -> asyncio.Task[None] | None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        return looking

    async def close(self) -> None:
        """Nobody is woken any more."""
        self._watchers.clear()
        looking = self._stop()
        if looking is not None:
            await asyncio.wait([looking])
