"""`Subscription`: what of the journal a projection follows, and so which streams need a guard.

Used by the projector (what to apply, skip, or park) and by whoever waits for a projection (what to wait for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kiseki.kernel.decider import Decider
from kiseki.kernel.streams import aggregate_type_of
from kiseki.projection.port import Definition
from kiseki.projection.projection import Projection

__all__ = ["Subscription", "follows_of"]


class Subscription:
    """The streams and events that one projection follows, among those of an application.

    - A stream of an aggregate type with at least one followed event has a guard: its followed events are applied, its
      other known ones only move the guard.
    - A stream of any other aggregate type of the application is passed by and needs no guard: the projection can
      never need it (following its type later is another definition, hence another version, built from the start).
    - A stream of an aggregate type that the application does not know holds unknown events: it is parked, because a
      newer application, to which this build may be handed over, may follow it.
    """

    def __init__(self, projection: Projection, deciders: Iterable[Decider[Any, Any, Any]]) -> None:
        self.projection = projection
        self.event_names = projection.event_names
        known_types = set()
        followed_types = set()
        known_events = set()
        for decider in deciders:
            names = {event_type.event_type.name for event_type in decider.event_types}
            known_types.add(decider.aggregate_type)
            known_events |= names
            if names & self.event_names:
                followed_types.add(decider.aggregate_type)
        self._passed_by = frozenset(known_types - followed_types)
        self._followed = frozenset(followed_types)
        self.definition = Definition(
            known=frozenset({f"aggregate:{t}" for t in known_types} | {f"event:{e}" for e in known_events}),
            followed=frozenset({f"aggregate:{t}" for t in followed_types} | {f"event:{e}" for e in self.event_names}),
        )

    def __repr__(self) -> str:
        return f"Subscription({self.projection!r})"

    def concerns(self, stream: str) -> bool:
        """Whether the projector must look at a stream's events: it is followed, or of an unknown aggregate type."""
        return aggregate_type_of(stream) not in self._passed_by

    def follows(self, stream: str) -> bool:
        """Whether the stream has a guard, so that its progress can be waited for."""
        return aggregate_type_of(stream) in self._followed


def follows_of(
    projections: Iterable[Projection], deciders: Sequence[Decider[Any, Any, Any]]
) -> Callable[[Projection, str], bool]:
    """Whether a projection of an application keeps a guard for a stream, for whoever waits for it."""
    subscriptions = {projection.name: Subscription(projection, deciders) for projection in projections}
    return lambda projection, stream: subscriptions[projection.name].follows(stream)
