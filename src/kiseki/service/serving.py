"""`Serving`: what the requests of one server share: whether it drains, which are in flight, and when they are late.

Used by the HTTP apps, by the servers and by shutdown. Deadlines are swept, not set: a timer for every request would
cost more than the rest of this shell.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Serving", "Ticket"]

SWEEP_INTERVAL: Final = 0.25
"""Seconds between two looks at deadlines, and so their precision."""


class Ticket:
    """One request in flight. `late` says that its deadline passed, which is why its task was cancelled."""

    __slots__ = ("deadline", "late", "task")

    def __init__(self, task: asyncio.Task[object] | None, deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.late = False


class Serving:
    """The state of one server. Not shared between event loops."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tickets: set[Ticket] = set()
        self._end = math.inf
        self.draining = False
        """Answers ask the client to close the connection."""
        self.unbound = False
        """Nothing new is accepted; requests on kept-alive connections are refused."""

    @property
    def in_flight(self) -> int:
        """How many requests are being handled."""
        return len(self._tickets)

    def enter(self, seconds: float) -> Ticket:
        """Begins a request of the current task; it is cancelled when it has not ended in this time."""
        ticket = Ticket(asyncio.current_task(), min(self._clock() + seconds, self._end))
        self._tickets.add(ticket)
        return ticket

    def extend(self, ticket: Ticket, seconds: float) -> None:
        """Gives a request this much time from now, or what is left until all requests have to end."""
        ticket.deadline = min(self._clock() + seconds, self._end)

    def leave(self, ticket: Ticket) -> None:
        """Ends a request."""
        self._tickets.discard(ticket)

    def unbind(self) -> None:
        """From here on nothing new is accepted."""
        self.draining = self.unbound = True

    def end_within(self, seconds: float) -> None:
        """From here on no request has more than these seconds, whatever it was given; what is late is answered so."""
        self._end = self._clock() + seconds
        for ticket in self._tickets:
            ticket.deadline = min(ticket.deadline, self._end)

    def sweep(self) -> None:
        """Cancels the requests whose deadline has passed."""
        now = self._clock()
        for ticket in tuple(self._tickets):
            if ticket.deadline <= now and not ticket.late and ticket.task is not None:
                ticket.late = True
                ticket.task.cancel()

    async def sweep_forever(self) -> None:
        """Sweeps until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self.sweep()
