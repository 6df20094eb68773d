"""`Parts`: which parts of a service one process runs, and where it listens. Used by composition and supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["PARTS", "Listening", "Parts"]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a process runs. `kiseki serve` runs all three; the other commands, and workers, run some."""

    command: bool = False
    query: bool = False
    updater: bool = False

    @property
    def apis(self) -> tuple[str, ...]:
        """The names of the APIs it serves."""
        return ("command",) * self.command + ("query",) * self.query

    @property
    def without_updater(self) -> Parts:
        """The same APIs alone."""
        return Parts(command=self.command, query=self.query)


PARTS: Final[Mapping[str, Parts]] = {
    "serve": Parts(command=True, query=True, updater=True),
    "command-api": Parts(command=True),
    "query-api": Parts(query=True),
    "updater": Parts(updater=True),
}
"""What each command of `kiseki` that starts a process runs."""


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """The ports that were really bound."""

    ports: Mapping[str, int]
    """By API."""
    management: int
    token: str | None = None
    """In the development profile, with a key of its own: a token with every role."""
