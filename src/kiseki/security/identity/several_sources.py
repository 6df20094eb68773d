"""`SeveralSources`: keys of tokens from more than one place, as while one issuer takes over from another.

Used by the composition root.
"""

from __future__ import annotations

from collections.abc import Sequence

from kiseki.security.identity.key_sources import KeySource
from kiseki.security.identity.keys import VerificationKey

__all__ = ["SeveralSources"]


class SeveralSources:
    """A KeySource that asks others in order; the first that has keys for a token is the one."""

    def __init__(self, sources: Sequence[KeySource]) -> None:
        self._sources = tuple(sources)

    @property
    def generation(self) -> int:
        """As KeySource."""
        return sum(source.generation for source in self._sources)

    async def start(self) -> None:
        """As KeySource."""
        for source in self._sources:
            await source.start()

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """As KeySource."""
        for source in self._sources:
            found = await source.find(algorithm, key_id)
            if any(key.algorithm == algorithm for key in found):
                return found
        return ()

    async def close(self) -> None:
        """As KeySource."""
        for source in self._sources:
            await source.close()
