"""Given, when, then for deciders: `scenario(user_account).given(…).when(…).then(…)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from kiseki.kernel.command import Command, CommandMetadata
from kiseki.kernel.decider import Claim, Decider, Rejected
from kiseki.kernel.event import Event

__all__ = ["Decided", "Given", "Scenario", "scenario"]

C = TypeVar("C", bound=Command)
S = TypeVar("S")
E = TypeVar("E", bound=Event)

_WHEN = datetime(2000, 1, 1, tzinfo=UTC)


def scenario(decider: Decider[C, S, E]) -> Scenario[C, S, E]:
    """Starts a test of one decider."""
    return Scenario(decider)


class Scenario(Generic[C, S, E]):
    """A decider before anything has happened."""

    def __init__(self, decider: Decider[C, S, E]) -> None:
        self._decider = decider

    def given(self, *events: E) -> Given[C, S, E]:
        """The facts so far, in order."""
        state = self._decider.initial
        for event in events:
            state = self._decider.evolve(state, event)
        return Given(self._decider, state)

    def when(self, command: C, *, now: datetime = _WHEN, stream_id: str = "test") -> Decided[S, E]:
        """A command to a stream where nothing has happened."""
        return self.given().when(command, now=now, stream_id=stream_id)


class Given(Generic[C, S, E]):
    """A decider with a state."""

    def __init__(self, decider: Decider[C, S, E], state: S) -> None:
        self._decider = decider
        self.state = state

    def when(self, command: C, *, now: datetime = _WHEN, stream_id: str = "test") -> Decided[S, E]:
        """What the decider makes of a command, at a time (UTC)."""
        metadata = CommandMetadata(command_id="test-command", stream_id=stream_id, now=now, correlation_id="test")
        stamped = dataclasses.replace(command, metadata=metadata)
        try:
            events = tuple(self._decider.decide(stamped, self.state))
        except Rejected as rejection:
            return Decided((), rejection, self.state, ())
        state = self.state
        claims: list[Claim] = []
        for event in events:
            if self._decider.claims is not None:
                claims.extend(self._decider.claims(state, event))
            state = self._decider.evolve(state, event)
        return Decided(events, None, state, tuple(claims))


class Decided(Generic[S, E]):
    """The outcome of one command."""

    def __init__(self, events: tuple[E, ...], rejection: Rejected | None, state: S, claims: tuple[Claim, ...]) -> None:
        self.events = events
        self.rejection = rejection
        self.state = state
        self.claims = claims

    def then(self, *expected: E) -> Decided[S, E]:
        """These events and no others, in order. Raises AssertionError."""
        if self.rejection is not None:
            raise AssertionError(f"expected events, but it was rejected: {self.rejection.code}")
        if self.events != expected:
            raise AssertionError(f"expected {_shown(expected)}, got {_shown(self.events)}")
        return self

    def then_nothing(self) -> Decided[S, E]:
        """No event and no rejection. Raises AssertionError."""
        return self.then()

    def then_rejected(self, code: str) -> Decided[S, E]:
        """A rejection with this code. Raises AssertionError."""
        if self.rejection is None:
            raise AssertionError(f"expected a rejection {code}, got {_shown(self.events)}")
        if self.rejection.code != code:
            raise AssertionError(f"expected a rejection {code}, got {self.rejection.code}")
        return self

    def then_claims(self, *expected: Claim) -> Decided[S, E]:
        """These claims, in order. Raises AssertionError."""
        if self.claims != expected:
            raise AssertionError(f"expected the claims {expected}, got {self.claims}")
        return self


def _shown(events: Sequence[Any]) -> str:
    """Events with their values: in a test the data is the test's own."""
    if not events:
        return "no event"
    return ", ".join(
        f"{type(event).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(event).items())})"
        for event in events
    )
