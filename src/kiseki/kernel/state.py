"""`State`, `ValueObject`: what a decider remembers, and values with several parts."""

from __future__ import annotations

from kiseki.kernel.record import Record

__all__ = ["State", "ValueObject"]


class State(Record):
    """Base of the states of a decider: immutable, one class per case (`NotCreated | Active | Deleted`)."""


class ValueObject(Record):
    """Base of values with several parts, such as a person's name."""
