"""`Backoff`: how long to wait before the next try while something is unavailable."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Waits that double from `initial` to `maximum` seconds, with jitter so that many waiters don't return at once.

    `jitter` gives numbers from 0 to 1; a wait is between half of its full length and the full length.
    """

    def __init__(self, *, initial: float, maximum: float, jitter: Callable[[], float]) -> None:
        self._initial = initial
        self._maximum = maximum
        self._jitter = jitter
        self._failures = 0

    def failed(self) -> float:
        """Counts a failure; the seconds to wait now."""
        # The exponent is bounded, because a float overflows after a thousand failures.
        full = min(self._maximum, self._initial * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return full * (0.5 + 0.5 * self._jitter())

    def succeeded(self) -> None:
        """Begins again from the shortest wait."""
        self._failures = 0
