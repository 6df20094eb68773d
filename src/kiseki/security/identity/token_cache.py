"""Tokens that were verified lately, so that the next request with one costs a hash. Used by `TokenIdentity`."""

from __future__ import annotations

from typing import Final

import msgspec

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import Principal
from kiseki.security.identity.claims import Claims

__all__ = ["Known", "TokenCache"]

_SWEEP_SECONDS: Final = 60.0


class Known(msgspec.Struct, frozen=True, gc=False):
    """What a verified token said."""

    claims: Claims
    principal: Principal
    until: float
    """Seconds of the epoch; from then on the token is refused."""


class TokenCache:
    """By the SHA-256 of the token's bytes, so that no token is in memory. The oldest go first when it is full."""

    def __init__(self, entries: int) -> None:
        """Holds at most `entries`; 0 turns it off. Raises DefinitionError."""
        if entries < 0:
            raise DefinitionError("the cache of tokens has 0 or more entries")
        self._most = entries
        self._known: dict[bytes, Known] = {}
        self._generation = 0
        self._swept_at = 0.0

    def get(self, digest: bytes, *, now: float, generation: int) -> Known | None:
        """What was put under the same generation of keys, unless its time has passed."""
        if generation != self._generation:
            self.clear(generation)
            return None
        known = self._known.get(digest)
        if known is not None and now >= known.until:
            del self._known[digest]
            return None
        return known

    def put(self, digest: bytes, known: Known, *, now: float, generation: int) -> None:
        """Remembers what was verified with the keys of `generation`; of another generation it is nothing."""
        if generation != self._generation or not self._most:
            return
        if now - self._swept_at >= _SWEEP_SECONDS or now < self._swept_at:
            self._swept_at = now
            for passed in [digest for digest, each in self._known.items() if now >= each.until]:
                del self._known[passed]
        if len(self._known) >= self._most and digest not in self._known:
            del self._known[next(iter(self._known))]
        self._known[digest] = known

    def forget(self, digest: bytes) -> None:
        """Of a token that was revoked."""
        self._known.pop(digest, None)

    def clear(self, generation: int) -> None:
        """Forgets all, since the keys changed."""
        self._known.clear()
        self._generation = generation

    def __len__(self) -> int:
        return len(self._known)
