"""`SeveralSources`: keys of tokens from more than one place, as while one issuer takes over from another.

Used by the composition root.
"""

from __future__ import annotations

from collections.abc import Sequence

from kiseki.security.identity.key_sources import KeySource, KeysUnavailable
from kiseki.security.identity.keys import MAX_CANDIDATES, VerificationKey

__all__ = ["SeveralSources"]


class SeveralSources:
    """A KeySource that asks all others. A key with the token's key id goes before keys without any."""

    def __init__(self, sources: Sequence[KeySource]) -> None:
        self._sources = tuple(sources)

    @property
    def generation(self) -> int:
        """As KeySource."""
        # Asked for every request: a loop is half of what `sum` of a generator costs.
        generation = 0
        for source in self._sources:
            generation += source.generation
        return generation

    async def start(self) -> None:
        """As KeySource."""
        for source in self._sources:
            await source.start()

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """As KeySource. While one source can't be read, a token that names a key which no other has is not judged."""
        found: list[VerificationKey] = []
        unread: KeysUnavailable | None = None
        for source in self._sources:
            try:
                keys = await source.find(algorithm, key_id)
            except KeysUnavailable as problem:
                unread = problem
                continue
            named = [key for key in keys if key_id is not None and key.key_id == key_id]
            if named:
                return named
            found += keys
        if unread is not None and (key_id is not None or not found):
            raise unread
        fitting = [key for key in found if key.algorithm == algorithm]
        return (fitting or found)[:MAX_CANDIDATES]

    async def close(self) -> None:
        """As KeySource."""
        for source in self._sources:
            await source.close()
