"""`Watchers`: functions to call when something came. Used by journals, and by catalogs of builds for requests."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["Watchers"]

_log = logging.getLogger(__name__)


class Watchers:
    """Those who wait for something, in the order they came. Belongs to one event loop."""

    def __init__(self, awaited: str) -> None:
        """`awaited` ends the sentence "a function that waits for …", for the log."""
        self._awaited = awaited
        self._wakes: dict[object, Callable[[], None]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._wakes)

    def add(self, wake: Callable[[], None], *, nobody_left: Callable[[], object] | None = None) -> Callable[[], None]:
        """Has `wake` called until the returned function is called; that calls `nobody_left` when it was the last."""
        watcher = object()
        self._wakes[watcher] = wake

        def end() -> None:
            self._wakes.pop(watcher, None)
            if nobody_left is not None and not self._wakes:
                nobody_left()

        return end

    def wake(self) -> None:
        """Calls all of them. One that fails is logged, and does not keep the others from it."""
        for wake in tuple(self._wakes.values()):
            try:
                wake()
            except Exception:  # noqa: BLE001  # as a callback on the loop would be
                _log.exception("a function that waits for %s failed", self._awaited)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._wakes.clear()
