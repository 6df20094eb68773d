"""`Circuit`: stops calls to a store that does not answer, so that callers fail at once instead of each after a timeout.

Pure: time comes from the caller's clock. Used by the clients of stores that are reached through a network.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Circuit", "CircuitOpen"]


class CircuitOpen(Exception):
    """No call may go now. Never leaves the client, which knows what to say about it."""

    def __init__(self, seconds: float) -> None:
        """`seconds` until a call may try."""
        super().__init__(f"open for {seconds:g} s")
        self.seconds = seconds


class Circuit:
    """Closed: calls may go. Open: they may not. Half open: one may go, and its end closes or opens it again.

    It opens when `failures` calls in a row failed and the first of them did so at least `window` seconds ago: many
    connections that a server drops at one moment are no outage.
    """

    def __init__(
        self, *, clock: Callable[[], float], failures: int = 8, window: float = 0.5, pause: float = 1.0
    ) -> None:
        """`clock` gives seconds that never go back. `pause`: how long it stays open before one call may try."""
        self._clock = clock
        self._failures = failures
        self._window = window
        self._pause = pause
        self._failed = 0
        self._first_failure = 0.0
        self._open_until: float | None = None
        self._probing = False

    def enter(self) -> bool:
        """Before a call; it then has to end with one of the other three, which get what this returned: whether the call
        is the one that tries. Raises CircuitOpen."""
        if self._open_until is None:
            return False
        wait = self._open_until - self._clock()
        if wait > 0 or self._probing:
            raise CircuitOpen(max(wait, 0.0))
        self._probing = True
        return True

    def succeeded(self, probe: bool) -> None:
        """The store answered, whatever it said."""
        self._failed = 0
        self._open_until = None
        self._probing = self._probing and not probe

    def failed(self, probe: bool) -> bool:
        """The store did not answer. Whether that opened a closed circuit."""
        now = self._clock()
        if probe:
            self._probing = False
            self._open_until = now + self._pause
        elif self._open_until is None:
            if self._failed == 0:
                self._first_failure = now
            self._failed += 1
            if self._failed >= self._failures and now - self._first_failure >= self._window:
                self._open_until = now + self._pause
                return True
        return False

    def left(self, probe: bool) -> None:
        """The call ended without saying anything about the store: its caller went away."""
        self._probing = self._probing and not probe
